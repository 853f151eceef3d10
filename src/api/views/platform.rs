//! The platform as a whole.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Moment;

/// What to collect.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Collect {
    /// Only say what would go
    #[serde(default)]
    pub(in crate::api) dry_run: bool,
}

/// What was collected.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Collected {
    dry_run: bool,
    /// At most 2000 of them
    #[schema(value_type = Vec<Object>)]
    gone: Vec<serde_json::Value>,
    #[schema(value_type = Object)]
    sums: serde_json::Value,
    registry_millis: u64,
    millis: u64,
    /// What could not be taken, and goes the next time
    failures: Vec<String>,
}

/// The platform on one page.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Platform {
    server: PlatformServer,
    /// What of the engine, the registry, the router and the disk is not as it has to be
    missing: Vec<PlatformMissing>,
    engine: PlatformEngine,
    registry: PlatformRegistry,
    router: PlatformRouter,
    disk: PlatformDisk,
    queue: PlatformQueue,
    jobs: PlatformJobs,
    counts: PlatformCounts,
}

/// The control plane itself.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformServer {
    version: String,
    #[schema(value_type = String, format = DateTime)]
    started_at: Moment,
}

/// Something that is missing.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformMissing {
    /// `engine`, `registry`, `router` or `disk`
    what: String,
    why: String,
    /// What that means, and what to do
    next: String,
}

/// The container engine.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformEngine {
    /// Name and version
    name: String,
    answers: bool,
    /// Why it does not
    why: Option<String>,
    /// Containers of replicas, whatever their state
    containers: Option<u64>,
}

/// Where images are kept.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformRegistry {
    address: String,
    /// Whether the server runs it itself
    managed: bool,
    answers: bool,
    /// Why it does not
    why: Option<String>,
    /// What a managed one takes on disk, as it was counted last
    bytes: Option<u64>,
}

/// What serves the requests.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformRouter {
    alive: bool,
    pid: Option<u32>,
    /// Generation of the routes that is to be in force
    wanted: Option<u64>,
    /// The one that is
    acknowledged: Option<u64>,
    /// Why something of this is not known
    why: Option<String>,
}

/// Room on disk.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformDisk {
    /// Bytes that have to be free on each file system
    floor: u64,
    file_systems: Vec<PlatformFileSystem>,
    /// Why they are not known
    why: Option<String>,
}

/// A file system that the server or the engine writes to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformFileSystem {
    path: String,
    /// Bytes
    free: u64,
    /// Bytes
    total: u64,
}

/// The builds that have not ended.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformQueue {
    /// The oldest first
    running: Vec<PlatformBuild>,
    /// In the order of their turns
    waiting: Vec<PlatformBuild>,
    /// Places that are taken: a build whose release is being deployed takes none
    building: u64,
    /// Builds at the same time
    places: u64,
    /// Builds that may wait
    waiting_places: u64,
}

/// A build that has not ended.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformBuild {
    env: String,
    number: u64,
    /// `queued`, `building` or `deploying`
    state: String,
    /// When it was begun; or queued, when it waits
    #[schema(value_type = String, format = DateTime)]
    since: Moment,
}

/// Jobs that run, by their kind.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformJobs {
    one_off: PlatformPlaces,
    cron: PlatformPlaces,
}

/// How many run, and may run at the same time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformPlaces {
    running: u64,
    places: u64,
}

/// How many there are.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlatformCounts {
    tenants: u64,
    apps: u64,
    environments: u64,
    /// Not there when the deployer did not say in time
    replicas_wanted: Option<u64>,
    replicas_healthy: Option<u64>,
}
