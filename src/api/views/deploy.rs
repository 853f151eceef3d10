//! Builds, releases, deployments.

use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::{Array, ArrayBuilder, Object, Type, schema::OneOfBuilder},
};

use super::Moment;

/// A build.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Build {
    env: String,
    number: u64,
    commit: String,
    /// `queued`, `building`, `deploying`, `succeeded`, `failed` or `cancelled`
    state: String,
    reason: Option<String>,
    pushed_by: String,
    #[schema(value_type = String, format = DateTime)]
    queued_at: Moment,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Moment>,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Moment>,
    release: Option<u64>,
    image: Option<String>,
    #[schema(schema_with = timings)]
    timings_ms: Vec<(String, u64)>,
}

/// Pairs of a stage and its time. As `prefixItems`, which would say more, generators of clients do not know it.
fn timings() -> Array {
    let either = OneOfBuilder::new().item(Object::with_type(Type::String)).item(Object::with_type(Type::Integer));
    let pair = ArrayBuilder::new().items(either).min_items(Some(2)).max_items(Some(2));
    let pairs = ArrayBuilder::new().description(Some("How long each stage took: its name, and milliseconds"));
    pairs.items(pair).build()
}

/// A build that was queued.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct BuildQueued {
    env: String,
    build: u64,
    commit: String,
}

/// A build that was cancelled.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct BuildCancelled {
    env: String,
    build: u64,
}

/// A release in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ReleaseRow {
    version: u64,
    /// `current`, `deploying`, `replaced`, `failed`, `superseded`, `cancelled` or `-`
    state: String,
    reason: String,
    commit: String,
    created_by: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
    image: String,
}

/// A release.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Release {
    env: String,
    version: u64,
    reason: String,
    created_by: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
    commit: String,
    image: String,
    build: Option<u64>,
    release_command: Option<String>,
    #[schema(value_type = Object)]
    processes: serde_json::Value,
    /// Names of its config variables
    config_names: Vec<String>,
    domains: Vec<String>,
}

/// A deployment that has begun, to be followed at `deployments/N`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct DeploymentBegun {
    env: String,
    release: u64,
    deployment: u64,
    url: String,
    changed: bool,
}

/// A deployment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Deployment {
    env: String,
    release: u64,
    from: Option<u64>,
    /// `running`, `succeeded`, `failed`, `cancelled` or `superseded`
    state: String,
    reason: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    started_at: Moment,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Moment>,
    /// Of what failed; not there in lists
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    last_log_lines: Option<Vec<String>>,
    /// What it waits for, while it is under way; not there in lists
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    waiting: Option<Vec<String>>,
}

/// A deployment that was given up.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct DeploymentCancelled {
    env: String,
    cancelled: u64,
    serving: Option<u64>,
}

/// Which release to go back to.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Rollback {
    /// The one before, where nothing is said
    #[serde(default)]
    pub(in crate::api) version: Option<u64>,
}

/// How to build the last commit again.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Redeploy {
    /// From nothing
    #[serde(default)]
    pub(in crate::api) no_cache: bool,
}

/// Where to promote from.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Promote {
    /// `TENANT/APP/ENV`
    #[schema(example = "acme/shop/dev")]
    pub(in crate::api) from: String,
}

impl BuildQueued {
    pub(in crate::api) fn of(build: &crate::domain::Build) -> Self {
        Self { env: build.env.to_string(), build: build.number.0, commit: build.commit.clone() }
    }
}

impl DeploymentBegun {
    pub(in crate::api) fn of(env: &crate::domain::EnvRef, version: crate::domain::ReleaseVersion, url: String) -> Self {
        Self { env: env.to_string(), release: version.0, deployment: version.0, url, changed: true }
    }
}
