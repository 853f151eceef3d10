//! The task that owns the jobs: what becomes current, what is due, what runs.

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

use super::{Ask, Begun, CronParts, CronRefusal, RunAsk, book::Book, run::Running};
use crate::{
    domain::{
        CronJob, CronMark, CronRun, CronState, EnvRef, Environment, EventKind, JobName, Overlap, Release,
        ReleaseVersion, TenantName, Timestamp,
    },
    places::Places,
    plan::schedule::{Action, Schedule, Standing, decide, pause},
    store::{NewEvent, Revision, Store, StoreError, Stored},
};

/// Pause before something that failed in the store is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// How long ended runs may take to be cleared up when the server stops, beyond their grace time.
const LAST_RUNS: Duration = Duration::from_secs(3);
/// Output that waits for a viewer, in chunks.
const VIEW: usize = 256;
/// Requests that wait until the run that they replace has ended.
const WAITING: usize = 64;

type Changes = BoxStream<'static, Result<(String, Option<Environment>), Revision>>;
type Key = (EnvRef, JobName);

/// A job of a current release.
struct Job {
    job: CronJob,
    schedule: Result<Schedule, String>,
    mark: CronMark,
    /// When there is something to be done, by the clock; `None`: look.
    next: Option<Timestamp>,
    /// It is due, but there is no place for it, or what it replaces has not ended.
    blocked: bool,
}

struct Known {
    created_at: Timestamp,
    release: ReleaseVersion,
    jobs: BTreeMap<JobName, Job>,
}

/// A run under way.
struct Active {
    run: CronRun,
    stop: watch::Sender<Option<String>>,
    ended: Option<oneshot::Sender<CronRun>>,
}

/// Runs jobs; run it for as long as the server lives.
pub struct CronService {
    parts: Arc<CronParts>,
    asks: mpsc::Receiver<Ask>,
    places: Places<TenantName>,
    known: BTreeMap<EnvRef, Known>,
    active: BTreeMap<(EnvRef, JobName, u64), Active>,
    tasks: JoinSet<CronRun>,
    ids: HashMap<Id, (EnvRef, JobName, u64)>,
    /// Environments that could not be read; tried again.
    unread: Vec<EnvRef>,
    /// Ends that could not be written down; tried again.
    unwritten: Vec<CronRun>,
    waiting: Vec<RunAsk>,
    retiring: Vec<(EnvRef, oneshot::Sender<()>)>,
    /// The clock when it was looked at last.
    looked: Timestamp,
}

