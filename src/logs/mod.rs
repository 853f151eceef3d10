//! Logs: of replicas, of the router about an app, of builds. Bounded on disk (a ring of files per environment) and in memory (a slow
//! follower is told how many lines it missed); kept across deploys.
//!
//! One writer thread (`service`) owns the rings (`ring`) and the followers (`follow`), another compresses closed files; [`Logs`] is the
//! handle that everyone clones. Replicas ([`collector`]) and jobs ([`JobOutput`]) are taken at a pace, and of the lines that wait for the
//! writer one tenant has a share, so that none who writes without end is in the way of others. Build
//! logs (`builds`) are files of their own. [`collector`] and [`access`] bring in what replicas and the router write. `reading` is how they are
//! read: the last lines, those after a [`LogCursor`], those that come, of all of them what a [`LogFilter`] wants. [`render_record`] makes a
//! line safe for a terminal, [`plain_record`] and [`plain_line`] plain text of it, and [`safe_json`] JSON.

pub mod access;
mod builds;
pub mod collector;
mod cursor;
mod filter;
mod follow;
mod hold;
mod job;
mod level;
mod lines;
mod onward;
mod pace;
mod plain;
mod query;
mod reading;
mod record;
mod render;
mod ring;
mod service;
mod tail;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};

pub use self::{
    builds::BuildLogWriter,
    cursor::{BadCursor, LogCursor},
    filter::{BadSearch, LogFilter, MAX_SEARCH, Search},
    follow::LogItem,
    job::JobOutput,
    level::{LogLevel, NoLevel},
    lines::OutputLines,
    onward::{LogChanges, LogPage},
    plain::plain_line,
    query::{BadMoment, LogQuery, Moment},
    record::{LogEntry, LogRecord, LogSource, LogStream, MAX_TEXT, NotOne},
    render::{is_unsafe, plain_record, plain_text, render_line, render_record, safe_json},
    tail::OutputTail,
};
use self::{
    builds::Builds,
    ring::{Compressor, Position},
    service::{Command, Dropped, Writer, env_directory},
};
use crate::{
    domain::{BuildNumber, EnvRef, ReplicaId, TenantName, Timestamp},
    places::Places,
};

/// Most lines that [`Logs::tail`] returns.
pub const MAX_TAIL: usize = 10_000;

/// One tenant may have one of so many parts of the queue.
const SHARE: usize = 3;
/// Questions that wait among the lines.
const QUESTIONS: usize = 64;
/// So many read files at a time, each of them with a file of a ring or a page of lines in memory; of one tenant so many.
const READS: usize = 16;
const READS_OF_TENANT: usize = 6;
/// How long a line waits that can.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sizes of everything that could grow.
#[derive(Debug, Clone)]
pub struct LogLimits {
    /// Size of one file of an environment's ring, in bytes, and their number.
    pub segment_bytes: u64,
    pub segments: usize,
    /// Lines waiting to be written, over all environments; more are dropped and counted. One tenant has a share of it.
    pub queue: usize,
    /// What a replica may write, in bytes a second (for a short while more); the rest is left out and counted.
    pub replica_rate: u64,
    /// Lines that a follower may be behind before it misses some.
    pub follower_lines: usize,
    /// Size of one build's log, in bytes; beyond it only the last lines are kept.
    pub build_bytes: u64,
    /// Build logs kept per environment. Collections see to it; without any, some times as many are the bound.
    pub builds_kept: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            segment_bytes: 4 << 20,
            segments: 4,
            queue: 8192,
            replica_rate: 1 << 20,
            follower_lines: 2000,
            build_bytes: 8 << 20,
            builds_kept: 50,
        }
    }
}

/// The last line that was kept of a replica: where to go on reading after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    pub at: Timestamp,
    /// How many lines of this very moment are kept; as many are to be skipped when the runtime is asked for lines since then.
    pub lines: usize,
}

/// All logs below one directory. Clones share the writer, which ends when the last one is dropped.
#[derive(Clone)]
pub struct Logs(Arc<Inner>);

struct Inner {
    root: PathBuf,
    replica_rate: u64,
    queue: mpsc::Sender<Command>,
    /// Of lines that are dropped when there is none, and of those that wait.
    places: Places<TenantName>,
    patient: Places<TenantName>,
    dropped: Arc<Dropped>,
    builds: Builds,
    /// Of those who read files.
    reads: Places<TenantName>,
}

