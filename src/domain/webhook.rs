//! Webhooks: where a tenant wants to be told of what happens, and what became of the telling.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Event, TenantName, Timestamp, UserName};

/// Deliveries that are remembered per webhook; the next takes the place of the oldest.
pub const DELIVERIES_KEPT: u64 = 100;
/// Longest id, in bytes.
const LONGEST_ID: usize = 32;

/// Tells the webhooks of a tenant apart: lower-case letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebhookId(String);

impl WebhookId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WebhookId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if (1..=LONGEST_ID).contains(&text.len()) && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err("not the id of a webhook, as `webhooks list` shows it".to_owned())
        }
    }
}

impl TryFrom<String> for WebhookId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<WebhookId> for String {
    fn from(id: WebhookId) -> Self {
        id.0
    }
}

impl fmt::Display for WebhookId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// What deliveries are signed with: all of its text is the key. Shown once, to whoever adds the webhook.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WebhookSecret(pub String);

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(secret)")
    }
}

/// Where a tenant wants to be told of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    pub tenant: TenantName,
    pub id: WebhookId,
    /// May hold secrets in its path and query: [`Self::target`] is what is shown.
    pub url: String,
    /// Scheme, host and port of the URL.
    pub target: String,
    pub secret: WebhookSecret,
    /// Beginnings of the names of the kinds that are wanted; none: all.
    pub kinds: Vec<String>,
    pub created_by: UserName,
    pub created_at: Timestamp,
    pub enabled: bool,
    /// Why the server has disabled it, if it was the server.
    pub disabled_reason: Option<String>,
    /// Events up to this one are not told: it is the newest one when the webhook was enabled.
    pub from: u64,
    /// How often it was enabled; what is known of an earlier time does not count any more.
    pub generation: u64,
}

impl Webhook {
    /// Whether this event is to be told. `kind` is its kind's name.
    pub fn wants(&self, event: &Event, kind: &str) -> bool {
        event.tenant.as_ref() == Some(&self.tenant)
            && (self.kinds.is_empty() || self.kinds.iter().any(|prefix| kind.starts_with(prefix.as_str())))
    }
}

/// A delivery that has failed and is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookRetry {
    pub event: u64,
    /// Attempts made, at least one.
    pub attempts: u32,
    pub first_at: Timestamp,
    pub next_at: Timestamp,
}

/// How far a webhook has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookMark {
    pub tenant: TenantName,
    pub id: WebhookId,
    /// The [`Webhook::generation`] that it is of.
    pub generation: u64,
    /// The last event that has been told or given up.
    pub handled: u64,
    pub retry: Option<WebhookRetry>,
    /// Since when nothing has got through, if the last attempt failed.
    pub failing_since: Option<Timestamp>,
    /// Events that have been given up, or were dropped from the event log, since one got through last.
    pub missed: u64,
    /// Attempts made in all: the number of the last [`WebhookDelivery`].
    pub deliveries: u64,
}

impl WebhookMark {
    /// Of a webhook that has just been enabled. `before` is what was known of it.
    pub fn of(webhook: &Webhook, before: Option<&Self>) -> Self {
        Self {
            tenant: webhook.tenant.clone(),
            id: webhook.id.clone(),
            generation: webhook.generation,
            handled: webhook.from,
            retry: None,
            failing_since: None,
            missed: 0,
            deliveries: before.map_or(0, |before| before.deliveries),
        }
    }
}

/// One attempt to tell of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookDelivery {
    pub tenant: TenantName,
    pub id: WebhookId,
    /// Counts up per webhook, from 1.
    pub number: u64,
    /// The same for all attempts at one event.
    pub delivery: String,
    /// `None`: it was a test.
    pub event: Option<u64>,
    /// The CloudEvents type.
    pub kind: String,
    /// Counts up per event, from 1.
    pub attempt: u32,
    pub at: Timestamp,
    pub duration_ms: u64,
    /// The HTTP status of the answer, if there was one.
    pub status: Option<u16>,
    /// Why it did not count as delivered.
    pub error: Option<String>,
    /// The number of missed events that was told with it.
    #[serde(default)]
    pub missed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_fit_into_keys() {
        assert!("a1b2c3d4".parse::<WebhookId>().is_ok());
        for bad in ["", "a/b", "A", "ä", "a b", "..", &"a".repeat(33)] {
            assert!(bad.parse::<WebhookId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_secret_is_not_printed_by_accident() {
        assert_eq!(format!("{:?}", WebhookSecret("hunter2".into())), "(secret)");
    }
}
