//! Syslog over a connection, plain or TLS.
//!
//! There are no acknowledgements. What can be known: how much of what was written the receiver's kernel has (TCP's own acknowledgements),
//! and whether the connection breaks, as it does when a receiver ends with something unread. So lines count as taken when both are in
//! order for some seconds (`window`); a connection that breaks before that is made anew, and they are sent again. When the server
//! stops, the connection is closed in order, and a receiver that closes it likewise has read everything.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::{Duration, Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    source::{Batch, Fault, Place, Source},
    window::{Counted, Window, unacknowledged},
};
use crate::domain::DrainScheme;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// How long a receiver may take to close the connection when the server stops.
const CLOSING: Duration = Duration::from_secs(1);
/// A receiver that says nothing is asked whether it is there, after so long and then so often.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// Looks at the connection in the time in which what was sent settles.
const LOOKS: u32 = 4;

/// A connection, plain or TLS.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Connects, and sends what there is until something goes wrong.
pub(super) async fn attend(source: &mut Source, stop: &CancellationToken) -> Fault {
    let mut session = match stop.run_until_cancelled(Session::begin(source)).await {
        Some(Ok(session)) => session,
        Some(Err(fault)) => return fault,
        None => return Fault::Stopped,
    };
    source.connected();
    match session.run(source, stop).await {
        Err(fault) => fault,
        Ok(()) => session.finish(source).await.err().unwrap_or(Fault::Stopped),
    }
}

struct Session {
    reader: ReadHalf<Box<dyn Duplex>>,
    writer: WriteHalf<Box<dyn Duplex>>,
    /// The same connection, to ask the kernel about.
    socket: OwnedFd,
    /// Bytes written to it.
    written: Arc<AtomicU64>,
    window: Window,
    /// How far it was read.
    place: Place,
    stall: Duration,
}

impl Session {
    async fn begin(source: &mut Source) -> Result<Self, Fault> {
        source.count_losses().await?;
        let shared = source.shared();
        let (url, stall) = (source.url(), shared.settings.stall);
        let stream = shared.outbound.connect(&url.host(), url.port()).await.map_err(Fault::failed)?;
        let socket = prepare(&stream, stall).map_err(Fault::failed)?;
        let (stream, written) = Counted::new(stream);
        let stream: Box<dyn Duplex> = match url.scheme() {
            DrainScheme::SyslogTls => {
                let stream = timeout(HANDSHAKE, shared.tls.connect(&url.host(), stream)).await;
                let late = |_| Fault::failed(format!("no TLS with {} in {} s", url.host(), HANDSHAKE.as_secs()));
                Box::new(stream.map_err(late)?.map_err(Fault::failed)?)
            }
            _ => Box::new(stream),
        };
        let (reader, writer) = tokio::io::split(stream);
        let window = Window::new(shared.settings.settle);
        Ok(Self { reader, writer, socket, written, window, place: source.place(), stall })
    }

    /// `Ok`: the server stops.
    async fn run(&mut self, source: &mut Source, stop: &CancellationToken) -> Result<(), Fault> {
        let mut looks = interval((source.shared().settings.settle / LOOKS).max(Duration::from_millis(10)));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What the receiver says is nothing that a sender of syslog would understand.
        let mut said = [0; 1024];
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                read = self.reader.read(&mut said) => match read {
                    Ok(0) => return Err(Fault::failed("the receiver has closed the connection")),
                    Ok(_) => {}
                    Err(error) => return Err(broken(&error)),
                },
                batch = source.next(self.place), if !self.window.is_full() => {
                    let batch = batch?;
                    match stop.run_until_cancelled(self.send(batch)).await {
                        Some(sent) => sent?,
                        None => return Err(Fault::Stopped),
                    }
                }
                _ = looks.tick(), if !self.window.is_empty() => {
                    let outstanding = unacknowledged(self.socket.as_fd()).map_err(|error| broken(&error))?;
                    for batch in self.window.settled(self.written.load(Relaxed), outstanding, Instant::now()) {
                        source.taken(&batch).await?;
                    }
                }
            }
        }
    }

    async fn send(&mut self, batch: Batch) -> Result<(), Fault> {
        let write = async {
            self.writer.write_all(&batch.body).await?;
            self.writer.flush().await
        };
        match timeout(self.stall, write).await {
            Ok(written) => written.map_err(|error| broken(&error))?,
            Err(_) => {
                let text = format!("the receiver has not read for {} s", self.stall.as_secs());
                return Err(Fault::failed(text));
            }
        }
        self.place = batch.after;
        self.window.push(batch, self.written.load(Relaxed));
        Ok(())
    }

    /// Closes in order.
    async fn finish(&mut self, source: &mut Source) -> Result<(), Fault> {
        let closed = async {
            self.writer.shutdown().await?;
            tokio::io::copy(&mut self.reader, &mut tokio::io::sink()).await
        };
        if let Ok(Ok(_)) = timeout(CLOSING, closed).await {
            for batch in self.window.all() {
                source.taken(&batch).await?;
            }
        }
        Ok(())
    }
}

fn broken(error: &io::Error) -> Fault {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        // What TLS says of it has a link in it.
        return Fault::failed("the receiver has closed the connection");
    }
    Fault::failed(format!("the connection broke: {error}"))
}

/// Has the kernel notice a receiver that is gone without a word.
fn prepare(stream: &TcpStream, stall: Duration) -> io::Result<OwnedFd> {
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_EVERY))?;
    socket.set_tcp_user_timeout(Some(stall))?;
    stream.set_nodelay(true)?;
    stream.as_fd().try_clone_to_owned()
}
