//! Reading the database: all of it, in bounded time, whatever state it is in.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::{
    Revision,
    migrations::Contents,
    seal::{Damage, Seal},
};

/// Name of the database's file.
pub const FILE: &str = "records.redb";
/// All records: by key, the revision that wrote the value, and the value.
pub const RECORDS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("records");
/// What the store says about itself.
pub const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Its key in [`META`].
pub const SEAL: &str = "seal";
/// Bytes of the database's page cache. Readers are served from memory; it is for finding the pages that writes change.
const CACHE: usize = 8 << 20;
/// How long the database's lock is waited for: a child that was being started when it was last open still holds it until it has become its
/// own program.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries to get it.
const LOCK_AGAIN: Duration = Duration::from_millis(20);
/// How long reading the database may take; a damaged one might send it in circles.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(120);

/// What was found.
pub struct Loaded {
    pub database: Database,
    pub contents: Contents,
    pub seal: Option<Seal>,
}

/// Reads everything, in a thread of its own: damage may come out as a panic, or as no end.
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
fn open_database(file: &Path) -> Result<Database, DatabaseError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Database::builder().set_cache_size(CACHE).set_check_integrity_on_open(true).create(file) {
            Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {
                // The kernel wakes nobody at a deadline.
                std::thread::sleep(LOCK_AGAIN);
            }
            open => return open,
        }
    }
}

fn read_all(directory: &Path) -> anyhow::Result<Loaded> {
    let database = open_database(&directory.join(FILE)).map_err(|error| told(error.into()))?;
    let read = || {
        let reading = database.begin_read()?;
        let mut contents = Contents::new();
        // A database that has just been made has no tables.
        match reading.open_table(RECORDS) {
            Err(TableError::TableDoesNotExist(_)) => {}
            records => {
                for pair in records?.iter()? {
                    let (key, stored) = pair?;
                    let (revision, value) = stored.value();
                    contents.insert(key.value().to_owned(), (value.to_vec(), Revision(revision)));
                }
            }
        }
        let seal = match reading.open_table(META) {
            Err(TableError::TableDoesNotExist(_)) => None,
            meta => meta?.get(SEAL)?.map(|seal| seal.value().to_vec()),
        };
        Ok::<_, redb::Error>((contents, seal))
    };
    let (contents, seal) = read().map_err(told)?;
    let seal = seal.map(|seal| serde_json::from_slice(&seal)).transpose();
    let seal = seal.map_err(|error| Damage::Records(format!("the seal cannot be read: {error}")))?;
    Ok(Loaded { database, contents, seal })
}

/// Tells damage from a disk that fails and from a database that somebody else has open.
fn told(error: redb::Error) -> anyhow::Error {
    match error {
        redb::Error::Io(error) => anyhow!("{error}; is the disk in order?"),
        redb::Error::DatabaseAlreadyOpen => anyhow!("another berth has it open"),
        error => anyhow!(Damage::File(format!("the database cannot be read: {error}"))),
    }
}
