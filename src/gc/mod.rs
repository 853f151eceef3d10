//! Room: what is not needed any more goes, by schedule, by command, and early when space gets low.
//!
//! [`Gc`] is the handle, [`GcService`] does the work, one collection at a time. What stays, `plan::retention` decides. The order is:
//! **records first, then what they refer to**, each step looking anew at the records that are left. So a record that is there always has
//! its image, its commit and its log, and a server that is killed at any moment leaves at worst things that no record names; since
//! everything is found by looking at what is there, the next collection takes them. What could begin to refer to something that is about
//! to go is kept apart: a transaction that deletes releases fails when the environment has changed, one that makes a release from another
//! fails when that is gone, builds that reuse or publish images wait ([`crate::registry::PublishGate`]), and a repository is only touched
//! while nobody pushes to it ([`crate::git::Repositories::try_own`]).

mod caches;
mod files;
mod images;
mod records;
mod report;
mod service;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub use self::{
    report::{Gone, Kind, Report},
    service::GcService,
};
use crate::{
    build::Builds,
    disk::DiskFloor,
    domain::ImageRef,
    git::{Git, Repositories},
    logs::Logs,
    plan::retention::Retention,
    registry::{PublishGate, Registry, RegistryRoom},
    runtime::Runtime,
    store::Store,
};

/// What is kept, and when the rest goes; from the server's configuration.
#[derive(Debug, Clone)]
pub struct GcSettings {
    pub retention: Retention,
    /// Time between two collections.
    pub every: Duration,
    /// Bytes of one app's build cache, and of all.
    pub cache_per_app: u64,
    pub cache_total: u64,
    /// `DATA/buildpacks`: those fetched.
    pub buildpacks: std::path::PathBuf,
}

/// What a collection works on.
#[derive(Clone)]
pub struct GcParts {
    pub store: Store,
    pub runtime: Arc<dyn Runtime>,
    pub registry: Arc<dyn Registry>,
    /// `None` for a registry that somebody else runs: then only manifests are deleted.
    pub room: Option<Arc<dyn RegistryRoom>>,
    pub repositories: Repositories,
    pub git: Git,
    pub logs: Logs,
    pub stacks: Arc<dyn Stacks>,
    pub publishing: PublishGate,
    pub disk: DiskFloor,
}

/// Who knows the images of the stacks in force: [`Builds`].
#[async_trait::async_trait]
pub trait Stacks: Send + Sync {
    /// As [`Builds::stack_images`].
    async fn images(&self) -> anyhow::Result<Vec<ImageRef>>;
}

#[async_trait::async_trait]
impl Stacks for Builds {
    async fn images(&self) -> anyhow::Result<Vec<ImageRef>> {
        self.stack_images().await
    }
}

/// Why there was no collection.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    #[error("a collection is running already, or is kept away by a backup; try again when it has ended")]
    Running,
    #[error("the server is stopping; what a collection has not taken yet goes the next time")]
    Stopping,
    /// What is needed cannot be known, so nothing was taken.
    #[error("nothing was taken: {0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Somebody wants a collection.
struct Ask {
    dry_run: bool,
    reply: oneshot::Sender<Result<Report, GcError>>,
    _turn: Turn,
}

/// One collection at a time.
#[derive(Clone)]
struct Turns(Arc<Semaphore>);

/// No collection runs while this is there; given back when it is dropped.
pub struct Turn(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Turns {
    fn take(&self) -> Option<Turn> {
        self.0.clone().try_acquire_owned().ok().map(Turn)
    }
}

/// Asks for collections. Clones share everything.
#[derive(Clone)]
pub struct Gc {
    asks: mpsc::Sender<Ask>,
    turns: Turns,
}

impl Gc {
    /// A handle, and the service that does the work once [`GcService::run`] is called.
    pub fn start(parts: GcParts, settings: GcSettings) -> (Self, GcService) {
        let (asks, queue) = mpsc::channel(1);
        let turns = Turns(Arc::new(Semaphore::new(1)));
        (Self { asks, turns: turns.clone() }, GcService::new(parts, settings, queue, turns))
    }

    /// Keeps collections away, for as long as what is returned lives; one that runs is waited for, `patience` at most.
    ///
    /// # Errors
    /// [`GcError::Running`] when it has not ended by then.
    pub async fn hold(&self, patience: Duration) -> Result<Turn, GcError> {
        match tokio::time::timeout(patience, self.turns.0.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Turn(permit)),
            Ok(Err(_)) => Err(GcError::Stopping),
            Err(_) => Err(GcError::Running),
        }
    }

    /// Collects, or with `dry_run` says what would go. The collection goes on when the caller does not wait for its end.
    ///
    /// # Errors
    /// See [`GcError`].
    pub async fn run(&self, dry_run: bool) -> Result<Report, GcError> {
        let turn = self.turns.take().ok_or(GcError::Running)?;
        let (reply, report) = oneshot::channel();
        let ask = Ask { dry_run, reply, _turn: turn };
        self.asks.try_send(ask).map_err(|_| GcError::Stopping)?;
        report.await.unwrap_or(Err(GcError::Stopping))
    }
}
