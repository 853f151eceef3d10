//! The data plane: its own process, fed by an atomically replaced routes file, acknowledging the generation it serves.
//!
//! It knows nothing of tenants' records, the engine or the store; what it is told is in [`table`]. It keeps serving the last routes when
//! the control plane is gone. How a request passes through it: `server` accepts the connection, `watchdog` limits the request's time,
//! `admit` finds the route, `proxy` a replica (`backend`) in `live`, `connect` connects to it, and `headers` makes the headers honest; `hold`
//! keeps the request for a moment when the last replica has just gone, and `pages` answers when no replica can; `access` records it and `meter` counts it. `reload` puts new tables in force and acknowledges them.

mod access;
mod ack;
mod admit;
mod backend;
mod client;
mod connect;
mod headers;
mod hold;
mod live;
pub mod meter;
mod pages;
mod proxy;
mod reload;
mod server;
pub mod table;
mod watch;
mod watchdog;

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;

use self::{access::AccessLog, live::Routes, proxy::Proxy, reload::Reloader, server::Server};
use crate::open_files;

/// How the router runs.
#[derive(Debug, Clone)]
pub struct RouterSettings {
    /// Addresses to listen on, HTTP/1.1 and h2c.
    pub listen: Vec<SocketAddr>,
    /// `http`, or `https` when something in front ends TLS: what replicas are told.
    pub public_scheme: &'static str,
    /// The port that clients see, if it is not the one they connect to here.
    pub public_port: Option<u16>,
    /// `DATA/router`: routes, acknowledgement, access socket.
    pub directory: PathBuf,
    /// From a connection being ready for a request to the end of the request's head; also how long an idle connection is kept.
    pub head_limit: Duration,
    /// From the end of a request to the first byte of a replica's answer.
    pub first_byte_limit: Duration,
    /// How long connecting to a replica may take.
    pub connect_timeout: Duration,
    /// How long requests under way may take to finish after SIGTERM.
    pub drain: Duration,
    /// Apps answer at `APP.TENANT.BASE`; shown on pages.
    pub base_domain: String,
    /// What comes before `/TENANT/APP/ENV` in a git remote; shown on pages.
    pub push_base: String,
    /// Worker threads.
    pub threads: usize,
    /// Client connections at a time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// Of these, how many of one client (an IPv6 client is a /64); more are closed at once. `None`: no limit.
    pub max_connections_per_client: Option<NonZeroUsize>,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            listen: vec![(Ipv6Addr::UNSPECIFIED, 8080).into(), (Ipv4Addr::UNSPECIFIED, 8080).into()],
            public_scheme: "http",
            public_port: None,
            directory: PathBuf::from("/var/lib/berth/router"),
            head_limit: Duration::from_secs(60),
            first_byte_limit: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            drain: Duration::from_secs(30),
            base_domain: "localhost".to_owned(),
            push_base: "ssh://berth@localhost:2222".to_owned(),
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            max_connections: 16 * 1024,
            max_connections_per_client: NonZeroUsize::new(4096),
        }
    }
}

/// Runs the router until SIGTERM or SIGINT. Blocks; to be called outside any asynchronous runtime, as it makes its own.
///
/// # Errors
/// When the directory or an address cannot be used. Once it serves, nothing but a signal ends it.
pub fn run(settings: RouterSettings) -> anyhow::Result<()> {
    // This one only watches, acknowledges and sends records; the threads that serve have their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the router's runtime cannot be started")?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: RouterSettings) -> anyhow::Result<()> {
    // Two sockets per connection, and some.
    open_files::raise_limit((settings.max_connections as u64) * 2 + 256);
    let settings = Arc::new(settings);
    let directory = &settings.directory;
    fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    let routes = Arc::new(Routes::default());
    let reloader = Reloader::new(directory, routes.clone())?;
    let listeners = server::bind(&settings.listen)?;
    let addresses: Vec<_> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    tracing::info!(?addresses, generation = routes.generation(), "the router is listening");
    let (access, sender) = AccessLog::new(directory.join(table::ACCESS_SOCKET));
    let sender = tokio::spawn(sender);
    let reload = tokio::spawn(reloader.run());
    let proxy = || Proxy::new(routes.clone(), access.clone(), settings.clone());
    let server = Server::start(proxy, &settings, &listeners)?;
    let meters = meter::serve(directory.clone(), routes.clone(), server.connections(), access.clone());
    let meters = tokio::spawn(meters);
    // From now on only the threads hold the listeners, so that they are closed with them.
    drop(listeners);
    let result = server.run().await;
    reload.abort();
    sender.abort();
    meters.abort();
    result
}
