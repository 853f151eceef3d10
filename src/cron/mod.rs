//! Jobs that run by the clock, in the current release of their environment.
//!
//! One task ([`CronService`]) owns what is known of all jobs: it reads them from the releases that become current, asks
//! [`crate::plan::schedule`] what is due, and starts runs, in containers like those of one-off commands ([`crate::jobs`]). That a moment of a
//! schedule is dealt with is written in the same commit as the run that it led to, before that begins: a server that is killed runs
//! nothing twice, and finds at its next start which runs it had under way; they have failed. [`Cron`] is the handle that others hold.

mod act;
mod book;
mod run;
mod service;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use self::service::CronService;
use crate::{
    deploy::Clock,
    domain::{CronRun, EnvRef, JobName, TenantName, UserName},
    logs::Logs,
    places::{NoPlace, Places},
    runtime::Runtime,
    store::{Store, StoreError},
};

/// Requests that may wait for the service.
const ASKS: usize = 64;

/// How jobs are run; from the server's configuration.
#[derive(Debug, Clone)]
pub struct CronSettings {
    /// How late a run may be started that came due while it could not be.
    pub starting_deadline: Duration,
    /// Runs at the same time, over the platform and of one tenant.
    pub concurrency: usize,
    pub per_tenant: usize,
    /// Runs that are remembered, per job.
    pub history: u64,
    /// Processes and threads of one run.
    pub pids: u32,
    /// Between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
}

impl Default for CronSettings {
    fn default() -> Self {
        Self {
            starting_deadline: Duration::from_secs(3600),
            concurrency: 20,
            per_tenant: 5,
            history: 50,
            pids: 1024,
            stop_grace: Duration::from_secs(10),
        }
    }
}

/// What the service works with.
pub struct CronParts {
    pub store: Store,
    pub runtime: Arc<dyn Runtime>,
    pub logs: Logs,
    pub clock: Arc<dyn Clock>,
    pub settings: CronSettings,
}

/// Why a job was not started though somebody asked for it.
#[derive(Debug, thiserror::Error)]
pub enum CronRefusal {
    /// The environment has no release, or its release has no such job.
    #[error("there is no such job")]
    NoJob {
        /// The jobs that there are.
        known: Vec<JobName>,
    },
    /// A run is under way and the job's overlap policy is `skip`.
    #[error("run {number} of it is under way")]
    Busy { number: u64 },
    /// As many runs are under way as may be.
    #[error("too many jobs run already")]
    NoPlace(NoPlace),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A run that was begun by hand.
#[derive(Debug)]
pub struct Begun {
    pub run: CronRun,
    /// Its output as it comes; what a slow reader does not take in time is left out (the log has it).
    pub output: mpsc::Receiver<Bytes>,
    /// The run once it is over; an error when the server stops before that.
    pub ended: oneshot::Receiver<CronRun>,
}

/// What somebody asks for.
struct RunAsk {
    env: EnvRef,
    job: JobName,
    by: UserName,
    reply: oneshot::Sender<Result<Begun, CronRefusal>>,
}

enum Ask {
    Run(RunAsk),
    /// Answered once nothing of the environment, whose record is gone, runs any more.
    Retire(EnvRef, oneshot::Sender<()>),
}

/// Asks for runs. Clones share the service.
#[derive(Clone)]
pub struct Cron {
    asks: mpsc::Sender<Ask>,
    places: Arc<Places<TenantName>>,
}

impl Cron {
    /// A handle and the service that does the work; nothing happens before [`CronService::run`].
    pub fn start(parts: CronParts) -> (Self, CronService) {
        let (asks, queue) = mpsc::channel(ASKS);
        let places = Arc::new(Places::new(parts.settings.concurrency, parts.settings.per_tenant));
        let service = CronService::new(Arc::new(parts), queue, places.clone());
        (Self { asks, places }, service)
    }

    /// How many runs are under way, and how many may be at the same time.
    pub fn under_way(&self) -> (usize, usize) {
        self.places.taken()
    }

    /// Starts a job now, whatever its schedule says; its overlap policy holds.
    ///
    /// # Errors
    /// See [`CronRefusal`].
    pub async fn run_now(&self, env: &EnvRef, job: &JobName, by: &UserName) -> Result<Begun, CronRefusal> {
        let (reply, answer) = oneshot::channel();
        let ask = RunAsk { env: env.clone(), job: job.clone(), by: by.clone(), reply };
        self.asks.send(Ask::Run(ask)).await.map_err(|_| CronRefusal::Stopping)?;
        answer.await.unwrap_or(Err(CronRefusal::Stopping))
    }

    /// Returns when nothing of a destroyed environment, whose record has been deleted, runs any more.
    pub async fn retire(&self, env: &EnvRef) {
        let (reply, done) = oneshot::channel();
        // A service that has ended has ended its runs.
        if self.asks.send(Ask::Retire(env.clone(), reply)).await.is_ok() {
            let _ = done.await;
        }
    }
}
