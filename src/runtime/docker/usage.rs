//! What replicas use, from the kernel's own files: the control group of a container (version 1 and 2) and its network's counters
//! (`proc(5)`, `/proc/PID/net/dev`). That costs some tens of microseconds each and the engine nothing. Only where those files cannot be read
//! or are not the container's (an engine elsewhere, a server in a container) is the engine asked.

use std::{collections::BTreeMap, fs, io, path::Path};

use bollard::{models::ContainerStatsResponse, query_parameters::StatsOptionsBuilder};
use futures::{StreamExt, stream};

use super::{
    Inner, control_group,
    engine::{failed, status, whole},
};
use crate::{
    domain::ReplicaId,
    runtime::{RuntimeError, Usage},
};

/// Containers that the engine is asked about at once, where it has to be.
const ASKED_AT_ONCE: usize = 4;
/// A limit from here on is none: version 1 writes the largest number of pages.
const NO_LIMIT: u64 = 1 << 62;

/// What became of reading the kernel's files.
enum Read {
    Found(Usage),
    /// The process has ended.
    Gone,
    /// Only the engine can tell.
    Unreadable,
}

impl Inner {
    /// See [`crate::runtime::Runtime::usage`].
    pub(super) async fn usage(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, Usage>, RuntimeError> {
        let mut processes = Vec::with_capacity(replicas.len());
        for replica in replicas {
            if let Some(pid) = self.known_process(replica).await? {
                processes.push((replica.clone(), pid));
            }
        }
        // From memory, but for hundreds of replicas, and memory's statistics take the kernel a moment.
        let read = tokio::task::spawn_blocking(move || {
            processes.into_iter().map(|(replica, pid)| (read(&replica.0, pid), replica)).collect::<Vec<_>>()
        });
        let read = read.await.map_err(|error| RuntimeError::Refused(format!("reading what replicas use: {error}")))?;
        let (mut found, mut asked) = (BTreeMap::new(), Vec::new());
        for (read, replica) in read {
            match read {
                Read::Found(usage) => drop(found.insert(replica, usage)),
                Read::Gone => {}
                Read::Unreadable => asked.push(replica),
            }
        }
        let answers = asked.into_iter().map(|replica| async move { (self.ask_usage(&replica).await, replica) });
        let answers: Vec<_> = stream::iter(answers).buffer_unordered(ASKED_AT_ONCE).collect().await;
        for (answer, replica) in answers {
            if let Some(usage) = answer? {
                found.insert(replica, usage);
            }
        }
        Ok(found)
    }

    /// The process of a running replica of this Berth, from memory if it was observed before.
    async fn known_process(&self, replica: &ReplicaId) -> Result<Option<i64>, RuntimeError> {
        if let Some(known) = self.memory.state(&replica.0) {
            return Ok(known.pid);
        }
        let found = self.own_replica(replica).await?.and_then(|found| found.state?.pid);
        Ok(found.filter(|pid| *pid > 0))
    }

    async fn ask_usage(&self, replica: &ReplicaId) -> Result<Option<Usage>, RuntimeError> {
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let mut answers = Box::pin(self.engine.docker.stats(&replica.0, Some(options)));
        match whole(async { answers.next().await.transpose() }).await {
            Ok(answer) => Ok(answer.and_then(|answer| of_engine(&answer))),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(failed(&format!("asking what container {} uses", replica.0), &error)),
        }
    }
}

/// What the engine says; `None` of a container that does not run.
fn of_engine(answer: &ContainerStatsResponse) -> Option<Usage> {
    let cpu = answer.cpu_stats.as_ref()?.cpu_usage.as_ref()?.total_usage?;
    let memory = answer.memory_stats.as_ref()?;
    let cached =
        memory.stats.as_ref().and_then(|stats| stats.get("total_inactive_file").or(stats.get("inactive_file")));
    let sum = |count: fn(&bollard::models::ContainerNetworkStats) -> Option<u64>| {
        answer.networks.iter().flat_map(|networks| networks.values()).filter_map(count).sum()
    };
    Some(Usage {
        cpu_micros: cpu / 1000,
        memory: memory.usage?.saturating_sub(cached.copied().unwrap_or(0)),
        memory_limit: memory.limit.filter(|limit| *limit < NO_LIMIT),
        received: sum(|one| one.rx_bytes),
        sent: sum(|one| one.tx_bytes),
    })
}

/// Reads what the container with this id uses, whose first process is `pid`.
fn read(id: &str, pid: i64) -> Read {
    let process = Path::new("/proc").join(pid.to_string());
    let groups = match fs::read_to_string(process.join("cgroup")) {
        Ok(groups) => groups,
        Err(error) if is_gone(&error) => return Read::Gone,
        Err(_) => return Read::Unreadable,
    };
    // Another process may have its number by now, or numbers here are not those of the engine's host.
    if !groups.contains(id) {
        return Read::Unreadable;
    }
    let network = fs::read_to_string(process.join("net/dev"));
    match (group_usage(&groups), network) {
        (Some(usage), Ok(network)) => {
            let (received, sent) = traffic(&network);
            Read::Found(Usage { received, sent, ..usage })
        }
        (_, Err(error)) if is_gone(&error) => Read::Gone,
        _ if !process.exists() => Read::Gone,
        _ => Read::Unreadable,
    }
}

/// A file of a process that has ended is not found, or cannot be read (`ESRCH`, and `EINVAL` for its network).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(nix::libc::ESRCH | nix::libc::EINVAL))
}

