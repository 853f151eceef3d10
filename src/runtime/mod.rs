//! The engine that runs containers, as Berth needs it.
//!
//! The port speaks domain types alone. Every operation is idempotent, and containers carry their identity as labels, so
//! that a fresh process rebuilds the world from [`Runtime::observe`]. One contract suite (`tests/runtime_contract`) runs against
//! every adapter.

pub mod docker;
pub mod fake;
mod late;
mod patience;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};

pub use late::LateRuntime;
pub use patience::Patience;

use crate::domain::{AppRef, EnvRef, ImageRef, Limits, Replica, ReplicaId, ReplicaSet, SetId, TenantName, Timestamp};

/// What an adapter can do beyond the minimum; callers ask instead of guessing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Engine and version, for people: `Docker 20.10.24`.
    pub engine: String,
    /// Whether CPU limits are enforced.
    pub cpu_limits: bool,
    /// Whether memory limits are enforced.
    pub memory_limits: bool,
    /// Whether tenants' networks are kept from the host by Berth's own packet filter rules.
    pub host_isolation: bool,
}

/// Why the engine did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The engine does not answer; worth trying again.
    #[error("the container engine does not answer: {0}")]
    Unavailable(String),
    /// The image is not in the registry or cannot be pulled.
    #[error("the image {image} cannot be pulled: {reason}")]
    Image { image: String, reason: String },
    /// The registry does not answer the engine; worth trying again.
    #[error("the image {image} cannot be pulled, since the registry does not answer: {reason}")]
    Registry { image: String, reason: String },
    /// The replica or job is gone.
    #[error("{0} does not exist any more")]
    Gone(String),
    /// The engine refused.
    #[error("{0}")]
    Refused(String),
}

impl RuntimeError {
    /// Whether it says nothing about what was asked for, and may go better in a moment.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Registry { .. })
    }

    /// What somebody who waits for it to pass is told: `waiting for the engine: REASON`.
    pub fn waiting(&self) -> String {
        match self {
            Self::Unavailable(reason) => format!("waiting for the engine: {reason}"),
            Self::Registry { image, reason } => format!("waiting for the registry, to pull {image}: {reason}"),
            other => format!("waiting: {other}"),
        }
    }
}

/// What an engine event is about; a hint to observe again, never the truth itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A replica of this set was started, died, or was removed.
    Changed { set: SetId, replica: ReplicaId, what: Change },
    /// Events may have been lost (the stream was connected anew); observe everything.
    Resync,
}

/// How a replica changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Started,
    Died,
    OutOfMemory,
    Removed,
}

/// A socket that a replica listens on, found in its network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub address: std::net::IpAddr,
    pub port: u16,
}

/// What a job is for; jobs are labelled with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobKind {
    Build,
    ReleasePhase,
    OneOff,
    Cron,
}

/// The image of a job: an app's, or a stack's by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    pub kind: JobKind,
    pub env: EnvRef,
    /// For people and labels, unique among running jobs: `build-12`, `release-v7`, `run-4821`, `cron-nightly-12`.
    pub name: String,
    pub image: ImageRef,
    /// Complete argument vector.
    pub argv: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub limits: Limits,
    /// Mount the app's build cache at `/cache`.
    pub cache: bool,
    /// Host files mounted read-only: (host path, container path). Only from the operator's configuration, never from a tenant.
    pub read_only_mounts: Vec<(String, String)>,
    /// A terminal of (columns, rows) instead of separate streams.
    pub tty: Option<(u16, u16)>,
    /// Whether to attach standard input.
    pub stdin: bool,
    /// Time between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
}

/// Which stream a chunk of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

/// A chunk of output as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub source: Source,
    pub bytes: Bytes,
}

/// A line of a replica's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub at: Timestamp,
    pub source: Source,
    /// Without the line end; cut at 16 KiB.
    pub bytes: Bytes,
}

