//! What happened, for `events`, the API's stream and webhooks.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AppName, AppRef, EnvName, EnvRef, TenantName, Timestamp, UserName};

/// One thing that happened. Never carries a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up over the platform, in the order in which events were recorded; some numbers are left out.
    pub id: u64,
    pub at: Timestamp,
    pub kind: EventKind,
    pub tenant: Option<TenantName>,
    pub app: Option<AppName>,
    pub env: Option<EnvName>,
    /// Who caused it, if a person did.
    pub actor: Option<UserName>,
    /// For people, one line.
    pub message: String,
    /// The same for programs; empty in events of before there was any.
    #[serde(default, skip_serializing_if = "EventData::is_empty")]
    pub data: EventData,
}

impl Event {
    /// Longest message, bytes.
    pub const MAX_MESSAGE: usize = 2000;

    /// The app that it is about.
    pub fn app_ref(&self) -> Option<AppRef> {
        Some(AppRef { tenant: self.tenant.clone()?, app: self.app.clone()? })
    }

    /// The environment that it is about.
    pub fn env_ref(&self) -> Option<EnvRef> {
        Some(self.app_ref()?.env(self.env.clone()?))
    }
}

/// What an event says in fields: a small object, bounded whatever is put into it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventData(Map<String, Value>);

impl EventData {
    /// Largest object as JSON, bytes.
    pub const MAX_BYTES: usize = 4096;
    /// Says that something was left out.
    pub const TRUNCATED: &'static str = "truncated";
    /// What the mark of truncation takes, braces included.
    const RESERVED: usize = 32;

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Sets a field. Of what there is no room for, the end is left out (of a text or a list) or all of it, and `truncated` says so.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.remove(name);
        let used = size(&Value::Object(self.0.clone()));
        // Quotes, colon and comma.
        let room = Self::MAX_BYTES.saturating_sub(used + Self::RESERVED + json_size(name) + 2);
        let value = value.into();
        let whole = size(&value) <= room;
        if let Some(value) = if whole { Some(value) } else { shortened(value, room) } {
            self.0.insert(name.to_owned(), value);
        }
        if !whole {
            self.0.insert(Self::TRUNCATED.to_owned(), Value::Bool(true));
        }
    }
}

fn size(value: &Value) -> usize {
    value.to_string().len()
}

fn json_size(text: &str) -> usize {
    size(&Value::String(text.to_owned()))
}

/// As much of a text or a list as fits into `room` bytes of JSON; `None`: nothing that makes sense.
fn shortened(value: Value, room: usize) -> Option<Value> {
    match value {
        Value::String(text) if room > "\"…\"".len() => {
            let mut kept = text;
            while json_size(&kept) + '…'.len_utf8() > room {
                // An escaped character takes six bytes at the most, so that this ends soon without cutting too much.
                let over = json_size(&kept) + '…'.len_utf8() - room;
                let mut end = kept.len().saturating_sub((over / 6).max(1));
                while !kept.is_char_boundary(end) {
                    end -= 1;
                }
                kept.truncate(end);
            }
            Some(Value::String(kept + "…"))
        }
        Value::Array(items) => {
            let mut left = room.checked_sub("[]".len())?;
            let fits = |item: &Value| match left.checked_sub(size(item) + 1) {
                Some(rest) => {
                    left = rest;
                    true
                }
                None => false,
            };
            Some(Value::Array(items.into_iter().take_while(fits).collect()))
        }
        _ => None,
    }
}

/// A text that is the name of no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no kind of event called {0:?}")]
pub struct UnknownKind(String);

macro_rules! kinds {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// The kinds of events; dotted names when serialised and in `--json`. They are part of what programs rely on: none is renamed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $(#[serde(rename = $name)] $variant),+
        }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its dotted name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl FromStr for EventKind {
            type Err = UnknownKind;
            fn from_str(text: &str) -> Result<Self, UnknownKind> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(UnknownKind(text.chars().take(64).collect())),
                }
            }
        }
    };
}

