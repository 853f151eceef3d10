//! Events as others read them: CloudEvents 1.0, in the JSON event format (cloudevents.io, `spec.md` and `formats/json-format.md`).

use serde::Serialize;

use super::{Event, EventData, Timestamp, UserName};

/// Comes before the kind of an event in a CloudEvent's `type`.
pub const TYPE_PREFIX: &str = "dev.berth.";

/// An event as a CloudEvent. `source` and `id` together name it for ever.
#[derive(Debug, Clone, Serialize)]
pub struct CloudEvent<'e> {
    specversion: &'static str,
    /// The event's number, as text.
    id: String,
    /// What it happened to, as a URI reference.
    source: String,
    /// [`TYPE_PREFIX`] and the kind.
    r#type: String,
    /// What of it: `builds/3`, `releases/v7`, `replicas/web.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    time: Timestamp,
    datacontenttype: &'static str,
    data: CloudEventData<'e>,
}

/// The `data` of a CloudEvent: what the event says of itself, then its own fields.
#[derive(Debug, Clone, Serialize)]
struct CloudEventData<'e> {
    message: &'e str,
    actor: Option<&'e UserName>,
    tenant: Option<&'e super::TenantName>,
    app: Option<&'e super::AppName>,
    env: Option<&'e super::EnvName>,
    details: &'e EventData,
}

impl Event {
    /// The event as a CloudEvent. `source_base` comes before its source, as in `https://berth.example.com`; it may be empty.
    pub fn cloud_event(&self, source_base: &str) -> CloudEvent<'_> {
        CloudEvent {
            specversion: "1.0",
            id: self.id.to_string(),
            source: format!("{}{}", source_base.trim_end_matches('/'), self.place()),
            r#type: format!("{TYPE_PREFIX}{}", self.kind.name()),
            subject: self.subject(),
            time: self.at,
            datacontenttype: "application/json",
            data: CloudEventData {
                message: &self.message,
                actor: self.actor.as_ref(),
                tenant: self.tenant.as_ref(),
                app: self.app.as_ref(),
                env: self.env.as_ref(),
                details: &self.data,
            },
        }
    }

    /// `/tenants/T/apps/A/envs/E`, as far as it goes.
    fn place(&self) -> String {
        let Some(tenant) = &self.tenant else { return "/".to_owned() };
        let mut place = format!("/tenants/{tenant}");
        if let Some(app) = &self.app {
            place.push_str(&format!("/apps/{app}"));
            if let Some(env) = &self.env {
                place.push_str(&format!("/envs/{env}"));
            }
        }
        place
    }

    fn subject(&self) -> Option<String> {
        let (folder, field) = match self.kind.family() {
            "push" | "build" => ("builds/", "build"),
            "release" | "deployment" => ("releases/v", "release"),
            "replica" => ("replicas/", "replica"),
            "cron" => ("cron/", "job"),
            "run" => ("runs/", "run"),
            "domain" => ("domains/", "domain"),
            "member" => ("members/", "user"),
            _ => return None,
        };
        match self.data.get(field)? {
            serde_json::Value::String(text) => Some(format!("{folder}{text}")),
            serde_json::Value::Number(number) => Some(format!("{folder}{number}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::EventKind;

    fn event(kind: EventKind, fields: &[(&str, Value)]) -> Event {
        let mut data = EventData::default();
        fields.iter().for_each(|(name, value)| data.set(name, value.clone()));
        Event {
            id: 42,
            at: "2026-01-02T03:04:05.5Z".parse().unwrap(),
            kind,
            tenant: Some("acme".parse().unwrap()),
            app: Some("shop".parse().unwrap()),
            env: Some("dev".parse().unwrap()),
            actor: Some("alice".parse().unwrap()),
            message: "build #3 succeeded".to_owned(),
            data,
        }
    }

    #[test]
    fn the_form_of_the_specification() {
        let event = event(EventKind::BuildFinished, &[("build", json!(3)), ("outcome", json!("succeeded"))]);
        let cloud = serde_json::to_value(event.cloud_event("https://berth.example.com/")).unwrap();
        let want = json!({
            "specversion": "1.0",
            "id": "42",
            "source": "https://berth.example.com/tenants/acme/apps/shop/envs/dev",
            "type": "dev.berth.build.finished",
            "subject": "builds/3",
            "time": "2026-01-02T03:04:05.5Z",
            "datacontenttype": "application/json",
            "data": {
                "message": "build #3 succeeded", "actor": "alice", "tenant": "acme", "app": "shop", "env": "dev",
                "details": {"build": 3, "outcome": "succeeded"},
            },
        });
        assert_eq!(cloud, want);
    }

    /// `spec.md`: required attributes are non-empty strings, optional ones absent or non-empty; names are lower-case letters and digits.
    #[test]
    fn every_kind_has_the_required_attributes() {
        let fields = [("build", json!(3)), ("release", json!(7)), ("replica", json!("web.1")), ("job", json!([1]))];
        for kind in EventKind::ALL {
            for (tenant, base) in [(true, ""), (true, "https://berth.example.com"), (false, "")] {
                let mut event = event(*kind, &fields);
                if !tenant {
                    (event.tenant, event.app, event.env) = (None, None, None);
                }
                let cloud = serde_json::to_value(event.cloud_event(base)).unwrap();
                for (name, value) in cloud.as_object().unwrap() {
                    assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{name}");
                    assert!(name == "data" || value.as_str().is_some_and(|text| !text.is_empty()), "{name}: {value}");
                }
                for required in ["id", "source", "specversion", "type"] {
                    assert!(cloud.get(required).is_some(), "{required}");
                }
                // RFC 3339 and a URI reference (RFC 3986).
                assert!(cloud["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
                let source = cloud["source"].as_str().unwrap();
                assert!(source.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/:.-_".contains(&byte)));
                assert_eq!(source == "/", !tenant, "{source}");
            }
        }
    }

    #[test]
    fn subjects_name_what_of_the_environment() {
        let fields = [("build", json!(3)), ("release", json!(7)), ("replica", json!("web.1"))];
        let subject = |kind| event(kind, &fields).subject();
        assert_eq!(subject(EventKind::PushAccepted).as_deref(), Some("builds/3"));
        assert_eq!(subject(EventKind::DeploymentStep).as_deref(), Some("releases/v7"));
        assert_eq!(subject(EventKind::ReplicaDied).as_deref(), Some("replicas/web.1"));
        assert_eq!(subject(EventKind::ScaleChanged), None);
        assert_eq!(event(EventKind::PushRefused, &[]).subject(), None);
    }
}
