//! The one writer: a thread that owns the rings and the followers, fed by a bounded queue.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    LogEntry, LogFilter, LogLimits, LogRecord,
    follow::{Feed, Follower, channel},
    ring::{Compressor, Position, Ring},
};
use crate::{
    domain::{EnvRef, Timestamp},
    places::Place,
};

/// Commands taken from the queue at a time; one write per environment for all of them.
const BATCH: usize = 1024;
/// Rings kept open at a time.
const OPEN_RINGS: usize = 256;

/// What the writer is asked to do, in order.
pub(super) enum Command {
    /// With its place in the queue, which it holds until it is written.
    Append(EnvRef, LogRecord, Place),
    /// Where the log stands after everything before this command.
    Mark(EnvRef, oneshot::Sender<io::Result<Position>>),
    /// The same, and everything after it.
    Follow(EnvRef, LogFilter, oneshot::Sender<io::Result<(Position, Follower)>>),
    /// Hears of new lines.
    Changes(EnvRef, oneshot::Sender<io::Result<watch::Receiver<()>>>),
    Remove(EnvRef, oneshot::Sender<io::Result<()>>),
    /// Everything before this is written.
    Flush(oneshot::Sender<()>),
}

/// Lines that found the queue full, per environment.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    any: AtomicBool,
    /// Of all environments since the server began.
    total: AtomicU64,
    counts: Mutex<HashMap<EnvRef, u64>>,
}

impl Dropped {
    pub(super) fn count(&self, env: &EnvRef) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(env.clone()).or_default() += 1;
        self.any.store(true, SeqCst);
        self.total.fetch_add(1, SeqCst);
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(SeqCst)
    }

    fn take(&self) -> HashMap<EnvRef, u64> {
        match self.any.swap(false, SeqCst) {
            true => std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner)),
            false => HashMap::new(),
        }
    }
}

/// Where the files of an environment are. Names are valid by construction.
pub(super) fn env_directory(root: &Path, env: &EnvRef) -> PathBuf {
    root.join(env.tenant.as_str()).join(env.app.as_str()).join(env.env.as_str())
}

/// The environments that have a directory.
pub(super) fn environments(root: &Path) -> io::Result<Vec<EnvRef>> {
    let names = |path: &Path| -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    };
    let mut found = Vec::new();
    for tenant in names(root)? {
        for app in names(&root.join(&tenant))? {
            let below = names(&root.join(&tenant).join(&app))?.into_iter();
            found.extend(below.filter_map(|env| format!("{tenant}/{app}/{env}").parse::<EnvRef>().ok()));
        }
    }
    Ok(found)
}

pub(super) struct Writer {
    root: PathBuf,
    limits: LogLimits,
    rings: HashMap<EnvRef, Ring>,
    feeds: HashMap<EnvRef, Vec<Feed>>,
    /// Those who hear of new lines, and the environments that have some.
    listeners: HashMap<EnvRef, watch::Sender<()>>,
    changed: HashSet<EnvRef>,
    dropped: Arc<Dropped>,
    compressor: Compressor,
    /// Environments whose last write failed; told of once.
    failing: HashSet<EnvRef>,
}

impl Writer {
    pub(super) fn new(root: PathBuf, limits: LogLimits, dropped: Arc<Dropped>, compressor: Compressor) -> Self {
        let (rings, feeds, failing) = (HashMap::new(), HashMap::new(), HashSet::new());
        let (listeners, changed) = (HashMap::new(), HashSet::new());
        Self { root, limits, rings, feeds, listeners, changed, dropped, compressor, failing }
    }

