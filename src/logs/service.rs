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
    LogCursor, LogEntry, LogFilter, LogLimits, LogRecord,
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

/// Lines that found the queue full or could not be written, per environment, until its log says so.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    any: AtomicBool,
    /// Of all environments since the server began.
    total: AtomicU64,
    counts: Mutex<HashMap<EnvRef, u64>>,
}

impl Dropped {
    pub(super) fn count(&self, env: &EnvRef) {
        self.add(env, 1);
    }

    fn add(&self, env: &EnvRef, lines: u64) {
        self.total.fetch_add(lines, SeqCst);
        self.put_back(env, lines);
    }

    /// Lines that have been counted, and that the log does not tell of after all.
    fn put_back(&self, env: &EnvRef, lines: u64) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(env.clone()).or_default() += lines;
        self.any.store(true, SeqCst);
    }

    /// Nobody is to be told of them any more.
    fn forget(&self, env: &EnvRef) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(env);
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
    /// The lines that are told of by a notice which is not written yet.
    notices: HashMap<EnvRef, u64>,
    compressor: Compressor,
    /// Environments whose last write failed; told of once.
    failing: HashSet<EnvRef>,
}

impl Writer {
    pub(super) fn new(root: PathBuf, limits: LogLimits, dropped: Arc<Dropped>, compressor: Compressor) -> Self {
        let (rings, feeds, failing) = (HashMap::new(), HashMap::new(), HashSet::new());
        let (listeners, changed, notices) = (HashMap::new(), HashSet::new(), HashMap::new());
        Self { root, limits, rings, feeds, listeners, changed, dropped, notices, compressor, failing }
    }

    /// Works until every sender is gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            for command in batch.drain(..) {
                self.handle(command);
            }
            self.flush();
            self.tell_dropped();
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

    /// Says in the logs what they lack. What cannot be said now is said with the next lines.
    fn tell_dropped(&mut self) {
        self.notices = self.dropped.take();
        let mut notices = Vec::new();
        for (env, count) in self.notices.clone() {
            let text =
                format!("{count} lines dropped: they came faster than they could be written, or the disk was full");
            let notice = LogRecord::berth(Timestamp::now(), "logs", text);
            let cursor = self.write(&env, &notice);
            notices.push((env, notice, cursor));
        }
        if !notices.is_empty() {
            self.flush();
        }
        for (env, notice, cursor) in notices {
            // Followers are told once, too.
            if self.notices.remove(&env).is_some() {
                self.pass_on(&env, notice, cursor);
            }
        }
    }

    fn append(&mut self, env: &EnvRef, mut record: LogRecord) {
        record.cut();
        let cursor = self.write(env, &record);
        self.pass_on(env, record, cursor);
    }

    /// Gives a record to its ring; `None`: it is lost.
    fn write(&mut self, env: &EnvRef, record: &LogRecord) -> Option<LogCursor> {
        let taken = self.ring(env).and_then(|ring| ring.append(record));
        taken.inspect_err(|error| self.lose(env, error)).ok()
    }

    /// To those who read it as it is written.
    fn pass_on(&mut self, env: &EnvRef, record: LogRecord, cursor: Option<LogCursor>) {
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
        let flushed = ring.flush().map(|()| ring.position());
        flushed.inspect_err(|error| self.lose(env, error))
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
        self.dropped.forget(env);
        self.failing.remove(env);
        let _files = self.compressor.files();
        match fs::remove_dir_all(env_directory(&self.root, env)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn flush(&mut self) {
        let mut failed = Vec::new();
        for (env, ring) in self.rings.iter_mut().filter(|(_, ring)| ring.unwritten() > 0) {
            match ring.flush() {
                Ok(()) => drop(self.failing.remove(env)),
                Err(error) => failed.push((env.clone(), error)),
            }
        }
        for (env, error) in failed {
            self.lose(&env, &error);
        }
    }

    /// Counts what cannot be written, and tells the server's own log when that begins.
    fn lose(&mut self, env: &EnvRef, error: &io::Error) {
        // Opened anew next time, as whatever is wrong may be mended. Without one, it was to be opened for a line.
        let mut lost = self.rings.remove(env).map_or(1, |ring| ring.unwritten());
        if let Some(told) = self.notices.remove(env) {
            // The notice is the last line, and none that anybody else misses.
            self.dropped.put_back(env, told);
            lost = lost.saturating_sub(1);
        }
        if lost > 0 {
            self.dropped.add(env, lost);
        }
        if self.failing.insert(env.clone()) {
            tracing::error!(%env, %error, "the app's log cannot be written; is the disk full?");
        }
    }
}

#[cfg(test)]
mod tests;
