//! The commands as their callers see them: words in, text and exit status out, over a store in memory.

mod drains;
mod events;
mod fakes;
mod logs;
pub(crate) mod matrix;
mod operate;
mod people;
mod platform;
mod sessions;
mod sources;
mod tenancy;
mod tokens;
mod webhooks;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{io::AsyncReadExt, sync::mpsc};

use self::fakes::{FakeBuilds, FakeDeployer, TurnsKv};
use super::*;
use tokio_util::sync::CancellationToken;

use crate::{
    cron::{Cron, CronParts, CronSettings},
    deploy::SystemClock,
    domain::*,
    drains::{DrainParts, DrainSettings},
    logs::{LogLimits, LogRecord},
    outbound::{Outbound, OutboundSettings},
    registry::FakeRegistry,
    runtime::{
        Source,
        fake::{Behaviour, FakeRuntime, JobContext},
    },
    webhooks::{WebhookParts, WebhookSettings},
};

fn env(name: &str) -> EnvRef {
    name.parse().unwrap()
}

fn shop() -> EnvRef {
    env("acme/shop/dev")
}

fn caller(name: &str) -> Caller {
    let (operator, door) = match name {
        "opal" => (true, Door::Ssh),
        "host" => (true, Door::Host),
        _ => (false, Door::Ssh),
    };
    Caller { user: name.parse().unwrap(), operator, door, rights: None, trace: None }
}

fn build(env: &EnvRef, number: u64, state: BuildState) -> Build {
    let now = Timestamp::now();
    Build {
        env: env.clone(),
        number: BuildNumber(number),
        commit: "1a".repeat(20),
        branch: Some("refs/heads/main".into()),
        old_commit: None,
        state,
        queued_at: now,
        started_at: Some(now),
        finished_at: Some(now),
        pushed_by: "dan".parse().unwrap(),
        no_cache: false,
        detached: false,
        image: None,
        release: Some(ReleaseVersion(2)),
        timings: vec![("build".into(), 12)],
        interruptions: 0,
        cancelling: None,
        held: false,
        settled: false,
        trace: None,
    }
}

async fn deployment(store: &Store, env: &EnvRef, to: ReleaseVersion, state: DeploymentState) {
    let now = Timestamp::now();
    let last_log_lines = match state {
        DeploymentState::Failed { .. } => vec!["Error: x".to_owned()],
        _ => Vec::new(),
    };
    let (env, finished_at) = (env.clone(), Some(now));
    let record = Deployment {
        env,
        to,
        from: None,
        state,
        started_at: now,
        finished_at,
        progress: None,
        last_log_lines,
        trace: None,
    };
    store.transaction().put(&record).commit().await.unwrap();
}

fn nightly() -> CronJob {
    CronJob {
        schedule: "@daily".into(),
        timezone: "UTC".into(),
        command: "node cleanup.js".into(),
        overlap: Overlap::Skip,
        timeout: Duration::from_secs(60),
        cpu_millis: 500,
        memory: 256 << 20,
    }
}

fn release(env: &EnvRef, version: u64) -> Release {
    let process = |replicas| ProcessSpec {
        command: "node server.js".into(),
        replicas,
        cpu_millis: 500,
        memory: 256 << 20,
        port: 5000,
        health: Health {
            probe: HealthProbe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            grace: Duration::from_secs(30),
            failures: 3,
        },
    };
    Release {
        env: env.clone(),
        version: ReleaseVersion(version),
        image: ImageRef { repository: "berth/acme/shop".into(), digest: Digest::from_sha256([7; 32]) },
        commit: "1a".repeat(20),
        build: Some(BuildNumber(version)),
        config: [("SECRET".to_owned(), "hunter2".to_owned())].into(),
        processes: [("web".parse().unwrap(), process(2)), ("worker".parse().unwrap(), process(1))].into(),
        release_command: None,
        upgrade: UpgradePolicy::default(),
        domains: vec!["manifest.example.com".into()],
        cron: [("nightly".parse().unwrap(), nightly())].into(),
        created_at: Timestamp::now(),
        created_by: "dan".parse().unwrap(),
        reason: format!("push {version}"),
        release_phase_done: true,
        release_phase_attempts: 0,
        trace: None,
    }
}

/// A platform: tenant `acme` of olga (owner), dan (developer) and vera (viewer), with the app `acme/shop` whose `dev` runs v2; tenant
/// `other` of stan; opal, an operator who is a member of neither; and the host.
pub(crate) struct World {
    pub(crate) commands: Commands,
    pub(crate) store: Store,
    registry: FakeRegistry,
    pub deployer: Arc<FakeDeployer>,
    builds: Arc<FakeBuilds>,
    pub(crate) logs: Logs,
    _directory: tempfile::TempDir,
}

