//! Users, keys, tenants and what they own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AppRef, EnvRef, ProcessType, ReleaseVersion, Role, TenantName, Timestamp, UserName};

/// A person or machine known to the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: UserName,
    /// Manages the platform: users, tenants. Is not thereby a member of any tenant, but may see and manage all of them.
    pub operator: bool,
    pub created_at: Timestamp,
}

/// An SSH public key; belongs to exactly one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// `SHA256:…` as OpenSSH prints it; the identity of the key.
    pub fingerprint: String,
    /// OpenSSH one-line form without the comment.
    pub openssh: String,
    /// Algorithm, as in `ssh-ed25519`.
    pub algorithm: String,
    /// The comment, cleaned of control characters; may be empty.
    pub comment: String,
    pub user: UserName,
    pub added_at: Timestamp,
}

/// Who owns apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    pub name: TenantName,
    pub members: BTreeMap<UserName, Role>,
    pub created_at: Timestamp,
    /// Whether a push without a manifest is refused.
    #[serde(default)]
    pub require_manifest: bool,
}

/// A one-time right to join a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// SHA-256 of the secret code, hexadecimal; the code itself is shown once and not kept.
    pub code_hash: String,
    pub tenant: TenantName,
    pub role: Role,
    pub created_by: UserName,
    pub expires_at: Timestamp,
}

/// One code base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    pub name: AppRef,
    pub created_at: Timestamp,
    pub created_by: UserName,
    /// It is being destroyed: a server that finds it so goes on with that.
    #[serde(default)]
    pub destroying: bool,
}

/// A host name outside the platform's own and the environment that has it, until that gives it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainClaim {
    /// In lower case, without a dot at the end.
    pub host: String,
    pub env: EnvRef,
    pub claimed_at: Timestamp,
}

/// One running instance of an app: the desired state that the deployer works towards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub name: EnvRef,
    pub created_at: Timestamp,
    /// The branch whose pushes are deployed, set by the first push.
    pub deploy_branch: Option<String>,
    /// Config variables; secret.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// Replicas set by `scale`; wins over the manifest until `scale --reset`.
    #[serde(default)]
    pub scale: BTreeMap<ProcessType, u32>,
    /// Host names added by `domains add`; those of the manifest are in the release.
    #[serde(default)]
    pub domains: Vec<String>,
    /// The release that should be running; the deployer moves here.
    pub target: Option<ReleaseVersion>,
    /// The release last deployed with success: what a failed deployment falls back to.
    pub current: Option<ReleaseVersion>,
    /// The number of the newest release and build; both only grow.
    #[serde(default)]
    pub last_release: u64,
    #[serde(default)]
    pub last_build: u64,
    /// Grows with each `restart`; part of the identity of a replica set.
    #[serde(default)]
    pub restarts: u64,
}

/// An environment that was destroyed, until nothing is left of its repository and logs: whoever is interrupted goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub env: EnvRef,
    /// When it was destroyed; not known of those that an older version wrote.
    #[serde(default)]
    pub destroyed_at: Option<Timestamp>,
}
