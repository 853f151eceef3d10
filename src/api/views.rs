//! What the API shows and takes: the form of each resource, as the OpenAPI document has it.
//!
//! They are read from what the commands print with `--json`; a test keeps the two alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::Timestamp;

/// A moment, RFC 3339, UTC.
type Moment = Timestamp;

/// Who asks.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Whoami {
    user: String,
    /// Whether they manage the platform
    operator: bool,
    /// Their role in each of their tenants
    tenants: BTreeMap<String, RoleName>,
    /// The token that was used
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    token: Option<serde_json::Value>,
}

/// What a member is to a tenant.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum RoleName {
    Viewer,
    Developer,
    Owner,
}

/// A public key.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    /// `SHA256:…`, as OpenSSH prints it
    fingerprint: String,
    openssh: String,
    algorithm: String,
    comment: String,
    user: String,
    #[schema(value_type = String, format = DateTime)]
    added_at: Moment,
}

/// Keys to be registered.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKeys {
    /// Whose they are; the user is made if there is none of that name
    pub(super) user: String,
    /// As in a `.pub` file, one a line
    pub(super) keys: String,
}

/// What became of keys.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysAdded {
    user: String,
    operator: bool,
    /// Whether the user is new
    created: bool,
    keys: Vec<KeyAdded>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyAdded {
    fingerprint: String,
    algorithm: String,
    comment: String,
    /// Whether it was not there before
    added: bool,
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ScopeName {
    /// Look on
    #[default]
    Read,
    /// Also push, scale, roll back
    Deploy,
    /// All that its user may
    Full,
}

impl From<ScopeName> for crate::domain::TokenScope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Read => Self::Read,
            ScopeName::Deploy => Self::Deploy,
            ScopeName::Full => Self::Full,
        }
    }
}

/// A token to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// What it is for, as in `ci`
    pub(super) name: String,
    #[serde(default)]
    pub(super) scope: ScopeName,
    /// Only in this tenant
    #[serde(default)]
    pub(super) tenant: Option<String>,
    /// For how long: 12h, 90d (where nothing is said), 8w; at most 365d
    #[serde(default)]
    pub(super) expires: Option<String>,
}

/// A token, without its secret.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Token {
    id: String,
    name: String,
    user: String,
    scope: ScopeName,
    tenant: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Moment,
    /// To the hour
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Moment>,
    expired: bool,
    /// The id of the token that it was made with
    made_with: Option<String>,
}

/// A token that was made, with its secret.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct TokenCreated {
    #[serde(flatten)]
    about: Token,
    /// The secret: shown this once
    token: String,
}

/// Tokens that are worth nothing now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokensRevoked {
    /// Their ids
    revoked: Vec<String>,
    user: String,
}

/// A tenant to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenant {
    pub(super) name: String,
    /// You, where nobody is named
    #[serde(default)]
    pub(super) owner: Option<String>,
}

/// A tenant, with all of its members.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    name: String,
    members: BTreeMap<String, RoleName>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
    /// Whether a push without a manifest is refused
    require_manifest: bool,
}

/// A tenant in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantRow {
    name: String,
    /// Yours
    role: Option<RoleName>,
    /// How many there are
    members: u64,
}

/// What can be changed of a tenant.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantChange {
    /// Whether a push without a manifest is refused
    pub(super) require_manifest: bool,
}

/// A member of a tenant.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    user: String,
    role: RoleName,
}

/// A role to be given.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleChange {
    pub(super) role: RoleName,
}

/// All members of a tenant after a change.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Members {
    tenant: String,
    members: BTreeMap<String, RoleName>,
}

/// An invitation: whoever has the code may join, once.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Invitation {
    tenant: String,
    role: RoleName,
    /// Secret; shown once
    code: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Moment,
}

/// The code of an invitation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InvitationCode {
    pub(super) code: String,
}

/// Your role in a tenant.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Membership {
    tenant: String,
    role: RoleName,
}

/// An app to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewApp {
    /// `TENANT/APP`
    #[schema(example = "acme/shop")]
    pub(super) name: String,
}

/// An app that was made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AppCreated {
    name: String,
    /// Where to push to, by environment
    remotes: BTreeMap<String, String>,
    /// A `berth.yaml` to begin with
    manifest: String,
}

/// An app in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AppRow {
    name: String,
    environments: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
}

/// An app.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct App {
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
    created_by: String,
    environments: Vec<AppEnvironment>,
    /// A `berth.yaml` to begin with
    manifest: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AppEnvironment {
    name: String,
    /// The version of the release that was deployed last
    release: Option<u64>,
    url: String,
    /// Where to push to
    remote: String,
}

