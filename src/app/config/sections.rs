//! The sections. Defaults are said here and, for people, in `config/berth.yaml`; a test keeps the two alike.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use jiff::fmt::serde::unsigned_duration::friendly::compact::required as duration;
use serde::Deserialize;

use super::{Bytes, PublicUrl};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn every_address(port: u16) -> Vec<SocketAddr> {
    // On Linux an IPv6 wildcard socket takes IPv4 connections too.
    vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))]
}

/// The SSH door.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ssh {
    pub listen: Vec<SocketAddr>,
    /// What the users type as host name; for messages.
    pub host: String,
    /// Of users who have logged in; operators get in beyond it.
    pub max_connections: usize,
    pub max_connections_per_user: usize,
    pub max_unauthenticated: usize,
    pub max_unauthenticated_per_address: usize,
    #[serde(with = "duration")]
    pub login_grace: Duration,
    #[serde(with = "duration")]
    pub keepalive: Duration,
}

impl Default for Ssh {
    fn default() -> Self {
        Self {
            listen: every_address(2222),
            host: "localhost".into(),
            max_connections: 500,
            max_connections_per_user: 32,
            max_unauthenticated: 100,
            max_unauthenticated_per_address: 10,
            login_grace: seconds(30),
            keepalive: seconds(15),
        }
    }
}

/// The API.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    pub listen: Vec<SocketAddr>,
    /// How users reach it, and the console; see `Config::api_url`.
    pub url: Option<PublicUrl>,
    /// Connections at the same time, at all addresses together.
    pub max_connections: usize,
    /// Requests of one user a second; ten times as many may come at once.
    pub rate_per_user: std::num::NonZeroU32,
}

impl Api {
    /// Where it listens unless said otherwise.
    pub(super) const PORT: u16 = 7000;
}

impl Default for Api {
    fn default() -> Self {
        // Tokens must not go over a network in the clear.
        let listen = vec![SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, Self::PORT))];
        Self { listen, url: None, max_connections: 2000, rate_per_user: std::num::NonZeroU32::MIN.saturating_add(49) }
    }
}

/// Pushes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Git {
    /// Largest pack taken in one push.
    pub max_input_size: Bytes,
    /// Whether a push without `berth.yaml` is refused.
    pub require_manifest: bool,
}

impl Default for Git {
    fn default() -> Self {
        Self { max_input_size: Bytes(1 << 30), require_manifest: false }
    }
}

/// What comes first in the URLs of apps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    /// As in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The data plane.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Router {
    pub listen: Vec<SocketAddr>,
    /// The port that users see, when something in front maps it.
    pub public_port: Option<u16>,
    /// How users reach the router: `https` when something in front ends TLS.
    pub public_scheme: Scheme,
    /// Connections of one client at a time; 0: no limit.
    pub max_connections_per_client: usize,
    /// How long a client may take for a request's head; also how long an idle connection is kept.
    #[serde(with = "duration")]
    pub head_timeout: Duration,
    #[serde(with = "duration")]
    pub first_byte_timeout: Duration,
    #[serde(with = "duration")]
    pub shutdown_grace: Duration,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            listen: every_address(8080),
            public_port: None,
            public_scheme: Scheme::Http,
            max_connections_per_client: 4096,
            head_timeout: seconds(60),
            first_byte_timeout: seconds(30),
            shutdown_grace: seconds(30),
        }
    }
}

/// Where images are kept.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Whether `berth serve` starts and supervises Debian's `docker-registry` at `address`.
    pub managed: bool,
    pub address: String,
    pub username: Option<String>,
    pub password: Option<String>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { managed: true, address: "127.0.0.1:5000".into(), username: None, password: None }
    }
}

/// The container engine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// The engine's socket.
    pub socket: PathBuf,
    /// Where tenants' networks get their subnets (a /24 each) from.
    pub subnet_pool: String,
    /// Processes and threads of one container.
    pub pids: u32,
    /// Networks (CIDR) that no container may reach.
    pub denied_networks: Vec<String>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            socket: "/var/run/docker.sock".into(),
            subnet_pool: "10.201.0.0/16".into(),
            pids: 1024,
            denied_networks: crate::runtime::docker::METADATA_NETWORKS.map(str::to_owned).into(),
        }
    }
}

/// Builds.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Builds {
    /// Builds at the same time, over all environments.
    pub concurrency: usize,
    /// Builds that may wait, in all and of one tenant.
    pub queue: usize,
    pub queue_per_tenant: usize,
    #[serde(with = "duration")]
    pub time_limit: Duration,
    pub memory: Bytes,
    /// Cores.
    pub cpu: f64,
    pub pids: u32,
    /// Largest slug, uncompressed and without the stack.
    pub slug_limit: Bytes,
    /// Certificates that builds trust, from the host; empty for the stack's own.
    pub ca_bundle: PathBuf,
    /// Variables that every build sees, such as a proxy's.
    pub env: BTreeMap<String, String>,
    /// Prefixes of git URLs that manifests may name as buildpacks.
    pub allowed_buildpacks: Vec<String>,
}

