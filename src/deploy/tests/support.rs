//! A platform in memory: store, engine, router, and a deployer that can be killed.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::SignedDuration;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use crate::{
    deploy::{clock::Steady, *},
    domain::*,
    logs::{LogLimits, Logs},
    router::table::{Ack, RoutesTable},
    store::{Change, Entry, Guard, Kv, KvError, MemoryKv, Revision, Write},
    traces::{KeptSpans, Traces},
};

pub(crate) fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

pub(crate) fn set(process: &str, release: u64, restarts: u64) -> SetId {
    SetId { env: env(), process: process.parse().unwrap(), release: ReleaseVersion(release), restarts }
}

pub(crate) fn processes(counts: &[(&str, u32)]) -> BTreeMap<ProcessType, ProcessSpec> {
    let spec = |name: &str, replicas| ProcessSpec {
        command: format!("run {name}"),
        replicas,
        cpu_millis: 500,
        memory: 256 << 20,
        port: 5000,
        health: Health {
            probe: if name == "web" { HealthProbe::Tcp } else { HealthProbe::Running },
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            grace: Duration::from_secs(30),
            failures: 3,
        },
    };
    counts.iter().map(|(name, count)| (name.parse().unwrap(), spec(name, *count))).collect()
}

pub(crate) fn release(version: u64, counts: &[(&str, u32)]) -> Release {
    Release {
        env: env(),
        version: ReleaseVersion(version),
        image: image(),
        commit: "a".repeat(40),
        build: None,
        config: BTreeMap::new(),
        processes: processes(counts),
        release_command: None,
        upgrade: UpgradePolicy::default(),
        domains: vec![],
        cron: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "alice".parse().unwrap(),
        reason: "test".into(),
        release_phase_done: true,
        release_phase_attempts: 0,
        trace: None,
    }
}

fn image() -> ImageRef {
    ImageRef { repository: "berth/acme/shop".into(), digest: Digest::from_sha256([1; 32]) }
}

/// A router that takes up what is published after a moment, or never.
pub(super) struct Router {
    published: Mutex<RoutesTable>,
    served: Mutex<RoutesTable>,
    pub(super) asleep: Mutex<bool>,
    /// Something was published, and was taken up.
    news: Notify,
    changed: Notify,
}

impl Router {
    /// Loses the hosts and routes that were published.
    pub(super) fn lose(&self) {
        let mut published = self.published.lock().unwrap();
        *published = RoutesTable { generation: published.generation, ..RoutesTable::default() };
    }

    pub(super) fn table(&self) -> RoutesTable {
        self.served.lock().unwrap().clone()
    }
}

#[async_trait]
impl RoutePublisher for Router {
    fn load(&self) -> anyhow::Result<Option<RoutesTable>> {
        Ok(Some(self.published.lock().unwrap().clone()))
    }
    fn acknowledged(&self) -> Option<Ack> {
        let generation = self.served.lock().unwrap().generation;
        Some(Ack { generation, ..Ack::default() })
    }
    async fn publish(&self, table: &RoutesTable) -> anyhow::Result<()> {
        let before = self.published.lock().unwrap().generation;
        assert!(table.generation > before, "generation {before} → {}", table.generation);
        *self.published.lock().unwrap() = table.clone();
        self.news.notify_one();
        Ok(())
    }
    async fn in_force(&self, generation: u64, _: &[SocketAddr], deadline: Instant) -> bool {
        loop {
            let changed = self.changed.notified();
            if self.served.lock().unwrap().generation >= generation {
                return true;
            }
            if timeout_at(deadline, changed).await.is_err() {
                return false;
            }
        }
    }
}

impl Router {
    /// Takes up what is published a moment later, for as long as the test lives.
    async fn run(self: Arc<Self>) {
        loop {
            self.news.notified().await;
            sleep(Duration::from_millis(3)).await;
            if !*self.asleep.lock().unwrap() {
                *self.served.lock().unwrap() = self.published.lock().unwrap().clone();
                self.changed.notify_waiters();
            }
        }
    }
}

/// A clock that goes with the runtime's paused time, and leaps.
struct TestClock(Steady, Arc<AtomicI64>);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.0.now() + SignedDuration::from_secs(self.1.load(Ordering::SeqCst))
    }
}

/// A store whose disk may be full.
struct FillableKv {
    kv: MemoryKv,
    full: Arc<AtomicBool>,
}

