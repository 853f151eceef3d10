//! How many files and sockets this process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files to `wanted`, as far as the hard limit allows. What is started with less than that would otherwise refuse
/// clients long before the configured number of them is there: the usual limit is 1024.
pub fn raise_limit(wanted: u64) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft >= wanted {
        true => Ok(()),
        false => setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}
