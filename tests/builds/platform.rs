//! A platform without a deployer.

use std::{
    collections::BTreeMap,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use berth::{
    build::{BuildParts, BuildSettings, Builds, Delivery, NewBuild},
    deploy::{CancelFailure, DeployFailure, Deployed, NewRelease, Progress},
    domain::{Build, EnvRef, Environment, Limits, Release, ReleaseVersion},
    git::Repositories,
    logs::{LogLimits, Logs},
    registry::{ManagedRegistry, ManagedSettings, OciRegistry},
    runtime::{
        JobKind, JobSpec, Runtime,
        docker::{DockerRuntime, DockerSettings},
    },
    store::{Store, StoreError},
};
use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a build may take here: a first one downloads a Node and packages.
const DEADLINE: Duration = Duration::from_secs(240);

/// Files of a commit.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A fixture of the buildpacks' tests.
pub fn fixture(name: &str) -> Files {
    let root = repository().join("tests/buildpacks/fixtures").join(name);
    let entries = std::fs::read_dir(&root).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the stacks are, made if they are not there.
fn stacks() -> PathBuf {
    let directory =
        std::env::var_os("BERTH_STACKS_DIR").map_or_else(|| repository().join("target/stacks"), PathBuf::from);
    let made = Command::new(repository().join("scripts/stacks")).arg(&directory).output().unwrap();
    assert!(made.status.success(), "scripts/stacks: {}", String::from_utf8_lossy(&made.stderr));
    directory
}

/// Runs the image once instead of deploying it.
struct RunOnce {
    store: Store,
    runtime: Arc<DockerRuntime>,
    question: &'static str,
    next: AtomicU64,
    answers: Mutex<BTreeMap<ReleaseVersion, String>>,
}

#[async_trait]
impl Delivery for RunOnce {
    async fn create_release(&self, new: NewRelease) -> Result<Release, StoreError> {
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
        self.store.transaction().create(&release).commit().await?;
        Ok(release)
    }

    async fn deploy(&self, env: &EnvRef, version: ReleaseVersion, _: &dyn Progress) -> Result<Deployed, DeployFailure> {
        let release = self.store.need::<Release>(&(env.clone(), version)).await.unwrap();
        let spec = JobSpec {
            kind: JobKind::OneOff,
            env: env.clone(),
            name: format!("run-{}", version.0),
            image: release.image.clone(),
            argv: ["/usr/local/bin/berth-launch", self.question].map(str::to_owned).to_vec(),
            environment: BTreeMap::new(),
            limits: Limits { cpu_millis: 1000, memory: 256 << 20, pids: 100 },
            cache: false,
            read_only_mounts: Vec::new(),
            tty: None,
            stdin: false,
            stop_grace: Duration::from_secs(1),
        };
        let began = std::time::Instant::now();
        let mut job = self.runtime.job(&spec).await.unwrap();
        let made = began.elapsed();
        job.start().await.unwrap();
        let mut output = job.output();
        let mut answer = String::new();
        while let Some(chunk) = output.next().await {
            answer.push_str(&String::from_utf8_lossy(&chunk.unwrap().bytes));
        }
        job.finish().await.unwrap();
        self.answers.lock().unwrap().insert(version, answer);
        let timings = vec![("pull and create".to_owned(), u64::try_from(made.as_millis()).unwrap())];
        Ok(Deployed { release: version, url: "http://nowhere/".to_owned(), healthy: Vec::new(), timings })
    }

    async fn abandon(&self, _: &EnvRef, _: ReleaseVersion, _: &str) -> Result<(), CancelFailure> {
        Ok(())
    }
}

/// Everything, with one app: `acme/shop`, environments `dev` and `prod`.
pub struct Platform {
    directory: tempfile::TempDir,
    builds: Builds,
    runtime: Arc<DockerRuntime>,
    delivery: Arc<RunOnce>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    logs: Logs,
    address: String,
}

fn env(name: &str) -> EnvRef {
    format!("acme/shop/{name}").parse().unwrap()
}

impl Platform {
    pub async fn start(question: &'static str) -> Self {
        Self::with(question, |_| {}).await
    }

    pub async fn with(question: &'static str, change: impl FnOnce(&mut BuildSettings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let shutdown = CancellationToken::new();
        let managed = ManagedRegistry::start(ManagedSettings::new(data.join("registry"), port)).await.unwrap();
        let address = managed.address();
        let instance = format!("builds-test-{}-{port}", std::process::id());
        let settings = DockerSettings {
            name_prefix: format!("bt{port}"),
            network_pool: "10.197.0.0/20".to_owned(),
            ..DockerSettings::new(&address, &instance)
        };
        let runtime = Arc::new(DockerRuntime::connect(settings).await.unwrap());
        let store = berth::store::RedbKv::open(&data.join("store")).unwrap();
        let store = Store::new(Arc::new(store));
        let repositories = Repositories::new(data.join("repositories"));
        for name in ["dev", "prod"] {
            let path = repositories.path(&env(name));
            git(Path::new("/"), &["init", "--quiet", "--bare", path.to_str().unwrap()], b"");
            store.transaction().create(&environment(name)).commit().await.unwrap();
        }
        let delivery = Arc::new(RunOnce {
            store: store.clone(),
            runtime: runtime.clone(),
            question,
            next: AtomicU64::new(0),
            answers: Mutex::default(),
        });
        let logs = Logs::open(data.join("logs"), LogLimits::default()).unwrap();
        let parts = BuildParts {
            store,
            runtime: runtime.clone(),
            registry: Arc::new(OciRegistry::new(&address, None).unwrap()),
            repositories,
            delivery: delivery.clone(),
            logs: Arc::new(logs.clone()),
        };
        let mut settings = BuildSettings { stacks: stacks(), print_timings: true, ..BuildSettings::new(data) };
        settings.ca_bundle = Some(PathBuf::from("/etc/ssl/certs/ca-certificates.crt"));
        settings.buildpacks = Some(repository().join("buildpacks"));
        change(&mut settings);
        let (builds, service) = Builds::start(parts, settings).await.unwrap();
        let tasks = vec![tokio::spawn(service.run(shutdown.clone())), tokio::spawn(managed.run(shutdown.clone()))];
        builds.stack_images().await.unwrap();
        Self { directory, builds, runtime, delivery, shutdown, tasks, logs, address }
    }

    /// Commits the files and builds the commit.
    pub async fn push(&self, name: &str, files: &Files) -> Build {
        let path = Repositories::new(self.directory.path().join("repositories")).path(&env(name));
        let new = NewBuild {
            env: env(name),
            commit: commit(&path, files),
            branch: Some("refs/heads/main".to_owned()),
            old_commit: None,
            pushed_by: "alice".parse().unwrap(),
            no_cache: false,
            detached: false,
            supersede: false,
            held: false,
            timings: Vec::new(),
            trace: None,
        };
        let build = self.builds.enqueue(new).await.unwrap();
        let wait = self.builds.wait(&build.env, build.number);
        tokio::time::timeout(DEADLINE, wait).await.expect("the build does not end").unwrap()
    }

    /// What the person who pushed saw.
    pub async fn log(&self, build: &Build) -> String {
        let log = self.logs.read_build(&build.env, build.number).await.unwrap();
        log.map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// What the image printed.
    pub fn answer(&self, build: &Build) -> String {
        self.delivery.answers.lock().unwrap().get(&build.release.unwrap()).cloned().unwrap_or_default()
    }

    /// Ends everything, and removes what it left on the engine.
    pub async fn stop(self) {
        let app = env("dev").app_ref();
        self.builds.purge_cache(&app).await.unwrap();
        self.shutdown.cancel();
        for task in self.tasks {
            tokio::time::timeout(Duration::from_secs(30), task).await.expect("it does not stop").unwrap();
        }
        self.runtime.end_orphaned_jobs().await.unwrap();
        self.runtime.forget(&app.tenant, None).await.unwrap();
        self.runtime.teardown().await;
        remove_images(&self.address);
    }
}

/// Images that came from the registry of this test; by their names, since another registry's may have the same content.
fn remove_images(address: &str) {
    let mut names = String::new();
    for pattern in ["*/*", "*/*/*"] {
        let mut listing = Command::new("docker");
        listing.args(["images", "--digests", "--format", "{{.Repository}}@{{.Digest}}", "--filter"]);
        let listing = listing.arg(format!("reference={address}/{pattern}")).output().unwrap();
        names.push_str(&String::from_utf8(listing.stdout).unwrap());
    }
    let mut names: Vec<&str> = names.split_whitespace().collect();
    names.sort_unstable();
    names.dedup();
    if !names.is_empty() {
        let removed = Command::new("docker").arg("rmi").args(&names).output().unwrap();
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    }
}

fn environment(name: &str) -> Environment {
    Environment {
        name: env(name),
        created_at: jiff::Timestamp::now(),
        deploy_branch: None,
        config: BTreeMap::new(),
        scale: BTreeMap::new(),
        domains: Vec::new(),
        target: None,
        current: None,
        last_release: 0,
        last_build: 0,
        restarts: 0,
    }
}

/// Runs git in a bare repository.
pub fn git(repository: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("git");
    command.current_dir(repository).args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null");
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "A").env(format!("GIT_{role}_EMAIL"), "a@example.com");
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "git {arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn commit(repository: &Path, files: &Files) -> String {
    let listing: String = files
        .iter()
        .map(|(name, content)| {
            format!("100644 blob {}\t{name}\n", git(repository, &["hash-object", "-w", "--stdin"], content))
        })
        .collect();
    let tree = git(repository, &["mktree"], listing.as_bytes());
    git(repository, &["commit-tree", &tree, "-m", "A test"], b"")
}
