//! The durable queue: one build at a time in each environment, so many at once in all; whose turn it is, [`Line`] says.
//!
//! A build's record is the truth; what is in memory here is rebuilt from the records at the start (`take_up`). `run` does the work.

mod cancel;
mod end;
mod run;
mod take_up;
mod traced;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    EnqueueError, NewBuild,
    line::{Line, LineLimits, Room},
    pipeline::Pipeline,
    records::{CompileRecord, SlugRecord},
};
use crate::{
    domain::{AppRef, Build, BuildNumber, BuildState, EnvRef, Environment, EventKind, ImageRef, QueuePlace, Stage},
    events::{EventSink, EventWriter},
    registry::PublishGate,
    store::{Store, StoreError},
};

/// How often a conflict over the environment's record is tried again when a build is queued.
const ENQUEUE_TRIES: usize = 32;

/// A build that is not final, or whose end is not written yet.
struct Active {
    /// With its final state as soon as it has ended.
    build: Build,
    /// When it was queued, or taken over from the last server; waits are measured from then, since the time of day may jump.
    since: Instant,
    cancel: CancellationToken,
    /// Why it was cancelled.
    reason: Option<String>,
    /// The last server had begun it.
    resumed: bool,
    /// It is still being checked whether it may begin.
    held: watch::Sender<bool>,
    /// One at a time lets it begin or decides to cancel it.
    deciding: Arc<tokio::sync::Mutex<()>>,
    /// The final record, once it is written.
    done: watch::Sender<Option<Build>>,
    /// Where it stands while it waits.
    place: watch::Sender<Option<QueuePlace>>,
}

#[derive(Default)]
struct Queue {
    active: HashMap<EnvRef, Active>,
    line: Line,
}

impl Queue {
    /// Tells whoever waits for a build where it stands. After each change of who waits or runs.
    fn tell_places(&self) {
        let running = self.line.running();
        for (ahead, active) in self.line.turns().iter().filter_map(|env| self.active.get(env)).enumerate() {
            // One that only waits for the service to notice it says so by its state.
            let place = (active.build.state == BuildState::Queued).then_some(QueuePlace { ahead, running });
            active.set_place(place);
        }
    }
}

struct Shared {
    pipeline: Pipeline,
    store: Store,
    events: EventSink,
    queue: Mutex<Queue>,
    /// One enqueue at a time: it reads, decides and writes.
    enqueueing: tokio::sync::Mutex<()>,
    wake: Notify,
    /// Ends that could not be written yet; tried again until `stopping`.
    unwritten: TaskTracker,
    stopping: CancellationToken,
}

/// The builds that have not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildsUnderWay {
    /// The oldest first. One whose release is being deployed takes no place any more.
    pub running: Vec<Build>,
    /// In the order of their turns.
    pub waiting: Vec<Build>,
    /// How many may be built at the same time, and wait.
    pub places: usize,
    pub waiting_places: usize,
}

/// The handle to the queue. Clones share it.
#[derive(Clone)]
pub struct Builds {
    shared: Arc<Shared>,
}

/// Owns the builds under way; [`BuildService::run`] does the work.
pub struct BuildService {
    shared: Arc<Shared>,
    writer: EventWriter,
}

impl Builds {
    /// Largest source and largest slug, bytes of all files.
    pub fn slug_limit(&self) -> u64 {
        self.shared.pipeline.settings.slug_limit
    }

    /// Queues a build. It is durable when this returns. With `supersede`, the environment's other build is cancelled first.
    pub async fn enqueue(&self, new: NewBuild) -> Result<Build, EnqueueError> {
        let builds = self.clone();
        // In a task of its own: whoever gives up waiting must not leave a record that nobody builds.
        unbroken(async move { builds.supersede_and_enqueue(new).await }).await?
    }

