//! Webhooks and drains.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Moment;

/// A webhook.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Webhook {
    id: String,
    tenant: String,
    /// Without what may be secret in it
    url: String,
    types: Vec<String>,
    enabled: bool,
    disabled_reason: Option<String>,
    created_by: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
    /// What is tried again, if anything is
    #[schema(value_type = Option<Object>)]
    retry: Option<serde_json::Value>,
    #[schema(value_type = Option<String>, format = DateTime)]
    failing_since: Option<Moment>,
    /// Events that were given up or are not kept any more
    missed: u64,
    /// What deliveries are signed with: shown once
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// A webhook that was removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct WebhookRemoved {
    /// Its id
    removed: String,
}

/// One try to deliver an event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Delivery {
    number: u64,
    /// The same over all tries
    delivery: String,
    event: Option<u64>,
    r#type: String,
    attempt: u32,
    #[schema(value_type = String, format = DateTime)]
    at: Moment,
    duration_ms: u64,
    /// The HTTP status, if there was an answer
    status: Option<u16>,
    error: Option<String>,
    missed: u64,
}

/// A log drain.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Drain {
    id: u64,
    /// Without what may be secret in it
    url: String,
    state: String,
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Moment>,
    why: Option<String>,
    sent: u64,
    dropped: u64,
    /// Lines that wait
    lag: u64,
    refused: Option<String>,
    created_by: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Moment,
}

/// A drain that was made or removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct DrainChanged {
    env: String,
    id: u64,
    url: String,
}
