//! The redb adapter: durable, checked, and honest about a disk that fails.
//!
//! One writer thread gathers the commits that wait (group commit), writes them as one batch, and acknowledges them when that batch is on
//! disk (`Disk`). Readers are served from memory, which changes only then: nobody sees what a power loss could still take
//! back, or half of a commit. When a write fails, what it may have left on the disk is taken back before its commits are answered, so that
//! no later start finds it; when that fails too, they are told that the outcome is not known. Reading goes on with what was committed, and
//! before the next commit is taken, the database is opened anew and checked.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};

use super::{
    Change, Entry, Guard, Kv, KvError, Revision, Write,
    disk::{Changes, Disk, apply_to, resealed},
    durable::{MakeDurable, SyncedFiles},
    memory::{broken_guard, entries_after},
    migrations::{Contents, MIGRATIONS, Migration},
    watch::Watches,
};

/// Commits that may wait for the writer; further callers wait for a place.
const QUEUE: usize = 1024;
/// Commits that share one sync at the most.
const GROUP: usize = 256;
/// After a failed write, the database is opened anew when a commit comes, but not more often than this.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

struct Commit {
    guards: Vec<Guard>,
    writes: Vec<Write>,
    done: oneshot::Sender<Result<Revision, KvError>>,
}

/// What is committed, for readers.
#[derive(Default)]
struct Committed {
    contents: Contents,
    revision: Revision,
}

type Shared = Arc<RwLock<Committed>>;

/// A [`Kv`] in a directory.
pub struct RedbKv {
    committed: Shared,
    commits: Option<mpsc::Sender<Commit>>,
    watches: Watches,
    writer: Option<JoinHandle<()>>,
}

fn failed(error: impl std::fmt::Display) -> KvError {
    KvError::Failed(error.to_string())
}

/// How a store is opened; the default is how `berth serve` does it.
#[derive(Clone, Copy)]
pub struct RedbOptions {
    /// Steps to the newest version.
    pub migrations: &'static [Migration],
    /// What makes the files durable.
    pub durable: MakeDurable,
}

impl Default for RedbOptions {
    fn default() -> Self {
        Self { migrations: MIGRATIONS, durable: SyncedFiles::open }
    }
}

impl RedbKv {
    /// Opens (or makes) the database in `directory`, and checks it.
    ///
    /// # Errors
    /// When another process has it open, when it is damaged or of a later version (the text says what to do), when the disk fails.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        Self::open_with(directory, RedbOptions::default())
    }

    /// As [`Self::open`], with other parts.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(directory: &Path, options: RedbOptions) -> anyhow::Result<Self> {
        let (disk, contents) = Disk::open(directory, options.migrations, options.durable)?;
        let revision = disk.seal.revision;
        let (commits, queue) = mpsc::channel(QUEUE);
        let watches = Watches::from_revision(revision);
        let committed = Arc::new(RwLock::new(Committed { contents, revision }));
        let writer = Writer {
            directory: directory.to_owned(),
            options,
            state: State::Open(Box::new(disk)),
            committed: committed.clone(),
            watches: watches.clone(),
        };
        let writer = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(queue))?;
        Ok(Self { committed, commits: Some(commits), watches, writer: Some(writer) })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Committed> {
        // Written to by moves alone; a panic in between leaves it whole.
        self.committed.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RedbKv {
    fn drop(&mut self) {
        self.commits = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been reported by its own hook; there is nothing left to save here.
            let _ = writer.join();
        }
    }
}

enum State {
    Open(Box<Disk>),
    /// A write has failed.
    Failed {
        reason: String,
        /// When the database was last opened since.
        tried: Instant,
        /// Whether something may be on the disk that nobody was told is in force.
        uncertain: bool,
    },
}

struct Writer {
    directory: PathBuf,
    options: RedbOptions,
    state: State,
    committed: Shared,
    watches: Watches,
}

