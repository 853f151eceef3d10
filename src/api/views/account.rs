//! Who asks, keys, tokens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Moment;

/// Who asks.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(in crate::api) struct Whoami {
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
pub(in crate::api) enum RoleName {
    Viewer,
    Developer,
    Owner,
}

/// A public key.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Key {
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
pub(in crate::api) struct NewKeys {
    /// Whose they are; the user is made if there is none of that name
    pub(in crate::api) user: String,
    /// As in a `.pub` file, one a line
    pub(in crate::api) keys: String,
}

/// What became of keys.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct KeysAdded {
    user: String,
    operator: bool,
    /// Whether the user is new
    created: bool,
    keys: Vec<KeyAdded>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct KeyAdded {
    fingerprint: String,
    algorithm: String,
    comment: String,
    /// Whether it was not there before
    added: bool,
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::api) enum ScopeName {
    /// `GET /metrics` and nothing else (operators)
    Metrics,
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
            ScopeName::Metrics => Self::Metrics,
            ScopeName::Read => Self::Read,
            ScopeName::Deploy => Self::Deploy,
            ScopeName::Full => Self::Full,
        }
    }
}

/// A token to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NewToken {
    /// What it is for, as in `ci`
    pub(in crate::api) name: String,
    #[serde(default)]
    pub(in crate::api) scope: ScopeName,
    /// Only in this tenant
    #[serde(default)]
    pub(in crate::api) tenant: Option<String>,
    /// For how long: 12h, 90d (where nothing is said), 8w; at most 365d
    #[serde(default)]
    pub(in crate::api) expires: Option<String>,
}

/// A token, without its secret.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(in crate::api) struct Token {
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
    /// Whether it stands for somebody who is signed in with a browser
    session: bool,
}

/// A token that was made, with its secret.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(in crate::api) struct TokenCreated {
    #[serde(flatten)]
    about: Token,
    /// The secret: shown this once
    token: String,
}

/// Tokens that are worth nothing now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct TokensRevoked {
    /// Their ids
    revoked: Vec<String>,
    user: String,
}

/// A link to sign in with.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(in crate::api) struct SignInLink {
    /// For a browser; its last part is the secret
    url: String,
    /// Whom it signs in
    user: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Moment,
}

/// Whom a link signs in.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(in crate::api) struct LinkOwner {
    pub(in crate::api) user: String,
    #[schema(value_type = String, format = DateTime)]
    pub(in crate::api) expires_at: Moment,
}

/// The secret of a link to sign in with.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct LinkSecret {
    /// The last part of its URL
    pub(in crate::api) secret: String,
}