impl Logs {
    /// Opens the logs below `root`, which is made if it is not there, and starts the writer.
    ///
    /// # Errors
    /// When the directory cannot be made, or no thread can be started.
    pub fn open(root: impl Into<PathBuf>, limits: LogLimits) -> anyhow::Result<Self> {
        let root = root.into();
        std::fs::create_dir_all(&root).with_context(|| format!("{} cannot be made", root.display()))?;
        // Lines that can wait never take the places of those that cannot, and no tenant takes all of either.
        let patient = limits.queue / 4;
        let places = limits.queue - patient;
        let share = |all: usize| Places::new(all.max(1), (all / SHARE).max(1));
        let (patient, places) = (share(patient), share(places));
        let reads = Places::new(READS, READS_OF_TENANT);
        let (queue, commands) = mpsc::channel(limits.queue + QUESTIONS);
        let dropped = Arc::new(Dropped::default());
        let replica_rate = limits.replica_rate;
        let builds = Builds::new(root.clone(), limits.build_bytes, limits.builds_kept);
        let compressor = Compressor::start().context("the log compressor cannot be started")?;
        let writer = Writer::new(root.clone(), limits, dropped.clone(), compressor);
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || writer.run(commands))
            .context("the log writer cannot be started")?;
        Ok(Self(Arc::new(Inner { root, replica_rate, queue, places, patient, dropped, builds, reads })))
    }

    /// Adds a line. Never waits: when the queue, or what the tenant may have of it, is full, the line is dropped, and the log says how many
    /// were.
    pub fn append(&self, env: &EnvRef, record: LogRecord) {
        let sent = self.0.places.try_take(&env.tenant).is_ok_and(|place| {
            let line = Command::Append(env.clone(), record, place);
            self.0.queue.try_send(line).is_ok()
        });
        if !sent {
            self.0.dropped.count(env);
        }
    }

    /// Lines dropped since the server began, because they came faster than they could be written, or the disk was full.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.total()
    }

    /// Bytes a second that are taken of one replica's output.
    pub fn replica_rate(&self) -> u64 {
        self.0.replica_rate
    }

    /// Adds a line, and waits while the queue, or what the tenant may have of it, is full: for sources that can wait. A line that had to
    /// wait for half a minute is dropped and counted.
    pub async fn append_when_ready(&self, env: &EnvRef, record: LogRecord) {
        let Ok(place) = self.0.patient.take(&env.tenant, PATIENCE).await else { return self.0.dropped.count(env) };
        // Fails only without a writer, when there is nothing to be done about it.
        let _ = self.0.queue.send(Command::Append(env.clone(), record, place)).await;
    }

    /// Waits until every line added before is in its file.
    pub async fn flush(&self) {
        let (reply, done) = oneshot::channel();
        if self.0.queue.send(Command::Flush(reply)).await.is_ok() {
            // An error means that the writer is gone.
            let _ = done.await;
        }
    }

    /// Where reading a replica's output is to go on; `None` when nothing of it is kept and it is to be read from its start.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn resume_point(&self, env: &EnvRef, replica: &ReplicaId) -> anyhow::Result<Option<ResumePoint>> {
        let position = self.ask(|reply| Command::Mark(env.clone(), reply)).await?;
        let directory = env_directory(&self.0.root, env);
        let replica = replica.0.clone();
        blocking(move || find_resume_point(&directory, position, &replica)).await
    }

    /// The moment of the last line that is kept of a replica.
    ///
    /// # Errors
    /// As [`Self::resume_point`].
    pub async fn last_timestamp(&self, env: &EnvRef, replica: &ReplicaId) -> anyhow::Result<Option<Timestamp>> {
        Ok(self.resume_point(env, replica).await?.map(|point| point.at))
    }

    /// Removes every log of an environment, build logs included; followers end.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn remove(&self, env: &EnvRef) -> anyhow::Result<()> {
        self.0.builds.forget(env);
        self.ask(|reply| Command::Remove(env.clone(), reply)).await
    }

    /// Starts a build's log, or goes on with it after a restart of the server. Older builds' logs beyond the limit are removed.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn build_writer(&self, env: &EnvRef, build: BuildNumber) -> anyhow::Result<BuildLogWriter> {
        self.0.builds.writer(env, build)
    }

    /// The environments that have logs.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn environments(&self) -> anyhow::Result<Vec<EnvRef>> {
        let root = self.0.root.clone();
        blocking(move || service::environments(&root)).await
    }

    /// The builds whose finished logs are kept, with their bytes.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn build_logs(&self, env: &EnvRef) -> anyhow::Result<Vec<(BuildNumber, u64)>> {
        let directory = env_directory(&self.0.root, env);
        blocking(move || builds::finished(&directory)).await
    }

    /// Removes a finished build's log.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub async fn remove_build(&self, env: &EnvRef, build: BuildNumber) -> anyhow::Result<()> {
        let directory = env_directory(&self.0.root, env);
        blocking(move || builds::remove_finished(&directory, build)).await
    }

    /// What there is of a build's log; `None` when there is none (any more).
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn read_build(&self, env: &EnvRef, build: BuildNumber) -> anyhow::Result<Option<Bytes>> {
        let path = self.0.builds.find(env, build);
        blocking(move || path.map(|path| std::fs::read(path).map(Bytes::from)).transpose()).await
    }

    /// A build's log from its beginning, and on as it is written, until it is finished. Waits for a build that has not begun.
    pub fn follow_build(
        &self,
        env: &EnvRef,
        build: BuildNumber,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        self.follow_build_from(env, build, 0)
    }

    /// The same from so many bytes on.
    pub fn follow_build_from(
        &self,
        env: &EnvRef,
        build: BuildNumber,
        offset: u64,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        self.0.builds.follow(env, build, offset)
    }

    /// How long a build's log is by now, in bytes; `None` when there is none (any more).
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub async fn build_log_length(&self, env: &EnvRef, build: BuildNumber) -> anyhow::Result<Option<u64>> {
        let path = self.0.builds.find(env, build);
        blocking(move || path.map(|path| std::fs::metadata(path).map(|file| file.len())).transpose()).await
    }

    /// The last `count` lines of a build's log as far as they lie in its last 64 KiB, for failure reports.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn last_build_lines(
        &self,
        env: &EnvRef,
        build: BuildNumber,
        count: usize,
    ) -> anyhow::Result<Vec<String>> {
        let path = self.0.builds.find(env, build);
        blocking(move || path.map_or_else(|| Ok(Vec::new()), |path| builds::last_lines(&path, count))).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Command) -> anyhow::Result<T> {
        let (reply, answer) = oneshot::channel();
        self.0.queue.send(command(reply)).await.ok().context("the log writer has ended")?;
        answer.await.context("the log writer has ended")?.context("the log cannot be read")
    }
}

