//! The words of Berth as types: names, tenants, environments, releases, replicas, roles.
//!
//! Everything here is plain data that is valid by construction: a name is parsed once, at the edge, and a value of its
//! type can go into a path, a label or a host name without another look. No clock, no randomness, no I/O, and no
//! knowledge of any engine.

pub mod access;
pub mod api_token;
pub mod build;
pub mod cloud_event;
pub mod cron;
pub mod drain;
pub mod event;
pub mod fail_point;
pub mod image;
pub mod names;
mod once;
pub mod people;
pub mod process;
pub mod release;
pub mod replica;
pub mod trace;
mod url;
pub mod webhook;

pub use access::{Role, TokenScope, Verb};
pub use api_token::{ApiToken, SignInLink, TokenRights, UserTokens};
pub use build::{Build, BuildNumber, BuildState, QueuePlace, Stage};
pub use cloud_event::CloudEvent;
pub use cron::{CronJob, CronMark, CronRun, CronState, Overlap};
pub use drain::{Drain, DrainCursor, DrainMark, DrainScheme, DrainUrl};
pub use event::{Event, EventData, EventKind, UnknownKind};
pub use fail_point::FailPoint;
pub use image::{Digest, ImageRef};
pub use names::{AppName, AppRef, EnvName, EnvRef, JobName, NameError, ProcessType, TenantName, UserName};
pub use once::OnceRequest;
pub use people::{App, DomainClaim, Environment, Invite, PublicKey, Tenant, Tombstone, User};
pub use process::{Health, HealthProbe, ProcessSpec, UpgradePolicy};
pub use release::{
    Deployment, DeploymentState, LAST_LOG_LINE_CHARS, LAST_LOG_LINES, Release, ReleaseVersion, RolloutProgress,
    still_serving,
};
pub use replica::{CrashLoop, CrashLoops, Limits, Replica, ReplicaId, ReplicaSet, ReplicaState, SetId};
pub use trace::{NoTraceContext, OpenSpan, TraceContext};
pub use webhook::{DELIVERIES_KEPT, Webhook, WebhookDelivery, WebhookId, WebhookMark, WebhookRetry, WebhookSecret};

pub use self::url::parse_url;

/// A moment, UTC, nanosecond resolution, RFC 3339 when serialised.
pub type Timestamp = jiff::Timestamp;
