//! Reading a sled database: all of it, in bounded time, whatever state it is in.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};

use super::{
    Revision,
    migrations::Contents,
    seal::{Damage, Seal},
};

/// Key of the seal; no record's key begins so.
pub const SEAL: &[u8] = b"\0seal";
/// Where stores of version 1 kept the newest revision: tree and key.
pub const OLD_META: (&str, &str) = ("meta", "revision");
/// Bytes of sled's page cache. Readers are served from memory; it is for finding the pages that writes change.
const CACHE: u64 = 8 << 20;
/// How long the database's lock is waited for: a child that was being started when it was last open still holds it until it has become its
/// own program.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries to get it.
const LOCK_AGAIN: Duration = Duration::from_millis(20);
/// How long reading the database may take. A damaged one can send sled in circles.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(120);

/// What sled found.
pub struct Loaded {
    pub database: sled::Db,
    pub contents: Contents,
    pub seal: Option<Seal>,
    pub old_revision: Revision,
}

/// A stored value is the revision (8 bytes, big-endian) and then the value.
fn split_value(stored: &[u8]) -> Result<(Revision, &[u8]), Damage> {
    let parts = stored.split_at_checked(8).and_then(|(revision, value)| Some((revision.try_into().ok()?, value)));
    let (revision, value) = parts.ok_or_else(|| Damage::Records("a value is shorter than its revision".into()))?;
    Ok((Revision(u64::from_be_bytes(revision)), value))
}

/// Reads everything. sled panics over some kinds of damage and runs in circles over others, so it does so in a thread of its own.
pub fn load(directory: &Path) -> anyhow::Result<Loaded> {
    let directory = directory.to_owned();
    in_time("store-open", OPEN_DEADLINE, move || read_all(&directory))
}

/// Runs `work` in a thread, for so long at most; a panic is an error.
pub fn in_time<T: Send + 'static>(
    name: &str,
    limit: Duration,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = mpsc::sync_channel(1);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The receiver is gone when it took too long.
        let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
    })?;
    match result.recv_timeout(limit) {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            bail!(Damage::File("the database cannot make sense of its files; what it said is in the log".into()))
        }
        Err(_) => bail!(Damage::File(format!("the database did not come to an end within {} s", limit.as_secs()))),
    }
}

/// Opens the database once nobody else has it open.
fn open_database(directory: &Path) -> sled::Result<sled::Db> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let open = sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE)
            // The writer flushes; a timer besides would only add syncs that nobody waits for.
            .flush_every_ms(None)
            .open();
        match open {
            Err(sled::Error::Io(error)) if is_locked(&error) && Instant::now() < deadline => {
                // The kernel wakes nobody at a deadline.
                std::thread::sleep(LOCK_AGAIN);
            }
            open => return open,
        }
    }
}

/// sled says it in words.
fn is_locked(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn read_all(directory: &Path) -> anyhow::Result<Loaded> {
    let database = open_database(directory).map_err(sled_error)?;
    let (mut contents, mut seal) = (Contents::new(), None);
    for pair in database.iter() {
        let (key, stored) = pair.map_err(sled_error)?;
        if key == SEAL {
            let read = serde_json::from_slice(&stored);
            seal = Some(read.map_err(|error| Damage::Records(format!("the seal cannot be read: {error}")))?);
            continue;
        }
        let (revision, value) = split_value(&stored)?;
        let key = String::from_utf8(key.to_vec()).map_err(|_| Damage::Records("a key is not text".into()))?;
        contents.insert(key, (value.to_vec(), revision));
    }
    let mut old_revision = Revision(0);
    if database.tree_names().iter().any(|name| name == OLD_META.0.as_bytes())
        && let Some(stored) = database.open_tree(OLD_META.0).map_err(sled_error)?.get(OLD_META.1).map_err(sled_error)?
    {
        old_revision = split_value(&stored)?.0;
    }
    Ok(Loaded { database, contents, seal, old_revision })
}

fn sled_error(error: sled::Error) -> anyhow::Error {
    match error {
        sled::Error::Io(error) => anyhow!("{error}; does another berth use it, and is the disk in order?"),
        error => anyhow!(Damage::File(format!("the database cannot be read: {error}"))),
    }
}
