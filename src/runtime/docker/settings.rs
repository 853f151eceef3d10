//! What the operator decides about the engine.

use std::path::PathBuf;

/// Where cloud machines ask for what only their owner may know: link-local addresses, and two clouds' own.
pub const METADATA_NETWORKS: [&str; 3] = ["169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32"];

/// Settings of [`super::DockerRuntime`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerSettings {
    /// The engine's Unix socket.
    pub socket: PathBuf,
    /// The registry as the engine reaches it, `127.0.0.1:5000`; images are pulled as `REGISTRY/REPOSITORY@DIGEST`.
    pub registry: String,
    /// How the repositories of Berth's own images begin; other images from the same registry are not Berth's to remove.
    pub repository_prefix: String,
    /// User name and password for pulling, when the registry asks for them. Never given to a container.
    pub registry_login: Option<(String, String)>,
    /// Identity of this Berth (its data directory's id). Everything made on the engine is labelled with it, and nothing
    /// without that label is ever touched.
    pub instance: String,
    /// First part of the names of everything made on the engine.
    pub name_prefix: String,
    /// User and group id that tenants' code runs as; the one that stack images are made for.
    pub uid: u32,
    /// TCP ports of the host that tenants' containers may reach: the router's. Everything else on the host is closed to them.
    pub host_ports: Vec<u16>,
    /// Networks that tenants' containers may not reach, besides the host: cloud metadata services by default.
    pub denied_networks: Vec<String>,
    /// Where tenants' networks get their addresses from; cut into one /24 per tenant. The default holds 1024 tenants.
    pub network_pool: String,
    /// Size of `/dev/shm` in a container, in bytes; counted against its memory limit as it is used.
    pub shm_size: u64,
    /// The engine's own log of a replica: the size of a file in bytes, and how many. Berth copies the lines out as they come; this is
    /// what bridges a time when Berth is down.
    pub log_file_size: u64,
    pub log_files: u32,
}

impl DockerSettings {
    /// Defaults for a registry address and an instance id.
    pub fn new(registry: impl Into<String>, instance: impl Into<String>) -> Self {
        Self {
            socket: PathBuf::from("/var/run/docker.sock"),
            registry: registry.into(),
            repository_prefix: "berth/".to_owned(),
            registry_login: None,
            instance: instance.into(),
            name_prefix: "berth".to_owned(),
            uid: 10_001,
            host_ports: vec![8080, 8443],
            denied_networks: METADATA_NETWORKS.map(str::to_owned).into(),
            network_pool: "10.200.0.0/14".to_owned(),
            shm_size: 64 << 20,
            log_file_size: 8 << 20,
            log_files: 2,
        }
    }
}
