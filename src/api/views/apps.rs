//! Apps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Moment;

/// An app to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NewApp {
    /// `TENANT/APP`
    #[schema(example = "acme/shop")]
    pub(in crate::api) name: String,
}

/// An app that was made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct AppCreated {
    name: String,
    /// Where to push to, by environment
    remotes: BTreeMap<String, String>,
    /// A `berth.yaml` to begin with
    manifest: String,
}

/// An app in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct AppRow {
    name: String,
    environments: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
}

/// An app.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct App {
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
    created_by: String,
    environments: Vec<AppEnvironment>,
    /// A `berth.yaml` to begin with
    manifest: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct AppEnvironment {
    name: String,
    /// The version of the release that was deployed last
    release: Option<u64>,
    url: String,
    /// Where to push to
    remote: String,
}

/// What was destroyed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Destroyed {
    destroyed: String,
}

/// The app whose cache is empty now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct CachePurged {
    app: String,
}
