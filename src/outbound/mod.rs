//! Connections to addresses that tenants name: webhook targets, log drains.
//!
//! A tenant may name any host, and the server stands where the tenant does not: beside its own control socket, in the operator's network,
//! next to a cloud's metadata. So only public unicast addresses are connected to, and what the operator allows beyond them. It is the
//! address that is judged, not the name, and the judged address is the one that is connected to: a name that says something else a moment
//! later (DNS rebinding) is not asked again. [`Outbound::connect`] gives a TCP stream, [`Outbound::http_client`] speaks HTTP, and every
//! redirect is judged anew. Nothing goes through a proxy of the environment, which would resolve names by itself.

mod http;
mod judge;
mod resolve;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

pub use self::{
    http::{HttpClient, read_at_most},
    judge::Fault,
    resolve::{Resolver, SystemResolver},
};
use judge::Guard;

/// The configuration key that lets addresses through; named in refusals.
pub const ALLOWED_NETWORKS_KEY: &str = "outbound.allowed_networks";
/// Addresses of one name that are looked at.
const MOST_ADDRESSES: usize = 16;

/// What the operator says of connections to where tenants want.
#[derive(Debug, Clone)]
pub struct OutboundSettings {
    /// Networks that may be connected to though they are not public.
    pub allowed_networks: Vec<IpNet>,
    /// From looking up the name to the connection, over all of its addresses.
    pub connect_timeout: Duration,
    /// A whole HTTP request, from its first redirect to the end of the answer's body.
    pub request_timeout: Duration,
}

impl Default for OutboundSettings {
    fn default() -> Self {
        Self {
            allowed_networks: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Why there is no connection. The texts are made for tenants: they tell nothing but what the tenant named and where that led.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutboundError {
    /// None of its addresses is public, nor allowed by the operator. Nothing was sent.
    #[error("{} {fault}; only public addresses are connected to, and those in {ALLOWED_NETWORKS_KEY} of the server's configuration", leads(.host, .address))]
    Refused { host: String, address: IpAddr, fault: Fault },
    /// The URL itself cannot be used.
    #[error("the URL cannot be used: {0}")]
    Url(String),
    /// It has no address, or nobody answered who would know.
    #[error("{host} cannot be resolved: {reason}")]
    Unresolved { host: String, reason: String },
    #[error("cannot connect to {host} ({address}): {reason}")]
    Connect { host: String, address: SocketAddr, reason: String },
    #[error("{host} did not answer within {} s", .after.as_secs())]
    TimedOut { host: String, after: Duration },
    /// An HTTP request that broke off.
    #[error("the request to {host} failed: {reason}")]
    Request { host: String, reason: String },
    /// The client itself cannot be made, for want of certificates.
    #[error("no HTTP client can be made: {0}")]
    Client(String),
}

fn leads(host: &str, address: &IpAddr) -> String {
    if host == address.to_string() { format!("{host} is") } else { format!("{host} leads to {address},") }
}

/// Judges, then connects. Clones share it.
#[derive(Clone)]
pub struct Outbound {
    gate: Arc<Gate>,
    http: HttpClient,
}

/// The judgement, with where addresses come from.
struct Gate {
    guard: Guard,
    resolver: Arc<dyn Resolver>,
    settings: OutboundSettings,
}

impl Outbound {
    /// With the host's own resolver.
    ///
    /// # Errors
    /// [`OutboundError::Client`].
    pub fn new(settings: OutboundSettings) -> Result<Self, OutboundError> {
        Self::with_resolver(settings, Arc::new(SystemResolver::default()))
    }

    /// With another resolver.
    ///
    /// # Errors
    /// [`OutboundError::Client`].
    pub fn with_resolver(settings: OutboundSettings, resolver: Arc<dyn Resolver>) -> Result<Self, OutboundError> {
        let guard = Guard::new(settings.allowed_networks.clone());
        let gate = Arc::new(Gate { guard, resolver, settings });
        let http = HttpClient::new(gate.clone())?;
        Ok(Self { gate, http })
    }

    /// A TCP connection to a name or an IP address (IPv6 with or without brackets). All addresses of a name are judged, and those that may
    /// be are tried one after the other.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, OutboundError> {
        let limit = self.gate.settings.connect_timeout;
        let deadline = Instant::now() + limit;
        let timed_out = || OutboundError::TimedOut { host: host.to_owned(), after: limit };
        let addresses = timeout_at(deadline, self.gate.addresses(host)).await.map_err(|_| timed_out())??;
        let mut last = timed_out();
        for (tried, address) in addresses.iter().enumerate() {
            let address = SocketAddr::new(*address, port);
            // An address that does not answer leaves time for the next.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - tried).unwrap_or(1);
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => {
                    last = OutboundError::Connect { host: host.to_owned(), address, reason: error.to_string() };
                }
                Err(_) => last = timed_out(),
            }
        }
        Err(last)
    }

    /// HTTP under the same rules; see [`HttpClient`].
    pub fn http_client(&self) -> HttpClient {
        self.http.clone()
    }

    /// Judges a URL as far as that can be done without looking up its host: see [`HttpClient::request`].
    ///
    /// # Errors
    /// [`OutboundError::Url`] or [`OutboundError::Refused`].
    pub fn check_url(&self, url: &url::Url) -> Result<(), OutboundError> {
        self.gate.check_url(url)
    }
}

impl Gate {
    /// The addresses of a host that may be connected to; at least one.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, OutboundError> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return self.judge(bare, address).map(|()| vec![address]);
        }
        let unresolved = |reason: String| OutboundError::Unresolved { host: host.to_owned(), reason };
        let found = self.resolver.resolve(bare).await.map_err(|error| unresolved(error.to_string()))?;
        let mut refusal = unresolved("it has no address".to_owned());
        let mut allowed = Vec::new();
        for address in found.into_iter().take(MOST_ADDRESSES) {
            match self.judge(host, address) {
                Ok(()) if !allowed.contains(&address) => allowed.push(address),
                Ok(()) => {}
                Err(error) => refusal = error,
            }
        }
        if allowed.is_empty() { Err(refusal) } else { Ok(allowed) }
    }

    fn judge(&self, host: &str, address: IpAddr) -> Result<(), OutboundError> {
        let refused = |fault| OutboundError::Refused { host: host.to_owned(), address, fault };
        self.guard.judge(address).map_err(refused)
    }
}