    /// Works until every sender is gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            for command in batch.drain(..) {
                self.handle(command);
            }
            for (env, count) in self.dropped.take() {
                let text = format!("{count} lines dropped: they came faster than they could be written");
                self.append(&env, LogRecord::berth(Timestamp::now(), "logs", text));
            }
            self.flush();
            self.tell_listeners();
            if self.rings.len() > OPEN_RINGS {
                self.rings.clear();
            }
        }
    }

    fn handle(&mut self, command: Command) {
        // Whoever asked may have gone; then nobody needs the answer.
        let _answered = match command {
            Command::Append(env, record, _place) => {
                self.append(&env, record);
                true
            }
            Command::Mark(env, reply) => reply.send(self.mark(&env)).is_ok(),
            Command::Follow(env, filter, reply) => reply.send(self.follow(env, filter)).is_ok(),
            Command::Changes(env, reply) => {
                let listeners = self.listeners.entry(env).or_insert_with(|| watch::channel(()).0);
                reply.send(Ok(listeners.subscribe())).is_ok()
            }
            Command::Remove(env, reply) => reply.send(self.remove(&env)).is_ok(),
            Command::Flush(reply) => {
                self.flush();
                reply.send(()).is_ok()
            }
        };
    }

    fn append(&mut self, env: &EnvRef, mut record: LogRecord) {
        record.cut();
        let written = self.ring(env).and_then(|ring| ring.append(&record));
        let cursor = written.as_ref().ok().copied();
        self.report(env, written.map(drop));
        if self.listeners.contains_key(env) {
            self.changed.insert(env.clone());
        }
        if let Some(feeds) = self.feeds.get_mut(env) {
            let entry = Arc::new(LogEntry::new(record, cursor));
            feeds.retain(|feed| feed.push(&entry));
            if feeds.is_empty() {
                self.feeds.remove(env);
            }
        }
    }

    /// Once what was appended can be read.
    fn tell_listeners(&mut self) {
        for env in self.changed.drain() {
            if self.listeners.get(&env).is_some_and(|listeners| listeners.send(()).is_err()) {
                self.listeners.remove(&env);
            }
        }
    }

    fn ring(&mut self, env: &EnvRef) -> io::Result<&mut Ring> {
        if !self.rings.contains_key(env) {
            let directory = env_directory(&self.root, env);
            let ring = Ring::open(&directory, self.limits.segment_bytes, self.limits.segments, &self.compressor)?;
            self.rings.insert(env.clone(), ring);
        }
        self.rings.get_mut(env).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn mark(&mut self, env: &EnvRef) -> io::Result<Position> {
        let ring = self.ring(env)?;
        ring.flush()?;
        Ok(ring.position())
    }

    fn follow(&mut self, env: EnvRef, filter: LogFilter) -> io::Result<(Position, Follower)> {
        let position = self.mark(&env)?;
        let (feed, follower) = channel(filter, self.limits.follower_lines);
        let feeds = self.feeds.entry(env).or_default();
        // Where nothing is logged, no line finds out who is gone.
        feeds.retain(Feed::is_read);
        feeds.push(feed);
        Ok((position, follower))
    }

    fn remove(&mut self, env: &EnvRef) -> io::Result<()> {
        self.rings.remove(env);
        self.feeds.remove(env);
        self.listeners.remove(env);
        let _files = self.compressor.files();
        match fs::remove_dir_all(env_directory(&self.root, env)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn flush(&mut self) {
        let results: Vec<_> = self
            .rings
            .iter_mut()
            .filter_map(|(env, ring)| ring.flush().err().map(|error| (env.clone(), error)))
            .collect();
        for (env, error) in results {
            self.report(&env, Err(error));
        }
    }

    /// Tells the server's own log when writing begins to fail.
    fn report(&mut self, env: &EnvRef, written: io::Result<()>) {
        match written {
            Ok(()) if self.failing.is_empty() => {}
            Ok(()) => drop(self.failing.remove(env)),
            Err(error) => {
                // Opened anew next time, as whatever is wrong may be mended.
                self.rings.remove(env);
                if self.failing.insert(env.clone()) {
                    tracing::error!(%env, %error, "the app's log cannot be written; is the disk full?");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
