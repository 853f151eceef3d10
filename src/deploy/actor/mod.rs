//! The actor of one environment. Whatever wakes it, it does the same: look at what should be and what is, plan, act.
//!
//! `absorb` keeps what is known of the replicas; `rollout` moves the environment from release to release and `ending` ends
//! that (`deployment` is what is known of it); `execute` does what the plan
//! says, in tasks that report back; `goal` is what should be; `phase` runs release phases; `tail` reads last words; `loops` keeps crash loops over restarts; `report` tells people, `tell` those who read events, `traced` those who read traces.

mod absorb;
mod deployment;
mod ending;
mod execute;
mod goal;
mod loops;
mod phase;
mod report;
mod rollout;
mod tail;
mod tell;
mod traced;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{
    deployment::{Outcome, Rollout},
    execute::{Done, Launch},
};
use super::{
    CancelFailure, EnvStatus, Parts, ReplicaHealth,
    domains::Asked,
    progress::Note,
    routes::{EnvRoutes, RoutesView},
    spec,
    watcher::Verdict,
    world::{INTERVAL, Picture},
};
use crate::{
    domain::{
        CrashLoop, EnvRef, Environment, EventKind, ProcessType, Release, ReleaseVersion, Replica, ReplicaId, SetId,
        Timestamp, UserName,
    },
    events::Pace,
    plan::{self, Backoff, Goal, Phase},
    store::{NewEvent, StoreError},
};

/// Messages that may wait for an actor.
const INBOX: usize = 64;
/// Verdicts that may wait; watchers wait for a place.
const VERDICTS: usize = 256;
/// Pause before something that failed in the store is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// What an actor is asked.
pub(super) enum Message {
    /// Move to this release and say how it went.
    Deploy { version: ReleaseVersion, notes: mpsc::Sender<Note>, reply: oneshot::Sender<Outcome> },
    /// Give this deployment up if it is under way, then answer.
    Abandon { version: ReleaseVersion, reason: String, done: oneshot::Sender<Result<(), StoreError>> },
    /// Give the deployment under way up because somebody wants it, if it is of this version.
    Cancel {
        version: Option<ReleaseVersion>,
        by: UserName,
        reply: oneshot::Sender<Result<ReleaseVersion, CancelFailure>>,
    },
    /// Read the records anew, act on them, then answer.
    Refresh(oneshot::Sender<()>),
    /// Say when everything of the environment, whose record is gone, has been removed.
    Retire(oneshot::Sender<()>),
}

/// How to reach an actor.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) inbox: mpsc::Sender<Message>,
    pub(super) nudge: Arc<Notify>,
    pub(super) status: watch::Receiver<Arc<EnvStatus>>,
}

impl Address {
    /// Asks the actor, and waits for its answer; `None` when it has ended without one.
    pub(super) async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(message(reply)).await.ok()?;
        self.answer(answer).await
    }

    /// Waits for an answer to what was sent to the inbox. What comes in just as the actor ends may lie there, and its `reply` with it, for
    /// as long as anybody could send more: the answer alone would be waited for in vain.
    pub(super) async fn answer<T>(&self, mut answer: oneshot::Receiver<T>) -> Option<T> {
        tokio::select! {
            biased;
            answer = &mut answer => answer.ok(),
            () = self.inbox.closed() => answer.try_recv().ok(),
        }
    }
}

/// What is known of a replica beyond what the runtime says.
struct Tracked {
    replica: Replica,
    phase: Phase,
    /// Why it is not ready, in words.
    reason: Option<String>,
    ready_since: Option<Timestamp>,
    /// When it was started, or seen first.
    since: Timestamp,
    /// It is or was in the routes table.
    was_routed: bool,
    /// Since when it is not sent requests any more, when a trace is to say how long it then took.
    left_routes: Option<Timestamp>,
    stopping: bool,
    /// Stopping it did not come to its end, and is tried again. It may be stopping all the same, and hidden by the engine for that.
    stop_again: bool,
    /// Whether events have said last that it is healthy.
    told_healthy: Option<bool>,
    /// What people were told last that it is, and since when by the time of day.
    shown: Option<(ReplicaHealth, Timestamp)>,
    /// Probes it; ends when dropped.
    watcher: Option<AbortOnDropHandle<()>>,
}

