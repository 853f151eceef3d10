//! From a release to N healthy replicas behind the router: observe → plan → execute, level-triggered; events only nudge.
//!
//! One actor per environment (`actor`) compares what should run (the records) with what does (`world`, one picture for all; `watcher`,
//! one prober per replica) and with what the router serves (`routes`, the one owner of the routes table), asks [`crate::plan`] what to do,
//! and does it. Nothing depends on having seen an event: a fresh process rebuilds everything from the runtime, the store and the routes
//! table, and goes on with deployments that were under way. What serves when the control plane dies serves when it comes back.
//!
//! [`Deployer`] is the handle that others hold; [`DeployService`] owns the tasks.

mod actor;
mod api;
mod clock;
mod domains;
mod hosts;
mod probe;
mod progress;
mod releases;
mod routes;
mod service;
mod spec;
#[cfg(test)]
pub(crate) mod tests;
mod watcher;
mod world;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use self::{
    actor::{Address, Message},
    clock::Steady,
    progress::NOTES,
    routes::{Routes, RoutesTask},
    service::Directory,
    world::{Observer, World},
};
pub use self::{
    api::{
        CancelFailure, DeployFailure, DeploySettings, Deployed, Derive, EnvStatus, NewRelease, ProcessStatus,
        ReplicaHealth, ReplicaStatus, WaitStatus,
    },
    clock::{Clock, SystemClock},
    probe::{NetProber, ProbeError, ProbeTarget, Prober},
    progress::{Progress, SilentProgress},
    routes::RoutePublisher,
    service::DeployService,
    world::Picture,
};
use crate::{
    domain::{EnvRef, Environment, EventKind, ImageRef, Release, ReleaseVersion, UserName},
    events::{EventSink, Presence},
    logs::Logs,
    runtime::Runtime,
    store::{NewEvent, Store, StoreError},
};

/// How long an actor may take to answer before its last known status is given.
const REFRESH_DEADLINE: Duration = Duration::from_secs(5);

/// Pause before an actor is looked for anew that has ended.
const AGAIN: Duration = Duration::from_millis(20);

/// What all parts of the deployer share.
struct Parts {
    settings: DeploySettings,
    store: Store,
    runtime: Arc<dyn Runtime>,
    logs: Logs,
    prober: Arc<dyn Prober>,
    clock: Arc<dyn Clock>,
    steady: Steady,
    world: World,
    routes: Routes,
    events: EventSink,
}

impl Parts {
    /// Has an event recorded, off the path of whoever caused it.
    fn event(&self, event: NewEvent) {
        self.events.send(event);
    }

    fn url(&self, env: &EnvRef) -> String {
        let host = env.host(&self.settings.base_domain);
        match (self.settings.public_scheme, self.settings.router_port) {
            (scheme @ "http", 80) | (scheme @ "https", 443) => format!("{scheme}://{host}"),
            (scheme, port) => format!("{scheme}://{host}:{port}"),
        }
    }
}

/// Deploys. Clones share it.
#[derive(Clone)]
pub struct Deployer {
    parts: Arc<Parts>,
    directory: Directory,
}

impl Deployer {
    /// A deployer and the service that does its work; nothing happens before [`DeployService::run`].
    pub fn start(
        settings: DeploySettings,
        store: Store,
        runtime: Arc<dyn Runtime>,
        logs: Logs,
        publisher: Arc<dyn RoutePublisher>,
        prober: Arc<dyn Prober>,
        clock: Arc<dyn Clock>,
    ) -> (Self, DeployService) {
        let (events, writer) = EventSink::new(store.clone());
        let presence = |lost, back| Presence::new((lost, back), events.clone());
        let engine = presence(EventKind::EngineLost, EventKind::EngineBack);
        let router = presence(EventKind::RouterLost, EventKind::RouterBack);
        let (world, observer) = Observer::new(runtime.clone(), engine);
        let (routes, routes_task) = RoutesTask::new(publisher, &settings, router);
        let steady = Steady::starting_at(clock.now());
        let parts = Arc::new(Parts { settings, store, runtime, logs, prober, clock, steady, world, routes, events });
        let (directory, asks) = Directory::new();
        let service = DeployService::new(parts.clone(), asks, observer, routes_task, writer);
        (Self { parts, directory }, service)
    }

