//! Names, parsed at the edge.
//!
//! All of them are DNS labels (RFC 1123) or close to it, since they end up in host names, container names, image
//! repositories and file paths.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not a name; the message says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} name {given:?} is not valid: {reason}")]
pub struct NameError {
    kind: &'static str,
    given: String,
    reason: &'static str,
}

/// The longest name that may appear as one DNS label with room for the labels around it.
const MAX_LABEL: usize = 30;

fn check_label(kind: &'static str, text: &str, extra: &[char]) -> Result<(), NameError> {
    let fail = |reason| {
        // A hostile name is cut before it is quoted back.
        Err(NameError { kind, given: text.chars().take(64).collect(), reason })
    };
    if text.is_empty() {
        return fail("it is empty");
    }
    if text.len() > MAX_LABEL {
        return fail("it is longer than 30 characters");
    }
    if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        return fail("it must begin with a lower-case letter (a-z)");
    }
    if !text.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        return fail("it must end with a lower-case letter or a digit");
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || extra.contains(&c);
    if !text.chars().all(allowed) {
        return fail("only lower-case letters, digits and '-' are allowed");
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $extra:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_label($kind, text, $extra)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name_type!(
    /// Who owns apps: `acme`.
    TenantName, "tenant", &[]
);
name_type!(
    /// One code base of a tenant: `shop`.
    AppName, "app", &[]
);
name_type!(
    /// One running instance of an app: `dev`. The one called `prod` gets the short host name.
    EnvName, "environment", &[]
);
name_type!(
    /// A person or machine with keys: `alice`. May contain `.` and `_`.
    UserName, "user", &['.', '_']
);
name_type!(
    /// A kind of process in a release: `web`, `worker`. May contain `_`.
    ProcessType, "process type", &['_']
);

name_type!(
    /// A job that runs by the clock: `nightly`. May contain `_`.
    JobName, "cron job", &['_']
);

impl ProcessType {
    /// The process type that is given a `PORT` and requests.
    pub const WEB: &'static str = "web";

    /// Whether this is the process type that the router sends requests to.
    pub fn is_web(&self) -> bool {
        self.0 == Self::WEB
    }
}

impl EnvName {
    /// The environment that answers at the app's own host name.
    pub const PROD: &'static str = "prod";
}

/// `TENANT/APP`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppRef {
    pub tenant: TenantName,
    pub app: AppName,
}

/// `TENANT/APP/ENV`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvRef {
    pub tenant: TenantName,
    pub app: AppName,
    pub env: EnvName,
}

impl EnvRef {
    /// The app that this is an environment of.
    pub fn app_ref(&self) -> AppRef {
        AppRef { tenant: self.tenant.clone(), app: self.app.clone() }
    }

    /// The host name under `base`: `APP.TENANT.BASE` for `prod`, else `ENV.APP.TENANT.BASE`.
    pub fn host(&self, base: &str) -> String {
        if self.env.as_str() == EnvName::PROD {
            format!("{}.{}.{base}", self.app, self.tenant)
        } else {
            format!("{}.{}.{}.{base}", self.env, self.app, self.tenant)
        }
    }

    /// The environment that a git or ssh path names: with or without a leading slash, with or without `.git`.
    pub fn from_remote_path(path: &str) -> Result<Self, NameError> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        path.strip_suffix(".git").unwrap_or(path).parse()
    }
}

impl AppRef {
    /// The environment `env` of this app.
    pub fn env(&self, env: EnvName) -> EnvRef {
        EnvRef { tenant: self.tenant.clone(), app: self.app.clone(), env }
    }
}

fn split<const N: usize>(kind: &'static str, text: &str, reason: &'static str) -> Result<[String; N], NameError> {
    let parts: Vec<String> = text.split('/').map(str::to_owned).collect();
    parts.try_into().map_err(|_| NameError { kind, given: text.chars().take(128).collect(), reason })
}

impl FromStr for AppRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let [tenant, app] = split::<2>("app", text, "write it as TENANT/APP, as in acme/shop")?;
        Ok(Self { tenant: tenant.parse()?, app: app.parse()? })
    }
}

impl FromStr for EnvRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let [tenant, app, env] = split::<3>("environment", text, "write it as TENANT/APP/ENV, as in acme/shop/dev")?;
        Ok(Self { tenant: tenant.parse()?, app: app.parse()?, env: env.parse()? })
    }
}

macro_rules! text_conversions {
    ($type:ident, $($field:ident),+) => {
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&[$(self.$field.as_str()),+].join("/"))
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}
text_conversions!(AppRef, tenant, app);
text_conversions!(EnvRef, tenant, app, env);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_refused() {
        let long = "a".repeat(31);
        for text in ["", "A", "1a", "-a", "a-", "a/b", "a.b", "..", "a b", "a\n", "ä", "a_b", long.as_str()] {
            assert!(text.parse::<TenantName>().is_err(), "{text:?} was taken");
        }
        for text in ["a", "acme", "a1", "my-shop", "a--b"] {
            assert_eq!(text.parse::<TenantName>().unwrap().as_str(), text);
        }
        assert!("alice.smith_2".parse::<UserName>().is_ok());
        assert!("clock_daily".parse::<ProcessType>().is_ok());
    }

    #[test]
    fn remote_paths() {
        let want: EnvRef = "acme/shop/dev".parse().unwrap();
        for path in ["acme/shop/dev", "/acme/shop/dev", "acme/shop/dev.git", "/acme/shop/dev.git", "/acme/shop/dev/"] {
            assert_eq!(EnvRef::from_remote_path(path).unwrap(), want, "{path}");
        }
        for path in [
            "",
            "/",
            "acme/shop",
            "acme/shop/dev/x",
            "//acme/shop/dev",
            "../shop/dev",
            "acme/../dev",
            "~/acme/shop/dev",
        ] {
            assert!(EnvRef::from_remote_path(path).is_err(), "{path:?} was taken");
        }
    }

    #[test]
    fn hosts() {
        let env = |text: &str| text.parse::<EnvRef>().unwrap();
        assert_eq!(env("acme/shop/dev").host("localhost"), "dev.shop.acme.localhost");
        assert_eq!(env("acme/shop/prod").host("example.com"), "shop.acme.example.com");
    }
}
