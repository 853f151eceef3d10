//! The sampler over a router's socket, an engine and a store in memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{io::AsyncWriteExt, net::UnixListener};

use super::*;
use crate::{
    deploy::{EnvStatus, Picture, ProcessStatus, ReplicaHealth, ReplicaStatus},
    disk::DiskFloor,
    domain::*,
    logs::{LogLimits, Logs},
    registry::FakeRegistry,
    router::{
        meter::{Counts, Reading},
        table::METER_SOCKET,
    },
    runtime::{
        Runtime, Usage,
        fake::{Behaviour, FakeRuntime},
    },
    store::{MemoryKv, NewEvent, Store},
};

/// Knows what it is told.
#[derive(Default)]
struct Told {
    picture: Mutex<Arc<Picture>>,
    statuses: Mutex<Vec<Arc<EnvStatus>>>,
}

#[async_trait]
impl Running for Told {
    async fn statuses(&self) -> Vec<Arc<EnvStatus>> {
        self.statuses.lock().unwrap().clone()
    }
    fn observed(&self) -> Arc<Picture> {
        self.picture.lock().unwrap().clone()
    }
    fn builds(&self) -> (usize, usize) {
        (2, 1)
    }
}

fn replica(index: u32, release: u64, health: ReplicaHealth) -> ReplicaStatus {
    let (started_at, reason) = Default::default();
    let (release, state) = (ReleaseVersion(release), ReplicaState::Running);
    ReplicaStatus { index, release, state, health, since: Timestamp::now(), started_at, reason }
}

fn status(env: &EnvRef, wanted: u32, ready: u32) -> Arc<EnvStatus> {
    let process = "web".parse().unwrap();
    let replicas = (1..=ready).map(|index| replica(index, 1, ReplicaHealth::Ready)).collect();
    let processes = vec![ProcessStatus { process, wanted, ready, crash_looping: false, replicas }];
    let env = env.clone();
    let (why, waits) = Default::default();
    Arc::new(EnvStatus { env, target: None, current: None, processes, deployment: None, why, waits, settled: true })
}

struct World {
    metrics: Metrics,
    sampler: Sampler,
    running: Arc<Told>,
    runtime: Arc<FakeRuntime>,
    store: Store,
    reading: Arc<Mutex<Reading>>,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let reading = Arc::new(Mutex::new(Reading { boot: 1, ..Reading::default() }));
        let listener = UnixListener::bind(directory.path().join(METER_SOCKET)).unwrap();
        tokio::spawn({
            let reading = reading.clone();
            async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let text = serde_json::to_vec(&*reading.lock().unwrap()).unwrap();
                    stream.write_all(&text).await.unwrap();
                }
            }
        });
        let runtime = Arc::new(FakeRuntime::new(Behaviour::default()));
        let running = Arc::new(Told::default());
        let store = Store::new(Arc::new(MemoryKv::default()));
        let parts = MetricsParts {
            store: store.clone(),
            running: running.clone(),
            runtime: runtime.clone(),
            registry: Arc::new(FakeRegistry::new()),
            logs: Logs::open(directory.path().join("logs"), LogLimits::default()).unwrap(),
            disk: DiskFloor::new(vec![directory.path().to_owned()], 5),
            router: directory.path().to_owned(),
        };
        let (metrics, sampler) = Metrics::start(parts, settings(directory.path()));
        Self { metrics, sampler, running, runtime, store, reading, _directory: directory }
    }

    /// One replica of the shop, as the deployer sees it.
    async fn run_replica(&self) -> ReplicaId {
        let set = ReplicaSet {
            id: SetId { env: shop(), process: "web".parse().unwrap(), release: ReleaseVersion(1), restarts: 0 },
            image: ImageRef { repository: "berth/acme/shop".to_owned(), digest: Digest::from_sha256([0; 32]) },
            command: "run".to_owned(),
            environment: BTreeMap::new(),
            count: 1,
            limits: Limits { cpu_millis: 100, memory: 1 << 20, pids: 10 },
            stop_grace: Duration::from_secs(1),
        };
        self.runtime.apply(&set).await.unwrap();
        let replicas = self.runtime.observe().await.unwrap();
        let id = replicas[0].id.clone();
        let picture = Picture { known: true, replicas: [(shop(), replicas)].into(), ..Picture::default() };
        *self.running.picture.lock().unwrap() = Arc::new(picture);
        *self.running.statuses.lock().unwrap() = vec![status(&shop(), 2, 1)];
        id
    }

    fn ask(&self, answered: u64) {
        let counts = Counts { classes: [0, answered, 0, 0, 0], ..Counts::default() };
        self.reading.lock().unwrap().environments.insert(shop(), counts);
    }
}