    /// Where the environment answers.
    pub fn url(&self, env: &EnvRef) -> String {
        self.parts.url(env)
    }

    /// Points the environment at the release and waits until that serves or has failed (then what served before does, and the environment
    /// points back at it). Deploying a release again that is under way or over tells how that goes or went. Dropping the future does
    /// not stop the deployment.
    ///
    /// # Errors
    /// See [`DeployFailure`].
    pub async fn deploy(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        progress: &dyn Progress,
    ) -> Result<Deployed, DeployFailure> {
        progress.step(&format!("Deploying {version}"));
        if let Some(release) = self.parts.store.get::<Release>(&(env.clone(), version)).await? {
            let given = self.parts.settings.given();
            let asked = domains::look_up(&self.parts.store, &given, env, release.domains.iter()).await?;
            asked.conflicts.iter().for_each(|conflict| progress.error(conflict));
        }
        let stopped = || {
            DeployFailure::Store(StoreError::Failed(
                "the deployer is stopping; the deployment goes on once it is back".into(),
            ))
        };
        loop {
            let address = self.directory.open(env).await.ok_or_else(stopped)?;
            let (notes, mut heard) = mpsc::channel(NOTES);
            let (reply, outcome) = oneshot::channel();
            if address.inbox.send(Message::Deploy { version, notes, reply }).await.is_err() {
                // The actor ended (its environment was destroyed and perhaps made anew); the directory knows better by now.
                sleep(AGAIN).await;
                continue;
            }
            let mut outcome = std::pin::pin!(address.answer(outcome));
            let outcome = loop {
                tokio::select! {
                    biased;
                    Some(note) = heard.recv() => note.tell(progress),
                    outcome = &mut outcome => break outcome,
                }
            };
            while let Ok(note) = heard.try_recv() {
                note.tell(progress);
            }
            match outcome {
                Some(outcome) => return outcome.into_result(),
                // The actor failed or was replaced: ask its successor, which knows how far it is.
                None => sleep(AGAIN).await,
            }
        }
    }

    /// Gives a deployment up that is under way: what served before serves, and whoever waits for it hears `reason`. Over or unknown ones
    /// are left as they are. Once this has returned well, no server deploys it any more.
    ///
    /// # Errors
    /// [`CancelFailure::Busy`] when the actor does not answer in time or is stopping, [`CancelFailure::Store`] when that cannot be written
    /// down: then it may still be deployed, and this is to be asked again.
    pub async fn abandon(&self, env: &EnvRef, version: ReleaseVersion, reason: &str) -> Result<(), CancelFailure> {
        if self.parts.store.get::<Environment>(env).await?.is_none() {
            return Ok(());
        }
        let ask = async {
            let address = self.directory.open(env).await?;
            address.ask(|done| Message::Abandon { version, reason: reason.to_owned(), done }).await
        };
        let given_up = timeout(REFRESH_DEADLINE, ask).await.ok().flatten().ok_or(CancelFailure::Busy)?;
        Ok(given_up?)
    }

    /// Gives the deployment under way up because `by` wants it (that of `version`, if given): what served before serves, and whoever
    /// waits for it hears of it. Returns which it was.
    ///
    /// # Errors
    /// See [`CancelFailure`].
    pub async fn cancel(
        &self,
        env: &EnvRef,
        version: Option<ReleaseVersion>,
        by: &UserName,
    ) -> Result<ReleaseVersion, CancelFailure> {
        self.parts.store.need::<Environment>(env).await?;
        let address = self.directory.open(env).await.ok_or(CancelFailure::Busy)?;
        let ask = address.ask(|reply| Message::Cancel { version, by: by.clone(), reply });
        timeout(REFRESH_DEADLINE, ask).await.ok().flatten().unwrap_or(Err(CancelFailure::Busy))
    }

