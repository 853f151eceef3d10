//! What is sent: the body of a delivery and its signature.

use ring::hmac;
use serde_json::{Value, json};

use crate::domain::{Event, EventKind, TenantName, Timestamp, WebhookId, WebhookSecret};

/// Comes before the kind in CloudEvents types.
const TYPE_PREFIX: &str = "dev.berth.";
/// The kind of the event that a test sends.
pub(super) const PING: &str = "webhook.ping";

/// The dotted name of a kind, as in `build.finished`.
pub(super) fn kind_name(kind: EventKind) -> String {
    kind.name().to_owned()
}

/// The CloudEvents type of a kind.
pub(super) fn event_type(kind: &str) -> String {
    format!("{TYPE_PREFIX}{kind}")
}

/// An event as CloudEvents 1.0 in structured mode (JSON event format). `source_base` comes before its source.
pub(super) fn cloud_event(event: &Event, source_base: &str) -> Value {
    // Texts, numbers and a bounded object: nothing that JSON cannot say.
    serde_json::to_value(event.cloud_event(source_base)).unwrap_or_default()
}

/// The event of a test, which is in no event log.
pub(super) fn ping(tenant: &TenantName, id: &WebhookId, delivery: &str, at: Timestamp, source_base: &str) -> Value {
    json!({
        "specversion": "1.0",
        "id": delivery,
        "source": format!("{source_base}/tenants/{tenant}"),
        "type": event_type(PING),
        "time": at,
        "datacontenttype": "application/json",
        "data": {"message": format!("This is a test of the webhook {id}."), "tenant": tenant},
    })
}

/// The `Berth-Signature` of a body: HMAC-SHA256 over the timestamp (seconds since 1970, as in `Berth-Timestamp`), a dot and the body's bytes,
/// keyed with the secret's text, in hexadecimal.
pub(super) fn signature(secret: &WebhookSecret, timestamp: i64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.0.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{timestamp}.").as_bytes());
    context.update(body);
    format!("v1={}", hex::encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cloud_events() {
        let event = Event {
            id: 7,
            at: Timestamp::UNIX_EPOCH,
            kind: EventKind::BuildFinished,
            tenant: Some("acme".parse().unwrap()),
            app: Some("shop".parse().unwrap()),
            env: Some("dev".parse().unwrap()),
            actor: Some("dan".parse().unwrap()),
            message: "it is built".into(),
            data: crate::domain::EventData::default(),
        };
        let expected = json!({
            "specversion": "1.0", "id": "7", "source": "https://berth.example.com/tenants/acme/apps/shop/envs/dev", "type": "dev.berth.build.finished",
            "time": "1970-01-01T00:00:00Z", "datacontenttype": "application/json",
            "data": {"message": "it is built", "actor": "dan", "tenant": "acme", "app": "shop", "env": "dev", "details": {}},
        });
        assert_eq!(cloud_event(&event, "https://berth.example.com"), expected);
    }

    #[test]
    fn signatures_are_those_of_openssl() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac whsec_test
        let signed = signature(&WebhookSecret("whsec_test".into()), 1_700_000_000, br#"{"a":1}"#);
        assert_eq!(signed, "v1=38877139021993b830af32feea6e18a8da83eb2f6e49ee50bd9e4cf4ca4d3789");
    }
}
