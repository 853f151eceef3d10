//! Webhooks: tenants are told of their events by signed HTTP requests.
//!
//! One task ([`WebhookService`]) follows the event log and tells every webhook of what it wants, in the order of the events, one at a time,
//! at least once: how far it has come is written down after each attempt, and a server that is killed in between repeats that one. What
//! fails is tried again with growing pauses, then given up; a webhook that takes nothing for days, or answers 410, is disabled. A webhook
//! that is slow holds up nobody else: it has one request under way, a tenant a share of all. Requests go out through
//! [`crate::outbound`], which judges every address, those of redirects too. [`Webhooks`] is the handle that others hold.

mod attempt;
mod hook;
mod message;
mod service;
#[cfg(test)]
mod tests;
mod window;

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::sync::{mpsc, oneshot};
use url::Url;

pub use self::service::WebhookService;
use crate::{
    deploy::Clock,
    domain::{Event, TenantName, WebhookDelivery, WebhookId, WebhookSecret, parse_url},
    outbound::Outbound,
    store::{Store, StoreError},
};

/// Requests that may wait for the service.
const ASKS: usize = 64;
/// Bytes of randomness in a secret.
const SECRET_BYTES: usize = 32;

/// How webhooks are told; from the server's configuration.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// Whether URLs may begin with `http://`.
    pub allow_http: bool,
    /// Webhooks of one tenant.
    pub per_tenant: usize,
    /// Requests under way, in all and of one tenant.
    pub concurrency: usize,
    pub concurrency_per_tenant: usize,
    /// One request, from looking up the name to the end of the answer.
    pub timeout: Duration,
    /// The pause after the first failure, and the longest one.
    pub first_retry: Duration,
    pub longest_retry: Duration,
    /// How long one event is tried again.
    pub give_up_after: Duration,
    /// A webhook that nothing gets through to for so long is disabled.
    pub disable_after: Duration,
    /// How long an event waits for one with a lower number that is not there.
    pub settle: Duration,
    /// Comes before the sources of CloudEvents, as in `https://berth.example.com`; may be empty.
    pub source_base: String,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        Self {
            allow_http: false,
            per_tenant: 20,
            concurrency: 64,
            concurrency_per_tenant: 8,
            timeout: Duration::from_secs(10),
            first_retry: Duration::from_secs(5),
            longest_retry: Duration::from_secs(3600),
            give_up_after: Duration::from_secs(24 * 3600),
            disable_after: Duration::from_secs(72 * 3600),
            settle: Duration::from_secs(5),
            source_base: String::new(),
        }
    }
}

/// What the service works with.
pub struct WebhookParts {
    pub store: Store,
    pub outbound: Outbound,
    pub clock: Arc<dyn Clock>,
    pub settings: WebhookSettings,
}

/// Why no test was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TestRefusal {
    /// The service knows of no such webhook.
    #[error("there is no such webhook")]
    Unknown,
    /// A test of it is under way.
    #[error("a test of it is under way")]
    Busy,
    /// As many requests are under way as may be.
    #[error("too many deliveries are under way")]
    NoPlace,
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

type Tested = Result<WebhookDelivery, TestRefusal>;

enum Ask {
    /// What waits to be tried again is tried now.
    Nudge((TenantName, WebhookId)),
    Test((TenantName, WebhookId), oneshot::Sender<Tested>),
}

/// Asks for deliveries. Clones share the service.
#[derive(Clone)]
pub struct Webhooks {
    asks: mpsc::Sender<Ask>,
    outbound: Outbound,
    settings: Arc<WebhookSettings>,
}

impl Webhooks {
    /// A handle and the service that does the work; nothing is sent before [`WebhookService::run`].
    pub fn start(parts: WebhookParts) -> (Self, WebhookService) {
        let (asks, queue) = mpsc::channel(ASKS);
        let settings = Arc::new(parts.settings.clone());
        (Self { asks, outbound: parts.outbound.clone(), settings }, WebhookService::new(Arc::new(parts), queue))
    }

    /// What a webhook waits to be told again is told now. When the service has more to do than it can remember, nothing happens: it is told
    /// when its time comes.
    pub fn nudge(&self, tenant: &TenantName, id: &WebhookId) {
        let _ = self.asks.try_send(Ask::Nudge((tenant.clone(), id.clone())));
    }

    /// Sends a `webhook.ping`, once, whether the webhook is enabled or not, and returns how that went. It comes into the delivery log.
    ///
    /// # Errors
    /// See [`TestRefusal`]; that it did not get through is none.
    pub async fn test(&self, tenant: &TenantName, id: &WebhookId) -> Tested {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Test((tenant.clone(), id.clone()), reply);
        self.asks.send(ask).await.map_err(|_| TestRefusal::Stopping)?;
        answer.await.unwrap_or(Err(TestRefusal::Stopping))
    }

    /// Webhooks that a tenant may have.
    pub fn per_tenant(&self) -> usize {
        self.settings.per_tenant
    }

    /// Reads a URL that a webhook is to have. Its host's addresses are judged when something is sent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_url(&self, text: &str) -> Result<Url, String> {
        let url = check_url(text, &self.outbound, self.settings.allow_http)?;
        if url.fragment().is_some() {
            return Err(unusable("it has a fragment (#), which is never sent"));
        }
        if url.port() == Some(0) {
            return Err(unusable("there is no port 0"));
        }
        Ok(url)
    }
}

fn check_url(text: &str, outbound: &Outbound, allow_http: bool) -> Result<Url, String> {
    let url = parse_url(text).map_err(|error| unusable(&error))?;
    outbound.check_url(&url).map_err(|error| error.to_string())?;
    if url.scheme() == "http" && !allow_http {
        let why =
            "it must begin with https://, or the operator must set webhooks.allow_http in the server's configuration";
        return Err(unusable(why));
    }
    Ok(url)
}

fn unusable(why: &str) -> String {
    format!("the URL cannot be used: {why}")
}

/// Where a URL leads to, without what may be secret in it: user name, password, query, fragment, and the path, as many receivers have their
/// token in it.
pub fn shown_url(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path = if matches!(url.path(), "" | "/") { "/" } else { "/…" };
    format!("{}://{}{port}{path}", url.scheme(), url.host_str().unwrap_or_default())
}

/// A new secret. Its prefix is what scanners for secrets find it by.
pub fn new_secret() -> WebhookSecret {
    WebhookSecret(format!("whsec_{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>())))
}

/// The number of the newest event, 0 without one.
///
/// # Errors
/// The store's.
pub async fn newest_event(store: &Store) -> Result<u64, StoreError> {
    Ok(store.list::<Event>("").await?.last().map_or(0, |event| event.id))
}
