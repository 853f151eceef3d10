//! The concrete runtime: Docker, as the configuration says, whenever it comes.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{config::Config, data_dir::DataDir, leftovers};
use crate::{
    disk::DiskFloor,
    runtime::{
        LateRuntime,
        docker::{DockerRuntime, DockerSettings},
    },
    store::Store,
};

/// How long the start of the server waits for the engine. After that it goes on without: who asks is told, and builds and
/// deployments wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// First and longest pause before an engine that is away is looked for again; a socket that is not there yet has no event.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));
/// How long it may take to say what it is; generous, since one that is late is no reason to begin anew.
const CONNECT_DEADLINE: Duration = Duration::from_secs(120);
/// How long clearing up what an earlier server left may take before the engine is used all the same; what is left then goes beside that.
const CLEAR_DEADLINE: Duration = Duration::from_secs(60);

/// What is said until it is known better.
pub(super) const NOT_YET: &str = "the engine has not answered yet";

/// How the engine is to be used.
///
/// # Errors
/// When that cannot be, whatever the engine says.
pub(super) fn settings(config: &Config, data: &DataDir) -> anyhow::Result<DockerSettings> {
    let login = config.registry.username.clone().zip(config.registry.password.clone());
    let host_ports = config.router.listen.iter().map(std::net::SocketAddr::port).chain(config.router.public_port);
    let host_ports: BTreeSet<u16> = host_ports.collect();
    let settings = DockerSettings {
        socket: config.runtime.socket.clone(),
        registry_login: login,
        host_ports: host_ports.into_iter().collect(),
        network_pool: config.runtime.subnet_pool.clone(),
        denied_networks: config.runtime.denied_networks.clone(),
        ..DockerSettings::new(&config.registry.address, data.instance())
    };
    DockerRuntime::check(&settings)?;
    Ok(settings)
}

/// Connects to the engine, which has to be there.
pub(super) async fn connect(config: &Config, data: &DataDir) -> anyhow::Result<DockerRuntime> {
    DockerRuntime::connect(settings(config, data)?).await
}

/// Brings the engine to `late` as soon as it answers and what an earlier server left there is cleared away; then keeps its packet filter
/// rules in place. Until `stop`.
pub(super) async fn attend(
    settings: DockerSettings,
    store: Store,
    late: LateRuntime<DockerRuntime>,
    disk: DiskFloor,
    stop: CancellationToken,
) {
    let found = tokio::select! {
        () = stop.cancelled() => return,
        found = find(&settings, &late) => found,
    };
    let cleared = tokio::select! {
        () = stop.cancelled() => return,
        cleared = prepare(&found, &late, &store, &disk) => cleared,
    };
    late.arrived(found.clone());
    let clear_on = async {
        if !cleared {
            tokio::select! {
                () = stop.cancelled() => {}
                () = leftovers::clear_on(&found, &store) => {}
            }
        }
    };
    tokio::join!(found.clone().keep_guard(stop.clone()), clear_on);
}

/// What is done before anything uses the engine. Returns whether all is cleared away that an earlier server left on it.
async fn prepare(found: &DockerRuntime, late: &LateRuntime<DockerRuntime>, store: &Store, disk: &DiskFloor) -> bool {
    late.still_away("what an earlier server left on it is being cleared away".to_owned());
    // Before anything that uses it goes on which a killed server was in the middle of. Nothing stands on it.
    let cleared = match timeout(CLEAR_DEADLINE, leftovers::clear(found, store)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!("what an earlier server left on the engine is still there; trying again: {error:#}");
            false
        }
        Err(_) => {
            tracing::warn!("what an earlier server left on the engine could not be cleared away in time; it goes on");
            false
        }
    };
    match timeout(PATIENCE, found.root_directory()).await {
        Ok(Ok(root)) => root.into_iter().for_each(|root| disk.add(root)),
        _ => tracing::warn!("the engine does not say where it keeps its images; only the data directory is watched"),
    }
    cleared
}

async fn find(settings: &DockerSettings, late: &LateRuntime<DockerRuntime>) -> DockerRuntime {
    let mut pause = PAUSES.0;
    let mut told = None;
    loop {
        let error = match timeout(CONNECT_DEADLINE, DockerRuntime::connect(settings.clone())).await {
            Ok(Ok(found)) => return found,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("the engine at {} does not answer", settings.socket.display()),
        };
        if told.as_ref() != Some(&error) {
            tracing::warn!("{error}; looking for it again and again");
        }
        late.still_away(error.clone());
        told = Some(error);
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}