/// What a running replica uses. Counters begin with the replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time so far, in microseconds.
    pub cpu_micros: u64,
    /// Bytes of memory in use, without what is only cached from files and can be dropped at once.
    pub memory: u64,
    /// Bytes of memory that it may use; `None`: as much as there is.
    pub memory_limit: Option<u64>,
    /// Bytes received and sent over its network so far.
    pub received: u64,
    pub sent: u64,
}

/// Bytes of output that are kept of a command run in a replica.
pub const EXEC_OUTPUT: usize = 4096;

/// What came of a command that was run inside a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Exit status; `None`: it was killed since its time was over.
    pub code: Option<i64>,
    /// The last that it wrote to both its streams, at most [`EXEC_OUTPUT`] bytes.
    pub output: Bytes,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobExit {
    /// Exit status; 128 + signal number when a signal ended it.
    pub code: i64,
    pub out_of_memory: bool,
}

/// A job that was made but may not have been started. Dropping it kills and removes its container.
#[async_trait]
pub trait Job: Send {
    /// Unpacks an uncompressed tar stream into a directory of the job's file system; before `start`.
    async fn upload(&mut self, directory: &str, tar: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), RuntimeError>;
    /// Starts it. Output that nobody reads is not lost and not buffered without bound: the job waits.
    async fn start(&mut self) -> Result<(), RuntimeError>;
    /// The output, once; ends when the job ends.
    fn output(&mut self) -> BoxStream<'static, Result<Output, RuntimeError>>;
    /// Standard input, once, if the spec asked for it. Shutting it down gives the job an end of file.
    fn stdin(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>>;
    /// A handle that can signal and resize while others wait.
    fn control(&self) -> Box<dyn JobControl>;
    /// Waits for the end.
    async fn wait(&mut self) -> Result<JobExit, RuntimeError>;
    /// A file or directory of the job's file system as an uncompressed tar stream, during or after its run. Entry names begin
    /// with the last component of `path`.
    async fn download(&mut self, path: &str) -> Result<Box<dyn AsyncRead + Send + Unpin>, RuntimeError>;
    /// Kills it if it runs, and removes it. The same as dropping, but waits and tells.
    async fn finish(self: Box<Self>) -> Result<(), RuntimeError>;
}

/// Signals and resizes a running job.
#[async_trait]
pub trait JobControl: Send + Sync {
    /// Sends a signal by its name without `SIG`, as in `INT`.
    async fn signal(&self, name: &str) -> Result<(), RuntimeError>;
    /// Tells the terminal its size.
    async fn resize(&self, columns: u16, rows: u16) -> Result<(), RuntimeError>;
}

/// A container engine.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// What this adapter can do.
    fn capabilities(&self) -> Capabilities;

    /// Returns when there is an engine at all; one that has come may still not answer at the moment.
    async fn until_there(&self) {}

    /// Makes the tenant's isolated network if it is not there. `apply` and `job` do so too; this only takes it off their path.
    async fn prepare_tenant(&self, tenant: &TenantName) -> Result<(), RuntimeError>;

    /// Removes what exists for a tenant, app or environment beyond its replicas: networks, caches. `app: None` is the whole tenant.
    async fn forget(&self, tenant: &TenantName, app: Option<&AppRef>) -> Result<(), RuntimeError>;

    /// Removes networks of tenants and caches of apps that are none of these; returns how many. What this process has made or used is
    /// kept all the same: its owner may have come after the sets were made.
    async fn forget_others(
        &self,
        tenants: &BTreeSet<TenantName>,
        apps: &BTreeSet<AppRef>,
    ) -> Result<usize, RuntimeError>;

    /// Brings an image to where its replicas will run, so that `apply` does not wait for it.
    async fn prepare_image(&self, image: &ImageRef) -> Result<(), RuntimeError>;

    /// Makes the set so: indexes 1..=count run, higher ones are stopped (SIGTERM, grace, SIGKILL) and removed, exited ones are
    /// replaced. Returns when the missing ones are started; stopping goes on by itself.
    async fn apply(&self, set: &ReplicaSet) -> Result<(), RuntimeError>;

