//! Listeners, connections, and the end of them.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use nix::sys::socket::{self, Backlog, setsockopt, sockopt};
use pingora::{
    apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp},
    protocols::http::{ServerSession, v2::server::H2Options},
    proxy::HttpProxy,
    server::{ShutdownWatch, configuration::ServerConf},
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    RouterSettings,
    admit::MAX_HEAD,
    client::ClientStream,
    proxy::{CLIENT_PAUSE, MAX_TRIES, Proxy},
    watchdog::{Limits, guard},
};
use crate::places::Places;

/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Connections that wait in the kernel to be accepted; the kernel's own limit (net.core.somaxconn) may be lower.
const BACKLOG: i32 = 4096;
/// How long to wait when the process has no file descriptor left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The proxy with the limits that concern a request as a whole; one for each version of HTTP.
struct Guarded {
    proxy: Arc<HttpProxy<Proxy>>,
    limits: Limits,
    options: HttpServerOptions,
}

#[async_trait]
impl HttpServerApp for Guarded {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        guard(self.limits, self.proxy.process_new_http(session, shutdown)).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = H2Options::new();
        options.max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEAD as u32);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// What all threads share.
struct Shared {
    connections: TaskTracker,
    /// The tasks that accept connections.
    accepting: TaskTracker,
    permits: Arc<Semaphore>,
    /// So that one client cannot take all of them; `None`: all clients come through something in front.
    clients: Option<Places<IpAddr>>,
    shutdown: watch::Sender<bool>,
    /// The threads may end.
    finished: CancellationToken,
}

/// Serves connections until it is told to stop.
///
/// Every thread has a runtime, a proxy and a pool of connections to replicas of its own, as an nginx worker has; a connection stays with
/// the thread that accepted it. So a request costs no work on another thread and no lock that another thread waits for.
pub(super) struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    drain: Duration,
}

impl Server {
    /// Starts the threads; each accepts on all of `listeners` with a proxy from `make_proxy`.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub(super) fn start(
        make_proxy: impl Fn() -> Proxy,
        settings: &RouterSettings,
        listeners: &[std::net::TcpListener],
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            connections: TaskTracker::new(),
            accepting: TaskTracker::new(),
            permits: Arc::new(Semaphore::new(settings.max_connections)),
            clients: settings.max_connections_per_client.map(|each| Places::new(settings.max_connections, each.get())),
            shutdown: watch::Sender::new(false),
            finished: CancellationToken::new(),
        });
        let mut threads = Vec::new();
        for _ in 0..settings.threads.max(1) {
            let worker = Worker::new(make_proxy(), settings, shared.clone());
            threads.push(worker.start(listeners).context("a thread of the router cannot be started")?);
        }
        Ok(Self { shared, threads, drain: settings.drain })
    }

    /// The connections of clients, to be counted.
    pub(super) fn connections(&self) -> TaskTracker {
        self.shared.connections.clone()
    }

    /// Serves until SIGTERM or SIGINT, then lets requests under way finish, for as long as the settings allow. A second signal ends it at
    /// once.
    ///
    /// # Errors
    /// When signals cannot be handled.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
        either(&mut terminate, &mut interrupt).await;
        let connections = &self.shared.connections;
        tracing::info!(connections = connections.len(), "stopping; requests under way may finish");
        self.shared.shutdown.send_replace(true);
        self.shared.accepting.close();
        self.shared.accepting.wait().await;
        connections.close();
        tokio::select! {
            () = connections.wait() => tracing::info!("every request is answered"),
            () = tokio::time::sleep(self.drain) => {
                tracing::warn!(connections = connections.len(), "the time to drain is over; connections are cut");
            }
            () = either(&mut terminate, &mut interrupt) => tracing::warn!("told twice to stop; connections are cut"),
        }
        self.shared.finished.cancel();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the router had failed");
            }
        }
        Ok(())
    }
}

/// One thread's part.
struct Worker {
    proxy: Arc<HttpProxy<Proxy>>,
    http1: Arc<Guarded>,
    http2: Arc<Guarded>,
    shared: Arc<Shared>,
}

impl Worker {
    fn new(proxy: Proxy, settings: &RouterSettings, shared: Arc<Shared>) -> Arc<Self> {
        let conf = ServerConf { max_retries: MAX_TRIES, threads: 1, ..ServerConf::default() };
        let mut proxy = HttpProxy::new(proxy, Arc::new(conf));
        proxy.handle_init_modules();
        let proxy = Arc::new(proxy);
        let limits =
            Limits { head: settings.head_limit, first_byte: settings.first_byte_limit, client_pause: CLIENT_PAUSE };
        let guarded = |h2c: bool| {
            let mut options = HttpServerOptions::default();
            options.h2c = h2c;
            options.h2_idle_timeout = Some(limits.head);
            Arc::new(Guarded { proxy: proxy.clone(), limits, options })
        };
        Arc::new(Self { http1: guarded(false), http2: guarded(true), proxy, shared })
    }

