//! The queue and the pipeline over fakes of everything around: engine, registry, deployer, log.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicU64, sync::atomic::Ordering, time::Duration};

use async_trait::async_trait;
use futures::FutureExt;

use super::*;
use crate::{
    build::{
        BuildLogs, BuildParts, BuildSettings, Delivery, Transcript,
        testing::{Files, Fixture, commit, fake_stacks},
    },
    deploy::{DeployFailure, Deployed, NewRelease, Progress},
    disk::DiskFloor,
    domain::{Release, ReleaseVersion},
    git::Repositories,
    registry::{FakeRegistry, Registry},
    runtime::{
        Source,
        fake::{Behaviour, FakeRuntime, JobContext},
    },
    store::{Kv, MemoryKv},
};

#[path = "records_kept.rs"]
mod records_kept;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<BTreeMap<(EnvRef, u64), String>>>);

struct LogOf(Log, (EnvRef, u64));

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
struct Deploys {
    abandoned: Arc<Mutex<Vec<ReleaseVersion>>>,
    store: Store,
    hang: bool,
    next: AtomicU64,
    gate: PublishGate,
    /// Releases made while a collection could have begun.
    unguarded: Arc<AtomicU64>,
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

    async fn abandon(&self, _: &EnvRef, version: ReleaseVersion, _: &str) {
        self.abandoned.lock().unwrap().push(version);
    }
}

/// A world with one app: `acme/shop`, environments `dev`, `prod` and `third`; and another tenant's `other/app/dev`.
struct World {
    directory: tempfile::TempDir,
    kv: MemoryKv,
    registry: FakeRegistry,
    log: Log,
    builds: Builds,
    shutdown: CancellationToken,
    service: tokio::task::JoinHandle<()>,
    compiled: Arc<AtomicU64>,
    abandoned: Arc<Mutex<Vec<ReleaseVersion>>>,
    unguarded: Arc<AtomicU64>,
}

fn env(name: &str) -> EnvRef {
    let full = if name.contains('/') { name.to_owned() } else { format!("acme/shop/{name}") };
    full.parse().unwrap()
}

/// What the compile step of these tests does: dependencies in a layer of their own, one file built, one of the source changed.
fn buildpack(job: JobContext, compiled: Arc<AtomicU64>) -> futures::future::BoxFuture<'static, i64> {
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
    async fn new() -> Self {
        Self::with(tempfile::tempdir().unwrap(), MemoryKv::new(), FakeRegistry::new(), false).await
    }

    async fn with(directory: tempfile::TempDir, kv: MemoryKv, registry: FakeRegistry, hang: bool) -> Self {
        Self::over(directory, kv.clone(), Arc::new(kv), registry, hang).await
    }

    /// With a store that reads and writes `kv` through `port`.
    async fn over(
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
        let runtime = FakeRuntime::new(Behaviour::default().jobs(move |job| buildpack(job, counted.clone())));
        let log = Log::default();
        let made = store.list::<Release>("").await.unwrap().len() as u64;
        let abandoned = Arc::<Mutex<Vec<ReleaseVersion>>>::default();
        let (gate, unguarded) = (PublishGate::default(), Arc::<AtomicU64>::default());
        let deploys = Deploys {
            abandoned: abandoned.clone(),
            next: AtomicU64::new(made),
            store: store.clone(),
            hang,
            gate: gate.clone(),
            unguarded: unguarded.clone(),
        };
        let parts = BuildParts {
            store: store.clone(),
            runtime: Arc::new(runtime),
            registry: Arc::new(registry.clone()),
            repositories,
            delivery: Arc::new(deploys),
            logs: Arc::new(log.clone()),
        };
        let settings = BuildSettings {
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
        Self { directory, kv, registry, log, builds, shutdown, service, compiled, abandoned, unguarded }
    }

    fn new_build(&self, name: &str, files: &[(&str, &str)]) -> NewBuild {
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
        }
    }

    async fn push(&self, name: &str, files: &[(&str, &str)]) -> Build {
        let build = self.builds.enqueue(self.new_build(name, files)).await.unwrap();
        self.end_of(&build).await
    }

    async fn end_of(&self, build: &Build) -> Build {
        let wait = self.builds.wait(&build.env, build.number);
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the build does not end").unwrap()
    }

    fn log(&self, build: &Build) -> String {
        self.log.0.lock().unwrap().get(&(build.env.clone(), build.number.0)).cloned().unwrap_or_default()
    }

    fn compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    /// Layers of a build's image, as digests.
    async fn layers(&self, build: &Build) -> Vec<String> {
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

    async fn stop(self) -> (tempfile::TempDir, MemoryKv, FakeRegistry) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.service).await.expect("the service does not stop").unwrap();
        (self.directory, self.kv, self.registry)
    }
}

