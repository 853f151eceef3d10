//! What must not be lost: typed records over a small key-value port.
//!
//! [`Kv`] fits redb on one box and etcd on several alike: revisions, compare-and-swap over several keys, watches. [`Store`] is what
//! the rest of Berth uses; it knows the records ([`records`]) and nothing of bytes. One contract suite (`contract`) runs against every
//! adapter. On disk, [`RedbKv`] knows whether it is whole ([`seal`]) and brings old shapes to the newest ([`migrations`]).

pub mod contract;
mod disk;
mod durable;
mod events;
mod journal;
mod load;
pub mod memory;
pub mod migrations;
pub mod records;
pub mod redb_kv;
pub mod seal;
mod snapshot;
mod typed;
mod watch;

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use disk::is_vacant;
pub use events::{EventChange, Forgotten, KEPT_EVENTS, NewEvent};
pub use memory::MemoryKv;
pub use records::Record;
pub use redb_kv::{RedbKv, open_store};
pub use snapshot::Snapshot;
pub use typed::{Store, StoreError, Stored, Transaction};

/// Grows with every commit, over all keys; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A key with its value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    pub revision: Revision,
}

/// What must hold for a commit to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written at this revision.
    At(String, Revision),
}

/// What a commit does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put(String, Vec<u8>),
    /// That it does not exist is no error.
    Delete(String),
}

impl Write {
    /// The key it writes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// A change as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key was written or (`value: None`) deleted.
    Key { key: String, value: Option<Vec<u8>>, revision: Revision },
    /// Changes were lost (the watcher was too slow, or asked for a revision that is no longer kept): scan again.
    Resync(Revision),
}

/// Why the store did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// A guard did not hold; nothing was written.
    #[error("{0} was changed by someone else meanwhile")]
    Conflict(String),
    /// The disk or the database failed; nothing was acknowledged.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The disk or the database failed, and what it may have written could not be taken back: it is not in force now, but may be after the
    /// next start.
    #[error("it is not known whether the change was made: {0}")]
    Unknown(String),
}

/// A key-value store with revisions. A commit that returned is on disk.
#[async_trait]
pub trait Kv: Send + Sync {
    /// The entry of a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError>;
    /// All entries whose key begins with `prefix`, in key order.
    async fn scan(&self, prefix: &str) -> Result<Vec<Entry>, KvError>;
    /// The first `most` of them whose key is after `after`.
    async fn scan_after(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<Entry>, KvError> {
        let found = self.scan(prefix).await?.into_iter();
        Ok(found.filter(|entry| entry.key.as_str() > after).take(most).collect())
    }
    /// Does all writes if all guards hold, else none. Durable when it returns.
    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Revision, KvError>;
    /// Changes to keys below `prefix` after revision `from`, then on as they come.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Change>, KvError>;
    /// The newest revision.
    async fn revision(&self) -> Result<Revision, KvError>;
}
