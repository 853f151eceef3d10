//! Log drains: the lines of an environment, sent on as they are written, to syslog receivers (RFC 5424 over TCP or TLS) or by HTTP
//! (NDJSON).
//!
//! The ring on disk is the buffer, and the only one: a drain reads it from where it has come to (its mark, in the store, written at most
//! once a second), sends some lines at a time, and moves the mark on when the receiver has taken them. So each line arrives at least once
//! as long as the ring still has it when the receiver is there; after a kill of the server at most the lines of the last second come
//! twice. Lines that the ring has overwritten before they could be sent, and those that the receiver refuses for good, are counted, and it
//! is said how many they are: in the list of drains, in the environment's log, and to the receiver itself, where they are missing.
//!
//! What counts as taken: over HTTP (`http`), an answer 2xx. Syslog has no acknowledgements; there (`stream`), lines count as taken once
//! the receiver's kernel has acknowledged them and the connection has lived on for some seconds; what was sent in the last seconds
//! before a connection broke is sent again. Lines that a receiver has read and then lost by its own crash are beyond that; one that closes
//! each connection sooner than that gets the same lines each time.
//!
//! One task per drain ([`DrainService`]), so that none waits for another's receiver; a drain holds one batch in memory, and there are
//! only so many drains.

mod http;
mod ndjson;
mod service;
mod source;
mod state;
mod stream;
mod syslog;
#[cfg(test)]
mod tests;
mod tls;
mod window;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use url::Url;

pub use self::{
    service::DrainService,
    state::{DrainState, DrainStatus},
};
use self::{state::States, tls::Tls};
use crate::{
    domain::{DrainScheme, DrainUrl, EnvRef},
    logs::Logs,
    outbound::Outbound,
    store::Store,
};

/// Most drains of one environment.
pub const MAX_OF_ENVIRONMENT: usize = 5;
/// Logs that are read at the same time.
const READERS: usize = 8;

/// How drains work; from the server's configuration.
#[derive(Debug, Clone)]
pub struct DrainSettings {
    /// Whether lines may go over the network as they are (`syslog://`, `http://`).
    pub allow_plain: bool,
    /// Certificates in PEM that are trusted beside the host's, for syslog over TLS.
    pub ca_file: Option<PathBuf>,
    /// Drains of all environments together.
    pub most: usize,
    /// What is sent at a time, in bytes; of what is longer, at least one line.
    pub batch_bytes: usize,
    /// How long more lines are waited for when there are some, over HTTP.
    pub linger: Duration,
    /// How long a connection must live on for what was sent over it to count as taken, without acknowledgements.
    pub settle: Duration,
    /// The first pause after a failure, and the longest; each is twice as long as the one before.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// A receiver that takes nothing for so long is given up, and connected to anew.
    pub stall: Duration,
    /// How often a mark is written, at most.
    pub save_every: Duration,
    /// How often it is said in the environment's log that lines were dropped, at most.
    pub say_every: Duration,
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self {
            allow_plain: false,
            ca_file: None,
            most: 1000,
            batch_bytes: 256 << 10,
            linger: Duration::from_secs(1),
            settle: Duration::from_secs(3),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            save_every: Duration::from_secs(1),
            say_every: Duration::from_secs(60),
        }
    }
}

/// What drains work with.
pub struct DrainParts {
    pub store: Store,
    pub logs: Logs,
    pub outbound: Outbound,
    pub settings: DrainSettings,
}

/// The same, shared by all drains.
struct Shared {
    store: Store,
    logs: Logs,
    outbound: Outbound,
    settings: DrainSettings,
    tls: Tls,
    readers: Semaphore,
    states: States,
}

/// Why a URL is not drained to here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DrainRefusal {
    #[error(
        "{0}:// sends the log over the network as it is; use {1}://, or ask the operator to set drains.allow_plain"
    )]
    Plain(&'static str, &'static str),
    #[error("{0}")]
    Address(String),
}

/// Tells how drains are. Clones share the service.
#[derive(Clone)]
pub struct Drains(Arc<Shared>);

impl Drains {
    /// A handle and the service that does the work; nothing happens before [`DrainService::run`].
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn start(parts: DrainParts) -> anyhow::Result<(Self, DrainService)> {
        let DrainParts { store, logs, outbound, settings } = parts;
        let tls = Tls::new(settings.ca_file.as_deref())?;
        let (readers, states) = (Semaphore::new(READERS), States::default());
        let shared = Arc::new(Shared { store, logs, outbound, settings, tls, readers, states });
        Ok((Self(shared.clone()), DrainService::new(shared)))
    }

    /// Whether lines may be sent there, as far as that can be said without looking up a name.
    ///
    /// # Errors
    /// See [`DrainRefusal`].
    pub fn check(&self, url: &DrainUrl) -> Result<(), DrainRefusal> {
        if url.is_plain() && !self.0.settings.allow_plain {
            return Err(match url.scheme() {
                DrainScheme::Http | DrainScheme::Https => DrainRefusal::Plain("http", "https"),
                DrainScheme::Syslog | DrainScheme::SyslogTls => DrainRefusal::Plain("syslog", "syslog+tls"),
            });
        }
        // Whatever is spoken there, it is the address that counts.
        let bare = Url::parse(&format!("https://{}:{}/", url.secret().host_str().unwrap_or_default(), url.port()));
        let address = |error: String| DrainRefusal::Address(error);
        let bare = bare.map_err(|error| address(error.to_string()))?;
        self.0.outbound.check_url(&bare).map_err(|error| address(error.to_string()))
    }

    /// Drains that there may be, of all environments together.
    pub fn most(&self) -> usize {
        self.0.settings.most
    }

    /// How the drains of an environment are that are under way, by their ids.
    pub fn status(&self, env: &EnvRef) -> BTreeMap<u64, DrainStatus> {
        self.0.states.of(env)
    }
}