fn environment(name: &str) -> Environment {
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

const APP: [(&str, &str); 3] = [("lock", "1"), ("server.js", "first"), ("docs/readme", "text")];

fn app(changed: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut files = APP.to_vec();
    for (path, content) in changed {
        files.retain(|(other, _)| other != path);
        files.push((path, content));
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_push_builds_and_its_output_ends_with_release_url_and_time() {
    let world = World::new().await;
    let build = world.push("dev", &APP).await;
    assert_eq!(build.state, BuildState::Succeeded, "{}", world.log(&build));
    assert_eq!(build.release, Some(ReleaseVersion(1)));
    let log = world.log(&build);
    let mut end = log.lines().rev();
    assert!(end.next().unwrap().ends_with(" from push to live"), "{log}");
    assert_eq!(end.next().unwrap().trim(), "http://acme/shop/dev/", "{log}");
    assert_eq!(end.next().unwrap(), "=====> acme/shop/dev is live: release v1", "{log}");
    assert!(log.contains("-----> Fake app detected\n"), "{log}");
    assert!(!log.contains("hunter2"));
    // Stack, dependencies, what was built, source.
    assert_eq!(world.layers(&build).await.len(), 4);
    let stages: Vec<_> = build.timings.iter().map(|(stage, _)| stage.as_str()).collect();
    assert_eq!(stages, ["receive", "queued", "read", "compile", "layers", "source layer", "push", "release"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_says_where_scale_wins_over_the_manifest() {
    let world = World::new().await;
    let store = Store::new(Arc::new(world.kv.clone()));
    let dev = env("dev");
    let scaled = store.modify::<Environment, StoreError>(&dev, |record| {
        record.scale = [("web".parse().unwrap(), 3), ("worker".parse().unwrap(), 0)].into();
        Ok(())
    });
    scaled.await.unwrap();
    let files = app(&[("Procfile", "web: run\nworker: work\n")]);
    let log = world.log(&world.push("dev", &files).await);
    let said: Vec<_> = log.lines().filter(|line| line.contains("scale")).collect();
    let web = "       web: 3 replicas as set by scale (manifest: 1); scale acme/shop/dev --reset goes back";
    assert_eq!(said, [web], "{log}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_build_does_not_tell_what_other_tenants_have_built() {
    let world = World::new().await;
    let slug = |build: &Build| -> Vec<String> {
        let log = world.log(build);
        let told = |line: &&str| line.contains(" compressed") || line.contains("layers reused");
        log.lines().filter(told).map(str::to_owned).collect()
    };
    let first = world.push("dev", &APP).await;
    let new = world.new_build("other/app/dev", &APP);
    let second = world.builds.enqueue(new).await.unwrap();
    let second = world.end_of(&second).await;
    assert_eq!(second.state, BuildState::Succeeded, "{}", world.log(&second));
    assert!(slug(&first).len() > 2, "{}", world.log(&first));
    assert_eq!(slug(&first), slug(&second));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_only_push_starts_no_container_and_pushes_one_layer() {
    let world = World::new().await;
    let first = world.push("dev", &APP).await;
    let uploads = world.registry.uploads();
    let second = world.push("dev", &app(&[("server.js", "second")])).await;
    assert_eq!(second.state, BuildState::Succeeded, "{}", world.log(&second));
    assert_eq!(world.compiled(), 1, "{}", world.log(&second));
    assert_eq!(world.registry.uploads(), uploads + 2, "the source layer and the configuration");
    let (before, after) = (world.layers(&first).await, world.layers(&second).await);
    assert_eq!(before[..3], after[..3]);
    assert_ne!(before[3], after[3]);

    let third = world.push("dev", &app(&[("lock", "2")])).await;
    assert_eq!((third.state.clone(), world.compiled()), (BuildState::Succeeded, 2), "{}", world.log(&third));
    let after = world.layers(&third).await;
    assert_eq!((before[0] == after[0], before[1] == after[1], before[2] == after[2]), (true, false, true));

    // A file where the build put its own.
    let fourth = world.push("dev", &app(&[("lock", "2"), ("dist/out", "committed")])).await;
    assert_eq!((fourth.state.clone(), world.compiled()), (BuildState::Succeeded, 3), "{}", world.log(&fourth));
    // Back to what was there before: not even a layer.
    let fifth = world.push("dev", &APP).await;
    assert_eq!(fifth.image, first.image);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_environment_reuses_the_slug_and_no_cache_does_not() {
    let world = World::new().await;
    let dev = world.push("dev", &APP).await;
    let prod = world.push("prod", &APP).await;
    assert_eq!(prod.image, dev.image);
    assert!(
        world.log(&prod).contains("-----> Reusing the slug built for acme/shop/dev (build #1)"),
        "{}",
        world.log(&prod)
    );
    let again = NewBuild { no_cache: true, ..world.new_build("prod", &APP) };
    let build = world.builds.enqueue(again).await.unwrap();
    let build = world.end_of(&build).await;
    assert_eq!((build.state.clone(), world.compiled()), (BuildState::Succeeded, 2), "{}", world.log(&build));
    assert_eq!(build.image, dev.image, "the same content is the same image");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lost_its_content_is_filled_again() {
    let world = World::new().await;
    world.push("dev", &APP).await;
    let (directory, kv, registry) = world.stop().await;
    registry.wipe();
    let world = World::with(directory, kv, registry, false).await;
    for files in [app(&[("server.js", "second")]), APP.to_vec()] {
        let build = world.push("dev", &files).await;
        assert_eq!(build.state, BuildState::Succeeded, "{}", world.log(&build));
        assert_eq!(world.layers(&build).await.len(), 4);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_named() {
    let world = World::new().await;
    let large = "x".repeat(2_000_001);
    let rows: [(Files<'_>, &str, &str); 6] = [
        (&[("lock", "fail")], "the build failed (exit status 1)", " !     The build failed (exit status 1)"),
        (&[("lock", "none")], "no buildpack fits this app", " !     No buildpack fits this app"),
        (
            &[("lock", "1"), ("Procfile", "worker: x\n")],
            "there is no web process",
            " !     Process types found: worker.",
        ),
        (&[("lock", "1"), ("Procfile", "web: crash\n")], "release v1 was not deployed: it died", " !       boom"),
        // As after a promotion, which no push has checked.
        (
            &[("lock", "1"), ("data/large", &large)],
            "the source has 2.0 MB; at most 2.0 MB are allowed",
            "2.0 MB  data/",
        ),
        (&[("lock", "1"), ("berth.yaml", "procesess: {}")], "the manifest is not valid", "procesess"),
    ];
    for (files, reason, line) in rows {
        let build = world.push("dev", files).await;
        assert_eq!(build.state, BuildState::Failed { reason: reason.to_owned() }, "{}", world.log(&build));
        assert!(world.log(&build).contains(line), "{line}: {}", world.log(&build));
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_with_what_was_left() {
    let world = World::new().await;
    let running = world.builds.enqueue(world.new_build("dev", &[("lock", "hang")])).await.unwrap();
    let queued = world.builds.enqueue(world.new_build("prod", &APP)).await.unwrap();
    let (directory, kv, registry) = world.stop().await;
    let world = World::with(directory, kv, registry, false).await;
    let left = world.builds.active(&running.env).await.unwrap().unwrap();
    assert_eq!(left.interruptions, 0, "it was stopped in order");
    assert!(world.builds.cancel(&running.env, running.number, "enough").await.unwrap());
    assert_eq!(world.end_of(&queued).await.state, BuildState::Succeeded);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_while_deploying_deploys_the_same_release() {
    let world = World::with(tempfile::tempdir().unwrap(), MemoryKv::new(), FakeRegistry::new(), true).await;
    let build = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    let store = Store::new(Arc::new(world.kv.clone()));
    let id = (build.env.clone(), build.number);
    let deploying = async {
        while world.builds.active(&build.env).await.unwrap().is_none_or(|build| build.release.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The record says so too: it is written with the release.
        store.need::<Build>(&id).await.unwrap().record
    };
    let seen = tokio::time::timeout(Duration::from_secs(20), deploying).await.unwrap();
    let deploy = BuildState::Running { stage: Stage::Deploy };
    assert_eq!((seen.state, seen.release), (deploy, Some(ReleaseVersion(1))));
    assert!(!world.builds.cancel(&build.env, build.number, "too late").await.unwrap());
    let (directory, kv, registry) = world.stop().await;
    let world = World::with(directory, kv, registry, false).await;
    let ended = world.end_of(&build).await;
    assert_eq!(
        (ended.state.clone(), ended.release),
        (BuildState::Succeeded, Some(ReleaseVersion(1))),
        "{}",
        world.log(&ended)
    );
    assert_eq!(world.compiled(), 0);
    assert!(world.log(&ended).starts_with("-----> Going on after a restart of the server\n"), "{}", world.log(&ended));
    let path: &Path = world.directory.path();
    assert_eq!(std::fs::read_dir(path.join("tmp")).unwrap().count(), 0, "temporary files are left");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superseded_deployment_is_given_up() {
    let world = World::with(tempfile::tempdir().unwrap(), MemoryKv::new(), FakeRegistry::new(), true).await;
    let first = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    let deploying = async {
        while world.builds.active(&first.env).await.unwrap().is_none_or(|build| build.release.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), deploying).await.unwrap();
    let newer = NewBuild { supersede: true, ..world.new_build("dev", &[("lock", "none")]) };
    let newer = world.builds.enqueue(newer).await.unwrap();
    assert!(matches!(world.end_of(&first).await.state, BuildState::Cancelled { .. }));
    assert!(matches!(world.end_of(&newer).await.state, BuildState::Failed { .. }));
    assert_eq!(*world.abandoned.lock().unwrap(), [ReleaseVersion(1)]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_build_brings_no_record_of_a_destroyed_environment_back() {
    let world = World::new().await;
    let build = world.builds.enqueue(world.new_build("dev", &[("lock", "hang")])).await.unwrap();
    let store = Store::new(Arc::new(world.kv.clone()));
    let id = (build.env.clone(), build.number);
    let record = store.need::<Build>(&id).await.unwrap();
    store.transaction().delete(&record).commit().await.unwrap();
    assert!(world.builds.cancel(&build.env, build.number, "its environment is gone").await.unwrap());
    assert!(store.get::<Build>(&id).await.unwrap().is_none(), "the record is back");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_wants_too_much_is_refused_before_anything_is_built() {
    let world = World::new().await;
    let manifest = "processes: {web: {command: x, memory: 1Ti}, job: {command: y, cpu: 4.5}}";
    let build = world.push("dev", &app(&[("berth.yaml", manifest)])).await;
    let reason = "a process wants more than this server gives".to_owned();
    assert_eq!(build.state, BuildState::Failed { reason });
    let log = world.log(&build);
    assert!(log.contains("web wants 1048576 MiB of memory; one replica may have 4096 MiB."), "{log}");
    assert!(log.contains("job wants 4.5 cores; one replica may have 4."), "{log}");
    assert_eq!(world.compiled(), 0);
    world.stop().await;
}

#[path = "held.rs"]
mod held;

#[path = "refusing.rs"]
mod refusing;
