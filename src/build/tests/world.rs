//! A queue with everything around it in memory, an app to build, and what the fakes have seen.

use super::*;

#[derive(Clone, Default)]
pub(super) struct Log(pub(super) Arc<Mutex<BTreeMap<(EnvRef, u64), String>>>);

pub(super) struct LogOf(pub(super) Log, pub(super) (EnvRef, u64));

impl BuildLogs for Log {
    fn open(&self, env: &EnvRef, number: BuildNumber) -> Box<dyn Transcript> {
        Box::new(LogOf(self.clone(), (env.clone(), number.0)))
    }
}

impl Transcript for LogOf {
    fn write(&self, bytes: &[u8]) {
        self.0.0.lock().unwrap().entry(self.1.clone()).or_default().push_str(&String::from_utf8_lossy(bytes));
    }
    fn finish(&self) {}
}

/// Deploys at once, or never.
pub(super) struct Deploys {
    pub(super) abandoned: Arc<Mutex<Vec<ReleaseVersion>>>,
    /// So often it does not give a deployment up.
    pub(super) stubborn: Arc<AtomicU64>,
    pub(super) store: Store,
    pub(super) hang: bool,
    pub(super) next: AtomicU64,
    pub(super) gate: PublishGate,
    /// Releases made while a collection could have begun.
    pub(super) unguarded: Arc<AtomicU64>,
}

#[async_trait]
impl Delivery for Deploys {
    async fn create_release(&self, new: NewRelease) -> Result<Release, StoreError> {
        if self.gate.close(Duration::ZERO).now_or_never().flatten().is_some() {
            self.unguarded.fetch_add(1, Ordering::Relaxed);
        }
        let release = Release {
            env: new.env,
            version: ReleaseVersion(self.next.fetch_add(1, Ordering::Relaxed) + 1),
            image: new.image,
            commit: new.commit,
            build: new.build,
            config: BTreeMap::new(),
            processes: new.processes,
            release_command: new.release_command,
            upgrade: new.upgrade,
            cron: new.cron,
            domains: new.domains,
            created_at: jiff::Timestamp::now(),
            created_by: new.created_by,
            reason: new.reason,
            release_phase_done: false,
            release_phase_attempts: 0,
            trace: None,
        };
        let mut transaction = self.store.transaction().create(&release);
        if let Some(number) = new.build {
            let stored = self.store.need::<Build>(&(release.env.clone(), number)).await?;
            let mut build = stored.record.clone();
            build.release = Some(release.version);
            build.image = Some(release.image.clone());
            build.state = BuildState::Running { stage: Stage::Deploy };
            transaction = transaction.update(&stored, &build);
        }
        transaction.commit().await?;
        Ok(release)
    }

    async fn deploy(&self, env: &EnvRef, version: ReleaseVersion, _: &dyn Progress) -> Result<Deployed, DeployFailure> {
        if self.hang {
            std::future::pending::<()>().await;
        }
        let release = self.store.need::<Release>(&(env.clone(), version)).await.map_err(DeployFailure::Store)?;
        let command = &release.processes[&"web".parse().unwrap()].command;
        if command == "crash" {
            let last_log_lines = vec!["boom".to_owned()];
            return Err(DeployFailure::Failed { release: version, reason: "it died".to_owned(), last_log_lines });
        }
        Ok(Deployed { release: version, url: format!("http://{env}/"), healthy: vec![], timings: vec![] })
    }

    async fn abandon(&self, _: &EnvRef, version: ReleaseVersion, _: &str) -> Result<(), CancelFailure> {
        if self.stubborn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(CancelFailure::Busy);
        }
        self.abandoned.lock().unwrap().push(version);
        Ok(())
    }
}

/// A world with one app: `acme/shop`, environments `dev`, `prod` and `third`; and another tenant's `other/app/dev`.
pub(super) struct World {
    pub(super) directory: tempfile::TempDir,
    pub(super) kv: MemoryKv,
    pub(super) registry: FakeRegistry,
    pub(super) log: Log,
    pub(super) builds: Builds,
    pub(super) shutdown: CancellationToken,
    pub(super) service: tokio::task::JoinHandle<()>,
    pub(super) compiled: Arc<AtomicU64>,
    pub(super) abandoned: Arc<Mutex<Vec<ReleaseVersion>>>,
    pub(super) stubborn: Arc<AtomicU64>,
    pub(super) unguarded: Arc<AtomicU64>,
    pub(super) runtime: Arc<FakeRuntime>,
    /// What traces say.
    pub(super) spans: Arc<KeptSpans>,
}

pub(super) fn env(name: &str) -> EnvRef {
    let full = if name.contains('/') { name.to_owned() } else { format!("acme/shop/{name}") };
    full.parse().unwrap()
}