/// What is known of a replica set beyond its replicas.
#[derive(Default)]
struct SetState {
    backoff: Backoff,
    /// Replicas that died young.
    crashes: u32,
    /// Times the engine could not start it.
    refusals: u32,
    /// One was ready once.
    ever_ready: bool,
    /// A replica's grace time went by without it being ready.
    grace_over: bool,
    /// What went wrong last.
    trouble: Option<String>,
    /// The last output of the replica that went wrong last.
    tail: Vec<String>,
    /// Replicas whose last output is being read.
    tails: BTreeSet<ReplicaId>,
}

/// The actor of one environment.
pub(super) struct Actor {
    env: EnvRef,
    parts: Arc<Parts>,
    inbox: mpsc::Receiver<Message>,
    nudge: Arc<Notify>,
    status: watch::Sender<Arc<EnvStatus>>,
    pictures: watch::Receiver<Arc<Picture>>,
    views: watch::Receiver<Arc<RoutesView>>,
    verdicts: (mpsc::Sender<Verdict>, mpsc::Receiver<Verdict>),
    tasks: JoinSet<Done>,
    /// The environment as it was read last; `None` once it is gone.
    record: Option<Environment>,
    /// Whether the record may have changed since it was read.
    stale: bool,
    /// When it was read last.
    read_at: Instant,
    trouble: Option<String>,
    releases: BTreeMap<ReleaseVersion, Release>,
    replicas: BTreeMap<ReplicaId, Tracked>,
    /// Whether what runs has been seen at all.
    met: bool,
    sets: BTreeMap<SetId, SetState>,
    starting: BTreeMap<SetId, Launch>,
    /// Replicas that were removed; pictures taken before this ticket may still show them.
    removed: BTreeMap<ReplicaId, u64>,
    /// The host names that were looked up last, and what came of it; `None` when they are to be looked up anew.
    domains: Option<(Vec<String>, Asked)>,
    /// The routes asked for last.
    asked: Option<EnvRoutes>,
    rollout: Option<Rollout>,
    /// What the last deployment has left to do, when its trace is recorded.
    settling: Option<traced::Settling>,
    /// The release whose release phase is running.
    phase: Option<ReleaseVersion>,
    /// The crash loops that are written down; `None` until they have been read.
    loops: Option<Vec<CrashLoop>>,
    /// Tells the release phase that it is not to begin any more.
    unwanted: CancellationToken,
    /// Releases whose release phase succeeded, which could not be written down yet.
    unwritten: BTreeSet<ReleaseVersion>,
    /// The server stops.
    shutdown: CancellationToken,
    refreshes: Vec<oneshot::Sender<()>>,
    retires: Vec<oneshot::Sender<()>>,
    /// Who waits for the environment to be gone; `Some` once its record is, and until nothing is left of it.
    retiring: Option<Vec<oneshot::Sender<()>>>,
    /// Who wants to deploy to an environment of the same name that was made meanwhile; its own actor will answer them.
    deferred: Vec<oneshot::Sender<Outcome>>,
    wake: Option<Instant>,
    /// How often events tell of the health of each replica, by its process type and index.
    health_pace: Pace<(ProcessType, u32)>,
    /// What each process type waits for, and since when (by the time of day).
    waiting: BTreeMap<ProcessType, report::Waited>,
}

