//! The routes table: written by the deployer, read by the router, and the router's acknowledgement.
//!
//! Files below `DATA/router/`: `routes.json` ([`RoutesTable`]) is replaced atomically by the control plane; `ack.json` ([`Ack`]) by the
//! router. Each side watches the other's file, so nobody polls. Access log lines go as datagrams ([`AccessRecord`], JSON) to the
//! unix socket `access.sock`, which the control plane binds: one record per line, one or more lines per datagram of at most 64 KiB.
//! With nobody listening they are dropped and counted. What the router has counted is asked for at the unix socket `meter.sock`
//! ([`super::meter`]), which the router binds.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub use super::ack::{AckOutcome, AckWatch};
use crate::domain::{EnvRef, ReleaseVersion, Timestamp};

/// Name of the routes file below `DATA/router/`.
pub const ROUTES_FILE: &str = "routes.json";
/// Name of the acknowledgement file below `DATA/router/`.
pub const ACK_FILE: &str = "ack.json";
/// Name of the unix datagram socket for access records below `DATA/router/`.
pub const ACCESS_SOCKET: &str = "access.sock";
/// Name of the unix stream socket below `DATA/router/` where the router tells what it has counted.
pub const METER_SOCKET: &str = "meter.sock";

/// Every route the platform serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesTable {
    /// Grows by at least one with every change.
    pub generation: u64,
    /// Host name (lower case, no port) → environment.
    pub hosts: BTreeMap<String, EnvRef>,
    pub environments: BTreeMap<EnvRef, Route>,
}

/// Where an environment's requests go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Whether it has ever had a release; without one the page says how to push.
    pub released: bool,
    /// Ready replicas.
    pub upstreams: Vec<Upstream>,
}

/// One ready replica.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Upstream {
    pub address: SocketAddr,
    /// For the access log: `web.2`.
    pub replica: String,
    pub release: ReleaseVersion,
}

/// What the router serves now. Rewritten when a new generation is in force, and when an upstream that is no longer in the table
/// has answered its last request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    pub generation: u64,
    /// Upstreams that are not in that generation and still have requests under way, with their number.
    pub draining: BTreeMap<SocketAddr, u64>,
    /// Process id of the router.
    pub pid: u32,
}

/// One request, for the app's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    pub env: EnvRef,
    pub at: Timestamp,
    pub request_id: String,
    pub method: String,
    pub host: String,
    /// Path and query, control characters escaped, cut at 2 KiB.
    pub path: String,
    pub status: u16,
    /// `web.2`, or empty when none was asked.
    pub replica: String,
    /// Client address.
    pub client: String,
    /// Milliseconds to connect to the replica, and in all.
    pub connect_ms: u64,
    pub total_ms: u64,
    pub bytes: u64,
    /// Why it failed, in a word as Heroku's router has them (`no-healthy-replica`, `timeout`, `refused`), if it did.
    pub error: Option<String>,
}

/// Makes `table` the routes table of the router that watches `dir` (`DATA/router`): a temporary file, synced, renamed over
/// `routes.json`, and the directory synced, so that a crash leaves either the old table or the new one.
///
/// # Errors
/// When the directory cannot be made or written.
pub fn publish(dir: &Path, table: &RoutesTable) -> anyhow::Result<()> {
    // One at a time, as they share the temporary file's name.
    static PUBLISHING: Mutex<()> = Mutex::new(());
    let _turn = PUBLISHING.lock().unwrap_or_else(PoisonError::into_inner);
    let text = serde_json::to_vec(table).context("the routes table cannot be written as JSON")?;
    let path = dir.join(ROUTES_FILE);
    fs::create_dir_all(dir)
        .and_then(|()| replace(&path, &text, true))
        .with_context(|| format!("the routes table {} cannot be written; is the disk full?", path.display()))
}

/// The routes table that `publish` wrote last; `None` when there is none yet.
///
/// # Errors
/// When the file cannot be read or is not a routes table.
pub fn load(dir: &Path) -> anyhow::Result<Option<RoutesTable>> {
    let path = dir.join(ROUTES_FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is not a routes table", path.display()))
}

/// Replaces the file at `path` atomically; `durable` syncs file and directory.
pub(super) fn replace(path: &Path, contents: &[u8], durable: bool) -> io::Result<()> {
    let temporary = temporary_name(path);
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        // The temporary file is of no use any more; failing to remove it as well changes nothing.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    match path.parent() {
        Some(parent) if durable => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// A name beside `path` that no other process uses; the same each time, so that a crash leaves at most one such file behind.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(|name| name.to_owned()).unwrap_or_default();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> RoutesTable {
        let env: EnvRef = "acme/shop/dev".parse().unwrap();
        let upstream = Upstream {
            address: "10.0.0.5:5000".parse().unwrap(),
            replica: "web.1".to_owned(),
            release: ReleaseVersion(3),
        };
        RoutesTable {
            generation: 7,
            hosts: [("dev.shop.acme.localhost".to_owned(), env.clone())].into(),
            environments: [(env, Route { released: true, upstreams: vec![upstream] })].into(),
        }
    }

    #[test]
    fn published_table_is_loaded_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("router");
        publish(&place, &table()).unwrap();
        publish(&place, &RoutesTable { generation: 8, ..table() }).unwrap();
        assert_eq!(load(&place).unwrap().unwrap(), RoutesTable { generation: 8, ..table() });
        let names: Vec<_> = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [ROUTES_FILE]);
    }

    #[test]
    fn a_torn_table_is_an_error_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        let whole = serde_json::to_vec(&table()).unwrap();
        for length in 0..whole.len() {
            fs::write(dir.path().join(ROUTES_FILE), &whole[..length]).unwrap();
            assert!(load(dir.path()).is_err(), "{length} bytes were taken");
        }
    }
}