    /// Every replica that carries Berth's labels, running or not, but for those that have been told to stop.
    async fn observe(&self) -> Result<Vec<Replica>, RuntimeError>;

    /// Stops and removes all replicas of the set: SIGTERM, `grace`, SIGKILL. Returns when they are gone.
    async fn remove(&self, set: &SetId, grace: Duration) -> Result<(), RuntimeError>;

    /// Stops and removes one replica; the next `apply` replaces it. Returns when it is gone.
    async fn stop_replica(&self, replica: &ReplicaId, grace: Duration) -> Result<(), RuntimeError>;

    /// Hints that something changed, from now on. Reconnects by itself and then says [`RuntimeEvent::Resync`].
    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>, RuntimeError>;

    /// Log lines of a replica from `since` on, and on as they come; ends when the replica has ended.
    async fn logs(
        &self,
        replica: &ReplicaId,
        since: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError>;

    /// The TCP sockets a running replica listens on.
    async fn listeners(&self, replica: &ReplicaId) -> Result<Vec<Listener>, RuntimeError>;

    /// What these replicas use now, as far as they run and are this Berth's; others are left out. Cheap enough to be asked every few
    /// seconds for all there are.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when the engine had to be asked and does not answer.
    async fn usage(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, Usage>, RuntimeError>;

    /// How often a running replica was refused a process because it has as many as it may: at once, and each time that this has grown. Ends
    /// with the replica.
    ///
    /// # Errors
    /// [`RuntimeError::Gone`] when the replica is; [`RuntimeError::Refused`] when that cannot be known.
    async fn refused_processes(&self, replica: &ReplicaId) -> Result<BoxStream<'static, u64>, RuntimeError>;

    /// Holds a running replica to so many thousandths of a core, if that is less than it may have; `None` lets go of it. Being told to stop
    /// lets go of it too, and so does the first look of the next process, unless it has been told to stop by then: such a one has its grace,
    /// held as it is.
    ///
    /// # Errors
    /// [`RuntimeError::Gone`] when the replica is or is being stopped; [`RuntimeError::Refused`] when it cannot be held.
    async fn hold(&self, replica: &ReplicaId, cpu_millis: Option<u32>) -> Result<(), RuntimeError>;

    /// Runs a command line inside a running replica as its process is run (launcher, user, environment, limits), without standard input.
    /// It is killed after `limit`, with the processes it started unless they left its process group. Dropping the future does not
    /// end it earlier.
    ///
    /// # Errors
    /// [`RuntimeError::Gone`] when the replica is; [`RuntimeError::Refused`] when the command cannot be run in it.
    async fn exec(&self, replica: &ReplicaId, command: &str, limit: Duration) -> Result<Executed, RuntimeError>;

    /// Makes a job's container.
    async fn job(&self, spec: &JobSpec) -> Result<Box<dyn Job>, RuntimeError>;

    /// Ends and removes jobs that no living process owns (left by a server that was killed).
    async fn end_orphaned_jobs(&self) -> Result<usize, RuntimeError>;

    /// Removes the app's build cache.
    async fn purge_cache(&self, app: &AppRef) -> Result<(), RuntimeError>;

    /// Removes local copies of Berth's images that are not in `keep` and not in use.
    async fn collect_images(&self, keep: &[ImageRef]) -> Result<usize, RuntimeError>;

    /// What [`Self::collect_images`] would remove: names for people, and bytes (shared layers count each time).
    async fn surplus_images(&self, _keep: &[ImageRef]) -> Result<Vec<(String, u64)>, RuntimeError> {
        Ok(Vec::new())
    }

    /// The build caches there are, with their bytes.
    async fn caches(&self) -> Result<Vec<(AppRef, u64)>, RuntimeError> {
        Ok(Vec::new())
    }
}
