//! Tenants and their members.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Moment, RoleName};

/// A tenant to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NewTenant {
    pub(in crate::api) name: String,
    /// You, where nobody is named
    #[serde(default)]
    pub(in crate::api) owner: Option<String>,
}

/// A tenant, with all of its members.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Tenant {
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
pub(in crate::api) struct TenantRow {
    name: String,
    /// Yours
    role: Option<RoleName>,
    /// How many there are
    members: u64,
}

/// What can be changed of a tenant.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct TenantChange {
    /// Whether a push without a manifest is refused
    pub(in crate::api) require_manifest: bool,
}

/// A member of a tenant.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Member {
    user: String,
    role: RoleName,
}

/// A role to be given.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct RoleChange {
    pub(in crate::api) role: RoleName,
}

/// All members of a tenant after a change.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Members {
    tenant: String,
    members: BTreeMap<String, RoleName>,
}

/// An invitation: whoever has the code may join, once.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Invitation {
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
pub(in crate::api) struct InvitationCode {
    pub(in crate::api) code: String,
}

/// Your role in a tenant.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Membership {
    tenant: String,
    role: RoleName,
}
