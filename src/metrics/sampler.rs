//! Measures, each ten seconds by the clock on the wall.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Metrics, Platform, Point, Replicas, Requests, Running, Used,
    happenings::count,
    point::INTERVAL,
    rates::{RouterRates, UsageRates},
    text::Process,
};
use crate::{
    deploy::{EnvStatus, Picture, ProcessStatus},
    disk::DiskFloor,
    domain::{Digest, EnvRef, Environment, Replica, ReplicaState, Timestamp},
    logs::Logs,
    registry::Registry,
    router::meter::{self, Reading},
    runtime::Runtime,
    store::Store,
};

/// How long anything that is asked may take; what is later is not known of that interval.
const DEADLINE: Duration = Duration::from_secs(5);
/// Samples between two looks at whether the registry answers.
const REGISTRY_EVERY: u32 = 6;
/// A repository that need not exist: that the registry answers is enough.
const ANY_REPOSITORY: &str = "berth/status";

/// What is asked.
pub struct MetricsParts {
    pub store: Store,
    pub running: Arc<dyn Running>,
    pub runtime: Arc<dyn Runtime>,
    pub registry: Arc<dyn Registry>,
    pub logs: Logs,
    pub disk: DiskFloor,
    /// `DATA/router`, where the router tells what it has counted.
    pub router: PathBuf,
}

/// Owns measuring; [`Sampler::run`] does it.
pub struct Sampler {
    metrics: Metrics,
    parts: MetricsParts,
    requests: RouterRates,
    usage: UsageRates,
    registry_up: Option<bool>,
    samples: u32,
}

/// The interval that is under way.
pub(super) fn tick_now() -> u32 {
    super::query::tick_at(Timestamp::now())
}

/// How long until the next interval begins.
fn until_next() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let interval = Duration::from_secs(u64::from(INTERVAL));
    interval - Duration::from_nanos((since.as_nanos() % interval.as_nanos()) as u64)
}

impl Sampler {
    pub(super) fn new(metrics: Metrics, parts: MetricsParts) -> Self {
        let (requests, usage) = (RouterRates::default(), UsageRates::default());
        Self { metrics, parts, requests, usage, registry_up: None, samples: 0 }
    }

    /// Measures until `stop`, then writes what is not on disk yet.
    pub async fn run(mut self, stop: CancellationToken) {
        let counting = AbortOnDropHandle::new(tokio::spawn(count(self.parts.store.clone(), self.metrics.clone())));
        let metrics = self.metrics.clone();
        in_background(move || metrics.load(tick_now())).await;
        let mut last = 0;
        loop {
            tokio::select! {
                () = sleep(until_next()) => {}
                () = stop.cancelled() => break,
            }
            // A timer may be a moment early.
            let tick = tick_now().saturating_sub(1);
            if tick != last {
                last = tick;
                self.sample(tick).await;
            }
        }
        drop(counting);
        let metrics = self.metrics.clone();
        in_background(move || {
            let blocks = metrics.lock().take_all();
            metrics.write(tick_now(), blocks);
        })
        .await;
    }

    /// Measures once, for the interval `tick`, which has just ended.
    pub(super) async fn sample(&mut self, tick: u32) {
        let picture = self.parts.running.observed();
        let running = || picture.replicas.values().flatten().filter(|replica| replica.state == ReplicaState::Running);
        let ids: Vec<_> = running().map(|replica| replica.id.clone()).collect();
        let (reading, usage, statuses, ()) = tokio::join!(
            meter::read(&self.parts.router),
            timeout(DEADLINE, self.parts.runtime.usage(&ids)),
            timeout(DEADLINE, self.parts.running.statuses()),
            look_at_registry(&self.parts.registry, &mut self.registry_up, self.samples),
        );
        self.samples = self.samples.wrapping_add(1);
        let (at, now) = (Instant::now(), Timestamp::now());
        let reading =
            reading.inspect_err(|error| tracing::debug!(%error, "the router does not tell what it has counted")).ok();
        let requests = reading.as_ref().and_then(|reading| self.requests.take(reading, at));
        let used = match usage {
            Ok(Ok(usage)) => self.usage.take(running(), &usage, at, now),
            Ok(Err(_)) | Err(_) => None,
        };
        let statuses = statuses.unwrap_or_default();
        self.record(tick, &statuses, requests.as_ref(), used.as_ref());
        self.forget_destroyed(&statuses).await;
        self.tell(&statuses, &picture, reading);
        let metrics = self.metrics.clone();
        let fresh = metrics.lock().take_fresh();
        if !fresh.is_empty() {
            in_background(move || metrics.write(tick, fresh)).await;
        }
    }

