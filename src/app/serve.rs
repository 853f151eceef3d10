//! `berth serve`: the control plane, from start to an orderly end.
//!
//! Parts start from the ground up, each ready before the next needs it, and stop in the opposite order: first the doors, so that
//! nothing new comes in; then pushes and builds; then the deployer; last the logs, the registry and the store. Apps go on running,
//! and the router, another process, goes on serving them.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    check::Check,
    cli::Place,
    config::{self, Config},
    data_dir::DataDir,
    doors::Doors,
    engine, leftovers,
    pipeline::BuildPipeline,
    room,
    routes::RouteFiles,
    secrets, telemetry,
};
use crate::{
    build::{BuildParts, BuildSettings, Builds, CustomBuildpacks},
    commands::{CommandSettings, Commands, Services},
    control::ControlServer,
    cron::{Cron, CronParts, CronSettings},
    deploy::{DeploySettings, Deployer, NetProber, SystemClock},
    disk::DiskFloor,
    domain::Limits,
    gc::{Gc, GcParts},
    git::{Git, Repositories},
    keys,
    logs::{Logs, access::AccessReceiver, collector::Collector},
    manifest::Defaults,
    receive::{Receive, ReceiveSettings, install_hooks},
    registry::{
        Credentials, Keeper, ManagedRegistry, ManagedSettings, OciRegistry, Registry, RegistryError, RegistryRoom,
    },
    router::table::ACCESS_SOCKET,
    runtime::{Runtime, docker::DockerRuntime},
    ssh::{ConnectionLimits, SshServer, SshSettings},
    store::{Store, open_store},
};

/// How long each part may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long the start waits for the stacks to be in the registry.
const STACKS_DEADLINE: Duration = Duration::from_secs(5);
/// git processes that serve clients at once, in all and of one user.
const GIT_SESSIONS: usize = 64;
const GIT_SESSIONS_PER_USER: usize = 8;
/// How long a client waits for one of them.
const GIT_PATIENCE: Duration = Duration::from_secs(60);
/// A git session in which nothing moves for so long is ended.
const GIT_IDLE: Duration = Duration::from_secs(600);

/// Runs the control plane until SIGTERM or SIGINT.
pub(super) fn run(place: &Place) -> anyhow::Result<ExitCode> {
    telemetry::init();
    #[cfg(feature = "fail-points")]
    super::fail_points::arm()?;
    let config = place.load()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("serve").build()?;
    let done = runtime.block_on(serve(config));
    // Blocking work that is left has had its time.
    runtime.shutdown_timeout(Duration::from_secs(5));
    done.map(|()| ExitCode::SUCCESS)
}

