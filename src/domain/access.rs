//! Who may do what. Deny by default: a verb that no line below grants is refused.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a member is to a tenant; each includes those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees state and logs; changes nothing, and sees no config value.
    Viewer,
    /// Pushes, scales, configures, rolls back, runs one-off commands.
    Developer,
    /// Also manages members, and creates and destroys apps and environments.
    Owner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::Developer => "developer",
            Self::Owner => "owner",
        })
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "developer" => Ok(Self::Developer),
            "owner" => Ok(Self::Owner),
            _ => Err(format!("{text:?} is not a role; the roles are owner, developer and viewer")),
        }
    }
}

/// What a caller wants to do to a tenant or something in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// See that it exists, its state, releases, builds and logs; clone and fetch.
    Read,
    /// Push code; cancel builds; purge caches.
    Push,
    /// Change what runs: scale, restart, rollback, redeploy, promote into.
    Operate,
    /// See config values.
    ReadConfig,
    /// Change config values and domains.
    WriteConfig,
    /// Start a one-off command with the environment's config.
    Run,
    /// Create apps and environments.
    Create,
    /// Destroy apps and environments.
    Destroy,
    /// Invite and remove members, change roles.
    ManageMembers,
    /// Say where events of the tenant are sent to.
    ManageWebhooks,
}

impl Verb {
    /// Every verb, for tests and tables.
    pub const ALL: [Self; 10] = [
        Self::Read,
        Self::Push,
        Self::Operate,
        Self::ReadConfig,
        Self::WriteConfig,
        Self::Run,
        Self::Create,
        Self::Destroy,
        Self::ManageMembers,
        Self::ManageWebhooks,
    ];

    /// Its name, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Push => "push",
            Self::Operate => "operate",
            Self::ReadConfig => "read-config",
            Self::WriteConfig => "write-config",
            Self::Run => "run",
            Self::Create => "create",
            Self::Destroy => "destroy",
            Self::ManageMembers => "manage-members",
            Self::ManageWebhooks => "manage-webhooks",
        }
    }
}

impl Role {
    /// Whether a member with this role may do `verb` within the tenant.
    pub fn may(self, verb: Verb) -> bool {
        match verb {
            Verb::Read => true,
            Verb::Push | Verb::Operate | Verb::ReadConfig | Verb::WriteConfig | Verb::Run => self >= Self::Developer,
            Verb::Create | Verb::Destroy | Verb::ManageMembers | Verb::ManageWebhooks => self >= Self::Owner,
        }
    }
}

/// What a token is for; each but the first includes those before it. What its user may not do, it does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenScope {
    /// Reads the platform's metrics, if its user is an operator, and does nothing else: for who scrapes them. It allows no verb, in no tenant.
    Metrics,
    /// Looks on.
    Read,
    /// Deploys, as a job of continuous integration does. It sees and changes no config, and starts no command that could print it.
    Deploy,
    /// Whatever its user may.
    Full,
}

impl TokenScope {
    /// Whether a token of this scope allows `verb`.
    pub fn allows(self, verb: Verb) -> bool {
        match verb {
            Verb::Read => self >= Self::Read,
            Verb::Push | Verb::Operate => self >= Self::Deploy,
            Verb::ReadConfig
            | Verb::WriteConfig
            | Verb::Run
            | Verb::Create
            | Verb::Destroy
            | Verb::ManageMembers
            | Verb::ManageWebhooks => self >= Self::Full,
        }
    }
}

impl fmt::Display for TokenScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Metrics => "metrics",
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Full => "full",
        })
    }
}

impl FromStr for TokenScope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "metrics" => Ok(Self::Metrics),
            "read" => Ok(Self::Read),
            "deploy" => Ok(Self::Deploy),
            "full" => Ok(Self::Full),
            _ => Err(format!("{text:?} is not a scope; the scopes are metrics, read, deploy and full")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_by_verb() {
        let row = |scope: TokenScope| {
            Verb::ALL.map(|verb| if scope.allows(verb) { 'x' } else { '.' }).iter().collect::<String>()
        };
        assert_eq!(row(TokenScope::Metrics), "..........");
        assert_eq!(row(TokenScope::Read), "x.........");
        assert_eq!(row(TokenScope::Deploy), "xxx.......");
        assert_eq!(row(TokenScope::Full), "xxxxxxxxxx");
    }

    #[test]
    fn roles_by_verb() {
        let row = |role: Role| Verb::ALL.map(|verb| if role.may(verb) { 'x' } else { '.' }).iter().collect::<String>();
        assert_eq!(row(Role::Viewer), "x.........");
        assert_eq!(row(Role::Developer), "xxxxxx....");
        assert_eq!(row(Role::Owner), "xxxxxxxxxx");
    }
}
