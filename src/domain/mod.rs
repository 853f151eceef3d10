//! The words of Berth as types: names, tenants, environments, releases, replicas, roles.
//!
//! Everything here is plain data that is valid by construction: a name is parsed once, at the edge, and a value of its
//! type can go into a path, a label or a host name without another look. No clock, no randomness, no I/O, and no
//! knowledge of any engine.

pub mod access;
pub mod build;
pub mod cron;
pub mod event;
pub mod fail_point;
pub mod image;
pub mod names;
pub mod people;
pub mod process;
pub mod release;
pub mod replica;
pub mod webhook;

pub use access::{Role, Verb};
pub use build::{Build, BuildNumber, BuildState, QueuePlace, Stage};
pub use cron::{CronJob, CronMark, CronRun, CronState, Overlap};
pub use event::{Event, EventKind};
pub use fail_point::FailPoint;
pub use image::{Digest, ImageRef};
pub use names::{AppName, AppRef, EnvName, EnvRef, JobName, NameError, ProcessType, TenantName, UserName};
pub use people::{App, DomainClaim, Environment, Invite, PublicKey, Tenant, Tombstone, User};
pub use process::{Health, HealthProbe, ProcessSpec, UpgradePolicy};
pub use release::{
    Deployment, DeploymentState, LAST_LOG_LINE_CHARS, LAST_LOG_LINES, Release, ReleaseVersion, RolloutProgress,
    still_serving,
};
pub use replica::{CrashLoop, CrashLoops, Limits, Replica, ReplicaId, ReplicaSet, ReplicaState, SetId};
pub use webhook::{DELIVERIES_KEPT, Webhook, WebhookDelivery, WebhookId, WebhookMark, WebhookRetry, WebhookSecret};

/// A moment, UTC, nanosecond resolution, RFC 3339 when serialised.
pub type Timestamp = jiff::Timestamp;