/// How long the last output of what has ended may take.
const LAST_OUTPUT: Duration = Duration::from_secs(3);

/// The output until it ends, or until `ended` says that nobody writes it any more: the log of a build may be gone, or may never have been
/// finished by a server that was killed, and then following it would wait for ever.
pub fn until_ended<C>(
    output: impl Stream<Item = C> + Send + 'static,
    ended: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = C> + Send
where
    C: Send + 'static,
{
    futures::stream::unfold((Box::pin(output), Some(Box::pin(ended))), |(mut output, mut ended)| async move {
        if let Some(waiting) = &mut ended {
            tokio::select! {
                biased;
                chunk = output.next() => return Some((chunk?, (output, ended))),
                () = waiting => ended = None,
            }
        }
        let chunk = tokio::time::timeout(LAST_OUTPUT, output.next()).await.ok()??;
        Some((chunk, (output, ended)))
    })
}

/// Runs blocking reads off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("reading the log failed")?.context("the log cannot be read")
}

fn find_resume_point(directory: &Path, until: Position, replica: &str) -> io::Result<Option<ResumePoint>> {
    let mut point: Option<ResumePoint> = None;
    let mut oldest = None;
    ring::read_back(directory, until, |_, line| {
        let Ok(record) = serde_json::from_slice::<LogRecord>(line) else { return true };
        oldest = Some(record.at);
        if record.replica.as_deref() != Some(replica) {
            return true;
        }
        match &mut point {
            None => point = Some(ResumePoint { at: record.at, lines: 1 }),
            Some(point) if point.at == record.at => point.lines += 1,
            Some(_) => return false,
        }
        true
    })?;
    // Its lines may have been rotated away; those older than the oldest line here would be, too.
    let rotated = oldest.filter(|_| ring::has_rotated(directory)).map(|at| ResumePoint { at, lines: 0 });
    Ok(point.or(rotated))
}

#[cfg(test)]
mod tests;