impl Actor {
    /// An actor and how to reach it.
    pub(super) fn new(env: EnvRef, parts: Arc<Parts>, shutdown: CancellationToken) -> (Address, Self) {
        let (inbox, receiver) = mpsc::channel(INBOX);
        let nudge = Arc::new(Notify::new());
        let unknown = EnvStatus::unknown(env.clone(), "what runs has not been observed yet");
        let (status, watcher) = watch::channel(Arc::new(unknown));
        let actor = Self {
            pictures: parts.world.pictures(),
            views: parts.routes.view(),
            env,
            parts,
            inbox: receiver,
            nudge: nudge.clone(),
            status,
            verdicts: mpsc::channel(VERDICTS),
            tasks: JoinSet::new(),
            record: None,
            stale: true,
            read_at: Instant::now(),
            trouble: None,
            releases: BTreeMap::new(),
            replicas: BTreeMap::new(),
            met: false,
            sets: BTreeMap::new(),
            starting: BTreeMap::new(),
            removed: BTreeMap::new(),
            domains: None,
            asked: None,
            rollout: None,
            settling: None,
            phase: None,
            loops: None,
            unwanted: CancellationToken::new(),
            unwritten: BTreeSet::new(),
            shutdown,
            refreshes: Vec::new(),
            retires: Vec::new(),
            retiring: None,
            deferred: Vec::new(),
            wake: None,
            health_pace: tell::health_pace(),
            waiting: BTreeMap::new(),
        };
        (Address { inbox, nudge, status: watcher }, actor)
    }

