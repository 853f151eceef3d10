//! Doing what the plan says. What takes time runs in a task with a deadline and reports back; the plan is told of it meanwhile.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{Actor, ReleaseVersion, STORE_AGAIN, phase::PhaseEnd, traced::of_replica};
use crate::{
    deploy::{domains::look_up, routes::EnvRoutes, spec},
    domain::{FailPoint, ReplicaId, SetId, fail_point::reached},
    plan::{Plan, Start},
    router::table::{Route, Upstream},
    runtime::RuntimeError,
};

/// How long a start may take; it may have to wait for the image.
const START_DEADLINE: Duration = Duration::from_secs(300);
/// How much longer than its grace time a stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Pause before a stop that failed is tried again.
const STOP_AGAIN: Duration = Duration::from_secs(1);

/// Pause before a start is tried again for which the engine or the registry was away.
const ENGINE_AGAIN: Duration = Duration::from_secs(3);

/// A start that is under way, or over and not seen yet.
pub(super) struct Launch {
    pub(super) count: u32,
    /// Once it is over: the picture that shows what came of it.
    pub(super) seen_by: Option<u64>,
}

/// What a task reports.
pub(super) enum Done {
    Started { set: SetId, ticket: u64, result: Result<(), RuntimeError> },
    Stopped { replica: ReplicaId, ticket: u64, result: Result<(), RuntimeError> },
    Tail { set: SetId, replica: ReplicaId, lines: Vec<String> },
    Phase { version: ReleaseVersion, end: PhaseEnd },
}

impl Actor {
    /// Routes first, so that nothing is stopped or started on the strength of routes that are not published.
    pub(super) async fn execute(&mut self, plan: &Plan) {
        self.route(&plan.route).await;
        let again = self.replicas.iter().filter(|(_, one)| one.stop_again).map(|(id, _)| id.clone());
        for replica in again.chain(plan.stop.iter().cloned()).collect::<BTreeSet<_>>() {
            self.stop(&replica);
        }
        for start in &plan.start {
            self.start(start);
        }
        if let Some(moment) = plan.wake {
            self.wake_by(self.parts.steady.instant(moment));
        }
    }

    async fn route(&mut self, wanted: &BTreeSet<ReplicaId>) {
        let domains = self.own_domains().await;
        let Some(record) = &self.record else { return self.ask_routes(EnvRoutes::default()).await };
        let mut upstreams: Vec<Upstream> =
            wanted.iter().filter_map(|id| self.upstream(self.replicas.get(id)?)).collect();
        upstreams.sort();
        let released = record.current.is_some() || !upstreams.is_empty();
        self.trace_routes(|id| wanted.contains(id));
        for id in wanted {
            if let Some(one) = self.replicas.get_mut(id) {
                one.was_routed = true;
            }
        }
        self.ask_routes(EnvRoutes { route: Route { released, upstreams }, domains }).await;
    }

    /// The host names that the record and the release ask for and that are the environment's.
    async fn own_domains(&mut self) -> Vec<String> {
        let Some(record) = &self.record else { return Vec::new() };
        let release = self.goal_version().and_then(|version| self.releases.get(&version));
        let hosts: Vec<String> =
            record.domains.iter().chain(release.iter().flat_map(|release| &release.domains)).cloned().collect();
        if let Some((_, asked)) = self.domains.as_ref().filter(|(before, _)| *before == hosts) {
            return asked.own.clone();
        }
        match look_up(&self.parts.store, &self.parts.settings.given(), &self.env, hosts.iter()).await {
            Ok(asked) => {
                let own = asked.own.clone();
                self.domains = Some((hosts, asked));
                own
            }
            Err(error) => {
                tracing::error!(env = %self.env, %error, "whose domains these are cannot be read; trying again");
                self.wake_by(Instant::now() + STORE_AGAIN);
                self.asked.as_ref().map(|asked| asked.domains.clone()).unwrap_or(hosts)
            }
        }
    }

    async fn ask_routes(&mut self, routes: EnvRoutes) {
        if self.asked.as_ref() != Some(&routes) {
            self.parts.routes.set(&self.env, routes.clone()).await;
            self.asked = Some(routes);
        }
    }