/// Tasks that stop together.
struct Layer {
    name: &'static str,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Layer {
    fn new(name: &'static str) -> Self {
        Self { name, stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Tells the tasks to stop and waits until they have.
    async fn stop(mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_DEADLINE, ended).await.is_err() {
            tracing::warn!(layer = self.name, "it did not stop in time and is abandoned");
        }
    }

    /// Waits until a task ends that nobody told to.
    async fn failed(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(_) => self.name,
            None => std::future::pending().await,
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data = DataDir::open(&config.data_dir)?;
    let store = open_store(&data.join("store"))?;
    let server = tokio::select! {
        server = Server::start(&config, &data, &store) => server?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let Server { mut doors, mut work, mut ground, receive, engine, logs } = server;
    tracing::info!(data = %config.data_dir.display(), ssh = ?config.ssh.listen, "ready");
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        name = doors.failed() => Some(name),
        name = work.failed() => Some(name),
        name = ground.failed() => Some(name),
    };
    tracing::info!("stopping");
    // First, so that whoever waits for a build is told that it goes on before the doors are shut.
    receive.stop.cancel();
    doors.stop().await;
    receive.finish_within(STOP_DEADLINE).await;
    work.stop().await;
    ground.stop().await;
    engine.close(STOP_DEADLINE).await;
    logs.flush().await;
    match failed {
        None => Ok(()),
        Some(name) => anyhow::bail!("a part of the server has ended by itself ({name}); its log says why"),
    }
}

/// Everything that runs.
struct Server {
    /// SSH and the control socket.
    doors: Layer,
    /// Builds and the deployer.
    work: Layer,
    /// Log collection and the registry.
    ground: Layer,
    receive: Stopping,
    engine: DockerRuntime,
    logs: Logs,
}

/// Receiving, and how to stop it.
struct Stopping {
    receive: Receive,
    stop: CancellationToken,
}

impl Stopping {
    async fn finish_within(self, deadline: Duration) {
        self.stop.cancel();
        if timeout(deadline, self.receive.finish()).await.is_err() {
            tracing::warn!("pushes under way did not end in time; the next start takes them up");
        }
    }
}

impl Server {
    async fn start(config: &Config, data: &DataDir, store: &Store) -> anyhow::Result<Self> {
        let mut ground = Layer::new("ground");
        let (registry, keeper) = start_registry(config, data, &mut ground).await?;
        let registry: Arc<dyn Registry> = Arc::new(registry);
        let engine = engine::connect(config, data).await?;
        let runtime: Arc<dyn Runtime> = Arc::new(engine.clone());
        tracing::info!(engine = runtime.capabilities().engine, "connected to the engine");
        let disk = room::disk_floor(config, data, &engine).await;
        // Before any build or release phase goes on that a killed server was in the middle of.
        leftovers::clear(&*runtime, store).await?;
        let logs = start_logs(config, data, &runtime, &mut ground)?;

        let mut work = Layer::new("work");
        let repositories = Repositories::new(data.join("repositories"));
        repositories.clean()?;
        let deployer = start_deployer(config, data, store, &runtime, &logs, &mut work)?;
        let parts = BuildParts {
            store: store.clone(),
            runtime: runtime.clone(),
            registry: registry.clone(),
            repositories: repositories.clone(),
            delivery: Arc::new(deployer.clone()),
            logs: Arc::new(logs.clone()),
        };
        let (builds, service) = Builds::start(parts, build_settings(config, data, &disk)).await?;
        look_for_stacks(&builds).await?;
        work.spawn(service.run(work.stop.clone()));
        let git = find_git(config, data)?;
        let (gc, collections) = Gc::start(
            GcParts {
                store: store.clone(),
                runtime: runtime.clone(),
                registry: registry.clone(),
                room: keeper.map(|keeper| Arc::new(keeper) as Arc<dyn RegistryRoom>),
                repositories: repositories.clone(),
                git: git.clone(),
                logs: logs.clone(),
                stacks: Arc::new(builds.clone()),
                publishing: builds.publishing(),
                disk: disk.clone(),
            },
            room::gc_settings(config, data),
        );
        work.spawn(collections.run(work.stop.clone()));
        work.spawn(engine.clone().keep_guard(work.stop.clone()));

        let tokens = Arc::new(secrets::token_key(&data.join("keys/token.pk8"))?);
        let pipeline = BuildPipeline { builds: builds.clone(), logs: logs.clone(), tokens: tokens.clone() };
        let stop = CancellationToken::new();
        let settings = receive_settings(config, disk)?;
        let receive =
            Receive::new(settings, git, repositories.clone(), store.clone(), Arc::new(pipeline), stop.clone());
        receive.recover().await?;
        let cron = start_cron(config, store, &runtime, &logs, &mut work);
        let commands = Commands::new(Services {
            store: store.clone(),
            builds: Arc::new(builds),
            deployer: Arc::new(deployer),
            cron: Arc::new(cron),
            logs: logs.clone(),
            runtime,
            repositories,
            tokens,
            collections: Arc::new(gc.clone()),
            settings: command_settings(config),
        });
        commands.finish_destroying().await?;
        let check = Arc::new(Check {
            store: store.clone(),
            repositories: commands.repositories.clone(),
            logs: logs.clone(),
            runtime: commands.runtime.clone(),
            registry,
            remover: Arc::new(commands.clone()),
        });
        let doors = open_doors(config, data, Doors { commands, receive: receive.clone(), check, gc }).await?;
        Ok(Self { doors, work, ground, receive: Stopping { receive, stop }, engine, logs })
    }
}

/// The registry, and what looks after its room when it is ours.
async fn start_registry(
    config: &Config,
    data: &DataDir,
    ground: &mut Layer,
) -> anyhow::Result<(OciRegistry, Option<Keeper>)> {
    let settings = &config.registry;
    let mut keeper = None;
    if settings.managed {
        let address: std::net::SocketAddr =
            settings.address.parse().context("registry.address of a managed registry must be ADDRESS:PORT")?;
        anyhow::ensure!(
            address.ip().is_loopback(),
            "a managed registry asks for no password, so it listens on loopback only"
        );
        let managed = ManagedRegistry::start(ManagedSettings::new(data.join("registry"), address.port())).await?;
        keeper = Some(managed.keeper());
        ground.spawn(managed.run(ground.stop.clone()));
    }
    let login = settings.username.clone().zip(settings.password.clone());
    let credentials = login.map(|(user, password)| Credentials { user, password });
    Ok((OciRegistry::new(&settings.address, credentials)?, keeper))
}

/// Pushes would only find out later that the stacks are missing. A registry that does not answer is another matter: what runs is to be
/// looked after, and the first build asks again.
async fn look_for_stacks(builds: &Builds) -> anyhow::Result<()> {
    let away = match timeout(STACKS_DEADLINE, builds.stack_images()).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => match error.downcast_ref() {
            Some(RegistryError::Unavailable { .. }) => format!("{error:#}"),
            _ => return Err(error),
        },
        Err(_) => format!("it has taken more than {} s", STACKS_DEADLINE.as_secs()),
    };
    tracing::warn!(reason = away, "the stacks are not in the registry yet; builds wait for that");
    Ok(())
}

fn start_logs(config: &Config, data: &DataDir, runtime: &Arc<dyn Runtime>, ground: &mut Layer) -> anyhow::Result<Logs> {
    let logs = Logs::open(data.join("logs"), log_limits(&config.logs))?;
    let access = AccessReceiver::bind(&data.join("router").join(ACCESS_SOCKET))?;
    ground.spawn(access.run(logs.clone(), ground.stop.clone()));
    ground.spawn(Collector::new(runtime.clone(), logs.clone()).run(ground.stop.clone()));
    Ok(logs)
}

fn log_limits(config: &config::Logs) -> crate::logs::LogLimits {
    let limits = crate::logs::LogLimits::default();
    let segments = u64::try_from(limits.segments).unwrap_or(4);
    crate::logs::LogLimits {
        segment_bytes: config.per_environment.0 / segments,
        build_bytes: config.per_build.0,
        builds_kept: config.builds,
        replica_rate: config.replica_rate.0,
        ..limits
    }
}

fn start_deployer(
    config: &Config,
    data: &DataDir,
    store: &Store,
    runtime: &Arc<dyn Runtime>,
    logs: &Logs,
    work: &mut Layer,
) -> anyhow::Result<Deployer> {
    let listened = config.router.listen.first().map_or(8080, std::net::SocketAddr::port);
    let settings = DeploySettings {
        base_domain: config.base_domain.clone(),
        router_port: config.router.public_port.unwrap_or(listened),
        public_scheme: config.router.public_scheme.as_str(),
        router_dir: data.join("router"),
        drain_timeout: config.deploy.drain_timeout,
        stop_grace: config.deploy.stop_grace,
        pids: config.runtime.pids,
        ..DeploySettings::default()
    };
    let routes = RouteFiles::new(data.join("router"))?;
    let (deployer, service) = Deployer::start(
        settings,
        store.clone(),
        runtime.clone(),
        logs.clone(),
        Arc::new(routes),
        Arc::new(NetProber),
        Arc::new(SystemClock),
    );
    work.spawn(service.run(work.stop.clone()));
    Ok(deployer)
}

fn start_cron(config: &Config, store: &Store, runtime: &Arc<dyn Runtime>, logs: &Logs, work: &mut Layer) -> Cron {
    let settings = CronSettings {
        starting_deadline: config.cron.starting_deadline,
        concurrency: config.cron.concurrency,
        per_tenant: config.cron.per_tenant,
        history: config.cron.history,
        pids: config.runtime.pids,
        stop_grace: config.deploy.stop_grace,
    };
    let (store, runtime, logs) = (store.clone(), runtime.clone(), logs.clone());
    let (cron, service) = Cron::start(CronParts { store, runtime, logs, clock: Arc::new(SystemClock), settings });
    work.spawn(service.run(work.stop.clone()));
    cron
}

/// Cores as thousandths of one.
fn millis(cores: f64) -> u32 {
    // Out of range is clamped by the conversion.
    (cores * 1000.0).round() as u32
}

fn build_settings(config: &Config, data: &DataDir, disk: &DiskFloor) -> BuildSettings {
    let builds = &config.builds;
    let defaults =
        Defaults { cpu_millis: millis(config.deploy.cpu), memory: config.deploy.memory.0, ..Defaults::default() };
    let ca_bundle = Some(builds.ca_bundle.clone()).filter(|path| path.is_file());
    BuildSettings {
        concurrency: builds.concurrency,
        queue_limit: builds.queue,
        queue_limit_per_tenant: builds.queue_per_tenant,
        time_limit: builds.time_limit,
        limits: Limits { cpu_millis: millis(builds.cpu), memory: builds.memory.0, pids: builds.pids },
        slug_limit: builds.slug_limit.0,
        custom_buildpacks: CustomBuildpacks {
            allow: builds.allowed_buildpacks.clone(),
            protocols: vec!["https".to_owned()],
            directory: data.join("buildpacks"),
            ca_bundle: ca_bundle.clone(),
        },
        ca_bundle,
        operator_env: builds.env.clone(),
        largest_process: (millis(config.deploy.max_cpu), config.deploy.max_memory.0),
        process_defaults: defaults,
        disk: disk.clone(),
        ..BuildSettings::new(&data.join(""))
    }
}

/// git, with our hooks.
fn find_git(config: &Config, data: &DataDir) -> anyhow::Result<Git> {
    let hooks = data.join("hooks");
    install_hooks(&hooks).context("cannot install the git hooks")?;
    Ok(Git { binary: Git::find()?, hooks, max_input: config.git.max_input_size.0 })
}

fn receive_settings(config: &Config, disk: DiskFloor) -> anyhow::Result<ReceiveSettings> {
    Ok(ReceiveSettings {
        berth: std::env::current_exe().context("the path of this program is not known")?,
        control_socket: config.control_socket(),
        sessions: GIT_SESSIONS,
        sessions_per_user: GIT_SESSIONS_PER_USER,
        patience: GIT_PATIENCE,
        idle: GIT_IDLE,
        require_manifest: config.git.require_manifest,
        disk,
    })
}

fn command_settings(config: &Config) -> CommandSettings {
    CommandSettings {
        ssh_host: config.ssh.host.clone(),
        ssh_port: config.ssh.listen.first().map_or(2222, std::net::SocketAddr::port),
        base_domain: config.base_domain.clone(),
        run_pids: config.runtime.pids,
    }
}

async fn open_doors(config: &Config, data: &DataDir, backend: Doors) -> anyhow::Result<Layer> {
    let mut doors = Layer::new("doors");
    let settings = SshSettings {
        limits: ConnectionLimits {
            total: config.ssh.max_connections,
            per_user: config.ssh.max_connections_per_user,
            unauthenticated: config.ssh.max_unauthenticated,
            unauthenticated_per_address: config.ssh.max_unauthenticated_per_address,
            ..ConnectionLimits::default()
        },
        login_grace: config.ssh.login_grace,
        keepalive: config.ssh.keepalive,
        ..SshSettings::default()
    };
    let host_key = keys::host_key(&data.join("keys/ssh_host_ed25519_key"))?;
    let backend = Arc::new(backend);
    for address in &config.ssh.listen {
        let server = SshServer::bind(*address, settings.clone(), host_key.clone(), backend.clone()).await?;
        doors.spawn(server.run(doors.stop.clone()));
    }
    // Last: whoever asks it finds everything ready.
    let control = ControlServer::bind(&config.control_socket(), backend).await?;
    doors.spawn(control.run(doors.stop.clone()));
    Ok(doors)
}
