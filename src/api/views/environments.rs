//! Environments: what runs, config, host names, jobs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Moment;

/// An environment to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NewEnvironment {
    /// `TENANT/APP/ENV`
    #[schema(example = "acme/shop/staging")]
    pub(in crate::api) name: String,
}

/// An environment that was made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct EnvironmentCreated {
    name: String,
    /// Where to push to
    remote: String,
    url: String,
}

/// An environment in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct EnvironmentRow {
    name: String,
    /// The version of the release that was deployed last
    release: Option<u64>,
    deploy_branch: Option<String>,
    url: String,
}

/// An environment, what runs in it, and what it waits for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Environment {
    env: String,
    /// The version of the release that was deployed last
    release: Option<u64>,
    /// That of the release that should run
    target: Option<u64>,
    url: String,
    /// Where the newest deployment stands
    #[schema(value_type = Option<Object>)]
    deployment: Option<serde_json::Value>,
    /// Whether what runs is what should
    settled: bool,
    /// What is waited for, for people
    waiting: Vec<String>,
    why: Vec<Wait>,
    processes: BTreeMap<String, Process>,
    replicas: Vec<Replica>,
}

/// What a process type waits for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Wait {
    process: String,
    /// New replicas that serve
    ready: u32,
    wanted: u32,
    why: String,
    #[schema(value_type = String, format = DateTime)]
    since: Moment,
    /// When the waiting ends by itself
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Moment>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Process {
    wanted: u32,
    /// How many of these serve, of whichever release
    ready: u32,
}

/// A running container.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Replica {
    process: String,
    index: u32,
    /// As in `ready`
    state: String,
    release: u64,
    /// Since when it is in this state
    #[schema(value_type = String, format = DateTime)]
    since: Moment,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Moment>,
    reason: Option<String>,
}

/// What runs in an environment, in a few words.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Running {
    env: String,
    /// The version of the release that was deployed last
    release: Option<u64>,
    /// Whether what runs is what should
    settled: bool,
    /// Not there where what is waited for is asked for
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    processes: Option<Vec<RunningProcess>>,
    /// What is waited for, for people
    waiting: Vec<String>,
    /// The same, by process type; there where it is asked for
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    why: Option<Vec<Wait>>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RunningProcess {
    process: String,
    /// How many of those wanted serve, of whichever release
    ready: u32,
    wanted: u32,
}

/// Replicas by process type.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Scale {
    env: String,
    scale: BTreeMap<String, u32>,
}

/// That all replicas are being replaced, one after another.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Restart {
    env: String,
    restarted: bool,
}

/// What a change of config has led to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ConfigChanged {
    changed: bool,
    #[serde(default)]
    env: Option<String>,
    /// The release that brings it, if something runs
    #[serde(default)]
    release: Option<u64>,
    #[serde(default)]
    deployment: Option<u64>,
    #[serde(default)]
    url: Option<String>,
}

/// A host name.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Domain {
    domain: String,
    /// `platform`, `manifest`, `manifest, taken`, `added` or `kept`
    from: String,
}

/// A job that runs by the clock.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct CronJob {
    job: String,
    schedule: String,
    timezone: String,
    command: String,
    overlap: String,
    timeout_seconds: u64,
    #[schema(value_type = Option<String>, format = DateTime)]
    next: Option<Moment>,
    problem: Option<String>,
    last: Option<CronRun>,
    release: Option<u64>,
}

/// One run of a job, or why there was none.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(in crate::api) struct CronRun {
    env: String,
    job: String,
    number: u64,
    #[schema(value_type = Option<String>, format = DateTime)]
    scheduled_at: Option<Moment>,
    requested_by: Option<String>,
    release: u64,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Moment>,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Moment>,
    /// `running`, `succeeded`, `failed`, `stopped`, `skipped` or `missed`
    state: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    exit: Option<i64>,
    /// How many more in a row were left out for the same reason
    repeats: u64,
    /// The last lines of its output
    tail: Vec<String>,
}