/// What is to become of a group.
struct Group {
    changes: Changes,
    accepted: Vec<(Commit, Revision)>,
    revision: Revision,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Commit>) {
        let mut group = Vec::with_capacity(GROUP);
        while queue.blocking_recv_many(&mut group, GROUP) > 0 {
            self.recover();
            match &self.state {
                State::Open(_) => self.commit_group(&mut group),
                State::Failed { reason, .. } => {
                    for commit in group.drain(..) {
                        let _ = commit.done.send(Err(failed(reason)));
                    }
                }
            }
        }
        match self.state {
            State::Open(disk) => disk.close(),
            State::Failed { uncertain: true, .. } => match self.reopen() {
                Ok(disk) => disk.close(),
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "a change whose outcome is not known could not be taken back; the next start may bring it into force"
                ),
            },
            State::Failed { .. } => {}
        }
    }

    /// Opens the database anew after a failed write, when it is time.
    fn recover(&mut self) {
        let State::Failed { tried, uncertain, .. } = &self.state else { return };
        let uncertain = *uncertain;
        if tried.elapsed() < REOPEN_PAUSE {
            return;
        }
        match self.reopen() {
            Ok(disk) => {
                tracing::info!(revision = disk.seal.revision.0, "the store works again");
                self.state = State::Open(Box::new(disk));
            }
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::error!(%reason, "the store still takes no changes");
                self.state = State::Failed { reason, tried: Instant::now(), uncertain };
            }
        }
    }

    /// Opens the database anew. The commits that failed may have come to the disk all the same; since those who made them were told that they
    /// failed, they are taken back: what is in memory is what was acknowledged.
    fn reopen(&self) -> anyhow::Result<Disk> {
        let (mut disk, contents) = Disk::open(&self.directory, self.options.migrations, self.options.durable)?;
        let (undo, newest) = {
            let committed = self.committed.read().unwrap_or_else(PoisonError::into_inner);
            (difference(&contents, &committed.contents), disk.seal.revision.max(committed.revision))
        };
        if !undo.is_empty() {
            tracing::warn!(keys = undo.len(), "taking back what was written and not acknowledged");
            disk.write(&undo, resealed(disk.seal, &contents, &undo, Revision(newest.0 + 1)))?;
        }
        // Numbers that a failed commit had are not used again.
        self.committed.write().unwrap_or_else(PoisonError::into_inner).revision = newest.max(disk.seal.revision);
        Ok(disk)
    }

    /// Which commits of the group may happen. Guards of a later one see the writes of an earlier one.
    fn judge(&self, group: &mut Vec<Commit>) -> Group {
        let committed = self.committed.read().unwrap_or_else(PoisonError::into_inner);
        let mut judged = Group { changes: Changes::new(), accepted: Vec::new(), revision: committed.revision };
        for commit in group.drain(..) {
            let broken = broken_guard(&commit.guards, |key| match judged.changes.get(key) {
                Some(changed) => changed.as_ref().map(|(_, revision)| *revision),
                None => committed.contents.get(key).map(|(_, revision)| *revision),
            });
            if let Some(key) = broken {
                let _ = commit.done.send(Err(KvError::Conflict(key)));
                continue;
            }
            judged.revision = Revision(judged.revision.0 + 1);
            for write in &commit.writes {
                let value = match write {
                    Write::Put(_, value) => Some((value.clone(), judged.revision)),
                    Write::Delete(_) => None,
                };
                judged.changes.insert(write.key().to_owned(), value);
            }
            judged.accepted.push((commit, judged.revision));
        }
        judged
    }

    /// One batch, one sync, then the answers.
    fn commit_group(&mut self, group: &mut Vec<Commit>) {
        let Group { changes, accepted, revision } = self.judge(group);
        let State::Open(disk) = &mut self.state else { return };
        if accepted.is_empty() {
            return;
        }
        let seal = {
            let committed = self.committed.read().unwrap_or_else(PoisonError::into_inner);
            resealed(disk.seal, &committed.contents, &changes, revision)
        };
        match disk.write(&changes, seal) {
            Ok(()) => {
                let mut committed = self.committed.write().unwrap_or_else(PoisonError::into_inner);
                apply_to(&mut committed.contents, changes);
                committed.revision = revision;
                drop(committed);
                for (commit, revision) in accepted {
                    self.watches.publish(revision, &commit.writes);
                    // An error means that the caller no longer waits.
                    let _ = commit.done.send(Ok(revision));
                }
            }
            Err(error) => self.fail(&error, &changes, revision, accepted),
        }
    }

    /// Takes back what the group may have left on the disk, and then tells its commits.
    fn fail(&mut self, error: &anyhow::Error, changes: &Changes, revision: Revision, commits: Vec<(Commit, Revision)>) {
        let reason = format!(
            "a write failed: {error:#}. The store takes no changes until the disk is in order; it tries by itself"
        );
        let failed = State::Failed { reason: reason.clone(), tried: Instant::now(), uncertain: false };
        let State::Open(disk) = std::mem::replace(&mut self.state, failed) else { return };
        let answer = match self.undo(*disk, changes, revision) {
            Ok(()) => KvError::Failed(reason),
            Err(undo) => {
                if let State::Failed { uncertain, .. } = &mut self.state {
                    *uncertain = true;
                }
                KvError::Unknown(format!(
                    "a write failed: {error:#}; and taking it back failed: {undo:#}. It is not in force now, and may or may not come into \
                     force when berth serve starts next; make room or mend the disk, and look at what is there before doing it again"
                ))
            }
        };
        tracing::error!(directory = %self.directory.display(), error = %answer, "the store has failed");
        for (commit, _) in commits {
            let _ = commit.done.send(Err(answer.clone()));
        }
    }

    /// Takes a failed group back, in the journal or, if that cannot be written either, by opening the database anew.
    fn undo(&mut self, mut disk: Disk, changes: &Changes, revision: Revision) -> anyhow::Result<()> {
        let held: Changes = {
            let committed = self.committed.read().unwrap_or_else(PoisonError::into_inner);
            changes.keys().map(|key| (key.clone(), committed.contents.get(key).cloned())).collect()
        };
        let taken_back = disk.take_back(&held, Revision(revision.0 + 1));
        disk.close();
        let Err(error) = taken_back else { return Ok(()) };
        tracing::warn!(%error, "the journal cannot be written; opening the store anew");
        self.state = State::Open(Box::new(self.reopen()?));
        Ok(())
    }
}