/// Processor and memory, by the control groups that the text of `/proc/PID/cgroup` names.
fn group_usage(groups: &str) -> Option<Usage> {
    let text = |controller: &str, file: &str| {
        fs::read_to_string(control_group::directory(groups, controller)?.join(file)).ok()
    };
    let number = |controller: &str, file: &str| text(controller, file)?.trim().parse::<u64>().ok();
    let cpu_micros = match control_group::is_first_version(groups, "cpuacct") {
        true => number("cpuacct", "cpuacct.usage")? / 1000,
        false => field(&text("cpu", "cpu.stat")?, "usage_usec")?,
    };
    let (used, limit, cached) = match control_group::is_first_version(groups, "memory") {
        true => ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
        false => ("memory.current", "memory.max", "inactive_file"),
    };
    let cached = field(&text("memory", "memory.stat")?, cached).unwrap_or(0);
    Some(Usage {
        cpu_micros,
        memory: number("memory", used)?.saturating_sub(cached),
        memory_limit: number("memory", limit).filter(|limit| *limit < NO_LIMIT),
        ..Usage::default()
    })
}

/// A value of a file with lines of `NAME VALUE`. Pure.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Bytes received and sent by all interfaces but the loopback, from the text of `/proc/PID/net/dev`. Pure.
fn traffic(table: &str) -> (u64, u64) {
    let mut total = (0_u64, 0_u64);
    for line in table.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let counters: Vec<u64> = counters.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        if let (false, Some(received), Some(sent)) = (name.trim() == "lo", counters.first(), counters.get(8)) {
            total = (total.0.saturating_add(*received), total.1.saturating_add(*sent));
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let stat = "usage_usec 123456\nuser_usec 1\ninactive_file 7\ntotal_inactive_file 9\n";
        assert_eq!(
            (field(stat, "usage_usec"), field(stat, "inactive_file"), field(stat, "usage")),
            (Some(123_456), Some(7), None)
        );
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n\
                     \x20   lo: 1000 1 0 0 0 0 0 0 1000 1 0 0 0 0 0 0\n  eth0:  150 2 0 0 0 0 0 0   250 3 0 0 0 0 0 0\n\
                     eth1: 5 2 0 0 0 0 0 0 6 3 0 0 0 0 0 0\n";
        assert_eq!(traffic(table), (155, 256));
    }

    #[test]
    fn a_process_that_is_not_the_containers_is_not_read() {
        let own = i64::from(std::process::id());
        assert!(matches!(read("0123456789abcdef", own), Read::Unreadable));
        assert!(matches!(read("0123456789abcdef", i64::MAX), Read::Gone));
    }

    #[test]
    fn what_the_engine_says() {
        let answer = r#"{"cpu_stats":{"cpu_usage":{"total_usage":5000000}},"memory_stats":{"usage":1000,"limit":4096,"stats":{"inactive_file":300}},
            "networks":{"eth0":{"rx_bytes":10,"tx_bytes":20},"eth1":{"rx_bytes":1,"tx_bytes":2}}}"#;
        let usage = of_engine(&serde_json::from_str(answer).unwrap());
        let want = Usage { cpu_micros: 5000, memory: 700, memory_limit: Some(4096), received: 11, sent: 22 };
        assert_eq!(usage, Some(want));
        assert_eq!(of_engine(&ContainerStatsResponse::default()), None);
    }
}
