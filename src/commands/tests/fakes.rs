//! A deployer and a build queue in memory: they keep the records as the real ones do, and do no more.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::io::AsyncReadExt;

use crate::{
    build::{BuildsUnderWay, EnqueueError, NewBuild},
    commands::{
        BuildQueue, Deployments, DiskStatus, EngineStatus, FileSystem, Foundations, Missing, PlatformStatus,
        RegistryStatus, RouterStatus, ServerStatus, Sources,
    },
    deploy::{
        CancelFailure, DeployFailure, Deployed, Derive, EnvStatus, NewRelease, ProcessStatus, Progress, ReplicaHealth,
        ReplicaStatus, WaitStatus,
    },
    domain::*,
    logs::Logs,
    receive::{NewSource, Refusal, RefusalKind},
    store::{Change, Entry, Guard, Kv, KvError, MemoryKv, Revision, Store, StoreError, Write},
};

/// A store in memory whose callers take turns, so that what happens at the same time is interleaved.
#[derive(Default)]
pub struct TurnsKv(MemoryKv);

#[async_trait]
impl Kv for TurnsKv {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        tokio::task::yield_now().await;
        self.0.get(key).await
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<Entry>, KvError> {
        tokio::task::yield_now().await;
        self.0.scan(prefix).await
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Revision, KvError> {
        tokio::task::yield_now().await;
        self.0.commit(guards, writes).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Change>, KvError> {
        self.0.watch(prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, KvError> {
        self.0.revision().await
    }
}

/// Deploys at once, or fails with the reason it is given.
pub struct FakeDeployer {
    pub store: Store,
    pub fails: Mutex<Option<String>>,
    pub nudged: Mutex<Vec<EnvRef>>,
    pub retired: Mutex<Vec<EnvRef>>,
    /// What `status` says is waited for; then nothing is settled.
    pub waits: Mutex<Vec<String>>,
    /// Destroyed between a listing and the question how it is.
    pub gone: Mutex<Option<EnvRef>>,
}

impl FakeDeployer {
    pub fn new(store: Store) -> Self {
        let (nudged, retired, waits) = Default::default();
        Self { store, fails: Mutex::default(), nudged, retired, waits, gone: Mutex::default() }
    }

    async fn change(
        &self,
        env: &EnvRef,
        change: impl Fn(&mut Environment) + Send + Sync,
    ) -> Result<Environment, StoreError> {
        self.store
            .modify::<Environment, StoreError>(env, |record| {
                change(record);
                Ok(())
            })
            .await
    }
}

#[async_trait]
impl Deployments for FakeDeployer {
    async fn derive_release(
        &self,
        env: &EnvRef,
        from: ReleaseVersion,
        change: Derive,
        by: &UserName,
        reason: &str,
    ) -> Result<Release, StoreError> {
        let old = self.store.need::<Release>(&(env.clone(), from)).await?.record;
        let written = self.change(env, |record| {
            record.last_release += 1;
            match &change {
                Derive::Everything => record.config = old.config.clone(),
                Derive::Config(changes) => {
                    for (name, value) in changes {
                        match value {
                            Some(value) => drop(record.config.insert(name.clone(), value.clone())),
                            None => drop(record.config.remove(name)),
                        }
                    }
                }
            }
        });
        let record = written.await?;
        let release = Release {
            version: ReleaseVersion(record.last_release),
            config: record.config,
            created_by: by.clone(),
            reason: reason.to_owned(),
            ..old
        };
        self.store.transaction().create(&release).commit().await?;
        Ok(release)
    }

    async fn create_target(&self, new: NewRelease) -> Result<Release, StoreError> {
        let written = self.change(&new.env, |record| {
            record.last_release += 1;
            record.target = Some(ReleaseVersion(record.last_release));
        });
        let record = written.await?;
        let release = Release {
            env: new.env,
            version: ReleaseVersion(record.last_release),
            image: new.image,
            commit: new.commit,
            build: new.build,
            config: record.config,
            processes: new.processes,
            release_phase_done: new.release_command.is_none() || !new.run_release_phase,
            release_command: new.release_command,
            upgrade: new.upgrade,
            domains: new.domains,
            cron: new.cron,
            created_at: Timestamp::now(),
            created_by: new.created_by,
            reason: new.reason,
            release_phase_attempts: 0,
            trace: None,
        };
        self.store.transaction().create(&release).commit().await?;
        Ok(release)
    }

    async fn deploy(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        progress: &dyn Progress,
    ) -> Result<Deployed, DeployFailure> {
        progress.step(&format!("Deploying {version}"));
        progress.raw(b"\x1b[2Jcleared\n");
        let failure = self.fails.lock().unwrap().clone();
        let state = match &failure {
            Some(reason) => DeploymentState::Failed { reason: reason.clone() },
            None => DeploymentState::Succeeded,
        };
        super::deployment(&self.store, env, version, state).await;
        if let Some(reason) = failure {
            let failed = self.store.need::<Release>(&(env.clone(), version)).await?.record;
            let current = self.store.need::<Environment>(env).await?.current.unwrap_or(version);
            let serving = self.store.need::<Release>(&(env.clone(), current)).await?.record;
            self.change(env, |record| {
                if record.config == failed.config {
                    record.config = serving.config.clone();
                }
            })
            .await?;
            return Err(DeployFailure::Failed { release: version, reason, last_log_lines: vec!["Error: x".into()] });
        }
        self.change(env, |record| (record.target, record.current) = (Some(version), Some(version))).await?;
        Ok(Deployed { release: version, url: self.url(env), healthy: Vec::new(), timings: Vec::new() })
    }

    async fn cancel(
        &self,
        env: &EnvRef,
        version: Option<ReleaseVersion>,
        by: &UserName,
    ) -> Result<ReleaseVersion, CancelFailure> {
        let record = self.store.need::<Environment>(env).await?.record;
        let under_way = record.target.filter(|target| Some(*target) != record.current).ok_or(CancelFailure::Idle)?;
        if version.is_some_and(|version| version != under_way) {
            return Err(CancelFailure::Other(under_way));
        }
        super::deployment(&self.store, env, under_way, DeploymentState::Cancelled { by: by.clone() }).await;
        self.change(env, |record| record.target = record.current).await?;
        Ok(under_way)
    }

    async fn status(&self, env: &EnvRef) -> Result<EnvStatus, StoreError> {
        if self.gone.lock().unwrap().as_ref() == Some(env) {
            return Err(StoreError::Missing(env.to_string()));
        }
        let record = self.store.need::<Environment>(env).await?.record;
        let release = match record.current {
            Some(version) => Some(self.store.need::<Release>(&(env.clone(), version)).await?.record),
            None => None,
        };
        let processes = release.iter().flat_map(|release| &release.processes).map(|(process, spec)| {
            let count = record.scale.get(process).copied().unwrap_or(spec.replicas);
            let replica = |index| ReplicaStatus {
                index,
                release: release.as_ref().unwrap().version,
                state: ReplicaState::Running,
                health: ReplicaHealth::Ready,
                since: Timestamp::now(),
                started_at: Some(Timestamp::now() - Duration::from_secs(7200)),
                reason: None,
            };
            ProcessStatus {
                crash_looping: false,
                process: process.clone(),
                wanted: count,
                // As while a release is deployed over one that serves.
                ready: if self.waits.lock().unwrap().is_empty() { count } else { 0 },
                replicas: (1..=count).map(replica).collect(),
            }
        });
        let waits = self.waits.lock().unwrap().clone();
        Ok(EnvStatus {
            env: env.clone(),
            target: record.target,
            current: record.current,
            processes: processes.collect(),
            deployment: None,
            why: waits.iter().map(|wait| waiting(wait)).collect(),
            settled: waits.is_empty(),
            waits,
        })
    }

    async fn retire(&self, env: &EnvRef) -> anyhow::Result<()> {
        self.retired.lock().unwrap().push(env.clone());
        Ok(())
    }

    fn nudge(&self, env: &EnvRef) {
        self.nudged.lock().unwrap().push(env.clone());
    }

    async fn await_settled(&self, env: &EnvRef, deadline: Duration) -> Result<EnvStatus, EnvStatus> {
        let status = self.status(env).await.unwrap();
        if status.settled {
            return Ok(status);
        }
        tokio::time::sleep(deadline).await;
        Err(status)
    }

    async fn statuses(&self) -> Vec<Arc<EnvStatus>> {
        let environments = self.store.list::<Environment>("").await.unwrap();
        let mut statuses = Vec::new();
        for environment in environments {
            statuses.push(Arc::new(self.status(&environment.name).await.unwrap()));
        }
        statuses
    }

    fn url(&self, env: &EnvRef) -> String {
        format!("http://{}:8080", env.host("localhost"))
    }
}

/// Builds end at once, as `ends` says; one that is put into `active` stays there until it is cancelled.
pub struct FakeBuilds {
    pub store: Store,
    pub logs: Logs,
    pub active: Mutex<BTreeMap<EnvRef, Build>>,
    pub purged: Mutex<Vec<AppRef>>,
    pub ends: Mutex<BuildState>,
}

impl FakeBuilds {
    pub fn new(store: Store, logs: Logs) -> Self {
        let ends = Mutex::new(BuildState::Succeeded);
        Self { store, logs, active: Mutex::default(), purged: Mutex::default(), ends }
    }

    /// A build that is under way.
    pub fn begin(self: &Arc<Self>, env: &EnvRef, stage: Stage) {
        let build = super::build(env, 7, BuildState::Running { stage });
        self.active.lock().unwrap().insert(env.clone(), build);
    }
}

#[async_trait]
impl BuildQueue for FakeBuilds {
    async fn enqueue(&self, new: NewBuild) -> Result<Build, EnqueueError> {
        if let Some(build) = self.active.lock().unwrap().get(&new.env) {
            return Err(EnqueueError::Busy(Box::new(build.clone())));
        }
        let mut build = super::build(&new.env, 20, self.ends.lock().unwrap().clone());
        (build.commit, build.no_cache, build.pushed_by) = (new.commit, new.no_cache, new.pushed_by);
        self.store.transaction().put(&build).commit().await?;
        let mut writer = self.logs.build_writer(&new.env, build.number).unwrap();
        writer.write(b"-----> Reusing the slug\n");
        writer.finish().unwrap();
        Ok(build)
    }

    async fn active(&self, env: &EnvRef) -> Result<Option<Build>, StoreError> {
        Ok(self.active.lock().unwrap().get(env).cloned())
    }

    async fn cancel(&self, env: &EnvRef, number: BuildNumber, reason: &str) -> Result<bool, StoreError> {
        let Some(mut build) = self.active.lock().unwrap().remove(env).filter(|build| build.number == number) else {
            return Ok(false);
        };
        build.state = BuildState::Cancelled { reason: reason.to_owned() };
        self.store.transaction().put(&build).commit().await?;
        Ok(true)
    }

    async fn wait(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, StoreError> {
        Ok(self.store.need::<Build>(&(env.clone(), number)).await?.record)
    }

    async fn purge_cache(&self, app: &AppRef) -> anyhow::Result<()> {
        self.purged.lock().unwrap().push(app.clone());
        Ok(())
    }

    fn queue(&self) -> BuildsUnderWay {
        let running = self.active.lock().unwrap().values().cloned().collect();
        BuildsUnderWay { running, waiting: Vec::new(), places: 2, waiting_places: 100 }
    }
}

/// Reads all that is sent, and refuses what begins with the name of a kind of refusal.
#[async_trait]
impl Sources for FakeBuilds {
    async fn upload(&self, mut source: NewSource) -> Result<Build, Refusal> {
        let mut content = String::new();
        source.content.read_to_string(&mut content).await.unwrap();
        let refusal = Refusal::new(format!("refused: {content}")).detail("do better");
        match content.as_str() {
            "unfit" => return Err(refusal),
            "later" => return Err(refusal.of(RefusalKind::Later)),
            "gone" => return Err(refusal.of(RefusalKind::Gone)),
            _ => {}
        }
        let new = NewBuild {
            env: source.env,
            commit: "5c".repeat(20),
            branch: None,
            old_commit: None,
            pushed_by: source.user,
            no_cache: source.no_cache,
            detached: false,
            supersede: false,
            held: false,
            timings: vec![(source.message, 1)],
            trace: None,
        };
        let enqueued = self.enqueue(new).await;
        enqueued.map_err(|error| Refusal::new(error.to_string()).of(RefusalKind::Busy))
    }
}

/// Nothing ever has to go.
pub struct FakeCollections;

#[async_trait]
impl crate::commands::Collections for FakeCollections {
    async fn run(&self, dry_run: bool) -> Result<crate::gc::Report, crate::gc::GcError> {
        Ok(crate::gc::Report { dry_run, ..Default::default() })
    }
}

/// Everything is there but the engine.
pub struct FakePlatform;

#[async_trait]
impl PlatformStatus for FakePlatform {
    async fn look(&self) -> Foundations {
        let why = "connection \x1b[2J refused".to_owned();
        let file_system = FileSystem { path: "/var/lib/berth".into(), free: 40 << 30, total: 100 << 30 };
        Foundations {
            server: ServerStatus { version: "0.1.0".into(), started_at: Timestamp::now() },
            missing: vec![Missing { what: "engine".into(), why: why.clone(), next: "start it".into() }],
            engine: EngineStatus { name: "Fake 1".into(), answers: false, why: Some(why), containers: None },
            registry: RegistryStatus {
                address: "127.0.0.1:5000".into(),
                managed: true,
                answers: true,
                why: None,
                bytes: Some(3 << 30),
            },
            router: RouterStatus { alive: true, pid: Some(7), wanted: Some(41), acknowledged: Some(40), why: None },
            disk: DiskStatus { floor: 2 << 30, file_systems: vec![file_system], why: None },
        }
    }
}

/// A wait as `waits` tells it, with its times.
fn waiting(text: &str) -> WaitStatus {
    let (process, why) = text.split_once(": ").unwrap_or(("web", text));
    WaitStatus {
        process: process.parse().unwrap_or_else(|_| "web".parse().unwrap()),
        ready: 0,
        wanted: 1,
        why: why.to_owned(),
        since: Timestamp::UNIX_EPOCH,
        until: None,
    }
}
