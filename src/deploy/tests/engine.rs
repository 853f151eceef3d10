//! An engine made of memory whose replicas behave as told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::broadcast,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;

use crate::{
    deploy::{ProbeError, ProbeTarget, Prober},
    domain::*,
    runtime::*,
};

/// How the replicas of a release behave.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Behaviour {
    /// Answers this long after its start.
    #[default]
    Good,
    /// Ends this long after its start.
    Crashes(Duration),
    /// Only the one of this index ends, this long after its start.
    OneCrashes(u32, Duration),
    /// Runs and never answers on its port, but on this one.
    Elsewhere(u16),
    /// Its image cannot be pulled.
    NoImage,
    /// Its image cannot be pulled as long as the registry is away.
    NoRegistry,
}

pub(super) const START_TIME: Duration = Duration::from_millis(400);
pub(super) const READY_TIME: Duration = Duration::from_millis(300);
const GRACE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    replicas: Vec<(Replica, Instant)>,
    sick: BTreeSet<SocketAddr>,
    behaviours: BTreeMap<u64, Behaviour>,
    next: u64,
    phases: Vec<String>,
    phase_exit: i64,
    /// Signals that phases got.
    signals: Vec<String>,
    /// Stops do not come to an end; replicas being stopped are hidden meanwhile, as the real engine has it.
    slow_stops: bool,
    hidden: BTreeSet<ReplicaId>,
    down: bool,
    /// No job can be made.
    jobs_down: bool,
    /// How long it takes to say what runs.
    late: Duration,
    /// Its events get lost.
    mute: bool,
    stopped: Vec<(SetId, u32)>,
}

