//! What happened, for `events`.

use serde::{Deserialize, Serialize};

use super::{AppName, EnvName, TenantName, Timestamp, UserName};

/// One thing that happened. Never carries a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up over the platform.
    pub id: u64,
    pub at: Timestamp,
    pub kind: EventKind,
    pub tenant: Option<TenantName>,
    pub app: Option<AppName>,
    pub env: Option<EnvName>,
    /// Who caused it, if a person did.
    pub actor: Option<UserName>,
    /// For people, one line.
    pub message: String,
}

/// The kinds of events; dotted names when serialised and in `--json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    #[serde(rename = "key.added")]
    KeyAdded,
    #[serde(rename = "key.removed")]
    KeyRemoved,
    #[serde(rename = "tenant.created")]
    TenantCreated,
    #[serde(rename = "tenant.changed")]
    TenantChanged,
    #[serde(rename = "member.changed")]
    MemberChanged,
    #[serde(rename = "app.created")]
    AppCreated,
    #[serde(rename = "app.destroyed")]
    AppDestroyed,
    #[serde(rename = "env.created")]
    EnvCreated,
    #[serde(rename = "env.destroyed")]
    EnvDestroyed,
    #[serde(rename = "build.queued")]
    BuildQueued,
    #[serde(rename = "build.finished")]
    BuildFinished,
    #[serde(rename = "release.created")]
    ReleaseCreated,
    #[serde(rename = "deployment.finished")]
    DeploymentFinished,
    #[serde(rename = "scale.changed")]
    ScaleChanged,
    #[serde(rename = "replica.started")]
    ReplicaStarted,
    #[serde(rename = "replica.died")]
    ReplicaDied,
    #[serde(rename = "domain.changed")]
    DomainChanged,
    #[serde(rename = "run.started")]
    RunStarted,
    #[serde(rename = "run.finished")]
    RunFinished,
    #[serde(rename = "cron.started")]
    CronStarted,
    #[serde(rename = "cron.finished")]
    CronFinished,
    #[serde(rename = "cron.skipped")]
    CronSkipped,
    #[serde(rename = "webhook.changed")]
    WebhookChanged,
    #[serde(rename = "webhook.disabled")]
    WebhookDisabled,
}
