//! Who owns the deployer's tasks: one actor per environment, the observer, the routes task and the recorder of events.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    EnvStatus, Parts,
    actor::{Actor, Address},
    domains::adopt,
    routes::RoutesTask,
    world::Observer,
};
use crate::{
    domain::{EnvRef, Environment},
    events::EventWriter,
    store::{Revision, StoreError},
};

/// How long bringing an image ahead of time may take.
pub(super) const PREPARE_DEADLINE: Duration = Duration::from_secs(300);
/// Requests that may wait for the service.
const ASKS: usize = 1024;
/// Pause before something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the last events may take to be written at shutdown.
const LAST_EVENTS: Duration = Duration::from_secs(5);

pub(super) enum Ask {
    Open(EnvRef, oneshot::Sender<Address>),
    Nudge(EnvRef),
    Statuses(oneshot::Sender<Vec<Arc<EnvStatus>>>),
}

/// Finds actors, and has the service make them.
#[derive(Clone)]
pub(super) struct Directory {
    asks: mpsc::Sender<Ask>,
    side: TaskTracker,
}

impl Directory {
    pub(super) fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(ASKS);
        (Self { asks, side: TaskTracker::new() }, receiver)
    }

    /// The actor of an environment, made if there is none; `None` when the service has ended.
    pub(super) async fn open(&self, env: &EnvRef) -> Option<Address> {
        let (reply, address) = oneshot::channel();
        self.asks.send(Ask::Open(env.clone(), reply)).await.ok()?;
        address.await.ok()
    }

    /// The last known status of every environment; none when the service has ended.
    pub(super) async fn statuses(&self) -> Vec<Arc<EnvStatus>> {
        let (reply, statuses) = oneshot::channel();
        match self.asks.send(Ask::Statuses(reply)).await {
            Ok(()) => statuses.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Never waits: with a full queue the store's watch brings the same news.
    pub(super) fn nudge(&self, env: &EnvRef) {
        if self.asks.try_send(Ask::Nudge(env.clone())).is_err() {
            tracing::debug!(%env, "a nudge is dropped");
        }
    }

    /// A short task with a deadline of its own.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.side.spawn(task);
    }
}

/// The deployer's tasks; run it for as long as the server lives.
pub struct DeployService {
    parts: Arc<Parts>,
    asks: mpsc::Receiver<Ask>,
    observer: Observer,
    routes: RoutesTask,
    events: EventWriter,
}

impl DeployService {
    pub(super) fn new(
        parts: Arc<Parts>,
        asks: mpsc::Receiver<Ask>,
        observer: Observer,
        routes: RoutesTask,
        events: EventWriter,
    ) -> Self {
        Self { parts, asks, observer, routes, events }
    }

    /// Runs until `shutdown`. Replicas go on running and the router goes on serving.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { parts, asks, observer, routes, events } = self;
        let mut tasks = JoinSet::new();
        tasks.spawn(observer.run());
        tasks.spawn(routes.run());
        let orphans = AbortOnDropHandle::new(tokio::spawn(end_orphans(parts.clone())));
        let recorder = tokio::spawn(events.run(shutdown.clone()));
        tokio::select! {
            () = Supervisor::new(parts, shutdown).run(asks) => {}
            // Without them nothing moves; whoever runs this service sees it end and starts the server anew.
            Some(ended) = tasks.join_next() => tracing::error!(?ended, "a part of the deployer has ended by itself"),
        }
        drop(orphans);
        tasks.shutdown().await;
        if timeout(LAST_EVENTS, recorder).await.is_err() {
            tracing::warn!("the last events could not be recorded in time");
        }
    }
}

/// Ends release phases that a server left behind that was killed; they run again. Twice: the engine may still be making one.
async fn end_orphans(parts: Arc<Parts>) {
    let mut looks = 0;
    while looks < 2 {
        match parts.runtime.end_orphaned_jobs().await {
            Ok(0) => looks += 1,
            Ok(count) => {
                looks += 1;
                tracing::info!(count, "ended jobs that an earlier server left behind");
            }
            Err(error) => {
                tracing::warn!(%error, "jobs that an earlier server left behind cannot be ended; trying again")
            }
        }
        sleep(AGAIN * 5).await;
    }
}