/// What the compile step of these tests does: dependencies in a layer of their own, one file built, one of the source changed.
pub(super) fn buildpack(job: JobContext, compiled: Arc<AtomicU64>) -> futures::future::BoxFuture<'static, i64> {
    async move {
        compiled.fetch_add(1, Ordering::Relaxed);
        job.print(Source::Stdout, "-----> Fake app detected\n").await;
        let lock = job.read("/app/lock").unwrap_or_default();
        match lock.as_slice() {
            b"fail" => return 1,
            b"none" => return 10,
            b"hang" => std::future::pending::<()>().await,
            _ => {}
        }
        job.write("/app/deps/lib", [b"dependency ", lock.as_slice()].concat());
        job.write("/app/dist/out", "built");
        job.write("/meta/layers", "deps\tdeps\n");
        job.write("/meta/inputs", "lock\n");
        job.write("/meta/buildpacks", "fake\tFake\n");
        job.write("/meta/release.yml", "default_process_types: {web: run default}\n");
        0
    }
    .boxed()
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(tempfile::tempdir().unwrap(), MemoryKv::new(), FakeRegistry::new(), false).await
    }

    pub(super) async fn with(directory: tempfile::TempDir, kv: MemoryKv, registry: FakeRegistry, hang: bool) -> Self {
        Self::over(directory, kv.clone(), Arc::new(kv), registry, hang).await
    }

    /// With a store that reads and writes `kv` through `port`.
    pub(super) async fn over(
        directory: tempfile::TempDir,
        kv: MemoryKv,
        port: Arc<dyn Kv>,
        registry: FakeRegistry,
        hang: bool,
    ) -> Self {
        let store = Store::new(port);
        let repositories = Repositories::new(directory.path().join("repositories"));
        for name in ["dev", "prod", "third", "other/app/dev"] {
            let path = repositories.path(&env(name));
            if !path.exists() {
                Fixture::at(path);
                store.transaction().create(&environment(name)).commit().await.unwrap();
            }
        }
        let stacks = directory.path().join("stacks");
        std::fs::create_dir_all(&stacks).unwrap();
        fake_stacks(&stacks);
        let compiled = Arc::new(AtomicU64::new(0));
        let counted = compiled.clone();
        let runtime = Arc::new(FakeRuntime::new(Behaviour::default().jobs(move |job| buildpack(job, counted.clone()))));
        let log = Log::default();
        let made = store.list::<Release>("").await.unwrap().len() as u64;
        let abandoned = Arc::<Mutex<Vec<ReleaseVersion>>>::default();
        let stubborn = Arc::<AtomicU64>::default();
        let (gate, unguarded) = (PublishGate::default(), Arc::<AtomicU64>::default());
        let deploys = Deploys {
            abandoned: abandoned.clone(),
            stubborn: stubborn.clone(),
            next: AtomicU64::new(made),
            store: store.clone(),
            hang,
            gate: gate.clone(),
            unguarded: unguarded.clone(),
        };
        let parts = BuildParts {
            store: store.clone(),
            runtime: runtime.clone(),
            registry: Arc::new(registry.clone()),
            repositories,
            delivery: Arc::new(deploys),
            logs: Arc::new(log.clone()),
        };
        let spans = Arc::new(KeptSpans::default());
        let settings = BuildSettings {
            traces: Traces::new(spans.clone(), 1.0),
            concurrency: 1,
            queue_limit: 2,
            queue_limit_per_tenant: 1,
            slug_limit: 2_000_000,
            publishing: gate,
            // Not there, so that there is room.
            disk: DiskFloor::new(vec![directory.path().join("full")], u64::MAX),
            ..BuildSettings::new(directory.path())
        };
        let (builds, service) = Builds::start(parts, settings).await.unwrap();
        let shutdown = CancellationToken::new();
        let service = tokio::spawn(service.run(shutdown.clone()));
        Self {
            directory,
            kv,
            registry,
            log,
            builds,
            shutdown,
            service,
            compiled,
            abandoned,
            stubborn,
            unguarded,
            runtime,
            spans,
        }
    }

    pub(super) fn new_build(&self, name: &str, files: &[(&str, &str)]) -> NewBuild {
        let path = Repositories::new(self.directory.path().join("repositories")).path(&env(name));
        NewBuild {
            env: env(name),
            commit: commit(&path, files),
            branch: Some("refs/heads/main".to_owned()),
            old_commit: None,
            pushed_by: "alice".parse().unwrap(),
            no_cache: false,
            detached: false,
            supersede: false,
            held: false,
            timings: vec![("receive".to_owned(), 5)],
            trace: None,
        }
    }

    pub(super) async fn push(&self, name: &str, files: &[(&str, &str)]) -> Build {
        let build = self.builds.enqueue(self.new_build(name, files)).await.unwrap();
        self.end_of(&build).await
    }

    pub(super) async fn end_of(&self, build: &Build) -> Build {
        let wait = self.builds.wait(&build.env, build.number);
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the build does not end").unwrap()
    }

    pub(super) fn log(&self, build: &Build) -> String {
        self.log.0.lock().unwrap().get(&(build.env.clone(), build.number.0)).cloned().unwrap_or_default()
    }

    /// Waits until the build's log says so.
    pub(super) async fn says(&self, build: &Build, text: &str) {
        let said = async {
            while !self.log(build).contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), said).await.expect(text);
    }

    pub(super) fn compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    /// Layers of a build's image, as digests.
    pub(super) async fn layers(&self, build: &Build) -> Vec<String> {
        let image = build.image.as_ref().unwrap();
        let manifest = self.registry.manifest(&image.repository, image.digest.as_str()).await.unwrap().unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["digest"].as_str().unwrap().to_owned())
            .collect()
    }

    pub(super) async fn stop(self) -> (tempfile::TempDir, MemoryKv, FakeRegistry) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.service).await.expect("the service does not stop").unwrap();
        (self.directory, self.kv, self.registry)
    }
}

pub(super) fn environment(name: &str) -> Environment {
    Environment {
        name: env(name),
        created_at: jiff::Timestamp::now(),
        deploy_branch: None,
        config: BTreeMap::from([("SECRET".to_owned(), "hunter2".to_owned())]),
        scale: BTreeMap::new(),
        domains: Vec::new(),
        target: None,
        current: None,
        last_release: 0,
        last_build: 0,
        restarts: 0,
    }
}

pub(super) const APP: [(&str, &str); 3] = [("lock", "1"), ("server.js", "first"), ("docs/readme", "text")];

pub(super) fn app(changed: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut files = APP.to_vec();
    for (path, content) in changed {
        files.retain(|(other, _)| other != path);
        files.push((path, content));
    }
    files
}
