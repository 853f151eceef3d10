//! How many files a container's process may have open.

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use tokio::net::UnixStream;

/// Enough for a busy server. Engines differ in their own default: some give a thousand, some a thousand million, which makes programs
/// that close every possible descriptor take minutes to start.
const WANTED: u64 = 65_536;

/// [`WANTED`], or what this process and the engine have themselves, if less: an engine in a container of its own may not raise it.
pub async fn open_files(socket: &Path) -> i64 {
    let own = getrlimit(Resource::RLIMIT_NOFILE).map_or(WANTED, |(_, hard)| hard);
    let engine = match UnixStream::connect(socket).await.and_then(|stream| stream.peer_cred()) {
        Ok(peer) => of_process(peer.pid()).await,
        Err(_) => None,
    };
    let least = WANTED.min(own).min(engine.unwrap_or(WANTED));
    i64::try_from(least).unwrap_or(i64::MAX)
}

async fn of_process(pid: Option<i32>) -> Option<u64> {
    parse(&tokio::fs::read_to_string(format!("/proc/{}/limits", pid?)).await.ok()?)
}

/// The hard limit of open files in `/proc/PID/limits`; `None` when it is unlimited or not there.
fn parse(table: &str) -> Option<u64> {
    table.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn hard_limit() {
        let table = "Limit                     Soft Limit           Hard Limit           Units\n\
                     Max processes             95992                95992                processes\n\
                     Max open files            1024                 20000                files\n";
        assert_eq!(parse(table), Some(20_000));
        assert_eq!(parse("Max open files   unlimited unlimited files\n"), None);
        assert_eq!(parse(""), None);
    }
}
