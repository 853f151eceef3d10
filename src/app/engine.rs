//! The concrete runtime: Docker, as the configuration says.

use std::collections::BTreeSet;

use super::{config::Config, data_dir::DataDir};
use crate::runtime::docker::{DockerRuntime, DockerSettings};

/// Connects to the engine.
pub(super) async fn connect(config: &Config, data: &DataDir) -> anyhow::Result<DockerRuntime> {
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
    DockerRuntime::connect(settings).await
}
