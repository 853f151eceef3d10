//! The task that owns the jobs: what becomes current, when to look again, what runs and how it ends.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{Id, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Ask, CronParts, RunAsk, book::Book};
use crate::{
    domain::{
        CronJob, CronMark, CronRun, CronState, EnvRef, Environment, EventKind, JobName, Release, ReleaseVersion,
        TenantName, Timestamp,
    },
    places::Places,
    plan::schedule::{Schedule, pause},
    store::{NewEvent, Revision, Store, StoreError},
};

/// Pause before something that failed in the store is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// How long ended runs may take to be cleared up when the server stops, beyond their grace time.
const LAST_RUNS: Duration = Duration::from_secs(3);

type Changes = BoxStream<'static, Result<(String, Option<Environment>), Revision>>;
pub(super) type Key = (EnvRef, JobName);

/// A job of a current release.
pub(super) struct Job {
    pub(super) job: CronJob,
    pub(super) schedule: Result<Schedule, String>,
    pub(super) mark: CronMark,
    /// When there is something to be done, by the clock; `None`: look.
    pub(super) next: Option<Timestamp>,
    /// It is due, but there is no place for it, or what it replaces has not ended.
    pub(super) blocked: bool,
}

pub(super) struct Known {
    pub(super) created_at: Timestamp,
    pub(super) release: ReleaseVersion,
    pub(super) jobs: BTreeMap<JobName, Job>,
}

/// A run under way.
pub(super) struct Active {
    pub(super) run: CronRun,
    pub(super) stop: watch::Sender<Option<String>>,
    pub(super) ended: Option<oneshot::Sender<CronRun>>,
}

/// Runs jobs; run it for as long as the server lives.
pub struct CronService {
    pub(super) parts: Arc<CronParts>,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) places: Arc<Places<TenantName>>,
    pub(super) known: BTreeMap<EnvRef, Known>,
    pub(super) active: BTreeMap<(EnvRef, JobName, u64), Active>,
    pub(super) tasks: JoinSet<CronRun>,
    pub(super) ids: HashMap<Id, (EnvRef, JobName, u64)>,
    /// Environments that could not be read; tried again.
    pub(super) unread: Vec<EnvRef>,
    /// Ends that could not be written down; tried again.
    pub(super) unwritten: Vec<CronRun>,
    pub(super) waiting: Vec<RunAsk>,
    pub(super) retiring: Vec<(EnvRef, oneshot::Sender<()>)>,
    /// The clock when it was looked at last.
    pub(super) looked: Timestamp,
}

impl CronService {
    pub(super) fn new(parts: Arc<CronParts>, asks: mpsc::Receiver<Ask>, places: Arc<Places<TenantName>>) -> Self {
        let looked = parts.clock.now();
        Self {
            parts,
            asks,
            places,
            known: BTreeMap::new(),
            active: BTreeMap::new(),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
            unread: Vec::new(),
            unwritten: Vec::new(),
            waiting: Vec::new(),
            retiring: Vec::new(),
            looked,
        }
    }

