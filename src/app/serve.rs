//! `berth serve`: the control plane, from start to an orderly end.
//!
//! Parts start from the ground up, each ready before the next needs it, and stop in the opposite order: first the doors, so that
//! nothing new comes in; then pushes and builds; then the deployer; last the logs, the registry and the store. Apps go on running,
//! and the router, another process, goes on serving them.

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    allocator,
    check::Check,
    cli::Place,
    config::Config,
    data_dir::{DataDir, TOKEN_KEY},
    doors::Doors,
    layer::{Layer, STOP_DEADLINE},
    parts,
    pipeline::BuildPipeline,
    reserve, room,
    routes::RouteFiles,
    secrets, settings,
    status::{RegistrySize, Status},
    telemetry,
    told_registry::ToldRegistry,
};
use crate::{
    api::{self, ApiServer, Connections},
    build::{BuildParts, Builds},
    commands::{Commands, Door, Services},
    console,
    control::ControlServer,
    deploy::{Deployer, NetProber, SystemClock},
    disk::DiskFloor,
    domain::Timestamp,
    events::EventHub,
    gc::{Gc, GcParts},
    git::{Git, Repositories},
    keys,
    logs::Logs,
    metrics::{Metrics, MetricsParts},
    open_files,
    outbound::Outbound,
    receive::Receive,
    registry::{Keeper, Registry, RegistryRoom},
    runtime::{LateRuntime, Runtime, docker::DockerRuntime},
    ssh::SshServer,
    store::Store,
    traces::Traces,
};

/// Open files that are reckoned with: of one SSH connection, whose git has pipes, and of everything that is no client.
const FILES_OF_SSH: u64 = 8;
const FILES: u64 = 2048;

/// Runs the control plane until SIGTERM or SIGINT.
pub(super) fn run(place: &Place) -> anyhow::Result<ExitCode> {
    telemetry::init();
    allocator::give_back_soon();
    #[cfg(feature = "fail-points")]
    super::fail_points::arm()?;
    let config = place.load()?;
    let (traces, export) = telemetry::start_traces(&config.telemetry)?;
    let (api, ssh) = (config.api.max_connections as u64, config.ssh.max_connections as u64);
    open_files::raise_limit(api + ssh * FILES_OF_SSH + FILES);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("serve").build()?;
    let done = runtime.block_on(serve(config, &traces));
    // Blocking work that is left has had its time.
    runtime.shutdown_timeout(Duration::from_secs(5));
    if let Some(export) = export {
        export.stop();
    }
    done.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: Config, traces: &Traces) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data = DataDir::open(&config.data_dir)?;
    let store = reserve::open(&data, config.disk.min_free.0)?;
    let server = tokio::select! {
        server = Server::start(&config, &data, &store, traces) => server?,
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
    if let Ok(engine) = engine.engine() {
        engine.close(STOP_DEADLINE).await;
    }
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
    engine: LateRuntime<DockerRuntime>,
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

/// What everything else stands on.
struct Ground<'c> {
    config: &'c Config,
    data: &'c DataDir,
    store: Store,
    disk: DiskFloor,
    registry: Arc<dyn Registry>,
    runtime: Arc<dyn Runtime>,
    repositories: Repositories,
    logs: Logs,
    events: EventHub,
    started_at: Timestamp,
    traces: &'c Traces,
}

impl Server {
    async fn start(config: &Config, data: &DataDir, store: &Store, traces: &Traces) -> anyhow::Result<Self> {
        let started_at = Timestamp::now();
        let mut ground = Layer::new("ground");
        let (registry, keeper) = parts::start_registry(config, data, &mut ground).await?;
        let disk = room::disk_floor(config, data);
        let engine = parts::start_engine(config, data, store, &disk, &mut ground).await?;
        let runtime: Arc<dyn Runtime> = Arc::new(engine.clone());
        let logs = parts::start_logs(config, data, &runtime, &mut ground)?;
        let repositories = Repositories::new(data.join("repositories"));
        // Below those who tell it something.
        let (events, hub) = EventHub::start(store.clone(), &config.api_url()).await?;
        ground.spawn(hub.run(ground.stop.clone()));
        let registry: Arc<dyn Registry> = Arc::new(ToldRegistry::new(registry, events.sink().clone()));
        let on = Ground {
            config,
            data,
            store: store.clone(),
            disk,
            registry,
            runtime,
            repositories,
            logs,
            events,
            started_at,
            traces,
        };

        let mut work = Layer::new("work");
        on.repositories.clean()?;
        let deployer = on.start_deployer(&mut work)?;
        let builds = on.start_builds(&deployer, &mut work).await?;
        let git = parts::find_git(config, data)?;
        let gc = on.start_collections(keeper, &git, &builds, &mut work);

        let tokens = Arc::new(secrets::token_key(&data.join(TOKEN_KEY))?);
        let pipeline = BuildPipeline { builds: builds.clone(), logs: on.logs.clone(), tokens: tokens.clone() };
        let stop = CancellationToken::new();
        let settings = settings::receive(config, on.disk.clone(), traces)?;
        let repositories = on.repositories.clone();
        let receive = Receive::new(settings, git, repositories, store.clone(), Arc::new(pipeline), stop.clone());
        receive.recover().await?;
        let cron = parts::start_cron(config, store, &on.runtime, &on.logs, &mut work);
        let metrics = on.start_metrics(&deployer, &builds, &mut work);
        let outbound = Outbound::new(settings::outbound(config)?)?;
        let webhooks = parts::start_webhooks(config, store, &outbound, &mut work);
        let drains = parts::start_drains(config, store, &on.logs, &outbound, &mut work)?;
        let status = on.status();
        let commands = Commands::new(Services {
            drains,
            webhooks,
            store: store.clone(),
            events: on.events.clone(),
            publishing: builds.publishing(),
            builds: Arc::new(builds),
            sources: Arc::new(receive.clone()),
            registry: on.registry.clone(),
            deployer: Arc::new(deployer),
            cron: Arc::new(cron),
            logs: on.logs.clone(),
            metrics,
            runtime: on.runtime.clone(),
            repositories: on.repositories.clone(),
            tokens,
            collections: Arc::new(gc.clone()),
            platform: status.clone(),
            settings: settings::commands(config, traces),
        });
        if let Err(error) = commands.finish_destroying().await {
            tracing::warn!(%error, "what is left of destroyed environments stays until the next start");
        }
        let doors = open_doors(config, data, on.behind_doors(commands, receive.clone(), status, gc)).await?;
        Ok(Self { doors, work, ground, receive: Stopping { receive, stop }, engine, logs: on.logs })
    }
}

