//! One attempt at one delivery.

use std::time::Instant;

use reqwest::{Method, header};
use url::Url;

use super::{
    WebhookSettings, check_url,
    message::{event_type, signature},
};
use crate::{
    domain::{Timestamp, Webhook, WebhookDelivery},
    outbound::{Outbound, OutboundError, read_at_most},
};

/// What is read of an answer, in bytes; nothing of it is kept.
const ANSWER: usize = 4 << 10;
/// What is kept of the reason of a failure, in characters.
const REASON: usize = 400;

/// What is to be sent, and in which headers.
pub(super) struct Attempt {
    pub(super) webhook: Webhook,
    /// The same for all attempts at one event.
    pub(super) delivery: String,
    /// `None`: it is a test.
    pub(super) event: Option<u64>,
    pub(super) kind: String,
    pub(super) body: Vec<u8>,
    pub(super) attempt: u32,
    pub(super) missed: u64,
}

impl Attempt {
    /// Sends it. That it got through is that there is no error in what is returned.
    pub(super) async fn make(self, outbound: &Outbound, settings: &WebhookSettings, now: Timestamp) -> WebhookDelivery {
        let begun = Instant::now();
        let sent = tokio::time::timeout(settings.timeout, self.send(outbound, settings, now)).await;
        let late = || Err(format!("{} did not answer within {:?}", self.webhook.target, settings.timeout));
        let (status, error) = match sent.unwrap_or_else(|_| late()) {
            Ok(status) => (Some(status), verdict(status)),
            Err(reason) => (None, Some(reason)),
        };
        WebhookDelivery {
            tenant: self.webhook.tenant,
            id: self.webhook.id,
            number: 0,
            delivery: self.delivery,
            event: self.event,
            kind: event_type(&self.kind),
            attempt: self.attempt,
            at: now,
            duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            status,
            error: error.map(|reason| reason.chars().take(REASON).collect()),
            missed: self.missed,
        }
    }

    /// The status of the answer, or why there is none.
    async fn send(&self, outbound: &Outbound, settings: &WebhookSettings, now: Timestamp) -> Result<u16, String> {
        // The operator may have changed their mind since it was added.
        let url: Url = check_url(&self.webhook.url, outbound, settings.allow_http)?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let said = |error: OutboundError| error.to_string();
        let mut request = outbound.http_client().request(Method::POST, url).map_err(said)?;
        let timestamp = now.as_second();
        request = request
            .timeout(settings.timeout)
            .header(header::CONTENT_TYPE, "application/cloudevents+json")
            .header("Berth-Delivery", &self.delivery)
            .header("Berth-Timestamp", timestamp)
            .header("Berth-Signature", signature(&self.webhook.secret, timestamp, &self.body));
        if self.missed > 0 {
            request = request.header("Berth-Missed", self.missed);
        }
        let answer = request.body(self.body.clone()).send().await;
        let answer = answer.map_err(|error| said(OutboundError::of(&error, &host)))?;
        let status = answer.status().as_u16();
        // So that the connection can be used again; the status has said it all.
        let _ = read_at_most(answer, ANSWER).await;
        Ok(status)
    }
}

/// Why an answer does not count as taken.
fn verdict(status: u16) -> Option<String> {
    match status {
        200..=299 => None,
        301..=303 => {
            Some(format!("it answered {status}, which would make a GET of it; only redirects 307 and 308 are followed"))
        }
        _ => Some(format!("it answered {status}")),
    }
}