    /// Runs until `shutdown`; then the runs under way are ended. Jobs that an earlier server left must have been ended before.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            match self.begin().await {
                Ok(changes) => self.serve(changes, &shutdown).await,
                Err(error) => {
                    tracing::error!(%error, "the cron jobs cannot be read; trying again");
                    tokio::select! {
                        () = sleep(STORE_AGAIN) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
            }
        }
        self.stop_runs(|_| true, "the server was stopped while it ran");
        let limit = self.parts.settings.stop_grace + LAST_RUNS;
        let last = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended).await;
            }
        };
        if timeout(limit, last).await.is_err() {
            tracing::warn!("cron jobs did not end in time; the next start ends them");
        }
    }

    pub(super) fn book(parts: &CronParts) -> Book<'_> {
        Book { store: &parts.store, settings: &parts.settings }
    }

    /// Reads everything, and hears of changes from then on.
    async fn begin(&mut self) -> Result<Changes, StoreError> {
        let parts = self.parts.clone();
        if self.active.is_empty() {
            let ended = Self::book(&parts).end_orphans(parts.clock.now()).await?;
            if ended > 0 {
                tracing::info!(ended, "cron jobs were under way when the server died");
            }
        }
        let from = parts.store.revision().await?;
        let changes = parts.store.watch::<Environment>("", from).await?;
        let environments = parts.store.list::<Environment>("").await?;
        let gone: Vec<EnvRef> =
            self.known.keys().filter(|env| environments.iter().all(|one| one.name != **env)).cloned().collect();
        for env in gone {
            self.forget(&env).await;
        }
        for env in environments {
            self.read(&env.name).await;
        }
        Ok(changes)
    }

    /// Works until shutdown, or until changes were lost.
    async fn serve(&mut self, mut changes: Changes, shutdown: &CancellationToken) {
        loop {
            let wait = self.pass().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(ask) = self.asks.recv() => self.take(ask).await,
                change = changes.next() => match change {
                    Some(Ok((key, _))) => if let Ok(env) = key.parse() {
                        self.read(&env).await;
                    },
                    Some(Err(_)) | None => return,
                },
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    self.ended(ended).await;
                    for ask in std::mem::take(&mut self.waiting) {
                        self.run_now(ask).await;
                    }
                }
                () = sleep(wait) => {}
            }
        }
    }

    /// Takes in what an environment is now.
    pub(super) async fn read(&mut self, env: &EnvRef) {
        match self.try_read(env).await {
            Ok(true) => {}
            Ok(false) => self.forget(env).await,
            Err(error) => {
                tracing::error!(%env, %error, "the cron jobs of an environment cannot be read; trying again");
                if !self.unread.contains(env) {
                    self.unread.push(env.clone());
                }
            }
        }
    }

    /// Whether the environment is there.
    async fn try_read(&mut self, env: &EnvRef) -> Result<bool, StoreError> {
        let parts = self.parts.clone();
        let Some(stored) = parts.store.get::<Environment>(env).await? else { return Ok(false) };
        if self.known.get(env).is_some_and(|known| known.created_at != stored.created_at) {
            self.forget(env).await;
        }
        let Some(release) = stored.current else {
            self.known.remove(env);
            return Ok(true);
        };
        if self.known.get(env).is_some_and(|known| known.release == release) {
            return Ok(true);
        }
        // Without its record nothing of the release can run; the deployer says so.
        let record = parts.store.get::<Release>(&(env.clone(), release)).await?;
        let jobs = record.map(|stored| stored.record.cron).unwrap_or_default();
        let jobs: Vec<(JobName, CronJob)> = jobs.into_iter().collect();
        let busy = |job: &JobName| self.active.keys().any(|(of, name, _)| of == env && name == job);
        let marks = Self::book(&parts).marks(&stored, &jobs, parts.clock.now(), busy).await?;
        let jobs = jobs.into_iter().zip(marks).map(|((name, job), mark)| {
            let schedule = Schedule::parse(&job.schedule, &job.timezone).map_err(|error| error.to_string());
            if let Err(error) = &schedule {
                tracing::error!(%env, job = %name, error, "a cron job does not run: its schedule cannot be read here");
            }
            (name, Job { job, schedule, mark, next: None, blocked: false })
        });
        self.known.insert(env.clone(), Known { created_at: stored.created_at, release, jobs: jobs.collect() });
        Ok(true)
    }

    /// Ends what runs of an environment that is gone, and drops what is recorded of it.
    async fn forget(&mut self, env: &EnvRef) {
        self.known.remove(env);
        self.stop_runs(|run| run.env == *env, "the environment was destroyed");
        self.clear_up(env).await;
    }

    fn is_busy(&self, env: &EnvRef) -> bool {
        self.active.keys().any(|(of, _, _)| of == env)
    }

    pub(super) async fn clear_up(&mut self, env: &EnvRef) {
        if self.is_busy(env) || self.known.contains_key(env) {
            return;
        }
        if let Ok(None) = self.parts.store.get::<Environment>(env).await
            && let Err(error) = Self::book(&self.parts).forget(env).await
        {
            tracing::error!(%env, %error, "the records of cron jobs cannot be removed");
        }
        for (_, done) in self.retiring.extract_if(.., |(of, _)| of == env) {
            // Nobody waits any more: nothing to tell.
            let _ = done.send(());
        }
    }

    pub(super) fn stop_runs(&self, which: impl Fn(&CronRun) -> bool, why: &str) {
        for active in self.active.values().filter(|active| which(&active.run)) {
            // The first reason stands.
            active.stop.send_if_modified(|stop| stop.is_none().then(|| *stop = Some(why.to_owned())).is_some());
        }
    }

    async fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Run(ask) => {
                // The change that made the release current may not have been heard of yet.
                self.read(&ask.env).await;
                self.run_now(ask).await;
            }
            Ask::Retire(env, done) => {
                self.retiring.push((env.clone(), done));
                self.read(&env).await;
                self.clear_up(&env).await;
            }
        }
    }

    /// Does what is due; says how long there is nothing to be done.
    async fn pass(&mut self) -> Duration {
        let now = self.parts.clock.now();
        for env in std::mem::take(&mut self.unread) {
            self.read(&env).await;
        }
        for run in std::mem::take(&mut self.unwritten) {
            self.close(run).await;
        }
        let set_back = now < self.looked;
        self.looked = now;
        let due = |job: &Job| set_back || job.blocked || job.next.is_none_or(|next| next <= now);
        let jobs =
            self.known.iter().flat_map(|(env, known)| known.jobs.iter().map(move |(name, job)| (env, name, job)));
        let due: Vec<Key> =
            jobs.filter(|(_, _, job)| due(job)).map(|(env, name, _)| (env.clone(), name.clone())).collect();
        for key in due {
            if let Err(error) = self.look_at(&key, now).await {
                tracing::error!(env = %key.0, job = %key.1, %error, "a cron job is looked at again later");
                if let Some(job) = self.known.get_mut(&key.0).and_then(|known| known.jobs.get_mut(&key.1)) {
                    // It is still due.
                    job.next = None;
                }
                if !self.unread.contains(&key.0) {
                    self.unread.push(key.0);
                }
            }
        }
        if !self.unread.is_empty() || !self.unwritten.is_empty() {
            return STORE_AGAIN;
        }
        let jobs = self.known.values().flat_map(|known| known.jobs.values()).filter(|job| !job.blocked);
        pause(jobs.filter_map(|job| job.next).min(), now)
    }

    /// Takes in that a run is over.
    async fn ended(&mut self, ended: Result<(Id, CronRun), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some(active) = self.ids.remove(&id).and_then(|key| self.active.remove(&key)) else { return };
        let run = ended.map(|(_, run)| run).unwrap_or_else(|error| {
            tracing::error!(env = %active.run.env, job = %active.run.job, %error, "the task of a cron job failed");
            let reason = "the server failed to attend it; its log says why".to_owned();
            let state = CronState::Failed { reason, exit: None };
            CronRun { state, finished_at: Some(self.parts.clock.now()), ..active.run }
        });
        self.tell_end(&run).await;
        self.close(run.clone()).await;
        if let Some(waiting) = active.ended {
            // Nobody waits any more: nothing to tell.
            let _ = waiting.send(run.clone());
        }
        self.clear_up(&run.env).await;
    }

    /// Writes down how a run ended.
    async fn close(&mut self, run: CronRun) {
        let job = self.known.get(&run.env).and_then(|known| known.jobs.get(&run.job));
        let newest = job.map_or(run.number, |job| job.mark.last_number);
        if let Err(error) = Self::book(&self.parts).close(&run, newest).await {
            tracing::error!(env = %run.env, job = %run.job, %error, "the end of a cron job cannot be written down; trying again");
            self.unwritten.push(run);
        }
    }

    /// An event for what a person asked for, and for a job that begins to fail or to succeed again: jobs that run every minute must not
    /// drive everything else out of the list of events. Their history has every run.
    async fn tell_end(&mut self, run: &CronRun) {
        let failed = matches!(run.state, CronState::Failed { .. });
        let stopped = matches!(run.state, CronState::Stopped { .. });
        if run.requested_by.is_none() && (stopped || failed == self.failed_before(run).await) {
            return;
        }
        let why = run.state.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
        let message = format!("run {} of {} {}{why}", run.number, run.job, run.state.word());
        let event = NewEvent::new(EventKind::CronFinished, self.parts.clock.now(), message)
            .env(&run.env)
            .data("job", run.job.as_str())
            .data("run", run.number)
            .data("release", run.release.0)
            .data("outcome", run.state.word());
        self.event(event).await;
    }

    /// Whether the newest run that ended before this one had failed.
    async fn failed_before(&self, run: &CronRun) -> bool {
        let runs = self.parts.store.list::<CronRun>(&format!("{}/{}/", run.env, run.job)).await.unwrap_or_default();
        let before = runs.iter().rev().filter(|other| other.number < run.number);
        let ended = before.map(|other| &other.state).find(|state| match state {
            CronState::Succeeded | CronState::Failed { .. } => true,
            CronState::Running | CronState::Stopped { .. } | CronState::Skipped { .. } | CronState::Missed { .. } => {
                false
            }
        });
        matches!(ended, Some(CronState::Failed { .. }))
    }

    pub(super) async fn event(&self, event: NewEvent) {
        let store: &Store = &self.parts.store;
        if let Err(error) = store.record(event).await {
            tracing::error!(%error, "an event is not recorded");
        }
    }
}
