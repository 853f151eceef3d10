//! What the API shows and takes: the form of each resource, as the OpenAPI document has it.
//!
//! They are read from what the commands print with `--json`; a test keeps the two alike.

mod account;
mod apps;
mod deploy;
mod environments;
mod outside;
mod platform;
mod tenants;

pub(super) use account::{
    Key, KeysAdded, LinkOwner, LinkSecret, NewKeys, NewToken, RoleName, SignInLink, Token, TokenCreated, TokensRevoked,
    Whoami,
};
pub(super) use apps::{App, AppCreated, AppRow, CachePurged, Destroyed, NewApp};
pub(super) use deploy::{
    Build, BuildCancelled, BuildQueued, Deployment, DeploymentBegun, DeploymentCancelled, Promote, Redeploy, Release,
    ReleaseRow, Rollback,
};
pub(super) use environments::{
    ConfigChanged, CronJob, CronRun, Domain, Environment, EnvironmentCreated, EnvironmentRow, NewEnvironment, Restart,
    Running, Scale,
};
pub(super) use outside::{Delivery, Drain, DrainChanged, Webhook, WebhookRemoved};
pub(super) use platform::{Collect, Collected, Platform};
pub(super) use tenants::{
    Invitation, InvitationCode, Member, Members, Membership, NewTenant, RoleChange, Tenant, TenantChange, TenantRow,
};

/// A moment, RFC 3339, UTC.
type Moment = crate::domain::Timestamp;
