//! [`Runtime`] in memory, for tests of what stands on it: it keeps the same contract as the real engine (one suite checks both), takes
//! time only where a script says so, and breaks when asked to.
//!
//! Time is tokio's, so that tests may pause it; timestamps come from a function that tests may replace.

mod job;
mod world;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, future::BoxFuture, future::join_all, stream, stream::BoxStream};
use tokio::sync::broadcast;

pub use job::JobContext;

use self::world::{Engine, Kept, Phase};
use super::{
    Capabilities, Change, EXEC_OUTPUT, Executed, Job, JobSpec, Listener, LogLine, Runtime, RuntimeError, RuntimeEvent,
    Source, Usage,
};
use crate::domain::{AppRef, ImageRef, Replica, ReplicaId, ReplicaSet, ReplicaState, SetId, TenantName, Timestamp};

/// What a replica does with its life.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// How long its start takes.
    pub start_delay: Duration,
    /// Why its start fails, if it does.
    pub start_error: Option<String>,
    /// What it prints once started.
    pub lines: Vec<(Source, String)>,
    /// When it ends by itself, counted from its start, and with which status.
    pub ends: Option<(Duration, i64)>,
    /// How long it takes to end after SIGTERM; longer than the grace means that it is killed.
    pub stop_delay: Duration,
    /// What it listens on.
    pub listens: Vec<Listener>,
    /// How often it is refused a process once it has started, since it has as many as it may.
    pub refused: u64,
    /// What commands inside it come to; any other is not found.
    pub commands: BTreeMap<String, FakeCommand>,
}

/// A command inside a replica.
#[derive(Debug, Clone, Default)]
pub struct FakeCommand {
    /// How long it takes.
    pub takes: Duration,
    pub code: i64,
    pub output: String,
}

type ReplicaScript = dyn Fn(&ReplicaSet, u32) -> Script + Send + Sync;
type JobScript = dyn Fn(JobContext) -> BoxFuture<'static, i64> + Send + Sync;
type Clock = dyn Fn() -> Timestamp + Send + Sync;

/// How a [`FakeRuntime`] is to behave; begins with replicas that run for ever and jobs that succeed at once.
#[derive(Clone)]
pub struct Behaviour {
    replicas: Arc<ReplicaScript>,
    jobs: Arc<JobScript>,
    clock: Arc<Clock>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            replicas: Arc::new(|_, _| Script::default()),
            jobs: Arc::new(|_| Box::pin(async { 0 })),
            clock: Arc::new(Timestamp::now),
        }
    }
}

impl Behaviour {
    /// What a replica of this set with this index does, asked at each start.
    pub fn replicas(mut self, script: impl Fn(&ReplicaSet, u32) -> Script + Send + Sync + 'static) -> Self {
        self.replicas = Arc::new(script);
        self
    }

    /// What a job does; the result is its exit status.
    pub fn jobs(mut self, script: impl Fn(JobContext) -> BoxFuture<'static, i64> + Send + Sync + 'static) -> Self {
        self.jobs = Arc::new(script);
        self
    }