/// Shared, since reading the host's certificates takes longer than most of these tests; none of them sends anything.
static OUTBOUND: LazyLock<Outbound> = LazyLock::new(|| Outbound::new(OutboundSettings::default()).unwrap());

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u8,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }

    #[track_caller]
    fn fails(self, status: u8, text: &str) -> Self {
        assert!(self.status == status && self.stderr.contains(text), "not {status} with {text:?}: {self:?}");
        self
    }

    #[track_caller]
    fn says(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "{text:?} was not said: {self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// What one-off commands do here: wait, or say what they were given.
fn run_job(mut context: JobContext) -> BoxFuture<'static, i64> {
    Box::pin(async move {
        let words = context.spec.argv[1..].join("|");
        if words == "forever" {
            context.print(Source::Stdout, "began\n").await;
        }
        if words == "node cleanup.js" {
            context.print(Source::Stdout, "cleaned\n").await;
            return 0;
        }
        if matches!(words.as_str(), "sleep" | "forever") {
            std::future::pending::<()>().await;
        }
        let mut input = String::new();
        context.stdin.take().unwrap().read_to_string(&mut input).await.unwrap();
        context.print(Source::Stdout, format!("{words} {input}")).await;
        context.print(Source::Stderr, format!("{:?}", context.spec.environment.get("SECRET"))).await;
        42
    })
}