    fn record(
        &self,
        tick: u32,
        statuses: &[Arc<EnvStatus>],
        requests: Option<&HashMap<EnvRef, Requests>>,
        used: Option<&HashMap<EnvRef, Used>>,
    ) {
        let died: HashMap<EnvRef, u32> = {
            // Where nobody tells of an environment in time, its deaths count in the next interval.
            let mut happenings = self.metrics.happenings();
            statuses.iter().filter_map(|status| happenings.died.remove_entry(&status.env)).collect()
        };
        let mut history = self.metrics.lock();
        for status in statuses {
            let env = &status.env;
            let sum = |count: fn(&ProcessStatus) -> u32| status.processes.iter().map(count).sum();
            let (wanted, ready) = (sum(|process| process.wanted), sum(ProcessStatus::serving));
            let crashes = died.get(env).copied().unwrap_or(0);
            let point = Point {
                requests: requests.map(|requests| requests.get(env).copied().unwrap_or_default()),
                used: used.map(|used| used.get(env).copied().unwrap_or_default()),
                replicas: Some(Replicas { wanted, ready, crashes }),
            };
            history.record(env, tick, point);
        }
        history.advance(tick);
    }

    /// Forgets environments that are no more, in case whoever destroyed them did not come to that.
    async fn forget_destroyed(&self, statuses: &[Arc<EnvStatus>]) {
        if statuses.is_empty() {
            return;
        }
        let known: HashSet<&EnvRef> = statuses.iter().map(|status| &status.env).collect();
        let strangers = {
            let is_stranger = |env: &&EnvRef| !known.contains(env);
            let mut strangers: HashSet<EnvRef> =
                self.metrics.happenings().died.keys().filter(is_stranger).cloned().collect();
            strangers.extend(self.metrics.lock().environments().filter(is_stranger).cloned());
            strangers
        };
        for env in strangers {
            if matches!(self.parts.store.get::<Environment>(&env).await, Ok(None)) {
                self.metrics.forget(&env).await;
            }
        }
    }

    /// The platform's metrics until the next sample.
    fn tell(&self, statuses: &[Arc<EnvStatus>], picture: &Picture, reading: Option<Reading>) {
        let (builds_queued, builds_running) = self.parts.running.builds();
        let sum = |count: fn(&ProcessStatus) -> u32| {
            statuses.iter().flat_map(|status| &status.processes).map(|process| u64::from(count(process))).sum()
        };
        let (environments_kept, history_bytes) = {
            let history = self.metrics.lock();
            (history.environments().count(), history.bytes())
        };
        let happened = self.metrics.happenings().clone();
        self.metrics.set_platform(Platform {
            sampled_at: Some(Timestamp::now()),
            environments: statuses.len(),
            wanted: sum(|process| process.wanted),
            ready: sum(ProcessStatus::serving),
            replicas: by_state(picture.replicas.values().flatten()),
            engine_up: picture.known && picture.error.is_none(),
            registry_up: self.registry_up,
            reading,
            builds_queued,
            builds_running,
            deployments_running: statuses.iter().filter(|status| status.deployment.is_some()).count(),
            builds_finished: happened.builds,
            deployments_finished: happened.deployments,
            events: happened.events,
            log_lines_dropped: self.parts.logs.dropped(),
            disk: self
                .parts
                .disk
                .look()
                .into_iter()
                .map(|place| (place.path.display().to_string(), place.free))
                .collect(),
            disk_floor: self.parts.disk.min_free(),
            environments_kept,
            history_bytes,
            process: Process::look(),
        });
    }
}

fn by_state<'r>(replicas: impl Iterator<Item = &'r Replica>) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::from([("created", 0), ("running", 0), ("exited", 0)]);
    for replica in replicas {
        let state = match replica.state {
            ReplicaState::Created => "created",
            ReplicaState::Running => "running",
            ReplicaState::Exited { .. } => "exited",
        };
        *counts.entry(state).or_default() += 1;
    }
    counts
}

async fn look_at_registry(registry: &Arc<dyn Registry>, up: &mut Option<bool>, samples: u32) {
    if samples.is_multiple_of(REGISTRY_EVERY) {
        let any = Digest::from_sha256([0; 32]);
        *up = Some(matches!(timeout(DEADLINE, registry.has(ANY_REPOSITORY, &any)).await, Ok(Ok(_))));
    }
}

/// Work that may wait for the disk.
pub(super) async fn in_background(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::error!(%error, "metrics were not written");
    }
}