    async fn supersede_and_enqueue(&self, new: NewBuild) -> Result<Build, EnqueueError> {
        let mut tries = ENQUEUE_TRIES;
        loop {
            let other = {
                let _turn = self.shared.enqueueing.lock().await;
                match self.shared.active(&new.env) {
                    None => return self.enqueue_now(&new).await,
                    Some(other) if !new.supersede || tries == 0 => return Err(EnqueueError::Busy(Box::new(other))),
                    // Nothing is cancelled for one that there is no room for.
                    Some(other) => {
                        self.shared.pipeline.settings.disk.check()?;
                        self.shared.admit(&new.env).map(|_| other)?
                    }
                }
            };
            // Without the turn: others need not wait until it has ended.
            tries -= 1;
            let reason = format!("superseded by a push of {}", new.pushed_by);
            self.cancel_and_wait(&new.env, other.number, &reason, true).await?;
        }
    }

    async fn enqueue_now(&self, new: &NewBuild) -> Result<Build, EnqueueError> {
        self.shared.pipeline.settings.disk.check()?;
        let state = self.shared.admit(&new.env)?;
        let build = self.write_new(new, state).await?;
        let mut queue = self.shared.queue();
        queue.line.join(build.env.clone());
        queue.active.insert(build.env.clone(), Active::new(build.clone(), false, new.held));
        queue.tell_places();
        drop(queue);
        // One that is held is told of once it may begin.
        if !build.held {
            self.shared.tell(EventKind::BuildQueued, &build);
        }
        self.shared.wake.notify_one();
        Ok(build)
    }