    /// What runs of the environment, what should, and what is waited for and why.
    ///
    /// # Errors
    /// [`StoreError::Missing`] without the environment; else the store's own.
    pub async fn status(&self, env: &EnvRef) -> Result<EnvStatus, StoreError> {
        self.parts.store.need::<Environment>(env).await?;
        let Some(address) = self.directory.open(env).await else {
            return Ok(EnvStatus::unknown(env.clone(), "the deployer is stopping"));
        };
        Ok(EnvStatus::clone(&*self.refreshed(&address).await))
    }

    /// The last known status of every environment that exists or still has replicas: cheap, and as old as its actor's last look.
    pub async fn statuses(&self) -> Vec<Arc<EnvStatus>> {
        self.directory.statuses().await
    }

    /// What the engine said last of all replicas.
    pub fn observed(&self) -> Arc<Picture> {
        self.parts.world.pictures().borrow().clone()
    }

    /// The status after the actor has read the records anew and acted on them.
    async fn refreshed(&self, address: &Address) -> Arc<EnvStatus> {
        if timeout(REFRESH_DEADLINE, address.ask(Message::Refresh)).await.is_err() {
            tracing::debug!("an environment's actor is busy; its last status is used");
        }
        address.status.borrow().clone()
    }

    /// Stops and removes everything of a destroyed environment, whose record has been deleted.
    ///
    /// # Errors
    /// When its record is still there, or it is not gone in time (it goes on all the same).
    pub async fn retire(&self, env: &EnvRef) -> anyhow::Result<()> {
        let settings = &self.parts.settings;
        let limit = settings.drain_timeout + settings.stop_grace + Duration::from_secs(60);
        if self.parts.store.get::<Environment>(env).await?.is_some() {
            anyhow::bail!("{env} still exists; its record is to be deleted first, so that nothing brings it back");
        }
        let gone = async {
            let address = self.directory.open(env).await.context("the deployer is stopping")?;
            // Without an answer the actor has ended, which it does only when all is gone.
            let _ = address.ask(Message::Retire).await;
            anyhow::Ok(())
        };
        timeout(limit, gone).await.with_context(|| format!("{env} is still being stopped; it goes on"))?
    }

    /// The desired state changed (scale, restart, domains): look again now.
    pub fn nudge(&self, env: &EnvRef) {
        self.directory.nudge(env);
    }

    /// Waits until what runs is what the records say now. The error is how far it got.
    ///
    /// # Errors
    /// The status at the deadline.
    pub async fn await_settled(&self, env: &EnvRef, deadline: Duration) -> Result<EnvStatus, EnvStatus> {
        let until = Instant::now() + deadline;
        let stopping = || EnvStatus::unknown(env.clone(), "the deployer is stopping");
        let address = self.directory.open(env).await.ok_or_else(stopping)?;
        self.refreshed(&address).await;
        let mut status: watch::Receiver<Arc<EnvStatus>> = address.status;
        let settled = timeout_at(until, status.wait_for(|status| status.settled)).await.ok().and_then(Result::ok);
        match settled.map(|status| status.clone()) {
            Some(status) => Ok(EnvStatus::clone(&status)),
            None => Err(EnvStatus::clone(&*status.borrow())),
        }
    }

    /// Brings what a release needs to the engine while its records are being written.
    fn prepare(&self, env: &EnvRef, image: &ImageRef) {
        let (runtime, tenant, image) = (self.parts.runtime.clone(), env.tenant.clone(), image.clone());
        self.directory.spawn(async move {
            let prepare = futures::future::join(runtime.prepare_image(&image), runtime.prepare_tenant(&tenant));
            match timeout(service::PREPARE_DEADLINE, prepare).await {
                Ok((Err(error), _) | (_, Err(error))) => {
                    tracing::warn!(%error, "an image cannot be brought ahead of time")
                }
                Err(_) => tracing::warn!(%image, "an image is not there in time"),
                Ok((Ok(()), Ok(()))) => {}
            }
        });
    }

    fn created(&self, release: &Release) {
        let message = format!("{} ({})", release.version, release.reason);
        let event = NewEvent::new(EventKind::ReleaseCreated, release.created_at, message)
            .data("release", release.version.0)
            .data("reason", release.reason.as_str())
            .data("image", release.image.to_string());
        self.parts.event(event.env(&release.env).by(&release.created_by));
    }
}