/// What makes `from` into `to`.
fn difference(from: &Contents, to: &Contents) -> Changes {
    let changed = to.iter().filter(|(key, entry)| from.get(*key) != Some(entry));
    let mut changes: Changes = changed.map(|(key, entry)| (key.clone(), Some(entry.clone()))).collect();
    changes.extend(from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), None)));
    changes
}

#[async_trait]
impl Kv for RedbKv {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        let committed = self.read();
        let found = committed.contents.get(key);
        Ok(found.map(|(value, revision)| Entry { key: key.to_owned(), value: value.clone(), revision: *revision }))
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<Entry>, KvError> {
        self.scan_after(prefix, "", usize::MAX).await
    }

    async fn scan_after(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<Entry>, KvError> {
        Ok(entries_after(&self.read().contents, prefix, after, most))
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Revision, KvError> {
        let (done, answer) = oneshot::channel();
        let commits = self.commits.as_ref().ok_or_else(|| failed("the store is closed"))?;
        commits.send(Commit { guards, writes, done }).await.map_err(|_| failed("the store's writer has ended"))?;
        answer.await.map_err(|_| failed("the store's writer has ended"))?
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Change>, KvError> {
        let now = self.read().revision;
        Ok(self.watches.subscribe(prefix, from, now))
    }

    async fn revision(&self) -> Result<Revision, KvError> {
        Ok(self.read().revision)
    }
}

/// Shared by those who need a store on disk.
pub fn open_store(directory: &Path) -> anyhow::Result<super::Store> {
    Ok(super::Store::new(Arc::new(RedbKv::open(directory)?)))
}

#[cfg(test)]
mod tests;
