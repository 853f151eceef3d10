//! The sled adapter, made durable.
//!
//! sled 0.34 acknowledges a `flush` after `sync_file_range`, which a power loss does not survive. So one writer thread gathers the
//! commits that wait (group commit), applies them as one batch, flushes, and then syncs the database's file itself; only then are they
//! acknowledged. A snapshot that was being written when the power went (`snap.*.generating`) is removed before opening, since sled
//! would trip over it.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use anyhow::Context;
use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};

use super::{Change, Entry, Guard, Kv, KvError, Revision, Write, memory::broken_guard, watch::Watches};

/// Commits that may wait for the writer; further callers wait for a place.
const QUEUE: usize = 1024;
/// Commits that share one sync at the most.
const GROUP: usize = 256;
/// Bytes of sled's page cache; the records are few and small.
const CACHE: u64 = 32 << 20;
/// Key (in a tree of its own) of the newest revision.
const REVISION: &[u8] = b"revision";

struct Commit {
    guards: Vec<Guard>,
    writes: Vec<Write>,
    done: oneshot::Sender<Result<Revision, KvError>>,
}

/// A [`Kv`] in a directory.
pub struct SledKv {
    database: sled::Db,
    commits: Option<mpsc::Sender<Commit>>,
    watches: Watches,
    writer: Option<JoinHandle<()>>,
}

fn failed(error: impl std::fmt::Display) -> KvError {
    KvError::Failed(error.to_string())
}

/// A stored value is the revision (8 bytes, big-endian) and then the value.
fn split_value(stored: &[u8]) -> Result<(Revision, &[u8]), KvError> {
    let (revision, value) = stored.split_at_checked(8).ok_or_else(|| failed("a value is shorter than its revision"))?;
    let revision = revision.try_into().map_err(failed)?;
    Ok((Revision(u64::from_be_bytes(revision)), value))
}

fn entry(key: &[u8], stored: &[u8]) -> Result<Entry, KvError> {
    let (revision, value) = split_value(stored)?;
    let key = String::from_utf8(key.to_vec()).map_err(failed)?;
    Ok(Entry { key, value: value.to_vec(), revision })
}

impl SledKv {
    /// Opens (or makes) the database in `directory`. Fails when another process has it open.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        remove_torn_snapshots(directory)?;
        let database = sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE)
            // The writer flushes; a timer besides would only add syncs that nobody waits for.
            .flush_every_ms(None)
            .open()
            .with_context(|| format!("cannot open the store in {}; does another berth use it?", directory.display()))?;
        let meta = database.open_tree("meta").context("cannot open the store's meta tree")?;
        let revision = match meta.get(REVISION)? {
            Some(bytes) => split_value(&bytes)?.0,
            None => Revision(0),
        };
        let (commits, queue) = mpsc::channel(QUEUE);
        let watches = Watches::from_revision(revision);
        let syncer = Syncer::open(directory)?;
        let writer = Writer { database: database.clone(), meta, revision, watches: watches.clone(), syncer };
        let writer = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(queue))?;
        Ok(Self { database, commits: Some(commits), watches, writer: Some(writer) })
    }
}

impl Drop for SledKv {
    fn drop(&mut self) {
        self.commits = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been reported by its own hook; there is nothing left to save here.
            let _ = writer.join();
        }
    }
}

fn remove_torn_snapshots(directory: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            std::fs::remove_file(&path)
                .with_context(|| format!("cannot remove the torn snapshot {}", path.display()))?;
        }
    }
    Ok(())
}

/// Makes what sled has written durable.
struct Syncer {
    log: File,
    blobs: PathBuf,
    /// Names of the blob files that are durable. sled never changes one, it writes a new one.
    synced_blobs: HashSet<OsString>,
}

impl Syncer {
    fn open(directory: &Path) -> anyhow::Result<Self> {
        let log = File::open(directory.join("db")).context("cannot open the store's log")?;
        let mut syncer = Self { log, blobs: directory.join("blobs"), synced_blobs: HashSet::new() };
        // A store that has just been made must itself survive.
        syncer.sync().context("cannot sync the store")?;
        for path in [Some(directory), Some(&directory.join("conf")), directory.parent()].into_iter().flatten() {
            File::open(path)?.sync_all()?;
        }
        Ok(syncer)
    }