    /// Where timestamps come from.
    pub fn clock(mut self, clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

/// An engine in memory. Must be used within a tokio runtime.
pub struct FakeRuntime {
    engine: Arc<Engine>,
    /// Which process this is: jobs belong to one.
    boot: u64,
    /// Whether the engine seems dead to this process.
    dead: AtomicBool,
}

impl FakeRuntime {
    /// A new, empty engine.
    pub fn new(behaviour: Behaviour) -> Self {
        Self { engine: Arc::new(Engine::new(behaviour)), boot: 0, dead: AtomicBool::new(false) }
    }

    /// The same engine as another server process would see it.
    pub fn restarted(&self) -> Self {
        static BOOTS: AtomicU64 = AtomicU64::new(1);
        Self { engine: self.engine.clone(), boot: BOOTS.fetch_add(1, Ordering::Relaxed), dead: AtomicBool::new(false) }
    }

    /// Makes the engine seem dead (every call fails with [`RuntimeError::Unavailable`]), or alive again, which tells followers of events to
    /// look at everything anew.
    pub fn set_dead(&self, dead: bool) {
        if self.dead.swap(dead, Ordering::SeqCst) && !dead {
            self.engine.announce(RuntimeEvent::Resync);
        }
    }

    /// Ends a replica as if by itself.
    pub fn kill(&self, replica: &ReplicaId, code: i64, out_of_memory: bool) {
        self.engine.end(replica, code, out_of_memory);
    }

    /// Adds a line to a replica's log.
    pub fn print(&self, replica: &ReplicaId, source: Source, line: &str) {
        self.engine.print(replica, source, line);
    }

    /// What a running replica is held to, in thousandths of a core.
    pub fn held(&self, replica: &ReplicaId) -> Option<u32> {
        self.engine.lock().replicas.get(replica)?.held
    }

    /// What a running replica uses, from now on.
    pub fn uses(&self, replica: &ReplicaId, usage: Usage) {
        if let Some(kept) = self.engine.lock().replicas.get_mut(replica) {
            kept.usage = usage;
        }
    }

    /// Refuses a running replica so many processes more.
    pub fn refuse(&self, replica: &ReplicaId, processes: u64) {
        if let Some(kept) = self.engine.lock().replicas.get(replica) {
            kept.refused.send_modify(|count| *count += processes);
        }
    }

    /// From now on, this image cannot be pulled.
    pub fn lose_image(&self, image: &ImageRef) {
        self.engine.lock().missing.push(image.clone());
    }

    fn alive(&self) -> Result<(), RuntimeError> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(RuntimeError::Unavailable("the engine is dead".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn capabilities(&self) -> Capabilities {
        Capabilities { engine: "in memory".to_owned(), cpu_limits: false, memory_limits: false, host_isolation: true }
    }

    async fn prepare_tenant(&self, _: &TenantName) -> Result<(), RuntimeError> {
        self.alive()
    }

    async fn forget(&self, tenant: &TenantName, app: Option<&AppRef>) -> Result<(), RuntimeError> {
        self.alive()?;
        if app.is_none() && self.engine.lock().replicas.values().any(|kept| kept.set.id.env.tenant == *tenant) {
            return Err(RuntimeError::Refused(format!("the network of tenant {tenant} is in use")));
        }
        Ok(())
    }

    async fn forget_others(
        &self,
        _: &std::collections::BTreeSet<TenantName>,
        _: &std::collections::BTreeSet<AppRef>,
    ) -> Result<usize, RuntimeError> {
        self.alive()?;
        Ok(0)
    }

    async fn prepare_image(&self, image: &ImageRef) -> Result<(), RuntimeError> {
        self.alive()?;
        self.engine.pull(image)
    }

    async fn apply(&self, set: &ReplicaSet) -> Result<(), RuntimeError> {
        self.alive()?;
        let _turn = self.engine.turn(&set.id).await;
        let (retire, mut missing) = {
            let mut state = self.engine.lock();
            let mut retire = Vec::new();
            let mut missing: Vec<u32> = (1..=set.count).collect();
            state.replicas.retain(|id, kept| {
                if kept.set.id != set.id || kept.retired {
                    return true;
                }
                if kept.index > set.count {
                    kept.retired = true;
                    retire.push(id.clone());
                } else if matches!(kept.phase, Phase::Running) {
                    missing.retain(|index| *index != kept.index);
                } else {
                    return false;
                }
                true
            });
            (retire, missing)
        };
        for id in retire {
            tokio::spawn(self.engine.clone().stop(id, set.stop_grace));
        }
        if !missing.is_empty() {
            self.engine.pull(&set.image)?;
        }
        let starts = missing.drain(..).map(|index| self.engine.clone().start(set.clone(), index));
        join_all(starts).await.into_iter().collect()
    }

    async fn observe(&self) -> Result<Vec<Replica>, RuntimeError> {
        self.alive()?;
        let state = self.engine.lock();
        Ok(state.replicas.iter().filter(|(_, kept)| !kept.retired).map(|(id, kept)| kept.seen(id)).collect())
    }

    async fn remove(&self, set: &SetId, grace: Duration) -> Result<(), RuntimeError> {
        self.alive()?;
        let stops: Vec<_> = {
            let mut state = self.engine.lock();
            let of_set = state.replicas.iter_mut().filter(|(_, kept)| kept.set.id == *set);
            of_set
                .map(|(id, kept)| {
                    kept.retired = true;
                    self.engine.clone().stop(id.clone(), grace)
                })
                .collect()
        };
        join_all(stops).await;
        Ok(())
    }

    async fn stop_replica(&self, replica: &ReplicaId, grace: Duration) -> Result<(), RuntimeError> {
        self.alive()?;
        if let Some(kept) = self.engine.lock().replicas.get_mut(replica) {
            kept.retired = true;
        }
        self.engine.clone().stop(replica.clone(), grace).await;
        Ok(())
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>, RuntimeError> {
        self.alive()?;
        let events = self.engine.events.subscribe();
        let stream = stream::unfold(events, |mut events| async move {
            match events.recv().await {
                Ok(event) => Some((event, events)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((RuntimeEvent::Resync, events)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        Ok(stream.boxed())
    }

    async fn logs(
        &self,
        replica: &ReplicaId,
        since: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        self.alive()?;
        let log = self.engine.lock().replicas.get(replica).map(|kept| kept.log.clone());
        let log = log.ok_or_else(|| RuntimeError::Gone(format!("replica {}", replica.0)))?;
        Ok(log.follow(since).map(Ok).boxed())
    }

    async fn listeners(&self, replica: &ReplicaId) -> Result<Vec<Listener>, RuntimeError> {
        self.alive()?;
        let state = self.engine.lock();
        match state.replicas.get(replica) {
            Some(kept) if matches!(kept.phase, Phase::Running) => Ok(kept.script.listens.clone()),
            _ => Err(RuntimeError::Gone(format!("replica {}", replica.0))),
        }
    }

    async fn usage(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, Usage>, RuntimeError> {
        self.alive()?;
        let state = self.engine.lock();
        let running = |id| state.replicas.get(id).filter(|kept| matches!(kept.phase, Phase::Running));
        Ok(replicas.iter().filter_map(|id| Some((id.clone(), running(id)?.usage))).collect())
    }

    async fn refused_processes(&self, replica: &ReplicaId) -> Result<BoxStream<'static, u64>, RuntimeError> {
        self.alive()?;
        let refused = match self.engine.lock().replicas.get(replica) {
            Some(kept) if matches!(kept.phase, Phase::Running) => kept.refused.subscribe(),
            _ => return Err(RuntimeError::Gone(format!("replica {}", replica.0))),
        };
        let grown = stream::unfold((refused, None), |(mut refused, before)| async move {
            let count = *refused.wait_for(|count| Some(*count) > before).await.ok()?;
            Some((count, (refused, Some(count))))
        });
        Ok(grown.boxed())
    }

    async fn hold(&self, replica: &ReplicaId, cpu_millis: Option<u32>) -> Result<(), RuntimeError> {
        self.alive()?;
        match self.engine.lock().replicas.get_mut(replica) {
            Some(kept) if matches!(kept.phase, Phase::Running) && !kept.retired => kept.held = cpu_millis,
            _ => return Err(RuntimeError::Gone(format!("replica {}", replica.0))),
        }
        Ok(())
    }

    async fn exec(&self, replica: &ReplicaId, command: &str, limit: Duration) -> Result<Executed, RuntimeError> {
        self.alive()?;
        let known = match self.engine.lock().replicas.get(replica) {
            Some(kept) if matches!(kept.phase, Phase::Running) => kept.script.commands.get(command).cloned(),
            _ => return Err(RuntimeError::Gone(format!("replica {}", replica.0))),
        };
        let unknown = || FakeCommand { code: 127, output: format!("{command}: not found"), ..FakeCommand::default() };
        let FakeCommand { takes, code, output } = known.unwrap_or_else(unknown);
        tokio::time::sleep(takes.min(limit)).await;
        if takes > limit {
            return Ok(Executed { code: None, output: bytes::Bytes::new() });
        }
        let output = output.into_bytes();
        Ok(Executed { code: Some(code), output: output[output.len().saturating_sub(EXEC_OUTPUT)..].to_vec().into() })
    }

    async fn job(&self, spec: &JobSpec) -> Result<Box<dyn Job>, RuntimeError> {
        self.alive()?;
        self.engine.pull(&spec.image)?;
        Ok(Box::new(job::FakeJob::new(&self.engine, self.boot, spec)?))
    }

    async fn end_orphaned_jobs(&self) -> Result<usize, RuntimeError> {
        self.alive()?;
        Ok(self.engine.end_jobs(|boot| boot != self.boot))
    }

    async fn purge_cache(&self, _: &AppRef) -> Result<(), RuntimeError> {
        self.alive()
    }

    async fn collect_images(&self, _: &[ImageRef]) -> Result<usize, RuntimeError> {
        self.alive()?;
        Ok(0)
    }
}

impl Kept {
    fn seen(&self, id: &ReplicaId) -> Replica {
        let running = matches!(self.phase, Phase::Running);
        Replica {
            id: id.clone(),
            set: self.set.id.clone(),
            index: self.index,
            state: match self.phase {
                Phase::Created => ReplicaState::Created,
                Phase::Running => ReplicaState::Running,
                Phase::Exited { code, out_of_memory } => ReplicaState::Exited { code, out_of_memory },
            },
            address: running.then_some(IpAddr::V4(self.address)),
            started_at: self.started_at,
            finished_at: self.finished_at,
        }
    }
}

impl Engine {
    fn changed(&self, id: &ReplicaId, kept: &Kept, what: Change) {
        self.announce(RuntimeEvent::Changed { set: kept.set.id.clone(), replica: id.clone(), what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Digest, Limits, ReleaseVersion};

    fn set(count: u32) -> ReplicaSet {
        ReplicaSet {
            id: SetId {
                env: "acme/shop/dev".parse().unwrap(),
                process: "web".parse().unwrap(),
                release: ReleaseVersion(1),
                restarts: 0,
            },
            image: ImageRef { repository: "berth/acme/shop".to_owned(), digest: Digest::from_sha256([0; 32]) },
            command: "run".to_owned(),
            environment: [].into(),
            count,
            limits: Limits { cpu_millis: 100, memory: 1 << 20, pids: 10 },
            stop_grace: Duration::from_secs(1),
        }
    }

    async fn states(runtime: &FakeRuntime) -> Vec<(u32, ReplicaState)> {
        runtime.observe().await.unwrap().into_iter().map(|replica| (replica.index, replica.state)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn scripts_take_time_and_fail() {
        let runtime = FakeRuntime::new(Behaviour::default().replicas(|_, index| Script {
            start_delay: Duration::from_secs(5),
            start_error: (index == 2).then(|| "no room".to_owned()),
            ends: (index == 3).then_some((Duration::from_secs(7), 9)),
            ..Script::default()
        }));
        let began = tokio::time::Instant::now();
        let error = runtime.apply(&set(3)).await.unwrap_err().to_string();
        assert!(error.contains("no room"), "{error}");
        assert_eq!(began.elapsed(), Duration::from_secs(5), "starts overlap");
        let want = [(1, ReplicaState::Running), (2, ReplicaState::Created), (3, ReplicaState::Running)];
        assert_eq!(states(&runtime).await, want);
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(states(&runtime).await[2], (3, ReplicaState::Exited { code: 9, out_of_memory: false }));
    }

    #[tokio::test(start_paused = true)]
    async fn what_tests_can_do_to_it() {
        let runtime = FakeRuntime::new(Behaviour::default());
        let mut events = runtime.events().await.unwrap();
        runtime.apply(&set(1)).await.unwrap();
        let replica = runtime.observe().await.unwrap().remove(0);
        assert!(replica.address.is_some_and(|address| address.is_loopback()));
        runtime.kill(&replica.id, 137, true);
        assert_eq!(states(&runtime).await, [(1, ReplicaState::Exited { code: 137, out_of_memory: true })]);
        runtime.set_dead(true);
        assert!(matches!(runtime.observe().await, Err(RuntimeError::Unavailable(_))));
        assert!(matches!(runtime.apply(&set(1)).await, Err(RuntimeError::Unavailable(_))));
        runtime.set_dead(false);
        let mut seen = Vec::new();
        while seen.last() != Some(&RuntimeEvent::Resync) {
            seen.push(events.next().await.unwrap());
        }
        let changed = |what| RuntimeEvent::Changed { set: set(1).id, replica: replica.id.clone(), what };
        let want = [Change::Started, Change::OutOfMemory, Change::Died].map(changed);
        assert_eq!(seen[..3], want);
    }
}
