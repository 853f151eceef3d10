//! Listens for the API's clients, bounded in number and time, until told to stop.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use axum::{
    Router,
    extract::Request,
    http::{Version, header, uri::Authority},
    middleware,
    response::{IntoResponse, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Api, Inner, idempotency::Once, limit::Limits, problem::Problem, routes};
use crate::{
    commands::Commands,
    events::Pace,
    places::{Place, Places},
};

/// How long the head of a request may take, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(30);
/// How long requests under way have to end when the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted, as when there are no file descriptors left.
const RETRY: Duration = Duration::from_millis(100);
/// What was sent must be acknowledged within that, or the client counts as gone.
const GONE: Duration = Duration::from_secs(60);
/// Of connections that are refused, so many are told of at once, and then one every so often.
const REFUSALS: (u32, Duration) = (5, Duration::from_secs(60));

/// From the configuration.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Connections at the same time, at all addresses together; more wait, one at each address and the others in the kernel's queue. A quarter
    /// of them may be of one address, except of this host's own.
    pub max_connections: usize,
    /// Requests of one user a second.
    pub rate_per_user: NonZeroU32,
}

/// The routes of the API.
pub fn router(commands: Commands, settings: &ApiSettings) -> Router {
    let limits = Limits::new(settings.rate_per_user, settings.max_connections);
    let once = Once::new(commands.store.clone());
    routes::router(Api(Arc::new(Inner { commands, limits, once })))
}

/// The API, and whatever is beside it, at one address.
pub struct ApiServer {
    listener: TcpListener,
    router: Router,
    places: Connections,
}

impl ApiServer {
    /// Listens at `address`, and answers what `router` does, for as many as have places of `places`: all servers share them.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(address: SocketAddr, router: Router, places: &Connections) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("the API cannot listen at {address}"))?;
        Ok(Self { listener, router, places: places.clone() })
    }

    /// Serves until `stop`, then lets what is under way end within a few seconds.
    pub async fn run(self, stop: CancellationToken) {
        let graceful = GracefulShutdown::new();
        loop {
            let (stream, place) = tokio::select! {
                accepted = accept(&self.listener, &self.places) => accepted,
                () = stop.cancelled() => break,
            };
            let service = TowerToHyperService::new(self.router.clone());
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD);
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a client of the API is gone");
                }
                drop(place);
            });
        }
        drop(self.listener);
        if timeout(GRACE, graceful.shutdown()).await.is_err() {
            tracing::info!("clients of the API were still connected");
        }
    }
}

/// A request of HTTP/1.1 names one host, which can be one (RFC 9112, section 3.2): a proxy before us may have read another one of several.
pub(crate) async fn one_host(request: Request, next: middleware::Next) -> Response {
    let hosts: Vec<_> = request.headers().get_all(header::HOST).iter().collect();
    let detail = match hosts[..] {
        [host] if host.to_str().is_ok_and(is_host) => None,
        [_] => Some("the Host header names no host".to_owned()),
        [] if request.version() == Version::HTTP_10 => None,
        _ => Some(format!("the request has {} Host headers, and one is needed", hosts.len())),
    };
    match detail {
        None => next.run(request).await,
        Some(detail) => Problem::bad_request(detail).into_response(),
    }
}

/// Whether it is a host, perhaps with a port, and nothing else that may stand before a path (RFC 3986, section 3.2).
fn is_host(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let port = text.strip_prefix(authority.host());
    !authority.host().is_empty() && port.is_some_and(|port| matches!(port, "" | ":") || authority.port_u16().is_some())
}

/// Places of connections, so that no address can take all of them. Clones share them.
#[derive(Clone)]
pub struct Connections {
    all: Arc<Semaphore>,
    of_address: Arc<Places<IpAddr>>,
    /// How often it is told that an address is refused.
    told: Arc<Mutex<Pace<()>>>,
}