/// Keeps one actor per environment that exists or still has replicas.
struct Supervisor {
    parts: Arc<Parts>,
    shutdown: CancellationToken,
    actors: HashMap<EnvRef, Address>,
    running: JoinSet<EnvRef>,
    names: HashMap<Id, EnvRef>,
    /// Environments whose actor failed; they get a new one after a pause.
    failed: FuturesUnordered<BoxFuture<'static, EnvRef>>,
}

type EnvironmentChanges = BoxStream<'static, Result<(String, Option<Environment>), Revision>>;

impl Supervisor {
    fn new(parts: Arc<Parts>, shutdown: CancellationToken) -> Self {
        let (running, failed) = (JoinSet::new(), FuturesUnordered::new());
        Self { parts, shutdown, actors: HashMap::new(), running, names: HashMap::new(), failed }
    }

    async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let shutdown = self.shutdown.clone();
        while !shutdown.is_cancelled() {
            match self.begin().await {
                Ok(changes) => self.serve(&mut asks, changes).await,
                Err(error) => {
                    tracing::error!(%error, "the environments cannot be listed; trying again");
                    sleep(AGAIN).await;
                }
            }
        }
        self.actors.clear();
        while self.running.join_next().await.is_some() {}
    }

    /// Runs until shutdown, or until changes were lost.
    async fn serve(&mut self, asks: &mut mpsc::Receiver<Ask>, mut changes: EnvironmentChanges) {
        let shutdown = self.shutdown.clone();
        let mut pictures = self.parts.world.pictures();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(ask) = asks.recv() => match ask {
                    Ask::Open(env, reply) => drop(reply.send(self.actor(&env).clone())),
                    Ask::Nudge(env) => self.actor(&env).nudge.notify_one(),
                    Ask::Statuses(reply) => {
                        let statuses = self.actors.values().map(|address| address.status.borrow().clone()).collect();
                        // Whoever asked may have gone.
                        drop(reply.send(statuses));
                    }
                },
                change = changes.next() => match change {
                    Some(Ok((key, _))) => if let Ok(env) = key.parse() {
                        self.actor(&env).nudge.notify_one();
                    },
                    Some(Err(_)) | None => return,
                },
                Ok(()) = pictures.changed() => {
                    let picture = pictures.borrow_and_update().clone();
                    // Replicas without an environment get an actor that removes them.
                    for env in picture.replicas.keys() {
                        self.actor(env);
                    }
                }
                Some(ended) = self.running.join_next_with_id() => self.ended(ended).await,
                Some(env) = self.failed.next() => self.actor(&env).nudge.notify_one(),
            }
        }
    }

    /// Watches the environments from now on and makes an actor for each there is.
    async fn begin(&mut self) -> Result<EnvironmentChanges, StoreError> {
        let from = self.parts.store.revision().await?;
        let changes = self.parts.store.watch::<Environment>("", from).await?;
        let environments = self.parts.store.list::<Environment>("").await?;
        let environments: Vec<Environment> = environments.into_iter().map(|stored| stored.record).collect();
        adopt(&self.parts, &environments, self.parts.clock.now()).await?;
        let mut known: BTreeSet<EnvRef> = environments.into_iter().map(|environment| environment.name).collect();
        // Those whose routes outlived them are looked at too, and go.
        known.extend(self.parts.routes.view().borrow().table.environments.keys().cloned());
        known.iter().for_each(|env| self.actor(env).nudge.notify_one());
        Ok(changes)
    }

    fn actor(&mut self, env: &EnvRef) -> &Address {
        if self.actors.get(env).is_some_and(|address| address.inbox.is_closed()) {
            self.actors.remove(env);
        }
        self.actors.entry(env.clone()).or_insert_with(|| {
            let (address, actor) = Actor::new(env.clone(), self.parts.clone(), self.shutdown.clone());
            let id = self.running.spawn(actor.run()).id();
            self.names.insert(id, env.clone());
            address
        })
    }

    async fn ended(&mut self, ended: Result<(Id, EnvRef), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some(env) = self.names.remove(&id) else { return };
        if self.actors.get(&env).is_some_and(|address| address.inbox.is_closed()) {
            self.actors.remove(&env);
        }
        if let Err(error) = &ended {
            tracing::error!(%env, %error, "the actor of an environment failed; it gets a new one");
        }
        // A failed one, and one of an environment of the same name that was made while the old one went.
        if ended.is_err() || !matches!(self.parts.store.get::<Environment>(&env).await, Ok(None)) {
            self.failed.push(Box::pin(async move {
                sleep(AGAIN).await;
                env
            }));
        }
    }
}
