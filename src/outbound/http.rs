//! HTTP to where tenants want.

use std::{error::Error, sync::Arc};

use futures::StreamExt;
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::{Attempt, Policy},
};
use url::{Host, Url};

use super::{Gate, OutboundError};

/// Redirects that are followed for one request.
const MOST_REDIRECTS: usize = 3;
/// Longest URL, in bytes.
const LONGEST_URL: usize = 2048;

impl Gate {
    /// What can be said of a URL before its host is looked up: its form, and a literal address, for which no resolver is asked.
    pub(super) fn check_url(&self, url: &Url) -> Result<(), OutboundError> {
        let unusable = |reason: &str| Err(OutboundError::Url(reason.to_owned()));
        if url.as_str().len() > LONGEST_URL {
            return unusable("it is longer than 2048 bytes");
        }
        if !matches!(url.scheme(), "http" | "https") {
            return unusable("it must begin with https:// or http://");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return unusable("it has a user name or a password in it");
        }
        match url.host() {
            // The parser has read all ways to write an IPv4 address (127.1, 0x7f000001) into this one.
            Some(Host::Ipv4(address)) => self.judge(&address.to_string(), address.into()),
            Some(Host::Ipv6(address)) => self.judge(&address.to_string(), address.into()),
            Some(Host::Domain(_)) => Ok(()),
            None => unusable("it names no host"),
        }
    }

    /// Whether a redirect may be followed from one URL to another.
    pub(super) fn check_hop(&self, from: Option<&Url>, to: &Url) -> Result<(), OutboundError> {
        if from.is_some_and(|from| from.scheme() == "https") && to.scheme() != "https" {
            return Err(OutboundError::Url("a redirect leads from https to http".to_owned()));
        }
        self.check_url(to)
    }

    fn redirect(&self, attempt: Attempt<'_>) -> reqwest::redirect::Action {
        // The others would make a POST a GET: the answer is handed to whoever asked, as it is.
        if !matches!(attempt.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
            return attempt.stop();
        }
        // The first of the previous ones is the request itself.
        if attempt.previous().len() > MOST_REDIRECTS {
            return attempt.error(OutboundError::Url(format!("it leads through more than {MOST_REDIRECTS} redirects")));
        }
        match self.check_hop(attempt.previous().last(), attempt.url()) {
            Ok(()) => attempt.follow(),
            Err(error) => attempt.error(error),
        }
    }
}

/// Gives the client judged addresses only.
struct JudgedNames(Arc<Gate>);

impl Resolve for JudgedNames {
    fn resolve(&self, name: Name) -> Resolving {
        let gate = self.0.clone();
        Box::pin(async move {
            let addresses = gate.addresses(name.as_str()).await?;
            // The port is the URL's.
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| (address, 0).into()));
            Ok(addresses)
        })
    }
}

/// An HTTP client whose requests, redirects included, go to judged addresses only. It follows 307 and 308, at most three times, and hands
/// out other redirects as answers. Bodies of answers are as long as the other end likes: read them with [`read_at_most`]. Clones share it.
#[derive(Clone)]
pub struct HttpClient {
    gate: Arc<Gate>,
    client: Client,
}

impl HttpClient {
    pub(super) fn new(gate: Arc<Gate>) -> Result<Self, OutboundError> {
        let judge = gate.clone();
        let client = Client::builder()
            .no_proxy()
            .dns_resolver(Arc::new(JudgedNames(gate.clone())))
            .redirect(Policy::custom(move |attempt| judge.redirect(attempt)))
            .referer(false)
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(gate.settings.connect_timeout)
            .timeout(gate.settings.request_timeout)
            .pool_max_idle_per_host(1)
            .build()
            .map_err(|error| OutboundError::Client(explain(&error)))?;
        Ok(Self { gate, client })
    }

    /// Begins a request: http or https, without user name and password in the URL. A literal address in it is judged here, a name when it
    /// is looked up.
    ///
    /// # Errors
    /// [`OutboundError::Url`] or [`OutboundError::Refused`]; those of later are found in what `send` gives by [`OutboundError::of`].
    pub fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, OutboundError> {
        self.gate.check_url(&url)?;
        Ok(self.client.request(method, url))
    }
}

impl OutboundError {
    /// Why a request to `host` failed: the refusal that is at its root, or what else went wrong, in words without the URL, which may hold
    /// secrets.
    pub fn of(error: &reqwest::Error, host: &str) -> Self {
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(refusal) = inner.downcast_ref::<Self>() {
                return refusal.clone();
            }
            cause = inner.source();
        }
        let reason = if error.is_timeout() { "no answer in time".to_owned() } else { explain(error) };
        Self::Request { host: host.to_owned(), reason }
    }
}

/// The causes of an error without the error itself, whose text has the whole URL in it.
fn explain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    causes.dedup();
    if causes.is_empty() { "it is not known why".to_owned() } else { causes.join(": ") }
}

/// The first bytes of an answer's body; the rest is not read, and the connection is closed.
///
/// # Errors
/// When the body breaks off before.
pub async fn read_at_most(response: Response, limit: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while body.len() < limit
        && let Some(chunk) = chunks.next().await
    {
        let chunk = chunk?;
        body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
    }
    Ok(body)
}
