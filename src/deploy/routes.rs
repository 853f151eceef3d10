//! The one task that owns the routes table: merges what the environments ask for, publishes it, and follows what the router
//! acknowledges.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

use super::{DeploySettings, hosts};
use crate::{
    domain::{EnvRef, FailPoint, fail_point::reached},
    events::Presence,
    plan::RouteState,
    router::table::{Ack, Route, RoutesTable, Upstream},
};

/// Changes that may wait for the task.
const QUEUE: usize = 256;
/// How long a caller waits for its change to be published.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);
/// Pause before a table that could not be written is written again.
const PUBLISH_AGAIN: Duration = Duration::from_secs(1);

/// Hands routes to the router; wired by `app` to the files below `DATA/router`.
#[async_trait]
pub trait RoutePublisher: Send + Sync {
    /// The table published last, by this process or one before.
    fn load(&self) -> anyhow::Result<Option<RoutesTable>>;
    /// The router's newest acknowledgement, if there ever was a router.
    fn acknowledged(&self) -> Option<Ack>;
    /// Publishes durably.
    async fn publish(&self, table: &RoutesTable) -> anyhow::Result<()>;
    /// Waits until the router serves `generation` or a later one and has no request under way to any of `removed`. Returns whether it
    /// does, `false` after `deadline`.
    async fn in_force(&self, generation: u64, removed: &[SocketAddr], deadline: Instant) -> bool;
}

/// What one environment asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EnvRoutes {
    pub(super) route: Route,
    pub(super) domains: Vec<String>,
}

/// What is published, and what the router has made of it.
#[derive(Debug, Clone, Default)]
pub(super) struct RoutesView {
    pub(super) table: RoutesTable,
    /// The generation in force.
    acked: u64,
    /// Since which generation an upstream is in the table.
    entered: BTreeMap<(EnvRef, Upstream), u64>,
    /// Upstreams that left the table and may still have requests.
    leaving: BTreeMap<SocketAddr, u64>,
    pub(super) conflicts: BTreeMap<EnvRef, Vec<String>>,
    /// The router did not acknowledge in time; what is published counts as in force.
    pub(super) silent: bool,
    /// Why the newest table is not published.
    pub(super) error: Option<String>,
}

impl RoutesView {
    /// What the router does with an upstream. `was_routed`: the replica itself, not only one at its address, has been in the table.
    pub(super) fn state(&self, env: &EnvRef, upstream: &Upstream, was_routed: bool) -> RouteState {
        match self.entered.get(&(env.clone(), upstream.clone())) {
            Some(generation) if *generation <= self.acked => RouteState::In,
            Some(_) => RouteState::Entering,
            None => match self.leaving.get(&upstream.address).filter(|_| was_routed) {
                Some(generation) if *generation <= self.acked => RouteState::Draining,
                Some(_) => RouteState::Leaving,
                None => RouteState::Out,
            },
        }
    }

    /// The environment's upstreams as published.
    pub(super) fn published(&self, env: &EnvRef) -> &[Upstream] {
        self.table.environments.get(env).map_or(&[], |route| &route.upstreams)
    }
}

enum Ask {
    Set(EnvRef, EnvRoutes, oneshot::Sender<()>),
    Remove(EnvRef),
}

/// Asks for routes and sees what became of them.
#[derive(Clone)]
pub(super) struct Routes {
    asks: mpsc::Sender<Ask>,
    view: watch::Receiver<Arc<RoutesView>>,
}

impl Routes {
    /// Makes the environment's routes so. Returns once they are published, or were tried to be for a while; `view` says which.
    pub(super) async fn set(&self, env: &EnvRef, routes: EnvRoutes) {
        let (done, published) = oneshot::channel();
        if self.asks.send(Ask::Set(env.clone(), routes, done)).await.is_ok() {
            // The view is what counts; this only waits for it.
            let _ = timeout(PUBLISH_DEADLINE, published).await;
        }
    }