impl Ground<'_> {
    fn start_deployer(&self, work: &mut Layer) -> anyhow::Result<Deployer> {
        let routes = RouteFiles::new(self.data.join("router"))?;
        let (deployer, service) = Deployer::start(
            settings::deploy(self.config, self.data, self.traces),
            self.store.clone(),
            self.runtime.clone(),
            self.logs.clone(),
            Arc::new(routes),
            Arc::new(NetProber),
            Arc::new(SystemClock),
        );
        work.spawn(service.run(work.stop.clone()));
        Ok(deployer)
    }

    async fn start_builds(&self, deployer: &Deployer, work: &mut Layer) -> anyhow::Result<Builds> {
        let parts = BuildParts {
            store: self.store.clone(),
            runtime: self.runtime.clone(),
            registry: self.registry.clone(),
            repositories: self.repositories.clone(),
            delivery: Arc::new(deployer.clone()),
            logs: Arc::new(self.logs.clone()),
        };
        let (builds, service) =
            Builds::start(parts, settings::builds(self.config, self.data, &self.disk, self.traces)).await?;
        parts::look_for_stacks(&builds).await?;
        work.spawn(service.run(work.stop.clone()));
        Ok(builds)
    }

    fn start_collections(&self, keeper: Option<Keeper>, git: &Git, builds: &Builds, work: &mut Layer) -> Gc {
        let parts = GcParts {
            store: self.store.clone(),
            runtime: self.runtime.clone(),
            registry: self.registry.clone(),
            room: keeper.map(|keeper| Arc::new(keeper) as Arc<dyn RegistryRoom>),
            repositories: self.repositories.clone(),
            git: git.clone(),
            logs: self.logs.clone(),
            stacks: Arc::new(builds.clone()),
            publishing: builds.publishing(),
            disk: self.disk.clone(),
        };
        let (gc, collections) = Gc::start(parts, room::gc_settings(self.config, self.data));
        work.spawn(collections.run(work.stop.clone()));
        gc
    }

    fn start_metrics(&self, deployer: &Deployer, builds: &Builds, work: &mut Layer) -> Metrics {
        let parts = MetricsParts {
            store: self.store.clone(),
            running: Arc::new((deployer.clone(), builds.clone())),
            runtime: self.runtime.clone(),
            registry: self.registry.clone(),
            logs: self.logs.clone(),
            disk: self.disk.clone(),
            router: self.data.join("router"),
        };
        let (metrics, sampler) = Metrics::start(parts, settings::metrics(self.config, self.data));
        work.spawn(sampler.run(work.stop.clone()));
        metrics
    }

    /// What the doors lead to.
    fn behind_doors(&self, commands: Commands, receive: Receive, status: Arc<Status>, gc: Gc) -> Doors {
        let check = Arc::new(Check {
            store: self.store.clone(),
            repositories: self.repositories.clone(),
            logs: self.logs.clone(),
            runtime: self.runtime.clone(),
            registry: self.registry.clone(),
            remover: Arc::new(commands.clone()),
        });
        Doors { commands, receive, check, status, gc }
    }

    fn status(&self) -> Arc<Status> {
        let managed = self.config.registry.managed;
        Arc::new(Status {
            runtime: self.runtime.clone(),
            registry: self.registry.clone(),
            registry_files: managed.then(|| RegistrySize::new(self.data.join("registry"))),
            router: self.data.join("router"),
            disk: self.disk.clone(),
            started_at: self.started_at,
        })
    }
}

async fn open_doors(config: &Config, data: &DataDir, backend: Doors) -> anyhow::Result<Layer> {
    let mut doors = Layer::new("doors");
    let settings = settings::ssh(config);
    let host_key = keys::host_key(&data.join("keys/ssh_host_ed25519_key"))?;
    let backend = Arc::new(backend);
    let server = SshServer::bind(&config.ssh.listen, settings, host_key, backend.clone()).await?;
    doors.spawn(server.run(doors.stop.clone()));
    let (commands, api_settings) = (backend.commands.clone(), settings::api(config));
    let (url, ssh) = (commands.settings.api_url.clone(), commands.program(Door::Ssh));
    let site = console::beside(api::router(commands, &api_settings), &url, &ssh);
    let places = Connections::new(&api_settings);
    for address in &config.api.listen {
        let server = ApiServer::bind(*address, site.clone(), &places).await?;
        doors.spawn(server.run(doors.stop.clone()));
    }
    // Last: whoever asks it finds everything ready.
    let control = ControlServer::bind(&config.control_socket(), backend).await?;
    doors.spawn(control.run(doors.stop.clone()));
    Ok(doors)
}
