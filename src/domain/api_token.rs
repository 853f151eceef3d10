//! Bearer tokens for the API: what is kept of them, and what they allow.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{TenantName, Timestamp, TokenScope, UserName, Verb};

/// A bearer token. Its secret is shown once, when it is made, and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// SHA-256 of the secret, hexadecimal: found by it and by nothing else.
    pub secret_hash: String,
    /// What it is called in lists and to revoke it; no secret.
    pub id: String,
    /// What its user calls it.
    pub name: String,
    pub user: UserName,
    pub scope: TokenScope,
    /// The only tenant that it reaches; else every one of its user.
    pub tenant: Option<TenantName>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// Roughly: not written with every use.
    pub last_used_at: Option<Timestamp>,
    /// The token that it was made with, if it was with one; it goes when that is revoked.
    pub made_with: Option<String>,
    /// Whether it stands for somebody who is signed in with a browser.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub session: bool,
}

impl ApiToken {
    /// Whether its time is over.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    /// What it allows of what its user may.
    pub fn rights(&self) -> TokenRights {
        TokenRights {
            id: self.id.clone(),
            name: self.name.clone(),
            scope: self.scope,
            tenant: self.tenant.clone(),
            expires_at: self.expires_at,
        }
    }
}

/// A link to sign in with, once: who follows it is its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignInLink {
    /// SHA-256 of the secret in it, hexadecimal.
    pub secret_hash: String,
    pub user: UserName,
    pub expires_at: Timestamp,
    /// The token that it was asked for with, if it was with one, and until when that is good: who is signed in is so no longer.
    pub made_with: Option<(String, Timestamp)>,
}

/// The tokens of a user, kept as one record, so that their number is bounded whoever makes some at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserTokens {
    pub user: UserName,
    /// The hash of the secret, by the id.
    pub tokens: BTreeMap<String, String>,
}

/// How a token narrows what its user may. It never widens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRights {
    /// Of the token.
    pub id: String,
    pub name: String,
    pub scope: TokenScope,
    pub tenant: Option<TenantName>,
    pub expires_at: Timestamp,
}

impl TokenRights {
    /// Whether the token is for the platform's metrics and nothing else.
    pub fn is_for_metrics(&self) -> bool {
        self.scope == TokenScope::Metrics
    }

    /// Whether the token is for this tenant.
    pub fn reaches(&self, tenant: &TenantName) -> bool {
        !self.is_for_metrics() && self.tenant.as_ref().is_none_or(|only| only == tenant)
    }

    /// Whether the token allows `verb` in this tenant, if its user may.
    pub fn allows(&self, tenant: &TenantName, verb: Verb) -> bool {
        self.reaches(tenant) && self.scope.allows(verb)
    }

    /// Whether it allows everything that its user may: what is about the account or the platform too.
    pub fn is_unlimited(&self) -> bool {
        self.scope == TokenScope::Full && self.tenant.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_for_a_tenant_stays_in_it() {
        let rights = |scope, tenant: Option<&str>| TokenRights {
            id: "1".into(),
            name: "ci".into(),
            scope,
            tenant: tenant.map(|name| name.parse().unwrap()),
            expires_at: Timestamp::UNIX_EPOCH,
        };
        let (acme, other): (TenantName, TenantName) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let deploy = rights(TokenScope::Deploy, Some("acme"));
        assert!(deploy.reaches(&acme) && deploy.allows(&acme, Verb::Push));
        assert!(!deploy.reaches(&other) && !deploy.allows(&other, Verb::Read));
        assert!(!deploy.allows(&acme, Verb::Destroy));
        assert!(rights(TokenScope::Read, None).allows(&other, Verb::Read));
        assert!(rights(TokenScope::Full, None).is_unlimited());
        let metrics = rights(TokenScope::Metrics, None);
        assert!(metrics.is_for_metrics() && !metrics.is_unlimited());
        assert!(!metrics.reaches(&acme) && !metrics.allows(&acme, Verb::Read));
        assert!(
            !rights(TokenScope::Full, Some("acme")).is_unlimited() && !rights(TokenScope::Read, None).is_unlimited()
        );
    }
}