    /// Runs until the environment is gone or the server stops. What runs goes on running, but for a release phase: that is told to end.
    pub(super) async fn run(mut self) -> EnvRef {
        let shutdown = self.shutdown.clone();
        // Not all environments at the same moment.
        let interval = INTERVAL.mul_f64(1.0 + spec::share(&self.env) / 4.0);
        loop {
            self.pass().await;
            if self.is_gone().await {
                return self.env;
            }
            // A nudge can get lost in ways nobody thought of; then the records are read and acted on this much later.
            let anyway = self.read_at + interval;
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.wind_down().await;
                    return self.env;
                }
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => return self.env,
                },
                () = self.nudge.notified() => self.stale = true,
                Ok(()) = self.pictures.changed() => {}
                Ok(()) = self.views.changed() => {}
                Some(verdict) = self.verdicts.1.recv() => {
                    self.judge(verdict);
                    while let Ok(verdict) = self.verdicts.1.try_recv() {
                        self.judge(verdict);
                    }
                }
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.finished(done).await,
                    Err(error) => {
                        // What it was to report will not come; a new actor finds out by itself.
                        tracing::error!(env = %self.env, %error, "a task of the deployer failed");
                        return self.env;
                    }
                },
                () = sleep_until(self.wake.unwrap_or(anyway).min(anyway)) => self.stale |= Instant::now() >= anyway,
            }
        }
    }

    async fn take(&mut self, message: Message) {
        self.stale = true;
        match message {
            Message::Deploy { version, notes, reply } => self.begin(version, notes, reply).await,
            Message::Abandon { version, reason, done } => drop(done.send(self.give_up(version, reason).await)),
            Message::Cancel { version, by, reply } => drop(reply.send(self.cancel(version, by).await)),
            Message::Refresh(done) => self.refreshes.push(done),
            Message::Retire(done) => match &mut self.retiring {
                Some(waiting) => waiting.push(done),
                None => self.retires.push(done),
            },
        }
    }

    /// Looks, plans and acts, once.
    async fn pass(&mut self) {
        self.wake = None;
        let picture = self.pictures.borrow_and_update().clone();
        if let Err(error) = self.reload(&picture).await {
            tracing::error!(env = %self.env, %error, "the records of an environment cannot be read; trying again");
            self.trouble = Some(error.to_string());
            self.wake_by(Instant::now() + STORE_AGAIN);
            return self.report(&Goal::default(), None);
        }
        self.trouble = None;
        self.drop_unwanted_phase();
        self.write_phases().await;
        self.views.mark_unchanged();
        self.absorb(&picture);
        if !picture.known || picture.error.is_some() {
            self.check_deadline().await;
            self.report(&self.goal(), None);
            // Who asks for the status is to hear of this, not to wait for the engine.
            return self.answer_refreshes();
        }
        self.care_for_rollout().await;
        if let Some(version) = self.goal_version().filter(|version| !self.releases.contains_key(version)) {
            // Better to leave all as it is than to take an unreadable wish for the wish to have nothing.
            self.trouble = Some(format!("the record of {version} is lost; deploy another release"));
            return self.report(&self.goal(), None);
        }
        let mut goal = self.goal();
        let mut plan = plan::plan(&goal, &self.observed(&goal), self.parts.steady.now());
        if plan.deployed && plan.switched && self.rolls_out_now() {
            self.succeed(&goal).await;
            goal = self.goal();
            plan = plan::plan(&goal, &self.observed(&goal), self.parts.steady.now());
        }
        self.execute(&plan).await;
        self.report(&goal, Some(&plan));
        self.answer_refreshes();
        self.forget_sets(&goal);
        self.keep_loops().await;
    }

    fn answer_refreshes(&mut self) {
        for done in self.refreshes.drain(..) {
            // Nobody waits any more: nothing to tell.
            let _ = done.send(());
        }
    }

    /// Reads the environment, if it may have changed, and the releases that matter.
    async fn reload(&mut self, picture: &Picture) -> Result<(), StoreError> {
        self.resume_loops().await?;
        let store = &self.parts.store;
        if self.stale {
            self.record = store.get::<Environment>(&self.env).await?.map(|stored| stored.record);
            if self.record.is_none() {
                let waiting = std::mem::take(&mut self.retires);
                self.retiring.get_or_insert_default().extend(waiting);
            }
            self.stale = false;
            self.read_at = Instant::now();
            self.domains = None;
        }
        let known = self.replicas.values().map(|one| &one.replica);
        let seen = picture.replicas.get(&self.env).into_iter().flatten();
        let mut needed: BTreeSet<ReleaseVersion> = known.chain(seen).map(|replica| replica.set.release).collect();
        needed.extend(self.record.iter().flat_map(|record| [record.target, record.current]).flatten());
        self.releases.retain(|version, _| needed.contains(version));
        for version in needed {
            if !self.releases.contains_key(&version) {
                let release = store.get::<Release>(&(self.env.clone(), version)).await?;
                self.releases.extend(release.map(|stored| (version, stored.record)));
            }
        }
        for version in &self.unwritten {
            if let Some(release) = self.releases.get_mut(version) {
                release.release_phase_done = true;
            }
        }
        Ok(())
    }

    fn wake_by(&mut self, moment: Instant) {
        self.wake = Some(self.wake.map_or(moment, |wake| wake.min(moment)));
    }

    /// An event about the environment, to be given to `self.parts.event`.
    fn event(&self, kind: EventKind, message: String) -> NewEvent {
        NewEvent::new(kind, self.parts.clock.now(), message).env(&self.env)
    }

    /// Whether the goal is to have nothing, and nothing is left.
    async fn is_gone(&mut self) -> bool {
        let busy = !self.replicas.is_empty() || !self.starting.is_empty() || !self.met;
        let Some(waiting) = self.retiring.as_mut().filter(|_| !busy) else { return false };
        let waiting = std::mem::take(waiting);
        self.parts.routes.remove(&self.env).await;
        for done in waiting {
            let _ = done.send(());
        }
        true
    }

    /// Drops what is known of sets that are of no more interest.
    fn forget_sets(&mut self, goal: &Goal) {
        let replicas = &self.replicas;
        let starting = &self.starting;
        self.sets.retain(|set, state| {
            goal.processes.values().any(|process| process.set == *set)
                || goal.fallback.values().any(|fallback| fallback == set)
                || replicas.values().any(|one| one.replica.set == *set)
                || starting.contains_key(set)
                || !state.tails.is_empty()
        });
    }
}
