//! How a replica is connected to: limits of the connection, and an attempt that ends when the replica leaves the table.
//!
//! A replica that has just died refuses connections for a moment; then its address is gone, and the kernel would look for it for three
//! seconds. The deployer takes it out of the table well before that.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora::{
    Error, ErrorType,
    connectors::L4Connect,
    protocols::{
        TcpKeepalive,
        l4::{socket::SocketAddr, stream::Stream},
    },
    upstreams::peer::HttpPeer,
};
use tokio::net::TcpStream;

use super::{
    backend::{Backend, Lease},
    proxy::{CLIENT_PAUSE, MAX_TRIES},
};

/// How long an idle connection to a replica is kept. Shorter than what common servers keep (gunicorn 2 s, Node 5 s), so that a request
/// is not sent just when the replica closes.
const IDLE_LIMIT: Duration = Duration::from_millis(1500);
/// How long connecting to a replica may take while another one could be asked. Replicas are on this host's networks, where a connection
/// stands in well under a millisecond; to one that has just died, the kernel would look for three seconds.
const QUICK_CONNECT: Duration = Duration::from_millis(300);

/// The connection to a replica for the `tries`th try of a request. A retry gets a pool of its own, that is, a new connection.
pub(super) fn peer(lease: &Lease, tries: u64, another: bool, limit: Duration) -> HttpPeer {
    let backend = lease.backend();
    let mut peer = HttpPeer::new(backend.address(), false, String::new());
    peer.group_key = if tries > 1 { u64::MAX - (backend.key * MAX_TRIES as u64 + tries) } else { backend.key };
    let options = &mut peer.options;
    options.custom_l4 = Some(Arc::new(Attempt(backend.clone())));
    // The whole of connecting; there is no TLS that would come after the connection.
    options.total_connection_timeout = Some(if another { limit.min(QUICK_CONNECT) } else { limit });
    options.idle_timeout = Some(IDLE_LIMIT);
    options.write_timeout = Some(CLIENT_PAUSE);
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(15),
        count: 4,
        user_timeout: Duration::ZERO,
    });
    peer
}

/// Connects to a replica for as long as it is in the table.
#[derive(Debug)]
struct Attempt(Arc<Backend>);

#[async_trait]
impl L4Connect for Attempt {
    async fn connect(&self, _address: &SocketAddr) -> pingora::Result<Stream> {
        let backend = &self.0;
        tokio::select! {
            biased;
            connected = TcpStream::connect(backend.address()) => connected.map(Into::into).map_err(|error| {
                let kind = match error.kind() {
                    io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
                    io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                    io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ErrorType::ConnectNoRoute,
                    _ => ErrorType::ConnectError,
                };
                Error::because(kind, "connecting to a replica", error)
            }),
            () = backend.left() => Err(Error::explain(ErrorType::ConnectError, "the replica has left the table")),
        }
    }
}