/// The place of a connection, and the one in its address' share if it has one.
type ConnectionPlace = (OwnedSemaphorePermit, Option<Place>);

impl Connections {
    /// As many as the settings say.
    pub fn new(settings: &ApiSettings) -> Self {
        let most = settings.max_connections;
        let told = Arc::new(Mutex::new(Pace::new(REFUSALS.0, REFUSALS.1)));
        let of_address = Arc::new(Places::new(most, (most / 4).max(1)));
        Self { all: Arc::new(Semaphore::new(most)), of_address, told }
    }

    /// A place in the share of this address; `Err`: it has as many as one address may. A loopback address has no share: a proxy may stand
    /// there, in front of everybody.
    fn of(&self, address: IpAddr) -> Result<Option<Place>, ()> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return Ok(None);
        }
        self.of_address.try_take(&address).map(Some).map_err(|_| {
            // Nothing panics while it is held.
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take(&(), Instant::now());
            if let Some(suppressed) = told {
                tracing::warn!(%address, suppressed, "it has a quarter of api.max_connections and is refused more");
            }
        })
    }
}

/// The next client, when there is a place for it. Whoever listens without a client keeps no place from those who have one.
async fn accept(listener: &TcpListener, places: &Connections) -> (TcpStream, ConnectionPlace) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let Ok(share) = places.of(client.ip()) else { continue };
                // It is never closed.
                let Ok(place) = places.all.clone().acquire_owned().await else {
                    std::future::pending::<Infallible>().await;
                    continue;
                };
                if let Err(error) = set_up(&stream) {
                    tracing::debug!(%error, "a client of the API is gone");
                }
                return (stream, (place, share));
            }
            Err(error) => {
                tracing::warn!(%error, "a client of the API cannot be accepted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn set_up(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let gone = u32::try_from(GONE.as_millis()).unwrap_or(u32::MAX);
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpUserTimeout, &gone)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(max_connections: usize) -> Connections {
        Connections::new(&ApiSettings { max_connections, rate_per_user: NonZeroU32::MIN })
    }

    #[tokio::test]
    async fn all_addresses_share_the_places_and_none_is_kept_for_nobody() {
        let places = connections(1);
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let one = ApiServer::bind(anywhere, Router::new(), &places).await.unwrap();
        let other = ApiServer::bind(anywhere, Router::new(), &places).await.unwrap();
        // Somebody listens at one; the client comes to the other.
        let mut listens = Box::pin(accept(&one.listener, &one.places));
        assert!(futures::poll!(&mut listens).is_pending());
        let _client = TcpStream::connect(other.listener.local_addr().unwrap()).await.unwrap();
        let taken = timeout(HEAD, accept(&other.listener, &other.places)).await.unwrap();
        let _waits = TcpStream::connect(one.listener.local_addr().unwrap()).await.unwrap();
        assert!(timeout(Duration::from_millis(200), &mut listens).await.is_err(), "there is a second place");
        drop(taken);
        assert!(timeout(HEAD, listens).await.is_ok(), "the place that is free again is not had");
    }

    #[test]
    fn one_address_does_not_take_all_connections() {
        let places = connections(40);
        // Addresses for documentation; the second is the first in other words.
        let (one, same, other) = ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1");
        let [one, same, other] = [one, same, other].map(|text| text.parse::<IpAddr>().unwrap());
        let taken: Vec<_> = (0..40).map_while(|_| places.of(one).ok()).collect();
        assert_eq!(taken.len(), 10);
        assert!(places.of(same).is_err());
        assert!(places.of(other).is_ok_and(|place| place.is_some()));
        drop(taken);
        assert!(places.of(same).is_ok());
        let own: IpAddr = "127.0.0.1".parse().unwrap();
        let own: Vec<_> = (0..100).map(|_| places.of(own).unwrap()).collect();
        assert!(own.iter().all(Option::is_none), "a proxy on this host would be refused");
    }
}