    /// Forgets the environment with its hosts.
    pub(super) async fn remove(&self, env: &EnvRef) {
        // An error means that the server is stopping; the next one will see to it.
        let _ = self.asks.send(Ask::Remove(env.clone())).await;
    }

    pub(super) fn view(&self) -> watch::Receiver<Arc<RoutesView>> {
        self.view.clone()
    }
}

enum Heard {
    /// The router serves this generation (or did not say so in time).
    Generation(u64, bool),
    /// An upstream that left in this generation has answered its last request (or its time is over).
    Drained(SocketAddr, u64),
    PublishAgain,
}

/// The task behind [`Routes`].
pub(super) struct RoutesTask {
    publisher: Arc<dyn RoutePublisher>,
    base: String,
    ack_timeout: Duration,
    drain_timeout: Duration,
    asks: mpsc::Receiver<Ask>,
    view: watch::Sender<Arc<RoutesView>>,
    wanted: BTreeMap<EnvRef, EnvRoutes>,
    now: RoutesView,
    waiting: Vec<oneshot::Sender<()>>,
    /// Whether the router has acknowledged what it was given.
    router: Presence,
    /// A failed publication is waiting to be tried again.
    publishes_again: bool,
    heard: FuturesUnordered<BoxFuture<'static, Heard>>,
}

impl RoutesTask {
    /// Begins with the table that is published already.
    pub(super) fn new(
        publisher: Arc<dyn RoutePublisher>,
        settings: &DeploySettings,
        router: Presence,
    ) -> (Routes, Self) {
        let table = publisher.load().unwrap_or_else(|error| {
            tracing::error!(error = format!("{error:#}"), "the old routes are lost; they are made anew from what runs");
            None
        });
        let mut table = table.unwrap_or_default();
        let ack = publisher.acknowledged().unwrap_or_default();
        // Generations only grow, even if the file is lost.
        table.generation = table.generation.max(ack.generation);
        let now = RoutesView {
            acked: ack.generation,
            entered: entries(&table, &BTreeMap::new()),
            table: table.clone(),
            ..Default::default()
        };
        let mut wanted: BTreeMap<EnvRef, EnvRoutes> = BTreeMap::new();
        for (env, route) in &now.table.environments {
            wanted.entry(env.clone()).or_default().route = route.clone();
        }
        for (host, env) in &now.table.hosts {
            wanted.entry(env.clone()).or_default().domains.push(host.clone());
        }
        let (asks, receiver) = mpsc::channel(QUEUE);
        let (view, watcher) = watch::channel(Arc::new(now.clone()));
        let mut task = Self {
            publisher,
            base: settings.base_domain.clone(),
            ack_timeout: settings.ack_timeout,
            drain_timeout: settings.drain_timeout,
            asks: receiver,
            view,
            wanted,
            now,
            waiting: Vec::new(),
            router,
            publishes_again: false,
            heard: FuturesUnordered::new(),
        };
        // What an earlier process published or took out shortly before it ended goes on being followed.
        if ack.generation < table.generation {
            task.follow_generation(table.generation);
        }
        ack.draining.into_keys().for_each(|address| task.follow_leaving(address, table.generation));
        task.view.send_replace(Arc::new(task.now.clone()));
        (Routes { asks, view: watcher }, task)
    }

