//! Where the control groups of a process are, of version 1 and of version 2 (the kernel's `admin-guide/cgroup-v1`, `cgroup-v2`).

use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// The directory of a controller, from the text of `/proc/PID/cgroup`. Pure.
pub(super) fn directory(groups: &str, controller: &str) -> Option<PathBuf> {
    let root = Path::new(ROOT);
    let first = path_of(groups, controller).map(|path| root.join(controller).join(path));
    first.or_else(|| path_of(groups, "").map(|path| root.join(path)))
}

/// Whether that controller is one of version 1.
pub(super) fn is_first_version(groups: &str, controller: &str) -> bool {
    path_of(groups, controller).is_some()
}

fn path_of<'g>(groups: &'g str, controller: &str) -> Option<&'g str> {
    groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|one| one == controller).then_some(path.trim_start_matches('/'))
    })
}