#[async_trait]
impl Kv for FillableKv {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        self.kv.get(key).await
    }
    async fn scan(&self, prefix: &str) -> Result<Vec<Entry>, KvError> {
        self.kv.scan(prefix).await
    }
    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Revision, KvError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(KvError::Failed("no space left on device".to_owned()));
        }
        self.kv.commit(guards, writes).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Change>, KvError> {
        self.kv.watch(prefix, from).await
    }
    async fn revision(&self) -> Result<Revision, KvError> {
        self.kv.revision().await
    }
}

/// Keeps what a deployment says.
#[derive(Default)]
pub(super) struct Heard(Mutex<Vec<(Duration, String)>>, Mutex<Option<Instant>>);

impl Heard {
    fn push(&self, text: String) {
        let now = Instant::now();
        let since = self.1.lock().unwrap().replace(now).map_or(Duration::ZERO, |before| now - before);
        self.0.lock().unwrap().push((since, text));
    }
    pub(super) fn text(&self) -> String {
        self.0.lock().unwrap().iter().map(|(_, text)| format!("{text}\n")).collect()
    }
    pub(super) fn longest_silence(&self) -> Duration {
        self.0.lock().unwrap().iter().map(|(since, _)| *since).max().unwrap_or_default()
    }
}

impl Progress for Heard {
    fn step(&self, text: &str) {
        self.push(format!("-----> {text}"));
    }
    fn heading(&self, text: &str) {
        self.push(format!("=====> {text}"));
    }
    fn detail(&self, text: &str) {
        self.push(format!("       {text}"));
    }
    fn error(&self, text: &str) {
        self.push(format!(" !     {text}"));
    }
    fn raw(&self, bytes: &[u8]) {
        self.push(String::from_utf8_lossy(bytes).trim_end().to_owned());
    }
}

pub(super) struct Platform {
    pub(super) engine: Engine,
    pub(super) router: Arc<Router>,
    pub(super) store: Store,
    pub(super) logs: Logs,
    _directory: tempfile::TempDir,
    pub(super) deployer: Deployer,
    service: JoinHandle<()>,
    shutdown: CancellationToken,
    /// The store's disk is full.
    pub(super) full: Arc<AtomicBool>,
    /// Seconds that the time of day is off.
    leap: Arc<AtomicI64>,
    /// What the watchman saw go wrong.
    faults: Arc<Mutex<Vec<String>>>,
    /// Replicas that must serve at any moment, once set.
    pub(super) least: Arc<Mutex<usize>>,
    /// What traces say.
    pub(super) spans: Arc<KeptSpans>,
}