/// What was destroyed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Destroyed {
    destroyed: String,
}

/// The app whose cache is empty now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CachePurged {
    app: String,
}

/// An environment to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewEnvironment {
    /// `TENANT/APP/ENV`
    #[schema(example = "acme/shop/staging")]
    pub(super) name: String,
}

/// An environment that was made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EnvironmentCreated {
    name: String,
    /// Where to push to
    remote: String,
    url: String,
}

/// An environment in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EnvironmentRow {
    name: String,
    /// The version of the release that was deployed last
    release: Option<u64>,
    deploy_branch: Option<String>,
    url: String,
}

/// An environment, what runs in it, and what it waits for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Environment {
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
pub(super) struct Wait {
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
pub(super) struct Process {
    wanted: u32,
    ready: u32,
}

/// A running container.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Replica {
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

/// Replicas by process type.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Scale {
    env: String,
    scale: BTreeMap<String, u32>,
}

/// That all replicas are being replaced, one after another.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Restart {
    env: String,
    restarted: bool,
}

/// A build.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Build {
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
    /// How long each stage took, in milliseconds
    #[schema(value_type = Vec<Vec<Object>>)]
    timings_ms: Vec<(String, u64)>,
}

/// A build that was queued.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BuildQueued {
    env: String,
    build: u64,
    commit: String,
}

/// A build that was cancelled.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BuildCancelled {
    env: String,
    build: u64,
}

/// A release in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseRow {
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
pub(super) struct Release {
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
pub(super) struct DeploymentBegun {
    env: String,
    release: u64,
    deployment: u64,
    url: String,
    changed: bool,
}

/// What a change of config has led to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigChanged {
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

/// A deployment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Deployment {
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
    /// Of what failed
    #[serde(default)]
    last_log_lines: Vec<String>,
    /// What it waits for, while it is under way
    #[serde(default)]
    waiting: Vec<String>,
}

/// A deployment that was given up.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeploymentCancelled {
    env: String,
    cancelled: u64,
    serving: Option<u64>,
}

/// Which release to go back to.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rollback {
    /// The one before, where nothing is said
    #[serde(default)]
    pub(super) version: Option<u64>,
}

/// How to build the last commit again.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Redeploy {
    /// From nothing
    #[serde(default)]
    pub(super) no_cache: bool,
}

/// Where to promote from.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Promote {
    /// `TENANT/APP/ENV`
    #[schema(example = "acme/shop/dev")]
    pub(super) from: String,
}

/// A host name.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Domain {
    domain: String,
    /// `platform`, `manifest`, `manifest, taken`, `added` or `kept`
    from: String,
}

/// A job that runs by the clock.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CronJob {
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
pub(super) struct CronRun {
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

/// What to collect.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Collect {
    /// Only say what would go
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// What was collected.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Collected {
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

impl BuildQueued {
    pub(super) fn of(build: &crate::domain::Build) -> Self {
        Self { env: build.env.to_string(), build: build.number.0, commit: build.commit.clone() }
    }
}

impl DeploymentBegun {
    pub(super) fn of(env: &crate::domain::EnvRef, version: crate::domain::ReleaseVersion, url: String) -> Self {
        Self { env: env.to_string(), release: version.0, deployment: version.0, url, changed: true }
    }
}

/// A webhook.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Webhook {
    id: String,
    tenant: String,
    /// Without what may be secret in it
    url: String,
    types: Vec<String>,
    enabled: bool,
    disabled_reason: Option<String>,
    created_by: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
    /// What is tried again, if anything is
    #[schema(value_type = Option<Object>)]
    retry: Option<serde_json::Value>,
    #[schema(value_type = Option<String>, format = DateTime)]
    failing_since: Option<Moment>,
    /// Events that were given up or are not kept any more
    missed: u64,
    /// What deliveries are signed with: shown once
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// A webhook that was removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookRemoved {
    /// Its id
    removed: String,
}

/// One try to deliver an event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Delivery {
    number: u64,
    /// The same over all tries
    delivery: String,
    event: Option<u64>,
    r#type: String,
    attempt: u32,
    #[schema(value_type = String, format = DateTime)]
    at: Moment,
    duration_ms: u64,
    /// The HTTP status, if there was an answer
    status: Option<u16>,
    error: Option<String>,
    missed: u64,
}

/// A log drain.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    id: u64,
    /// Without what may be secret in it
    url: String,
    state: String,
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Moment>,
    why: Option<String>,
    sent: u64,
    dropped: u64,
    /// Lines that wait
    lag: u64,
    refused: Option<String>,
    created_by: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
}

/// A drain that was made or removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainChanged {
    env: String,
    id: u64,
    url: String,
}