    /// Starts the thread, accepting on all of `listeners`.
    fn start(self: Arc<Self>, listeners: &[std::net::TcpListener]) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        for listener in listeners {
            let listener = TcpListener::from_std(listener.try_clone()?)?;
            self.shared.accepting.spawn_on(self.clone().accept(listener), runtime.handle());
        }
        drop(entered);
        std::thread::Builder::new().name("router".to_owned()).spawn(move || {
            runtime.block_on(async {
                self.shared.accepting.wait().await;
                // Connections that wait for a next request end.
                self.proxy.http_cleanup().await;
                self.shared.finished.cancelled().await;
            });
            // Whatever has not finished by now had its time.
            runtime.shutdown_background();
        })
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let local = listener.local_addr().ok();
        let mut shutdown = self.shared.shutdown.subscribe();
        loop {
            let next = async {
                // Fails only when the semaphore is closed, which never happens.
                let permit = self.shared.permits.clone().acquire_owned().await.ok();
                (listener.accept().await, permit)
            };
            let (accepted, permit) = tokio::select! {
                accepted = next => accepted,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, client)) => {
                    let places = self.shared.clients.as_ref();
                    let Ok(place) = places.map(|places| places.try_take(&network_of(client))).transpose() else {
                        tracing::debug!(%client, "it has as many connections as one client may have");
                        continue;
                    };
                    let server = self.clone();
                    self.shared.connections.spawn(async move {
                        server.serve(stream, client, local).await;
                        drop((permit, place));
                    });
                }
                Err(error) if is_about_the_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "no connection can be accepted; is the limit of open files too low?");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, stream: TcpStream, client: SocketAddr, local: Option<SocketAddr>) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "the client is gone");
            return;
        }
        let mut shutdown = self.shared.shutdown.subscribe();
        let mut stream = Box::new(ClientStream::new(stream, client, local));
        let http2 = tokio::select! {
            http2 = timeout(self.http1.limits.head, stream.begins_with_h2_preface()) => http2,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        // Otherwise the client closed, or said nothing for too long.
        if let Ok(Ok(http2)) = http2 {
            let app = if http2 { &self.http2 } else { &self.http1 };
            app.process_new(stream, &shutdown).await;
        }
    }
}

/// Whom a connection counts for: the address, or the network of an IPv6 one, since a client has all addresses of that.
fn network_of(client: SocketAddr) -> IpAddr {
    match client.ip().to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

/// Sends small packets at once, and finds out when the client's machine is gone: nothing else ends an idle WebSocket.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// Failures of one client's connection, after which the next can be accepted at once.
fn is_about_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// Binds every address. `[::]` takes IPv4 as well, so `0.0.0.0` with the same port beside it is left out; where there is no IPv6,
/// `[::]` is left out.
///
/// # Errors
/// When an address cannot be bound, or none is left.
pub(super) fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<std::net::TcpListener>> {
    let mut addresses = addresses.to_vec();
    addresses.sort_by_key(|address| !address.is_ipv6());
    let mut listeners: Vec<std::net::TcpListener> = Vec::new();
    let mut last_error = None;
    for address in addresses {
        let everywhere = |listener: &std::net::TcpListener| {
            let bound = listener.local_addr().ok();
            bound.is_some_and(|bound| bound.is_ipv6() && bound.ip().is_unspecified() && bound.port() == address.port())
        };
        match listen(address) {
            Ok(listener) => listeners.push(listener),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && address.is_ipv4()
                    && listeners.iter().any(everywhere) => {}
            Err(error) if address.is_ipv6() && is_no_ipv6(&error) => {
                tracing::warn!(%address, %error, "there is no IPv6 here");
                last_error = Some((address, error));
            }
            Err(error) => return Err(error).with_context(|| cannot_listen(address)),
        }
    }
    match (listeners.is_empty(), last_error) {
        (true, Some((address, error))) => Err(error).with_context(|| cannot_listen(address)),
        (true, None) => anyhow::bail!("the router has no address to listen on; give at least one"),
        (false, _) => Ok(listeners),
    }
}

/// The standard library's listener has the queue length (128) of a time with fewer connections; listening again sets it.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    socket::listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

fn is_no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

fn cannot_listen(address: SocketAddr) -> String {
    format!("the router cannot listen on {address}; is another process using the port?")
}
