//! Accepting connections, and shutting down in order.

use std::{borrow::Cow, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::{
    StreamExt,
    stream::{self, BoxStream, select_all},
};
use russh::{
    Disconnect, MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex,
    keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey},
    server::{Config, run_stream},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Backend,
    admission::{Admission, ConnectionLimits, TurnedAway},
    connection::Connection,
    gate::GatedStream,
    handler::ConnectionHandler,
};

/// Window of a channel, in bytes: what a client may send before it hears from us. Measured; see ARCHITECTURE.md.
const WINDOW: u32 = 2 * 1024 * 1024;
/// Largest packet that we take, in bytes; OpenSSH sends at most 32 KiB anyway.
const PACKET: u32 = 64 * 1024 - 1;
/// Delay before a refused key is answered: a brake on guessing, short enough for an agent full of keys.
const REJECTION_DELAY: Duration = Duration::from_millis(100);
/// Time given to a client that has been told to go.
const FAREWELL: Duration = Duration::from_secs(2);

/// Settings of the SSH server.
#[derive(Debug, Clone)]
pub struct SshSettings {
    pub limits: ConnectionLimits,
    /// Time for a client to authenticate.
    pub login_grace: Duration,
    /// Refused keys before the client is disconnected.
    pub max_auth_tries: usize,
    /// How often a silent client is asked whether it is there.
    pub keepalive: Duration,
    /// How many times it may fail to answer.
    pub keepalive_tries: u32,
    /// How long running sessions may go on after the server was told to stop.
    pub shutdown_grace: Duration,
}