    /// The record, and the environment's count of builds, in one transaction.
    async fn write_new(&self, new: &NewBuild, state: BuildState) -> Result<Build, StoreError> {
        let store = &self.shared.store;
        for _ in 0..ENQUEUE_TRIES {
            let stored = store.need::<Environment>(&new.env).await?;
            let mut environment = stored.record.clone();
            environment.last_build += 1;
            let now = jiff::Timestamp::now();
            let started_at = (state != BuildState::Queued).then_some(now);
            let build = Build {
                env: new.env.clone(),
                number: BuildNumber(environment.last_build),
                commit: new.commit.clone(),
                branch: new.branch.clone(),
                old_commit: new.old_commit.clone(),
                state: state.clone(),
                queued_at: now,
                started_at,
                finished_at: None,
                pushed_by: new.pushed_by.clone(),
                no_cache: new.no_cache,
                detached: new.detached,
                image: None,
                release: None,
                timings: new.timings.clone(),
                interruptions: 0,
                cancelling: None,
                held: new.held,
                settled: false,
                trace: new.trace,
            };
            match store.transaction().update(&stored, &environment).create(&build).commit().await {
                Ok(_) => return Ok(build),
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict(format!("the environment {}", new.env)))
    }

    /// The environment's build that is queued or running.
    pub async fn active(&self, env: &EnvRef) -> Result<Option<Build>, StoreError> {
        Ok(self.shared.active(env))
    }

    /// How many builds are queued, and how many run.
    pub fn under_way(&self) -> (usize, usize) {
        let queue = self.shared.queue();
        let count = |queued: bool| {
            let states = queue.active.values().map(|active| &active.build.state);
            states.filter(|state| !state.is_final() && (**state == BuildState::Queued) == queued).count()
        };
        (count(true), count(false))
    }

    /// All builds that have not ended, and how many places there are.
    pub fn queue(&self) -> BuildsUnderWay {
        let limits = self.shared.limits();
        let queue = self.shared.queue();
        let build = |env: &EnvRef| queue.active.get(env).map(|active| active.build.clone());
        let waiting: Vec<Build> =
            queue.line.turns().iter().filter_map(build).filter(|build| build.state == BuildState::Queued).collect();
        let all = queue.active.values().map(|active| &active.build);
        let mut running: Vec<Build> =
            all.filter(|build| matches!(build.state, BuildState::Running { .. })).cloned().collect();
        running.sort_by_key(|build| build.started_at);
        BuildsUnderWay { running, waiting, places: limits.running, waiting_places: limits.waiting }
    }

    /// Where a queued build stands, and follows it; nothing once it runs. `None`: it has ended.
    pub fn place(&self, env: &EnvRef, number: BuildNumber) -> Option<watch::Receiver<Option<QueuePlace>>> {
        let queue = self.shared.queue();
        queue.active.get(env).filter(|active| active.build.number == number).map(|active| active.place.subscribe())
    }

    /// The build once it is final.
    pub async fn wait(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, StoreError> {
        let done = {
            let queue = self.shared.queue();
            queue.active.get(env).filter(|active| active.build.number == number).map(|active| active.done.subscribe())
        };
        if let Some(mut done) = done
            && let Ok(build) = done.wait_for(Option::is_some).await
            && let Some(build) = build.as_ref()
        {
            return Ok(build.clone());
        }
        Ok(self.shared.store.need::<Build>(&(env.clone(), number)).await?.record)
    }

    /// Forgets what could be reused of the app's builds, and its cache.
    pub async fn purge_cache(&self, app: &AppRef) -> anyhow::Result<()> {
        self.shared.purge_cache(app).await
    }

    /// What keeps publishing and collecting apart.
    pub fn publishing(&self) -> PublishGate {
        self.shared.pipeline.settings.publishing.clone()
    }

    /// The images of the stacks in force, put into the registry if they were not there.
    pub async fn stack_images(&self) -> anyhow::Result<Vec<ImageRef>> {
        let stacks = self.shared.pipeline.stacks().await?;
        Ok(vec![stacks.build.image.clone(), stacks.run.image.clone()])
    }
}

impl Active {
    fn new(build: Build, resumed: bool, held: bool) -> Self {
        let (cancel, done, place) = (CancellationToken::new(), watch::Sender::new(None), watch::Sender::new(None));
        Self {
            build,
            since: Instant::now(),
            resumed,
            held: watch::Sender::new(held),
            cancel,
            reason: None,
            deciding: Arc::default(),
            done,
            place,
        }
    }

    fn set_place(&self, place: Option<QueuePlace>) {
        self.place.send_if_modified(|known| std::mem::replace(known, place) != place);
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics between two changes that belong together.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self, env: &EnvRef) -> Option<Build> {
        self.queue().active.get(env).map(|active| active.build.clone())
    }

    /// Whether there is room, and whether a build could start at once: then its first record says so already.
    fn admit(&self, env: &EnvRef) -> Result<BuildState, EnqueueError> {
        let limits = self.limits();
        let mut line = self.queue().line.clone();
        // An older build of the environment makes room, if there is one.
        line.leave(env);
        line.ended(env);
        match line.room(env, &limits) {
            Room::Runs => Ok(BuildState::Running { stage: Stage::Build }),
            Room::Waits => Ok(BuildState::Queued),
            Room::Full => Err(EnqueueError::Full { limit: limits.waiting }),
            Room::TenantFull => Err(EnqueueError::TenantFull { tenant: env.tenant.clone(), limit: limits.per_tenant }),
        }
    }

    fn limits(&self) -> LineLimits {
        let settings = &self.pipeline.settings;
        LineLimits {
            running: settings.concurrency,
            waiting: settings.queue_limit,
            per_tenant: settings.queue_limit_per_tenant,
        }
    }

    async fn purge_cache(&self, app: &AppRef) -> anyhow::Result<()> {
        let prefix = format!("{app}/");
        let mut transaction = self.store.transaction();
        for slug in self.store.list::<SlugRecord>(&prefix).await? {
            transaction = transaction.delete(&slug);
        }
        for compile in self.store.list::<CompileRecord>(&prefix).await? {
            transaction = transaction.delete(&compile);
        }
        transaction.commit().await?;
        // A container that is being removed still holds the cache.
        self.pipeline.containers_gone().await;
        self.pipeline.parts.runtime.purge_cache(app).await?;
        Ok(())
    }

    fn reason(&self, env: &EnvRef) -> String {
        self.queue().active.get(env).and_then(|active| active.reason.clone()).unwrap_or_default()
    }

    /// The build no longer needs its slot.
    fn release_slot(&self, env: &EnvRef) {
        let mut queue = self.queue();
        if !queue.line.ended(env) {
            return;
        }
        queue.tell_places();
        drop(queue);
        self.wake.notify_one();
    }
}

/// Runs to the end even if whoever asked is gone.
async fn unbroken<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, StoreError> {
    tokio::spawn(work).await.map_err(|error| StoreError::Failed(error.to_string()))
}

#[cfg(test)]
#[path = "tests/queue.rs"]
mod tests;
