//! What a git process that works for a client may take of the host. A pack's size says little of what it takes to read it: all of it but
//! large blobs is inflated in memory, and all of it is hashed.

use std::{fs, io, ptr};

use nix::{
    errno::Errno,
    libc::{__rlimit_resource_t, RLIMIT_AS, RLIMIT_CPU, prlimit, rlimit},
    unistd::Pid,
};

/// Address space of one process, bytes. git says "out of memory" to the client when it is too little.
const ADDRESS_SPACE: u64 = 2 << 30;
/// Processor time of one process, seconds; the kernel ends one that takes more.
const PROCESSOR_TIME: u64 = 900;
/// When the host's memory runs out, these processes go before others.
const OOM_SCORE: &str = "500";

/// Limits a process that has just been started. What it starts from now on is limited likewise.
pub fn confine(process: Pid) -> io::Result<()> {
    set(process, RLIMIT_AS, ADDRESS_SPACE)?;
    set(process, RLIMIT_CPU, PROCESSOR_TIME)?;
    if let Err(error) = fs::write(format!("/proc/{process}/oom_score_adj"), OOM_SCORE) {
        // It has ended already, or this server was given an even higher score.
        tracing::debug!(%error, "the score of a git process was left as it is");
    }
    Ok(())
}

fn set(process: Pid, resource: __rlimit_resource_t, limit: u64) -> io::Result<()> {
    let limit = rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: the kernel reads one structure, which lives until the call is over, and writes none.
    let done = unsafe { prlimit(process.as_raw(), resource, &limit, ptr::null_mut()) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}