    /// Runs until all [`Routes`] are dropped.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                ask = self.asks.recv() => {
                    let Some(ask) = ask else { return };
                    self.take(ask);
                    // What else waits goes into the same table.
                    while let Ok(ask) = self.asks.try_recv() {
                        self.take(ask);
                    }
                    self.publish().await;
                }
                Some(heard) = self.heard.next() => match heard {
                    Heard::Generation(generation, answered) => self.acknowledged(generation, answered),
                    Heard::Drained(address, generation) => {
                        if self.now.leaving.get(&address) == Some(&generation) {
                            self.now.leaving.remove(&address);
                        }
                    }
                    Heard::PublishAgain => {
                        self.publishes_again = false;
                        self.publish().await;
                    }
                },
            }
            self.view.send_replace(Arc::new(self.now.clone()));
            for done in self.waiting.drain(..) {
                // Nobody waits any more: nothing to tell.
                let _ = done.send(());
            }
        }
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Set(env, routes, done) => {
                self.wanted.insert(env, routes);
                self.waiting.push(done);
            }
            Ask::Remove(env) => drop(self.wanted.remove(&env)),
        }
    }

    fn acknowledged(&mut self, generation: u64, answered: bool) {
        self.now.acked = self.now.acked.max(generation);
        if answered {
            self.now.silent = false;
            self.router.back("the router acknowledges its routes again");
        } else if generation == self.now.table.generation && !self.now.silent {
            tracing::warn!(generation, "the router does not acknowledge its routes; is `berth router` running?");
            self.now.silent = true;
            self.router.lost("the router does not answer", "it does not acknowledge its routes");
        }
    }

    async fn publish(&mut self) {
        let asked = self.wanted.iter().map(|(env, routes)| (env.clone(), routes.domains.clone())).collect();
        let given = hosts::assign(&self.base, &asked, &self.now.table.hosts);
        self.now.conflicts = given.conflicts;
        let environments: BTreeMap<EnvRef, Route> =
            self.wanted.iter().map(|(env, routes)| (env.clone(), routes.route.clone())).collect();
        if self.now.table.hosts == given.hosts && self.now.table.environments == environments {
            // What could not be published is not wanted any more.
            self.now.error = None;
            return;
        }
        let generation = self.now.table.generation + 1;
        let table = RoutesTable { generation, hosts: given.hosts, environments };
        reached(FailPoint::Switch);
        if let Err(error) = self.publisher.publish(&table).await {
            tracing::error!(error = format!("{error:#}"), "the routes cannot be published; trying again");
            self.now.error = Some(format!("{error:#}"));
            if !self.publishes_again {
                self.publishes_again = true;
                self.heard.push(sleep(PUBLISH_AGAIN).map(|()| Heard::PublishAgain).boxed());
            }
            return;
        }
        reached(FailPoint::Switch);
        self.now.error = None;
        self.follow(&table);
        self.now.table = table;
    }

    /// Listens for what the router makes of a table.
    fn follow(&mut self, table: &RoutesTable) {
        let generation = table.generation;
        let entered = entries(table, &self.now.entered);
        let gone = self.now.entered.keys().filter(|entry| !entered.contains_key(*entry));
        let gone: Vec<SocketAddr> = gone.map(|(_, upstream)| upstream.address).collect();
        for (_, upstream) in entered.keys() {
            self.now.leaving.remove(&upstream.address);
        }
        gone.into_iter().for_each(|address| self.follow_leaving(address, generation));
        self.now.entered = entered;
        self.follow_generation(generation);
    }

    fn follow_leaving(&mut self, address: SocketAddr, generation: u64) {
        self.now.leaving.insert(address, generation);
        let (publisher, deadline) = (self.publisher.clone(), Instant::now() + self.drain_timeout);
        let drained = async move {
            publisher.in_force(generation, &[address], deadline).await;
            Heard::Drained(address, generation)
        };
        self.heard.push(drained.boxed());
    }

    fn follow_generation(&mut self, generation: u64) {
        let (publisher, deadline) = (self.publisher.clone(), Instant::now() + self.ack_timeout);
        let served = async move { Heard::Generation(generation, publisher.in_force(generation, &[], deadline).await) };
        self.heard.push(served.boxed());
    }
}

fn entries(table: &RoutesTable, before: &BTreeMap<(EnvRef, Upstream), u64>) -> BTreeMap<(EnvRef, Upstream), u64> {
    let all = table
        .environments
        .iter()
        .flat_map(|(env, route)| route.upstreams.iter().map(move |upstream| (env.clone(), upstream.clone())));
    all.map(|entry| {
        let since = before.get(&entry).copied().unwrap_or(table.generation);
        (entry, since)
    })
    .collect()
}