impl Platform {
    pub(super) async fn new() -> Self {
        let router = Arc::new(Router {
            published: Mutex::default(),
            served: Mutex::default(),
            asleep: Mutex::default(),
            news: Notify::new(),
            changed: Notify::new(),
        });
        tokio::spawn(router.clone().run());
        let full = Arc::new(AtomicBool::new(false));
        let kv = FillableKv { kv: MemoryKv::new(), full: full.clone() };
        let (engine, store) = (Engine::new(), Store::new(Arc::new(kv)));
        let record = Environment {
            name: env(),
            created_at: Timestamp::UNIX_EPOCH,
            deploy_branch: None,
            config: BTreeMap::new(),
            scale: BTreeMap::new(),
            domains: vec![],
            target: None,
            current: None,
            last_release: 0,
            last_build: 0,
            restarts: 0,
        };
        store.transaction().create(&record).commit().await.unwrap();
        let leap = Arc::new(AtomicI64::new(0));
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path(), LogLimits::default()).unwrap();
        let spans = Arc::new(KeptSpans::default());
        let (deployer, service, shutdown) = Self::boot(&engine, &router, &store, &logs, (&leap, &spans));
        let (faults, least) = (Arc::default(), Arc::default());
        let _directory = directory;
        let platform = Self {
            engine,
            router,
            store,
            logs,
            _directory,
            deployer,
            service,
            shutdown,
            full,
            leap,
            faults,
            least,
            spans,
        };
        platform.watch_traffic();
        platform
    }

    fn boot(
        engine: &Engine,
        router: &Arc<Router>,
        store: &Store,
        logs: &Logs,
        (leap, spans): (&Arc<AtomicI64>, &Arc<KeptSpans>),
    ) -> (Deployer, JoinHandle<()>, CancellationToken) {
        let clock = Arc::new(TestClock(Steady::starting_at(engine.time()), leap.clone()));
        let (deployer, service) = Deployer::start(
            DeploySettings { traces: Traces::new(spans.clone(), 1.0), ..DeploySettings::default() },
            store.clone(),
            Arc::new(engine.clone()),
            logs.clone(),
            router.clone(),
            Arc::new(engine.clone()),
            clock,
        );
        let shutdown = CancellationToken::new();
        (deployer, tokio::spawn(service.run(shutdown.clone())), shutdown)
    }

    /// Stops the control plane in order.
    pub(super) async fn stop(&mut self) {
        self.shutdown.cancel();
        (&mut self.service).await.unwrap();
    }

    /// `kill -9` of the control plane.
    pub(super) async fn kill(&mut self) {
        self.service.abort();
        let _ = (&mut self.service).await;
    }

    pub(super) fn restart(&mut self) {
        (self.deployer, self.service, self.shutdown) =
            Self::boot(&self.engine, &self.router, &self.store, &self.logs, (&self.leap, &self.spans));
    }

    /// Sets the time of day off by so many seconds, from now on.
    pub(super) fn leap(&self, seconds: i64) {
        self.leap.store(seconds, Ordering::SeqCst);
    }

    /// Sends a request, so to speak, to every upstream all the time.
    fn watch_traffic(&self) {
        let (engine, router, faults) = (self.engine.clone(), self.router.clone(), self.faults.clone());
        let least = self.least.clone();
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(7)).await;
                let table = router.table();
                let upstreams = table.environments.get(&env()).map(|route| route.upstreams.clone()).unwrap_or_default();
                let answering = upstreams.iter().filter(|upstream| engine.answers(upstream.address)).count();
                let least = *least.lock().unwrap();
                if least > 0 && (answering < least || answering < upstreams.len()) {
                    let text = format!("{answering} of {upstreams:?} answer, {least} should");
                    faults.lock().unwrap().push(text);
                }
            }
        });
    }

    /// From now on, this many upstreams must answer, and none must not.
    pub(super) fn expect(&self, least: usize) {
        *self.least.lock().unwrap() = least;
    }

    pub(super) fn assert_no_faults(&self) {
        let faults = self.faults.lock().unwrap();
        assert!(faults.is_empty(), "{} faults, first: {}", faults.len(), faults[0]);
    }

    pub(super) fn new_release(&self, counts: &[(&str, u32)]) -> NewRelease {
        let release = release(0, counts);
        NewRelease {
            env: env(),
            image: release.image,
            commit: release.commit,
            build: None,
            processes: release.processes,
            release_command: None,
            upgrade: release.upgrade,
            domains: vec!["shop.example.com".into()],
            cron: BTreeMap::new(),
            created_by: release.created_by,
            reason: "push".into(),
            run_release_phase: true,
            trace: None,
        }
    }

    pub(super) async fn create(&self, counts: &[(&str, u32)]) -> ReleaseVersion {
        self.deployer.create_release(self.new_release(counts)).await.unwrap().version
    }

    pub(super) async fn deploy(&self, version: ReleaseVersion) -> Result<Deployed, DeployFailure> {
        self.deployer.deploy(&env(), version, &SilentProgress).await
    }

    pub(super) async fn record(&self) -> Environment {
        self.store.need::<Environment>(&env()).await.unwrap().record
    }

    pub(super) async fn change(&self, change: impl Fn(&mut Environment) + Send + Sync) {
        self.store
            .modify::<Environment, StoreError>(&env(), |record| {
                change(record);
                Ok(())
            })
            .await
            .unwrap();
        self.deployer.nudge(&env());
    }

    pub(super) async fn claim(&self, host: &str, env: &EnvRef) {
        let claim = DomainClaim { host: host.to_owned(), env: env.clone(), claimed_at: Timestamp::UNIX_EPOCH };
        self.store.transaction().create(&claim).commit().await.unwrap();
    }

    pub(super) async fn settle(&self) -> EnvStatus {
        self.deployer.await_settled(&env(), Duration::from_secs(120)).await.expect("it settles")
    }

    /// Waits for a condition of the world.
    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition(self) {
            assert!(Instant::now() < deadline, "never: {what}; running: {:?}", self.engine.running());
            sleep(Duration::from_millis(1)).await;
        }
    }
}