#[tokio::test]
async fn an_interval_is_what_happened_in_it() {
    let mut world = World::new().await;
    assert!(!world.metrics.platform_text().contains("berth_router_up"));
    let replica = world.run_replica().await;
    world.ask(100);
    world.sampler.sample(START).await;
    world.ask(130);
    world
        .runtime
        .uses(&replica, Usage { cpu_micros: 1_000_000_000, memory: 5 << 20, received: 50, ..Usage::default() });
    world.metrics.happenings().died.insert(shop(), 3);
    world.sampler.sample(START + 1).await;
    world.runtime.set_dead(true);
    world.reading.lock().unwrap().boot = 2;
    world.ask(4);
    world.sampler.sample(START + 2).await;
    let points = all(&world.metrics, &shop());
    assert_eq!(points.len(), 3);
    let (first, second, third) = (points[0].1, points[1].1, points[2].1);
    assert_eq!((first.requests, first.used), (None, None), "nobody knows what happened before");
    assert_eq!(first.replicas, Some(Replicas { wanted: 2, ready: 1, crashes: 0 }));
    assert_eq!(second.requests.unwrap().classes, [0, 30, 0, 0, 0]);
    let used = second.used.unwrap();
    assert!(used.cpu_millis > 1000 && used.memory.abs_diff(5 << 20) < 5000 && used.received == 50, "{used:?}");
    assert_eq!(second.replicas.unwrap().crashes, 3);
    assert_eq!((third.requests.unwrap().classes[1], third.used), (4, None), "a router begins anew, the engine is away");
    assert_eq!(third.replicas.unwrap().crashes, 0);

    let text = world.metrics.platform_text();
    for line in [
        "berth_builds{state=\"queued\"} 2",
        "berth_replicas{state=\"running\"} 1",
        "berth_replicas_wanted 2",
        "berth_engine_up 1",
        "berth_registry_up 1",
        "berth_router_requests_total{tenant=\"acme\",app=\"shop\",env=\"dev\",class=\"2xx\"} 4",
        "berth_disk_min_free_bytes 5",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_push_under_way_takes_nothing_from_what_serves() {
    let mut world = World::new().await;
    world.run_replica().await;
    // Two are wanted of release 2, of which one starts and none serves yet; those of release 1 still do, and one is more than wanted.
    for (tick, old) in (START..).zip([3, 2, 1]) {
        let mut told = Arc::unwrap_or_clone(status(&shop(), 2, 0));
        told.processes[0].replicas = (1..=old).map(|index| replica(index, 1, ReplicaHealth::Ready)).collect();
        told.processes[0].replicas.push(replica(1, 2, ReplicaHealth::Starting));
        *world.running.statuses.lock().unwrap() = vec![Arc::new(told)];
        world.sampler.sample(tick).await;
    }
    let points = all(&world.metrics, &shop());
    let ready: Vec<_> = points.iter().map(|(_, point)| point.replicas.unwrap().ready).collect();
    assert_eq!(ready, [2, 2, 1]);
}

#[tokio::test]
async fn who_is_destroyed_is_forgotten() {
    let mut world = World::new().await;
    world.run_replica().await;
    let gone = env("acme/gone/dev");
    let mut waiting = Vec::new();
    for name in [&shop(), &gone] {
        world.metrics.record(name, START, answered(1));
        waiting.push(status(name, 1, 1));
    }
    *world.running.statuses.lock().unwrap() = waiting;
    world.sampler.sample(START + 1).await;
    assert_eq!(world.metrics.lock().environments().count(), 2);
    // It has neither an actor nor a record any more.
    *world.running.statuses.lock().unwrap() = vec![status(&shop(), 1, 1)];
    world.sampler.sample(START + 2).await;
    assert_eq!(world.metrics.lock().environments().cloned().collect::<Vec<_>>(), [shop()]);
    // That nobody is known means that the deployer has not begun, or is stopping.
    world.running.statuses.lock().unwrap().clear();
    world.sampler.sample(START + 3).await;
    assert_eq!(world.metrics.lock().environments().count(), 1);
}

#[tokio::test]
async fn what_the_store_tells_of_is_counted() {
    let world = World::new().await;
    let counting = tokio::spawn(happenings::count(world.store.clone(), world.metrics.clone()));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    // Until the store is watched, events pass by.
    while world.metrics.happenings().died.get(&shop()).is_none_or(|died| *died < 2) {
        let event = NewEvent::new(EventKind::ReplicaDied, Timestamp::now(), "web.1 died").env(&shop());
        world.store.record(event).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(tokio::time::Instant::now() < deadline);
    }
    assert!(world.metrics.happenings().events["replica.died"] >= 2);
    counting.abort();
}

#[test]
fn an_end_that_is_written_twice_counts_once() {
    let mut happenings = Happenings::default();
    let text = r#"{"env":"acme/shop/dev","number":3,"commit":"1a","branch":null,"old_commit":null,"state":"failed","reason":"x",
        "queued_at":"2030-01-01T00:00:00Z","started_at":null,"finished_at":"2030-01-01T00:00:10Z","pushed_by":"ann","image":null,"release":null}"#;
    let mut build: Build = serde_json::from_str(text).unwrap();
    let now: Timestamp = "2030-01-01T00:00:11Z".parse().unwrap();
    for _ in 0..2 {
        happenings.build("acme/shop/dev/3", &build, now);
        build.settled = true;
    }
    // One that ended long ago is written for another reason.
    happenings.build("acme/shop/dev/2", &build, now + Duration::from_secs(3600));
    build.state = BuildState::Queued;
    happenings.build("acme/shop/dev/4", &build, now);
    assert_eq!(happenings.builds, [("failed", 1)].into());
}

#[tokio::test]
async fn deaths_count_when_their_environment_is_told_of_and_are_not_kept_of_one_that_is_gone() {
    let mut world = World::new().await;
    world.run_replica().await;
    let statuses = std::mem::take(&mut *world.running.statuses.lock().unwrap());
    world.metrics.happenings().died.insert(shop(), 3);
    world.metrics.happenings().died.insert(env("acme/gone/dev"), 1);
    // Nobody tells in time.
    world.sampler.sample(START).await;
    *world.running.statuses.lock().unwrap() = statuses;
    world.sampler.sample(START + 1).await;
    world.sampler.sample(START + 2).await;
    let crashes: Vec<(u32, u32)> =
        all(&world.metrics, &shop()).iter().map(|(tick, point)| (*tick, point.replicas.unwrap().crashes)).collect();
    assert_eq!(crashes, [(START + 1, 3), (START + 2, 0)]);
    assert!(world.metrics.happenings().died.is_empty());
}