    fn start(&mut self, start: &Start) {
        let Start { set, count } = start;
        let settings = &self.parts.settings;
        let release = self.releases.get(&set.release);
        let replica_set =
            release.and_then(|release| spec::replica_set(release, set, *count, settings.pids, settings.stop_grace));
        let Some(replica_set) = replica_set else { return };
        tracing::info!(%set, count, "starting replicas");
        self.starting.insert(set.clone(), Launch { count: *count, seen_by: None });
        let (runtime, world, set) = (self.parts.runtime.clone(), self.parts.world.clone(), set.clone());
        self.tasks.spawn(async move {
            let result =
                timeout(START_DEADLINE, runtime.apply(&replica_set)).await.unwrap_or_else(|_| late(START_DEADLINE));
            Done::Started { set, ticket: world.look(), result }
        });
    }

    fn stop(&mut self, replica: &ReplicaId) {
        if let Some(one) = self.replicas.get(replica).filter(|one| !one.stopping) {
            self.trace_drained(one);
        }
        let mut trace = self.parts.settings.traces.measure(self.trace_under_way().as_ref());
        let Some(one) = self.replicas.get_mut(replica) else { return };
        reached(FailPoint::Retire);
        one.stopping = true;
        one.stop_again = false;
        tracing::info!(set = %one.replica.set, index = one.replica.index, "stopping a replica");
        let grace = self.parts.settings.stop_grace;
        let (runtime, world, replica) = (self.parts.runtime.clone(), self.parts.world.clone(), replica.clone());
        let stopped = one.replica.clone();
        self.tasks.spawn(async move {
            let deadline = grace + STOP_DEADLINE;
            let stop = timeout(deadline, runtime.stop_replica(&replica, grace)).await;
            let failed = !matches!(stop, Ok(Ok(()) | Err(RuntimeError::Gone(_))));
            trace.lap("stop", |span| of_replica(span, &stopped).failed(failed));
            let result = match stop.unwrap_or_else(|_| late(deadline)) {
                Err(RuntimeError::Gone(_)) => Ok(()),
                Err(error) => {
                    sleep(STOP_AGAIN).await;
                    Err(error)
                }
                Ok(()) => Ok(()),
            };
            Done::Stopped { replica, ticket: world.look(), result }
        });
    }

    /// Takes in what a task reports.
    pub(super) async fn finished(&mut self, done: Done) {
        match done {
            Done::Started { set, ticket, result } => self.started(set, ticket, result),
            Done::Stopped { replica, ticket, result } => match result {
                Ok(()) => {
                    self.replicas.remove(&replica);
                    self.removed.insert(replica, ticket);
                }
                Err(error) => {
                    tracing::warn!(env = %self.env, %error, "a replica cannot be stopped; trying again");
                    // It stays one that is stopping: it may have been told to, and its end is not to be taken for a death.
                    if let Some(one) = self.replicas.get_mut(&replica) {
                        one.stop_again = true;
                    }
                }
            },
            Done::Tail { set, replica, lines } => {
                if let Some(state) = self.sets.get_mut(&set) {
                    state.tails.remove(&replica);
                    if !lines.is_empty() {
                        state.tail = lines;
                    }
                }
            }
            Done::Phase { version, end } => self.phase_over(version, end).await,
        }
    }

    fn started(&mut self, set: SetId, ticket: u64, result: Result<(), RuntimeError>) {
        if let Some(launch) = self.starting.get_mut(&set) {
            launch.seen_by = Some(ticket);
        }
        let Err(error) = result else { return };
        tracing::warn!(%set, %error, "replicas cannot be started");
        let now = self.parts.steady.now();
        let state = self.sets.entry(set).or_default();
        if error.is_passing() {
            // An engine or a registry that does not answer says nothing about the release, and is to find it waiting when it is back.
            state.backoff.pause(now, ENGINE_AGAIN);
        } else {
            state.backoff.failed(now, None);
            state.refusals += 1;
        }
        state.trouble = Some(error.to_string());
    }
}

fn late(deadline: Duration) -> Result<(), RuntimeError> {
    Err(RuntimeError::Unavailable(format!("no answer within {} s", deadline.as_secs())))
}