impl CronService {
    pub(super) fn new(parts: Arc<CronParts>, asks: mpsc::Receiver<Ask>) -> Self {
        let places = Places::new(parts.settings.concurrency, parts.settings.per_tenant);
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

    fn book(parts: &CronParts) -> Book<'_> {
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
    async fn read(&mut self, env: &EnvRef) {
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
        let jobs = parts.store.need::<Release>(&(env.clone(), release)).await?.record.cron;
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

    async fn clear_up(&mut self, env: &EnvRef) {
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

    fn stop_runs(&self, which: impl Fn(&CronRun) -> bool, why: &str) {
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

    /// Asks what to do about a job, and does it.
    async fn look_at(&mut self, (env, name): &Key, now: Timestamp) -> Result<(), StoreError> {
        let running: Vec<u64> = self.runs_of(env, name);
        let deadline = self.parts.settings.starting_deadline;
        let Some(job) = self.known.get_mut(env).and_then(|known| known.jobs.get_mut(name)) else { return Ok(()) };
        let Ok(schedule) = &job.schedule else {
            job.next = Some(Timestamp::MAX);
            return Ok(());
        };
        let (overlap, considered) = (job.job.overlap, job.mark.considered);
        let decision = decide(&Standing { schedule, overlap, considered, running: !running.is_empty() }, now, deadline);
        (job.next, job.blocked) = (decision.next.or(Some(Timestamp::MAX)), false);
        let mut mark = CronMark { considered: decision.considered, ..job.mark.clone() };
        let blocked = match decision.action {
            Action::Wait => false,
            Action::Rewind => {
                tracing::warn!(%env, job = %name, "the clock was set back; the schedule goes on from now");
                let Some(stored) = self.parts.store.get::<Environment>(env).await? else { return Ok(()) };
                Self::book(&self.parts).mark(&stored, &mark).await?;
                self.set_mark(mark);
                false
            }
            Action::Start { at, replace: true } => {
                self.stop_runs(|run| run.env == *env && run.job == *name, &format!("replaced by the run of {at}"));
                true
            }
            Action::Start { at, replace: false } => match self.places.try_take(&env.tenant) {
                Err(_) => true,
                Ok(place) => {
                    mark.last_number += 1;
                    let run = self.new_run(&mark, Some(at), CronState::Running);
                    self.start(mark, run, place, None).await?;
                    false
                }
            },
            Action::Skip { at } => {
                let number = running.last().copied().unwrap_or_default();
                let reason = format!("run {number} was still under way");
                self.leave_out(mark, at, CronState::Skipped { reason }).await?;
                false
            }
            Action::Miss { first, last } => {
                let reason = match first == last {
                    true => format!("it was due at {last} and could not be started within {} s", deadline.as_secs()),
                    false => format!("it was due from {first} to {last}, and could not be started then"),
                };
                self.leave_out(mark, last, CronState::Missed { reason }).await?;
                false
            }
        };
        if let Some(job) = self.known.get_mut(env).and_then(|known| known.jobs.get_mut(name)) {
            job.blocked = blocked;
        }
        Ok(())
    }

    /// The numbers of the runs of a job that are under way.
    fn runs_of(&self, env: &EnvRef, name: &JobName) -> Vec<u64> {
        self.active.keys().filter(|(of, job, _)| of == env && job == name).map(|(_, _, number)| *number).collect()
    }

    fn set_mark(&mut self, mark: CronMark) {
        if let Some(job) = self.known.get_mut(&mark.env).and_then(|known| known.jobs.get_mut(&mark.job)) {
            job.mark = mark;
        }
    }

    fn new_run(&self, mark: &CronMark, scheduled_at: Option<Timestamp>, state: CronState) -> CronRun {
        let now = self.parts.clock.now();
        let running = state.is_running();
        CronRun {
            env: mark.env.clone(),
            job: mark.job.clone(),
            number: mark.last_number,
            scheduled_at,
            requested_by: None,
            // Of an environment that is known.
            release: self.known.get(&mark.env).map_or(ReleaseVersion(0), |known| known.release),
            started_at: running.then_some(now),
            finished_at: (!running).then_some(now),
            state,
            repeats: 0,
            tail: Vec::new(),
        }
    }

    /// The environment, if it is still as the jobs were read from it; else it is read anew, and what is due is decided again.
    async fn unchanged(&mut self, env: &EnvRef) -> Result<Stored<Environment>, StoreError> {
        let stored = self.parts.store.get::<Environment>(env).await?;
        let same = stored.filter(|stored| {
            let known = self.known.get(env);
            known.is_some_and(|known| known.created_at == stored.created_at && stored.current == Some(known.release))
        });
        same.ok_or_else(|| StoreError::Conflict(env.to_string()))
    }

    /// Writes a run down and starts it.
    async fn start(
        &mut self,
        mark: CronMark,
        run: CronRun,
        place: crate::places::Place,
        viewer: Option<(mpsc::Sender<bytes::Bytes>, oneshot::Sender<CronRun>)>,
    ) -> Result<(), StoreError> {
        let parts = self.parts.clone();
        let stored = self.unchanged(&run.env).await?;
        let release = parts.store.need::<Release>(&(run.env.clone(), run.release)).await?.record;
        let Some(job) = release.cron.get(&run.job).cloned() else {
            return Err(StoreError::Missing(format!("the cron job {}", run.job)));
        };
        Self::book(&parts).enter(&stored, &mark, &run).await?;
        self.set_mark(mark);
        if let Some(by) = &run.requested_by {
            let message = format!("run {} of {} started in {} by hand", run.number, run.job, run.release);
            self.event(NewEvent::new(EventKind::CronStarted, parts.clock.now(), message).env(&run.env).by(by)).await;
        }
        let (stop, stopped) = watch::channel(None);
        let (output, ended) = viewer.unzip();
        let key = (run.env.clone(), run.job.clone(), run.number);
        let running = Running { parts, release, job, run: run.clone(), stop: stopped, output, place };
        let id = self.tasks.spawn(running.run()).id();
        self.ids.insert(id, key.clone());
        self.active.insert(key, Active { run, stop, ended });
        Ok(())
    }

    /// Writes down that a run was left out; several in a row for the same reason are one record.
    async fn leave_out(&mut self, mut mark: CronMark, at: Timestamp, state: CronState) -> Result<(), StoreError> {
        let stored = self.unchanged(&mark.env).await?;
        let last = Self::book(&self.parts).run(&mark.env, &mark.job, mark.last_number).await?;
        let repeated = last.filter(|last| last.state == state);
        let run = match &repeated {
            Some(last) => CronRun {
                repeats: last.repeats + 1,
                scheduled_at: Some(at),
                finished_at: Some(self.parts.clock.now()),
                ..last.clone()
            },
            None => {
                mark.last_number += 1;
                self.new_run(&mark, Some(at), state)
            }
        };
        Self::book(&self.parts).enter(&stored, &mark, &run).await?;
        self.set_mark(mark);
        if repeated.is_none() {
            let (job, word) = (&run.job, run.state.word());
            let message = format!("{job} {word}: {}", run.state.reason().unwrap_or_default());
            self.event(NewEvent::new(EventKind::CronSkipped, self.parts.clock.now(), message).env(&run.env)).await;
        }
        Ok(())
    }

    /// Starts a job because somebody asked for it.
    async fn run_now(&mut self, ask: RunAsk) {
        let known = self.known.get(&ask.env);
        let Some(job) = known.and_then(|known| known.jobs.get(&ask.job)) else {
            let known = known.map(|known| known.jobs.keys().cloned().collect()).unwrap_or_default();
            return drop(ask.reply.send(Err(CronRefusal::NoJob { known })));
        };
        let (overlap, mut mark) = (job.job.overlap, job.mark.clone());
        let running = self.runs_of(&ask.env, &ask.job);
        match (running.last(), overlap) {
            (Some(number), Overlap::Skip) => {
                return drop(ask.reply.send(Err(CronRefusal::Busy { number: *number })));
            }
            (Some(number), Overlap::Replace) => {
                if self.waiting.len() >= WAITING {
                    return drop(ask.reply.send(Err(CronRefusal::Busy { number: *number })));
                }
                let why = format!("replaced by a run that {} asked for", ask.by);
                self.stop_runs(|run| run.env == ask.env && run.job == ask.job, &why);
                return self.waiting.push(ask);
            }
            (None, _) | (Some(_), Overlap::Allow) => {}
        }
        let place = match self.places.try_take(&ask.env.tenant) {
            Ok(place) => place,
            Err(reason) => return drop(ask.reply.send(Err(CronRefusal::NoPlace(reason)))),
        };
        mark.last_number += 1;
        let run = CronRun { requested_by: Some(ask.by.clone()), ..self.new_run(&mark, None, CronState::Running) };
        let ((sender, output), (end, ended)) = (mpsc::channel(VIEW), oneshot::channel());
        let begun = self.start(mark, run.clone(), place, Some((sender, end))).await;
        // Whoever asked may have gone; the run goes on.
        let _ = ask.reply.send(begun.map(|()| Begun { run, output, ended }).map_err(CronRefusal::from));
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
        if run.requested_by.is_none() && failed == self.failed_before(run).await {
            return;
        }
        let state = run.state.reason().map_or_else(|| "succeeded".to_owned(), |reason| format!("failed: {reason}"));
        let message = format!("run {} of {} {state}", run.number, run.job);
        let event = NewEvent::new(EventKind::CronFinished, self.parts.clock.now(), message).env(&run.env);
        self.event(event).await;
    }

    /// Whether the newest run that ended before this one had failed.
    async fn failed_before(&self, run: &CronRun) -> bool {
        let runs = self.parts.store.list::<CronRun>(&format!("{}/{}/", run.env, run.job)).await.unwrap_or_default();
        let before = runs.iter().rev().filter(|other| other.number < run.number);
        let ended = before.map(|other| &other.state).find(|state| match state {
            CronState::Succeeded | CronState::Failed { .. } => true,
            CronState::Running | CronState::Skipped { .. } | CronState::Missed { .. } => false,
        });
        matches!(ended, Some(CronState::Failed { .. }))
    }

    async fn event(&self, event: NewEvent) {
        let store: &Store = &self.parts.store;
        if let Err(error) = store.record(event).await {
            tracing::error!(%error, "an event is not recorded");
        }
    }
}