    /// sled keeps large pages in files of their own, and rewrites them when small values nearby change. Those files go first: a log
    /// that points to a missing one is cut off there when it is opened.
    fn sync(&mut self) -> std::io::Result<()> {
        let mut present = HashSet::new();
        for entry in std::fs::read_dir(&self.blobs)? {
            let name = entry?.file_name();
            if !self.synced_blobs.contains(&name) {
                match File::open(self.blobs.join(&name)) {
                    Ok(file) => file.sync_all()?,
                    // sled has just removed it, since nothing points to it any more.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            present.insert(name);
        }
        if present != self.synced_blobs {
            File::open(&self.blobs)?.sync_all()?;
            self.synced_blobs = present;
        }
        self.log.sync_data()
    }
}

struct Writer {
    database: sled::Db,
    meta: sled::Tree,
    revision: Revision,
    watches: Watches,
    syncer: Syncer,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Commit>) {
        let mut group = Vec::with_capacity(GROUP);
        while queue.blocking_recv_many(&mut group, GROUP) > 0 {
            self.commit_group(&mut group);
        }
    }

    /// One batch, one sync, then the answers. Guards of a later commit see the writes of an earlier one in the same group.
    fn commit_group(&mut self, group: &mut Vec<Commit>) {
        let mut pending: BTreeMap<String, Option<(Vec<u8>, Revision)>> = BTreeMap::new();
        let mut accepted = Vec::new();
        for commit in group.drain(..) {
            let broken = broken_guard(&commit.guards, |key| match pending.get(key) {
                Some(pending) => pending.as_ref().map(|(_, revision)| *revision),
                None => self.stored_revision(key),
            });
            if let Some(key) = broken {
                let _ = commit.done.send(Err(KvError::Conflict(key)));
                continue;
            }
            self.revision = Revision(self.revision.0 + 1);
            for write in &commit.writes {
                let value = match write {
                    Write::Put(_, value) => Some((value.clone(), self.revision)),
                    Write::Delete(_) => None,
                };
                pending.insert(write.key().to_owned(), value);
            }
            accepted.push((commit, self.revision));
        }
        if accepted.is_empty() {
            return;
        }
        match self.write(pending) {
            Ok(()) => {
                for (commit, revision) in accepted {
                    self.watches.publish(revision, &commit.writes);
                    // An error means that the caller no longer waits.
                    let _ = commit.done.send(Ok(revision));
                }
            }
            Err(error) => {
                // The numbers stay used: what failed may be visible all the same, and no two states may share a revision.
                for (commit, _) in accepted {
                    let _ = commit.done.send(Err(failed(&error)));
                }
            }
        }
    }

    /// A key that cannot be read counts as there, at a revision that nobody has seen: every guard on it fails.
    fn stored_revision(&self, key: &str) -> Option<Revision> {
        let unreadable = Some(Revision(u64::MAX));
        let Ok(stored) = self.database.get(key) else { return unreadable };
        stored.and_then(|stored| split_value(&stored).map_or(unreadable, |(revision, _)| Some(revision)))
    }

    fn write(&mut self, pending: BTreeMap<String, Option<(Vec<u8>, Revision)>>) -> anyhow::Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in pending {
            match value {
                Some((value, revision)) => {
                    batch.insert(key.as_bytes(), [&revision.0.to_be_bytes(), value.as_slice()].concat());
                }
                None => batch.remove(key.as_bytes()),
            }
        }
        // The revision goes first: if only it survives a power loss, numbers are skipped, never used twice.
        self.meta.insert(REVISION, &self.revision.0.to_be_bytes())?;
        self.database.apply_batch(batch)?;
        self.database.flush()?;
        self.syncer.sync()?;
        Ok(())
    }
}

#[async_trait]
impl Kv for SledKv {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        self.database.get(key).map_err(failed)?.map(|stored| entry(key.as_bytes(), &stored)).transpose()
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<Entry>, KvError> {
        let found = self.database.scan_prefix(prefix);
        found.map(|pair| pair.map_err(failed).and_then(|(key, stored)| entry(&key, &stored))).collect()
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Revision, KvError> {
        let (done, answer) = oneshot::channel();
        let commits = self.commits.as_ref().ok_or_else(|| failed("the store is closed"))?;
        commits.send(Commit { guards, writes, done }).await.map_err(|_| failed("the store's writer has ended"))?;
        answer.await.map_err(|_| failed("the store's writer has ended"))?
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Change>, KvError> {
        let now = self.revision().await?;
        Ok(self.watches.subscribe(prefix, from, now))
    }

    async fn revision(&self) -> Result<Revision, KvError> {
        let meta = self.database.open_tree("meta").map_err(failed)?;
        match meta.get(REVISION).map_err(failed)? {
            Some(bytes) => Ok(split_value(&bytes)?.0),
            None => Ok(Revision(0)),
        }
    }
}

/// Shared by those who need a store on disk.
pub fn open_store(directory: &Path) -> anyhow::Result<super::Store> {
    Ok(super::Store::new(Arc::new(SledKv::open(directory)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        super::super::contract::check(&SledKv::open(directory.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn survives_reopening_and_a_torn_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let kv = SledKv::open(directory.path()).unwrap();
        let written = kv.commit(vec![], vec![Write::Put("a".into(), vec![7; 200_000])]).await.unwrap();
        drop(kv);
        std::fs::write(directory.path().join("snap.0000000000000042.generating"), b"torn").unwrap();
        let kv = SledKv::open(directory.path()).unwrap();
        assert_eq!(kv.get("a").await.unwrap().unwrap().value, vec![7; 200_000]);
        let next = kv.commit(vec![Guard::At("a".into(), written)], vec![Write::Delete("a".into())]).await.unwrap();
        assert!(next > written);
    }
}
