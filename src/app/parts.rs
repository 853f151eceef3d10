//! The parts of the control plane that stand on few others, each as the configuration says.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::time::timeout;

use super::{config::Config, data_dir::DataDir, engine, layer::Layer, settings};
use crate::{
    build::Builds,
    cron::{Cron, CronParts},
    deploy::SystemClock,
    disk::DiskFloor,
    drains::{DrainParts, Drains},
    git::Git,
    logs::{Logs, access::AccessReceiver, collector::Collector},
    outbound::Outbound,
    receive::install_hooks,
    registry::{Credentials, Keeper, ManagedRegistry, ManagedSettings, OciRegistry, RegistryError},
    router::table::ACCESS_SOCKET,
    runtime::{LateRuntime, Runtime, docker::DockerRuntime},
    store::Store,
    webhooks::{WebhookParts, Webhooks},
};

/// How long the start waits for the stacks to be in the registry.
const STACKS_DEADLINE: Duration = Duration::from_secs(5);

/// The engine, if it comes within a moment. If not, the server goes on without: apps run, whoever asks is told, and it is taken as soon as
/// it is there.
pub(super) async fn start_engine(
    config: &Config,
    data: &DataDir,
    store: &Store,
    disk: &DiskFloor,
    ground: &mut Layer,
) -> anyhow::Result<LateRuntime<DockerRuntime>> {
    let engine = LateRuntime::new(engine::NOT_YET);
    let settings = engine::settings(config, data)?;
    ground.spawn(engine::attend(settings, store.clone(), engine.clone(), disk.clone(), ground.stop.clone()));
    match timeout(engine::PATIENCE, engine.until_there()).await {
        Ok(()) => tracing::info!(engine = engine.capabilities().engine, "connected to the engine"),
        Err(_) => tracing::warn!("no engine answers; starting without it, and taking it up as soon as it does"),
    }
    Ok(engine)
}

/// The registry, and what looks after its room when it is ours.
pub(super) async fn start_registry(
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
pub(super) async fn look_for_stacks(builds: &Builds) -> anyhow::Result<()> {
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

pub(super) fn start_logs(
    config: &Config,
    data: &DataDir,
    runtime: &Arc<dyn Runtime>,
    ground: &mut Layer,
) -> anyhow::Result<Logs> {
    let logs = Logs::open(data.join("logs"), settings::logs(&config.logs))?;
    let access = AccessReceiver::bind(&data.join("router").join(ACCESS_SOCKET))?;
    ground.spawn(access.run(logs.clone(), ground.stop.clone()));
    ground.spawn(Collector::new(runtime.clone(), logs.clone()).run(ground.stop.clone()));
    Ok(logs)
}

pub(super) fn start_cron(
    config: &Config,
    store: &Store,
    runtime: &Arc<dyn Runtime>,
    logs: &Logs,
    work: &mut Layer,
) -> Cron {
    let settings = settings::cron(config);
    let (store, runtime, logs) = (store.clone(), runtime.clone(), logs.clone());
    let (cron, service) = Cron::start(CronParts { store, runtime, logs, clock: Arc::new(SystemClock), settings });
    work.spawn(service.run(work.stop.clone()));
    cron
}

/// Where the logs are sent. They stop before the logs' last flush: what comes after is sent at the next start.
pub(super) fn start_drains(
    config: &Config,
    store: &Store,
    logs: &Logs,
    outbound: &Outbound,
    work: &mut Layer,
) -> anyhow::Result<Drains> {
    let (store, logs, settings) = (store.clone(), logs.clone(), settings::drains(&config.drains));
    let outbound = outbound.clone();
    let (drains, service) = Drains::start(DrainParts { store, logs, outbound, settings })?;
    work.spawn(service.run(work.stop.clone()));
    Ok(drains)
}

pub(super) fn start_webhooks(config: &Config, store: &Store, outbound: &Outbound, work: &mut Layer) -> Webhooks {
    let settings = settings::webhooks(config);
    let (store, outbound) = (store.clone(), outbound.clone());
    let (webhooks, service) = Webhooks::start(WebhookParts { store, outbound, clock: Arc::new(SystemClock), settings });
    work.spawn(service.run(work.stop.clone()));
    webhooks
}

/// git, with our hooks.
pub(super) fn find_git(config: &Config, data: &DataDir) -> anyhow::Result<Git> {
    let hooks = data.join("hooks");
    install_hooks(&hooks).context("cannot install the git hooks")?;
    Ok(Git { binary: Git::find()?, hooks, max_input: config.git.max_input_size.0 })
}