fn settings() -> CommandSettings {
    CommandSettings {
        ssh_host: "paas.example.com".into(),
        ssh_port: 2222,
        api_url: "https://berth.example.com".into(),
        base_domain: "localhost".into(),
        own_hosts: vec!["berth.example.com".into()],
        run_pids: 64,
        process_defaults: Defaults::default(),
        largest_process: (4000, 4 << 30),
        traces: crate::traces::Traces::off(),
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(Arc::new(TurnsKv::default()));
        let logs = Logs::open(directory.path().join("logs"), LogLimits::default()).unwrap();
        let deployer = Arc::new(FakeDeployer::new(store.clone()));
        let builds = Arc::new(FakeBuilds::new(store.clone(), logs.clone()));
        let runtime = Arc::new(FakeRuntime::new(Behaviour::default().jobs(run_job)));
        let (cron, service) = Cron::start(CronParts {
            store: store.clone(),
            runtime: runtime.clone(),
            logs: logs.clone(),
            clock: Arc::new(SystemClock),
            settings: CronSettings::default(),
        });
        let (webhooks, telling) = Webhooks::start(WebhookParts {
            store: store.clone(),
            outbound: OUTBOUND.clone(),
            clock: Arc::new(SystemClock),
            settings: WebhookSettings::default(),
        });
        let (events, hub) = EventHub::start(store.clone(), "").await.unwrap();
        tokio::spawn(hub.run(CancellationToken::new()));
        let registry = FakeRegistry::new();
        // Its service does not run: nothing is sent anywhere.
        let (drains, _) = Drains::start(DrainParts {
            store: store.clone(),
            logs: logs.clone(),
            outbound: Outbound::new(OutboundSettings::default()).unwrap(),
            settings: DrainSettings::default(),
        })
        .unwrap();
        let services = Services {
            webhooks,
            drains,
            store: store.clone(),
            events,
            builds: builds.clone(),
            sources: builds.clone(),
            registry: Arc::new(registry.clone()),
            publishing: PublishGate::default(),
            deployer: deployer.clone(),
            cron: Arc::new(cron),
            logs: logs.clone(),
            metrics: crate::metrics::Metrics::new(crate::metrics::MetricsSettings::new(
                directory.path().join("metrics"),
            )),
            runtime,
            collections: Arc::new(fakes::FakeCollections),
            platform: Arc::new(fakes::FakePlatform),
            repositories: Repositories::new(directory.path().join("repositories")),
            tokens: Arc::new(TokenKey::from_pkcs8(&TokenKey::generate().unwrap()).unwrap()),
            settings: settings(),
        };
        std::fs::create_dir(directory.path().join("repositories")).unwrap();
        let world =
            Self { commands: Commands::new(services), store, registry, deployer, builds, logs, _directory: directory };
        world.populate().await;
        tokio::spawn(service.run(CancellationToken::new()));
        tokio::spawn(telling.run(CancellationToken::new()));
        // Answered once it has read what there is.
        world.commands.cron.retire(&env("none/none/none")).await;
        world
    }

    async fn populate(&self) {
        let created_at = Timestamp::now();
        let mut transaction = self.store.transaction();
        for name in ["olga", "dan", "vera", "stan", "opal"] {
            let user = User { name: name.parse().unwrap(), operator: name == "opal", created_at };
            transaction = transaction.create(&user);
        }
        let members =
            |pairs: &[(&str, Role)]| pairs.iter().map(|(name, role)| (name.parse().unwrap(), *role)).collect();
        let acme = members(&[("olga", Role::Owner), ("dan", Role::Developer), ("vera", Role::Viewer)]);
        let other = members(&[("stan", Role::Owner)]);
        for (name, members) in [("acme", acme), ("other", other)] {
            transaction = transaction.create(&Tenant {
                name: name.parse().unwrap(),
                members,
                created_at,
                require_manifest: false,
            });
        }
        for name in ["acme/shop", "other/app"] {
            let name: AppRef = name.parse().unwrap();
            transaction =
                transaction.create(&App { name, created_at, created_by: "olga".parse().unwrap(), destroying: false });
        }
        for name in ["acme/shop/dev", "acme/shop/prod", "other/app/dev"] {
            let mut record = super::apps::new_environment(env(name));
            if name == "acme/shop/dev" {
                record.config = release(&shop(), 2).config;
                (record.target, record.current) = (Some(ReleaseVersion(2)), Some(ReleaseVersion(2)));
                (record.last_release, record.last_build) = (2, 2);
            }
            transaction = transaction.create(&record);
        }
        transaction = transaction.create(&Webhook {
            tenant: "acme".parse().unwrap(),
            id: "1a2b3c4d".parse().unwrap(),
            // An address for documentation: nothing is ever sent there.
            url: "https://192.0.2.1/".into(),
            target: "https://192.0.2.1/".into(),
            secret: WebhookSecret("hunter2".into()),
            kinds: vec!["none.of.them".into()],
            created_by: "olga".parse().unwrap(),
            created_at,
            enabled: true,
            disabled_reason: None,
            from: 0,
            generation: 1,
        });
        let claim = DomainClaim { host: "manifest.example.com".into(), env: shop(), claimed_at: created_at };
        transaction = transaction.create(&claim);
        for number in [1, 2] {
            transaction = transaction.create(&release(&shop(), number));
            transaction = transaction.create(&build(&shop(), number, BuildState::Succeeded));
        }
        transaction.commit().await.unwrap();
        for version in [1, 2] {
            deployment(&self.store, &shop(), ReleaseVersion(version), DeploymentState::Succeeded).await;
        }
        let mut writer = self.logs.build_writer(&shop(), BuildNumber(2)).unwrap();
        writer.write(b"-----> Building\n");
        writer.finish().unwrap();
        self.logs.append_when_ready(&shop(), LogRecord::berth(created_at, "web.1", "hello \x1b[2J")).await;
        self.logs.flush().await;
    }

    /// Runs a command, given as a line; words are split at spaces.
    pub(crate) async fn run(&self, who: &str, line: &str) -> Said {
        self.feed(who, line, b"").await
    }

    /// Runs a command with standard input.
    async fn feed(&self, who: &str, line: &str, input: &'static [u8]) -> Said {
        // Held, or the command would think that its caller has gone.
        let (_controls, receiver) = mpsc::channel(4);
        self.control(who, line, input, receiver).await
    }

    async fn control(&self, who: &str, line: &str, input: &'static [u8], controls: mpsc::Receiver<Control>) -> Said {
        self.ask(caller(who), line, input, controls).await
    }

    async fn ask(&self, who: Caller, line: &str, input: &'static [u8], controls: mpsc::Receiver<Control>) -> Said {
        let argv = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let ((stdout, mut out), (stderr, mut err)) = (tokio::io::duplex(1 << 20), tokio::io::duplex(1 << 20));
        let io = CommandIo::new(input, stdout, stderr, controls);
        let status = self.commands.run(who, argv, io).await;
        let mut said = Said { status, stdout: String::new(), stderr: String::new() };
        out.read_to_string(&mut said.stdout).await.unwrap();
        err.read_to_string(&mut said.stderr).await.unwrap();
        said
    }

    async fn shop(&self) -> Environment {
        self.store.need::<Environment>(&shop()).await.unwrap().record
    }

    /// What has happened, as `KIND MESSAGE` lines.
    async fn events(&self) -> Vec<String> {
        let events = self.store.list::<Event>("").await.unwrap();
        events.iter().map(|event| format!("{} {}", serde_json::json!(event.kind), event.message)).collect()
    }
}