impl Default for SshSettings {
    fn default() -> Self {
        Self {
            limits: ConnectionLimits::default(),
            login_grace: Duration::from_secs(30),
            max_auth_tries: 6,
            keepalive: Duration::from_secs(15),
            keepalive_tries: 3,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// The SSH server, listening.
pub struct SshServer {
    listeners: Vec<TcpListener>,
    settings: SshSettings,
    config: Arc<Config>,
    backend: Arc<dyn Backend>,
    admission: Admission,
    /// Connections.
    connections: TaskTracker,
    /// Sessions; some outlive their connection.
    sessions: TaskTracker,
    /// Cancelled when sessions must end.
    stop: CancellationToken,
}

impl SshServer {
    /// Listens on all the addresses; the limits are for all of them together.
    pub async fn bind(
        addresses: &[SocketAddr],
        settings: SshSettings,
        host_key: PrivateKey,
        backend: Arc<dyn Backend>,
    ) -> io::Result<Self> {
        let mut listeners = Vec::with_capacity(addresses.len());
        for address in addresses {
            listeners.push(TcpListener::bind(address).await.map_err(|error| {
                io::Error::new(error.kind(), format!("the SSH port {address} cannot be listened on: {error}"))
            })?);
        }
        Ok(Self {
            listeners,
            config: Arc::new(config(&settings, host_key)),
            admission: Admission::new(settings.limits),
            settings,
            backend,
            connections: TaskTracker::new(),
            sessions: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves until `shutdown`: then nothing new is accepted, idle connections are closed, running sessions may finish within the
    /// grace time, and what is left is ended.
    pub async fn run(mut self, shutdown: CancellationToken) {
        // None of them waits for ever while another is busy.
        let mut accepted = select_all(std::mem::take(&mut self.listeners).into_iter().map(connections));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(accepted) = accepted.next() => match accepted {
                    Ok((socket, peer)) => self.accept(socket, peer, &shutdown),
                    Err(error) => {
                        // Out of file descriptors, most likely; give connections a moment to close.
                        tracing::warn!(%error, "a connection could not be accepted");
                        sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(accepted);
        self.connections.close();
        self.sessions.close();
        let finished = async {
            self.sessions.wait().await;
            self.connections.wait().await;
        };
        if timeout(self.settings.shutdown_grace, finished).await.is_err() {
            tracing::info!(connections = self.admission.open(), "ending the sessions that are left");
        }
        self.stop.cancel();
        let ended = async {
            self.sessions.wait().await;
            self.connections.wait().await;
        };
        if timeout(FAREWELL * 2, ended).await.is_err() {
            tracing::warn!("some SSH sessions did not end in time");
        }
    }

    fn accept(&self, socket: TcpStream, peer: SocketAddr, shutdown: &CancellationToken) {
        let turn = match self.admission.admit(peer.ip()) {
            Ok(turn) => turn,
            Err(reason) => return turn_away(&socket, peer, reason),
        };
        let (backend, sessions, stop) = (self.backend.clone(), self.sessions.clone(), self.stop.clone());
        let (config, settings, shutdown) = (self.config.clone(), self.settings.clone(), shutdown.clone());
        self.connections.spawn(async move {
            let come = tokio::select! {
                come = turn.come(settings.login_grace) => come,
                () = shutdown.cancelled() => return,
            };
            match come {
                Ok(place) => {
                    let connection = Arc::new(Connection::new(peer, backend, place, sessions, stop));
                    serve(socket, connection, config, settings, shutdown).await;
                }
                Err(reason) => turn_away(&socket, peer, reason),
            }
        });
    }
}

/// The connections to an address, as they come.
fn connections(listener: TcpListener) -> BoxStream<'static, io::Result<(TcpStream, SocketAddr)>> {
    stream::unfold(listener, async |listener| Some((listener.accept().await, listener))).boxed()
}

fn turn_away(socket: &TcpStream, peer: SocketAddr, reason: TurnedAway) {
    tracing::info!(%peer, %reason, "a connection was turned away");
    // RFC 4253, section 4.2: lines before the identification. Best effort.
    let _ = socket.try_write(format!("Berth: {reason}\r\n").as_bytes());
}

async fn serve(
    socket: TcpStream,
    connection: Arc<Connection>,
    config: Arc<Config>,
    settings: SshSettings,
    shutdown: CancellationToken,
) {
    let peer = connection.peer;
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY could not be set");
    }
    let silence = settings.keepalive * (settings.keepalive_tries + 1);
    let stream = GatedStream::new(socket, connection.gate.clone(), silence);
    let handler = ConnectionHandler::new(connection.clone());
    let started = async {
        let running = run_stream(config, stream, handler).await?;
        Ok::<_, russh::Error>((running.handle(), running))
    };
    let grace = async {
        if timeout(settings.login_grace, connection.until_authenticated()).await.is_err() {
            tracing::info!(%peer, "the client did not log in in time");
            return;
        }
        std::future::pending::<()>().await;
    };
    tokio::pin!(grace);
    let (handle, mut running) = tokio::select! {
        started = started => match started {
            Ok(started) => started,
            Err(error) => return tracing::debug!(%peer, %error, "the connection could not be set up"),
        },
        () = &mut grace => return,
        () = shutdown.cancelled() => return,
    };
    let told = async {
        shutdown.cancelled().await;
        if connection.is_idle() {
            return;
        }
        let finished = async {
            connection.until_idle().await;
            // A client that has its exit status goes by itself; a disconnect on its heels would make it report an error.
            sleep(FAREWELL / 2).await;
        };
        tokio::select! {
            () = finished => {}
            () = connection.stop.cancelled() => {}
        }
    };
    let dismissed = async {
        connection.dismissed.cancelled().await;
        // A client that does as it was told is gone by then.
        sleep(FAREWELL).await;
    };
    tokio::select! {
        ended = &mut running => match ended {
            Ok(()) => return tracing::debug!(%peer, "disconnected"),
            Err(error) => return tracing::debug!(%peer, %error, "the connection broke off"),
        },
        () = &mut grace => {}
        () = dismissed => {}
        () = told => {
            let text = "the server is shutting down".to_owned();
            let goodbye = async {
                let _ = handle.disconnect(Disconnect::ByApplication, text, String::new()).await;
                let _ = (&mut running).await;
            };
            if timeout(FAREWELL, goodbye).await.is_ok() {
                return tracing::debug!(%peer, "said goodbye");
            }
        }
    }
    connection.gate.end();
    // It ends at once now: its reads and writes fail.
    let _ = timeout(FAREWELL, running).await;
}

fn config(settings: &SshSettings, host_key: PrivateKey) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Berth")),
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        auth_rejection_time: REJECTION_DELAY,
        // The first try is always "none", to learn the methods.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        // Of frames between sessions and the connection; each is at most 64 KiB.
        event_buffer_size: 8,
        channel_buffer_size: 8,
        preferred: preferred(),
        max_auth_attempts: settings.max_auth_tries,
        inactivity_timeout: None,
        // russh asks; the silence is noticed by `GatedStream`, which knows when the socket is left alone on purpose.
        keepalive_interval: Some(settings.keepalive),
        keepalive_max: 0,
        nodelay: true,
        ..Config::default()
    }
}

/// What is offered; the client's order decides among it.
fn preferred() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::ECDH_SHA2_NISTP256,
            kex::DH_G16_SHA512,
            kex::DH_G14_SHA256,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        key: Cow::Borrowed(&[
            Algorithm::Ed25519,
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
            Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
            Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
        ]),
        cipher: Cow::Borrowed(&[
            cipher::AES_256_GCM,
            cipher::AES_128_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
        ]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}
