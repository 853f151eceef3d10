//! The platform as a whole.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to collect.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Collect {
    /// Only say what would go
    #[serde(default)]
    pub(in crate::api) dry_run: bool,
}

/// What was collected.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Collected {
    dry_run: bool,
    /// At most 2000 of them
    #[schema(value_type = Vec<Object>)]
    gone: Vec<serde_json::Value>,
    #[schema(value_type = Object)]
    sums: serde_json::Value,
    registry_millis: u64,
    millis: u64,
    /// What could not be taken, and goes the next time
    failures: Vec<String>,
}
