//! Names in paths and bodies: parsed where they come in.

use serde::Deserialize;
use utoipa::IntoParams;

use super::{extract::in_plain_words, problem::Problem};
use crate::domain::{AppName, AppRef, BuildNumber, EnvName, EnvRef, ReleaseVersion, TenantName};

/// A tenant's path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TenantPath {
    /// As in `acme`
    #[param(value_type = String, example = "acme")]
    pub(super) tenant: TenantName,
}

/// An app's path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct AppPath {
    /// As in `acme`
    #[param(value_type = String, example = "acme")]
    tenant: TenantName,
    /// As in `shop`
    #[param(value_type = String, example = "shop")]
    app: AppName,
}

impl AppPath {
    pub(super) fn app(self) -> AppRef {
        AppRef { tenant: self.tenant, app: self.app }
    }
}

/// An environment's path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct EnvPath {
    /// As in `acme`
    #[param(value_type = String, example = "acme")]
    tenant: TenantName,
    /// As in `shop`
    #[param(value_type = String, example = "shop")]
    app: AppName,
    /// As in `dev`
    #[param(value_type = String, example = "dev")]
    env: EnvName,
}

impl EnvPath {
    pub(super) fn env(self) -> EnvRef {
        AppRef { tenant: self.tenant, app: self.app }.env(self.env)
    }
}

/// The path of something of an environment that has a name or number.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct PartPath {
    /// As in `acme`
    #[param(value_type = String, example = "acme")]
    tenant: TenantName,
    /// As in `shop`
    #[param(value_type = String, example = "shop")]
    app: AppName,
    /// As in `dev`
    #[param(value_type = String, example = "dev")]
    env: EnvName,
    /// Its name or number
    #[param(example = "1")]
    id: String,
}

impl PartPath {
    /// The environment, and the text that names the part.
    pub(super) fn parts(self) -> (EnvRef, String) {
        (AppRef { tenant: self.tenant, app: self.app }.env(self.env), self.id)
    }

    /// A build.
    pub(super) fn build(self) -> Result<(EnvRef, BuildNumber), Problem> {
        let (env, id) = self.parts();
        Ok((env, parse(&id)?))
    }

    /// A release, or the deployment of it: `v7` or `7`.
    pub(super) fn release(self) -> Result<(EnvRef, ReleaseVersion), Problem> {
        let (env, id) = self.parts();
        Ok((env, parse(&id)?))
    }
}

/// A name, or what keeps the text from being one.
pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(|error: T::Err| Problem::bad_request(in_plain_words(&error.to_string())))
}