kinds! {
    KeyAdded = "key.added",
    KeyRemoved = "key.removed",
    TokenCreated = "token.created",
    TokenRevoked = "token.revoked",
    TenantCreated = "tenant.created",
    TenantChanged = "tenant.changed",
    MemberChanged = "member.changed",
    AccessDenied = "access.denied",
    AppCreated = "app.created",
    AppDestroyed = "app.destroyed",
    EnvCreated = "env.created",
    EnvDestroyed = "env.destroyed",
    EnvRestarted = "env.restarted",
    PushReceived = "push.received",
    PushAccepted = "push.accepted",
    PushRefused = "push.refused",
    BuildQueued = "build.queued",
    BuildStarted = "build.started",
    BuildFinished = "build.finished",
    BuildCancelled = "build.cancelled",
    ReleaseCreated = "release.created",
    DeploymentStarted = "deployment.started",
    DeploymentStep = "deployment.step",
    DeploymentFinished = "deployment.finished",
    DeploymentCancelled = "deployment.cancelled",
    DeploymentRolledBack = "deployment.rolled_back",
    ScaleChanged = "scale.changed",
    ConfigChanged = "config.changed",
    ReplicaStarted = "replica.started",
    ReplicaHealthy = "replica.healthy",
    ReplicaUnhealthy = "replica.unhealthy",
    ReplicaDied = "replica.died",
    DomainChanged = "domain.changed",
    DrainChanged = "drain.changed",
    WebhookChanged = "webhook.changed",
    WebhookDisabled = "webhook.disabled",
    RunStarted = "run.started",
    RunFinished = "run.finished",
    CronStarted = "cron.started",
    CronFinished = "cron.finished",
    CronSkipped = "cron.skipped",
    EngineLost = "engine.lost",
    EngineBack = "engine.back",
    RegistryLost = "registry.lost",
    RegistryBack = "registry.back",
    RouterLost = "router.lost",
    RouterBack = "router.back",
    DiskLow = "disk.low",
    DiskOk = "disk.ok",
    CollectionFinished = "collection.finished",
    EventsDropped = "events.dropped",
}

impl EventKind {
    /// The first part of its name: what it is about.
    pub fn family(self) -> &'static str {
        let name = self.name();
        name.split_once('.').map_or(name, |(family, _)| family)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_have_one_name_everywhere() {
        for kind in EventKind::ALL {
            assert_eq!(json!(kind), json!(kind.name()));
            assert_eq!(kind.name().parse(), Ok(*kind));
            assert!(kind.name().starts_with(&format!("{}.", kind.family())));
        }
        assert!("nothing.known".parse::<EventKind>().is_err());
    }

    #[test]
    fn an_event_of_an_older_version_is_read() {
        let old = r#"{"id":7,"at":"2026-01-02T03:04:05Z","kind":"build.finished","tenant":"acme","app":"shop","env":"dev","actor":null,"message":"build #3 succeeded"}"#;
        let event: Event = serde_json::from_str(old).unwrap();
        assert!(event.data.is_empty());
        assert_eq!(event.env_ref(), Some("acme/shop/dev".parse().unwrap()));
        assert_eq!(serde_json::to_string(&event).unwrap(), old, "and looks as it did");
    }

    #[test]
    fn data_is_bounded() {
        let mut data = EventData::default();
        data.set("number", 7);
        data.set("names", (0..2000).map(|n| format!("NAME_{n}")).collect::<Vec<_>>());
        assert_eq!(data.get("number"), Some(&json!(7)));
        assert_eq!(data.get(EventData::TRUNCATED), Some(&json!(true)));
        assert!(data.get("names").unwrap().as_array().unwrap().len() > 200);
        data.set("late", "x".repeat(9000));
        data.set("nested", json!({"a": "y".repeat(9000)}));
        assert!(data.get("nested").is_none());
        for text in ["\u{1}".repeat(5000), "ä".repeat(5000), "\"".repeat(5000), "x".repeat(100_000)] {
            let mut data = EventData::default();
            data.set("text", text);
            let bytes = serde_json::to_string(&data).unwrap().len();
            assert!((EventData::MAX_BYTES / 2..=EventData::MAX_BYTES).contains(&bytes), "{bytes}");
        }
        let bytes = serde_json::to_string(&data).unwrap().len();
        assert!(bytes <= EventData::MAX_BYTES, "{bytes}");
    }
}
