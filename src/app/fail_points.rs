//! What happens at the points of [`crate::domain::FailPoint`]: for `scripts/chaos` alone, with the feature `fail-points`.
//!
//! `BERTH_FAIL_POINTS` names a directory. When its file `armed` says `NAME N`, the process kills itself, as `kill -9` would, when it
//! comes by that point for the N-th time since the file says so; the file `reached` then has a line `NAME N` more.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::getpid,
};

use crate::domain::FailPoint;

const DIRECTORY: &str = "BERTH_FAIL_POINTS";

/// How often each point was passed, by what the file said then.
type Passed = Mutex<BTreeMap<String, u64>>;

/// Makes the points do what the environment says.
pub(super) fn arm() -> anyhow::Result<()> {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return Ok(()) };
    let passed = Arc::new(Passed::default());
    for point in FailPoint::ALL {
        let (directory, passed) = (directory.clone(), passed.clone());
        fail::cfg_callback(point.name(), move || pass(&directory, point, &passed)).map_err(anyhow::Error::msg)?;
    }
    tracing::warn!(directory = %directory.display(), "fail points are armed: this server will kill itself");
    Ok(())
}

fn pass(directory: &Path, point: FailPoint, passed: &Passed) {
    let Ok(text) = fs::read_to_string(directory.join("armed")) else { return };
    let Some((name, at)) = text.trim().split_once(' ') else { return };
    if name != point.name() {
        return;
    }
    let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
    let count = passed.entry(text.clone()).or_default();
    *count += 1;
    if at.parse() != Ok(*count) {
        return;
    }
    let note = OpenOptions::new().create(true).append(true).open(directory.join("reached"));
    // Whoever armed it sees the process end, and misses the line.
    let _ = note.and_then(|mut file| writeln!(file, "{point} {count}"));
    let _ = kill(getpid(), Signal::SIGKILL);
}