#[derive(Clone)]
pub(super) struct Engine {
    made: Instant,
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl Engine {
    pub(super) fn new() -> Self {
        Self { made: Instant::now(), state: Arc::default(), events: broadcast::channel(1024).0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The time of day, whatever a server takes it for.
    pub(super) fn time(&self) -> Timestamp {
        // Far enough from the beginning of time for a leap back.
        Timestamp::UNIX_EPOCH + Duration::from_secs(50 * 365 * 86_400) + self.made.elapsed()
    }

    pub(super) fn behave(&self, release: u64, behaviour: Behaviour) {
        self.state().behaviours.insert(release, behaviour);
    }

    pub(super) fn phase_exits(&self, code: i64) {
        self.state().phase_exit = code;
    }

    pub(super) fn phases(&self) -> Vec<String> {
        self.state().phases.clone()
    }

    pub(super) fn signals(&self) -> Vec<String> {
        self.state().signals.clone()
    }

    /// From now on the engine does not come to an end with stops (or does again).
    pub(super) fn set_slow_stops(&self, slow: bool) {
        self.state().slow_stops = slow;
    }

    pub(super) fn set_jobs_down(&self, down: bool) {
        self.state().jobs_down = down;
    }

    pub(super) fn set_down(&self, down: bool) {
        self.state().down = down;
        let _ = self.events.send(RuntimeEvent::Resync);
    }

    pub(super) fn set_late(&self, late: Duration) {
        self.state().late = late;
        let _ = self.events.send(RuntimeEvent::Resync);
    }

    pub(super) fn set_mute(&self) {
        self.state().mute = true;
    }

    /// Running replicas as `web.1 v3 r0`.
    pub(super) fn running(&self) -> Vec<String> {
        let state = self.state();
        let running = state.replicas.iter().filter(|(replica, _)| replica.state == ReplicaState::Running);
        let mut names: Vec<String> = running
            .map(|(r, _)| format!("{}.{} {} r{}", r.set.process, r.index, r.set.release, r.set.restarts))
            .collect();
        names.sort();
        names
    }

    pub(super) fn containers(&self) -> usize {
        self.state().replicas.len()
    }

    pub(super) fn stopped(&self) -> Vec<(SetId, u32)> {
        self.state().stopped.clone()
    }

    /// Whether something that answers runs at this address.
    pub(super) fn answers(&self, address: SocketAddr) -> bool {
        let state = self.state();
        let found = state.replicas.iter().find(|(replica, _)| replica.address == Some(address.ip()));
        let Some((replica, since)) = found else { return false };
        let behaviour = state.behaviours.get(&replica.set.release.0).cloned().unwrap_or_default();
        let good = match behaviour {
            Behaviour::OneCrashes(index, _) => replica.index != index,
            behaviour => behaviour == Behaviour::Good,
        };
        let ready = good && since.elapsed() >= READY_TIME;
        replica.state == ReplicaState::Running && ready && !state.sick.contains(&address)
    }

    /// Makes all replicas answer their probes again.
    pub(super) fn heal(&self) {
        self.state().sick.clear();
    }

    /// Makes the replica fail its probes.
    pub(super) fn sicken(&self, process: &str, index: u32) {
        let mut state = self.state();
        let found = state.replicas.iter().find(|(r, _)| r.set.process.as_str() == process && r.index == index);
        let address = SocketAddr::new(found.unwrap().0.address.unwrap(), 5000);
        state.sick.insert(address);
    }

    /// Ends a running replica as `kill -9` does.
    pub(super) fn kill(&self, process: &str, index: u32) {
        let id = {
            let state = self.state();
            let found = state.replicas.iter().find(|(r, _)| {
                r.set.process.as_str() == process && r.index == index && r.state == ReplicaState::Running
            });
            found.unwrap().0.id.clone()
        };
        self.exit(&id, 137);
    }

    fn exit(&self, id: &ReplicaId, code: i64) {
        let set = {
            let mut state = self.state();
            let Some((replica, _)) = state.replicas.iter_mut().find(|(replica, _)| replica.id == *id) else { return };
            replica.state = ReplicaState::Exited { code, out_of_memory: false };
            replica.address = None;
            replica.set.clone()
        };
        self.changed(set, id.clone(), Change::Died);
    }

    fn changed(&self, set: SetId, replica: ReplicaId, what: Change) {
        if self.state().mute {
            return;
        }
        let _ = self.events.send(RuntimeEvent::Changed { set, replica, what });
    }

    fn start_one(&self, set: &ReplicaSet, index: u32) {
        let mut state = self.state();
        state.replicas.retain(|(r, _)| r.set != set.id || r.index != index);
        // The lowest free address, as Docker does: addresses are used again at once.
        let used: BTreeSet<_> = state.replicas.iter().filter_map(|(replica, _)| replica.address).collect();
        let address = (2..).map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))).find(|a| !used.contains(a)).unwrap();
        state.sick.remove(&SocketAddr::new(address, 5000));
        state.next += 1;
        let id = ReplicaId(format!("c{}", state.next));
        let replica = Replica {
            id: id.clone(),
            set: set.id.clone(),
            index,
            state: ReplicaState::Running,
            address: Some(address),
            started_at: Some(self.time()),
            finished_at: None,
        };
        state.replicas.push((replica, Instant::now()));
        let behaviour = state.behaviours.get(&set.id.release.0).cloned();
        drop(state);
        let crashes = match behaviour {
            Some(Behaviour::Crashes(after)) => Some(after),
            Some(Behaviour::OneCrashes(which, after)) => Some(after).filter(|_| which == index),
            _ => None,
        };
        if let Some(after) = crashes {
            let (engine, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                sleep(after).await;
                engine.exit(&id, 3);
            });
        }
        self.changed(set.id.clone(), id, Change::Started);
    }

    async fn stop(&self, id: &ReplicaId) {
        sleep(GRACE).await;
        let mut state = self.state();
        let Some(place) = state.replicas.iter().position(|(replica, _)| replica.id == *id) else { return };
        let (replica, _) = state.replicas.remove(place);
        state.stopped.push((replica.set.clone(), replica.index));
        drop(state);
        self.changed(replica.set, id.clone(), Change::Removed);
    }

    fn check(&self) -> Result<(), RuntimeError> {
        if self.state().down { Err(RuntimeError::Unavailable("connection refused".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Prober for Engine {
    async fn probe(&self, target: &ProbeTarget) -> Result<(), ProbeError> {
        if self.answers(target.address) { Ok(()) } else { Err(ProbeError::Refused(target.address.port())) }
    }
}

#[async_trait]
impl Runtime for Engine {
    fn capabilities(&self) -> Capabilities {
        let engine = "memory".to_owned();
        Capabilities { engine, cpu_limits: true, memory_limits: true, host_isolation: true }
    }
    async fn prepare_tenant(&self, _: &TenantName) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn forget(&self, _: &TenantName, _: Option<&AppRef>) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn forget_others(&self, _: &BTreeSet<TenantName>, _: &BTreeSet<AppRef>) -> Result<usize, RuntimeError> {
        Ok(0)
    }
    async fn prepare_image(&self, _: &ImageRef) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn apply(&self, set: &ReplicaSet) -> Result<(), RuntimeError> {
        self.check()?;
        if self.state().behaviours.get(&set.id.release.0) == Some(&Behaviour::NoImage) {
            return Err(RuntimeError::Image { image: "x".into(), reason: "not found".into() });
        }
        if self.state().behaviours.get(&set.id.release.0) == Some(&Behaviour::NoRegistry) {
            return Err(RuntimeError::Registry { image: "x".into(), reason: "connection refused".into() });
        }
        let there: Vec<(ReplicaId, u32, bool)> = {
            let state = self.state();
            let of = state.replicas.iter().filter(|(replica, _)| replica.set == set.id);
            of.map(|(r, _)| (r.id.clone(), r.index, r.state == ReplicaState::Running)).collect()
        };
        for (id, _, _) in there.iter().filter(|(_, index, _)| *index > set.count) {
            self.stop(id).await;
        }
        sleep(START_TIME).await;
        for index in 1..=set.count {
            if !there.iter().any(|(_, other, runs)| *other == index && *runs) {
                self.start_one(set, index);
            }
        }
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<Replica>, RuntimeError> {
        self.check()?;
        let late = self.state().late;
        sleep(late).await;
        let state = self.state();
        let shown = state.replicas.iter().filter(|(replica, _)| !state.hidden.contains(&replica.id));
        Ok(shown.map(|(replica, _)| replica.clone()).collect())
    }

    async fn remove(&self, _: &SetId, _: Duration) -> Result<(), RuntimeError> {
        unreachable!("the deployer stops replicas one by one")
    }

    async fn stop_replica(&self, replica: &ReplicaId, _: Duration) -> Result<(), RuntimeError> {
        self.check()?;
        let slow = self.state().slow_stops;
        if slow {
            self.state().hidden.insert(replica.clone());
            std::future::pending::<()>().await;
        }
        self.stop(replica).await;
        Ok(())
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>, RuntimeError> {
        let events = BroadcastStream::new(self.events.subscribe());
        Ok(events.map(|event| event.unwrap_or(RuntimeEvent::Resync)).boxed())
    }

    async fn logs(
        &self,
        replica: &ReplicaId,
        _: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        let line =
            |text: String| Ok(LogLine { at: Timestamp::UNIX_EPOCH, source: Source::Stderr, bytes: Bytes::from(text) });
        Ok(stream::iter([line("Error: no DATABASE_URL".into()), line(format!("of {}", replica.0))]).boxed())
    }

    async fn listeners(&self, replica: &ReplicaId) -> Result<Vec<Listener>, RuntimeError> {
        let state = self.state();
        let release = state.replicas.iter().find(|(r, _)| r.id == *replica).map(|(r, _)| r.set.release.0);
        let behaviour = release.and_then(|release| state.behaviours.get(&release));
        Ok(match behaviour {
            Some(Behaviour::Elsewhere(port)) => vec![Listener { address: Ipv4Addr::UNSPECIFIED.into(), port: *port }],
            _ => vec![],
        })
    }

    async fn usage(
        &self,
        _: &[ReplicaId],
    ) -> Result<std::collections::BTreeMap<ReplicaId, crate::runtime::Usage>, RuntimeError> {
        Ok(std::collections::BTreeMap::new())
    }
    async fn refused_processes(&self, _: &ReplicaId) -> Result<BoxStream<'static, u64>, RuntimeError> {
        Ok(stream::pending().boxed())
    }
    async fn hold(&self, _: &ReplicaId, _: Option<u32>) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn exec(&self, replica: &ReplicaId, command: &str, _: Duration) -> Result<Executed, RuntimeError> {
        assert_eq!(command, "bin/check");
        let address = {
            let state = self.state();
            state.replicas.iter().find(|(r, _)| r.id == *replica).and_then(|(r, _)| r.address)
        };
        let address = address.ok_or_else(|| RuntimeError::Gone(replica.0.clone()))?;
        let answers = self.answers(SocketAddr::new(address, 5000));
        Ok(Executed { code: Some(i64::from(!answers)), output: Bytes::from_static(b"\x1b[31mno queue\x1b[0m\n") })
    }

    async fn job(&self, spec: &JobSpec) -> Result<Box<dyn Job>, RuntimeError> {
        self.check()?;
        let mut state = self.state();
        if state.jobs_down {
            return Err(RuntimeError::Unavailable("connection refused".into()));
        }
        let command = spec.argv.last().unwrap().clone();
        state.phases.push(format!("{} {command} {}", spec.name, spec.environment["SOURCE_VERSION"].len()));
        Ok(Box::new(MemoryJob { exit: state.phase_exit, engine: self.clone(), ended: CancellationToken::new() }))
    }
    async fn end_orphaned_jobs(&self) -> Result<usize, RuntimeError> {
        Ok(0)
    }
    async fn purge_cache(&self, _: &AppRef) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn collect_images(&self, _: &[ImageRef]) -> Result<usize, RuntimeError> {
        Ok(0)
    }
}

struct MemoryJob {
    exit: i64,
    engine: Engine,
    /// By a signal.
    ended: CancellationToken,
}

struct MemoryControl(Engine, CancellationToken);

#[async_trait]
impl JobControl for MemoryControl {
    async fn signal(&self, name: &str) -> Result<(), RuntimeError> {
        self.0.state().signals.push(name.to_owned());
        self.1.cancel();
        Ok(())
    }
    async fn resize(&self, _: u16, _: u16) -> Result<(), RuntimeError> {
        unreachable!("a release phase has no terminal")
    }
}

#[async_trait]
impl Job for MemoryJob {
    async fn upload(&mut self, _: &str, _: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), RuntimeError> {
        unreachable!("a release phase needs no files")
    }
    async fn start(&mut self) -> Result<(), RuntimeError> {
        Ok(())
    }
    fn output(&mut self) -> BoxStream<'static, Result<Output, RuntimeError>> {
        let chunk = |text: &'static str| Ok(Output { source: Source::Stdout, bytes: Bytes::from(text) });
        stream::iter([chunk("migrating\n"), chunk("column missing\n")])
            .then(|chunk| async {
                sleep(Duration::from_secs(12)).await;
                chunk
            })
            .take_until(self.ended.clone().cancelled_owned())
            .boxed()
    }
    fn stdin(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        None
    }
    fn control(&self) -> Box<dyn JobControl> {
        Box::new(MemoryControl(self.engine.clone(), self.ended.clone()))
    }
    async fn wait(&mut self) -> Result<JobExit, RuntimeError> {
        let code = if self.ended.is_cancelled() { 143 } else { self.exit };
        Ok(JobExit { code, out_of_memory: false })
    }
    async fn download(&mut self, _: &str) -> Result<Box<dyn AsyncRead + Send + Unpin>, RuntimeError> {
        unreachable!("a release phase makes no files")
    }
    async fn finish(self: Box<Self>) -> Result<(), RuntimeError> {
        Ok(())
    }
}
