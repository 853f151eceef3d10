//! How often a container was refused a process because it has as many as it may, counted by the pids controller of its control group
//! (the kernel's `admin-guide/cgroup-v2`, `pids.events`; version 1 has the same file).

use std::{io, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use futures::{Stream, stream};

use super::control_group;

/// How often the count is looked at. The kernel tells that it has grown with version 2 alone, and a look takes a microsecond or two.
const LOOK: Duration = Duration::from_millis(200);

/// The file, from the text of `/proc/PID/cgroup`. Pure.
fn events_file(groups: &str) -> Option<PathBuf> {
    Some(control_group::directory(groups, "pids")?.join("pids.events"))
}

/// The count in such a file: `max 12`.
fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
}

/// The count, at once and whenever it has grown, for the container of a process; ends with the container.
///
/// # Errors
/// `NotFound` when there is no such process; others when there is no such count.
pub(super) async fn refused(pid: i64) -> io::Result<impl Stream<Item = u64> + Send + 'static> {
    let groups = tokio::fs::read_to_string(format!("/proc/{pid}/cgroup")).await?;
    let path = events_file(&groups).ok_or_else(|| io::Error::other("it is in no control group of the kind"))?;
    // Read from memory: that does not block.
    let file = std::fs::File::open(&path).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    Ok(stream::unfold((file, None), |(file, before)| async move {
        loop {
            let count = count(&file)?;
            if Some(count) > before {
                return Some((count, (file, Some(count))));
            }
            tokio::time::sleep(LOOK).await;
        }
    }))
}

/// `None` when the control group is gone.
fn count(file: &std::fs::File) -> Option<u64> {
    let mut text = [0; 128];
    let length = file.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(&text[..length]).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_count_is() {
        let first = "9:name=systemd:/docker/ab\n8:pids:/docker/ab\n1:cpu,cpuacct:/docker/ab\n0::/docker/ab\n";
        assert_eq!(events_file(first).unwrap().to_str(), Some("/sys/fs/cgroup/pids/docker/ab/pids.events"));
        let second = "0::/system.slice/docker-ab.scope\n";
        let unified = "/sys/fs/cgroup/system.slice/docker-ab.scope/pids.events";
        assert_eq!(events_file(second).unwrap().to_str(), Some(unified));
        assert_eq!(events_file(""), None);
        assert_eq!((parse("max 12\n"), parse("low 3\nmax 0\n"), parse("")), (Some(12), Some(0), None));
    }
}
