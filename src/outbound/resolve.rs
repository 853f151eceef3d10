//! Names to addresses.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
};

use async_trait::async_trait;
use tokio::sync::Semaphore;

/// Look-ups under way at once; the others wait. Each holds a thread for as long as the host's resolver takes.
const LOOKUPS: usize = 32;

/// Finds the addresses of a name. A fake one is a constructor argument.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// All addresses that `host` has now.
    ///
    /// # Errors
    /// When it has none, or nobody answers who would know.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The host's own resolver, `getaddrinfo`.
pub struct SystemResolver {
    lookups: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let place = self.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
        let host = host.to_owned();
        let lookup = move || {
            // Given back when the thread is, not when whoever asked stops waiting.
            let _place = place;
            let found = (host.as_str(), 0).to_socket_addrs()?;
            Ok(found.map(|address| address.ip()).collect())
        };
        tokio::task::spawn_blocking(lookup).await.map_err(io::Error::other)?
    }
}
