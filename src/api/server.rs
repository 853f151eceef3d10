//! Listens for the API's clients, bounded in number and time, until told to stop.

use std::{convert::Infallible, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::Context;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Api, Inner, idempotency::Once, limit::Limits, routes};
use crate::commands::Commands;

/// How long the head of a request may take, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(30);
/// How long requests under way have to end when the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted, as when there are no file descriptors left.
const RETRY: Duration = Duration::from_millis(100);
/// What was sent must be acknowledged within that, or the client counts as gone.
const GONE: Duration = Duration::from_secs(60);

/// From the configuration.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Connections at the same time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// Requests of one user a second.
    pub rate_per_user: NonZeroU32,
}

/// The routes of the API.
pub fn router(commands: Commands, settings: &ApiSettings) -> Router {
    let (limits, once) = (Limits::new(settings.rate_per_user), Once::new(commands.store.clone()));
    routes::router(Api(Arc::new(Inner { commands, limits, once })))
}

/// The API, and whatever is beside it, at one address.
pub struct ApiServer {
    listener: TcpListener,
    router: Router,
    places: Arc<Semaphore>,
}

impl ApiServer {
    /// Listens at `address`, and answers what `router` does.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(address: SocketAddr, router: Router, settings: &ApiSettings) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("the API cannot listen at {address}"))?;
        Ok(Self { listener, router, places: Arc::new(Semaphore::new(settings.max_connections)) })
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

/// The next client, when there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    loop {
        // It is never closed.
        let Ok(place) = places.clone().acquire_owned().await else {
            std::future::pending::<Infallible>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = set_up(&stream) {
                    tracing::debug!(%error, "a client of the API is gone");
                }
                return (stream, place);
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