impl Default for Builds {
    fn default() -> Self {
        Self {
            concurrency: 2,
            queue: 100,
            queue_per_tenant: 20,
            time_limit: seconds(900),
            memory: Bytes(2 << 30),
            cpu: 2.0,
            pids: 4096,
            slug_limit: Bytes(500 << 20),
            ca_bundle: "/etc/ssl/certs/ca-certificates.crt".into(),
            env: BTreeMap::new(),
            allowed_buildpacks: Vec::new(),
        }
    }
}

/// What processes get unless their manifest says otherwise, and how replicas are replaced.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deploy {
    /// Cores.
    pub cpu: f64,
    pub memory: Bytes,
    /// The most that a manifest may ask for one replica.
    pub max_cpu: f64,
    pub max_memory: Bytes,
    /// Longest wait for the requests of a replica that is to stop.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// Between SIGTERM and SIGKILL.
    #[serde(with = "duration")]
    pub stop_grace: Duration,
}

impl Default for Deploy {
    fn default() -> Self {
        Self {
            cpu: 1.0,
            memory: Bytes(512 << 20),
            max_cpu: 4.0,
            max_memory: Bytes(4 << 30),
            drain_timeout: seconds(30),
            stop_grace: seconds(10),
        }
    }
}

/// Jobs that run by the clock.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cron {
    /// How late a run may be started that came due while it could not be.
    #[serde(with = "duration")]
    pub starting_deadline: Duration,
    /// Runs at the same time, in all and of one tenant.
    pub concurrency: usize,
    pub per_tenant: usize,
    /// Runs that are remembered, per job.
    pub history: u64,
}

impl Default for Cron {
    fn default() -> Self {
        Self { starting_deadline: seconds(3600), concurrency: 20, per_tenant: 5, history: 50 }
    }
}

/// Connections to where tenants want: webhooks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outbound {
    /// Networks (CIDR) that may be connected to though they are not public.
    pub allowed_networks: Vec<String>,
    /// From looking up a name to the connection.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
}

impl Default for Outbound {
    fn default() -> Self {
        Self { allowed_networks: Vec::new(), connect_timeout: seconds(10) }
    }
}

/// Events sent to where tenants want.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhooks {
    /// Whether URLs may begin with `http://`.
    pub allow_http: bool,
    /// Webhooks of one tenant.
    pub per_tenant: usize,
    /// Requests under way, in all and of one tenant.
    pub concurrency: usize,
    pub concurrency_per_tenant: usize,
    /// How long one request may take.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// How long one event is tried again.
    #[serde(with = "duration")]
    pub give_up_after: Duration,
    /// A webhook that nothing gets through to for so long is disabled.
    #[serde(with = "duration")]
    pub disable_after: Duration,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            allow_http: false,
            per_tenant: 20,
            concurrency: 64,
            concurrency_per_tenant: 8,
            timeout: seconds(10),
            give_up_after: seconds(24 * 3600),
            disable_after: seconds(72 * 3600),
        }
    }
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logs {
    /// Kept per environment.
    pub per_environment: Bytes,
    /// Kept per build.
    pub per_build: Bytes,
    /// Build logs kept per environment by collections; between them, at most 20 times as many are there.
    pub builds: usize,
    /// What one replica may write a second.
    pub replica_rate: Bytes,
}

impl Default for Logs {
    fn default() -> Self {
        Self { per_environment: Bytes(16 << 20), per_build: Bytes(8 << 20), builds: 50, replica_rate: Bytes(1 << 20) }
    }
}

/// Log drains.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drains {
    /// Whether lines may go over the network as they are.
    pub allow_plain: bool,
    /// Certificates that are trusted beside the host's, for syslog over TLS; empty for none.
    pub ca_file: PathBuf,
    /// Drains of all environments together.
    pub most: usize,
}

impl Default for Drains {
    fn default() -> Self {
        Self { allow_plain: false, ca_file: PathBuf::new(), most: 1000 }
    }
}

/// Metrics of the environments over 24 hours.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Environments that are remembered.
    pub environments: usize,
    /// Memory for all of them; on disk there may be twice as much.
    pub memory: Bytes,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { environments: 2000, memory: Bytes(128 << 20) }
    }
}

/// What is kept, and when the rest is taken away.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gc {
    /// Between two collections.
    #[serde(with = "duration")]
    pub every: Duration,
    /// Newest releases kept per environment, beside those in use.
    pub releases: usize,
    /// Of one app's build cache, and of all.
    pub cache_per_app: Bytes,
    pub cache_total: Bytes,
}

impl Default for Gc {
    fn default() -> Self {
        Self { every: seconds(6 * 3600), releases: 10, cache_per_app: Bytes(4 << 30), cache_total: Bytes(20 << 30) }
    }
}

/// Room on disk.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disk {
    /// With less free space, of the data directory or the engine, pushes and builds are refused.
    pub min_free: Bytes,
}

impl Default for Disk {
    fn default() -> Self {
        Self { min_free: Bytes(2 << 30) }
    }
}
