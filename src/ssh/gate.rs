//! Back-pressure on what a client sends.
//!
//! russh grants a channel's window anew as soon as data has arrived, not when it has been used, and its session loop does nothing
//! else while a reader is slow. So the brake is here, below russh: the socket is not read while more than [`HIGH_WATER`] bytes wait
//! for their readers. The loop stays free to send output and keepalives, TCP slows the client, and memory stays bounded.
//!
//! One case needs care: a command that echoes its input (`run … cat < big`) stops reading until its output is taken, and the client's
//! window adjustments are behind its own input in the socket. While a channel's window is used up, more is read, until the adjustment is
//! found. [`HARD_LIMIT`] bounds what a client that never sends one can leave here; such a one is given up after the idle time.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

/// Bytes that may wait for readers before the socket is left alone.
const HIGH_WATER: usize = 1024 * 1024;
/// The same while the client's window for output is used up.
const HARD_LIMIT: usize = 32 * 1024 * 1024;
/// How much is read from the socket at once, in bytes.
const READ_BUFFER: usize = 128 * 1024;

/// What the halves of a connection know of each other.
#[derive(Debug, Default)]
pub struct Gate {
    waiting: AtomicUsize,
    outputs_stalled: AtomicUsize,
    ended: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Gate {
    /// `bytes` have been queued for a reader.
    pub fn queued(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::AcqRel);
    }

    /// `bytes` of the queued ones have been used or dropped.
    pub fn used(&self, bytes: usize) {
        let before = self.waiting.fetch_sub(bytes, Ordering::AcqRel);
        let falls_below = |limit: usize| before >= limit && before - bytes < limit;
        if falls_below(HIGH_WATER) || falls_below(HARD_LIMIT) {
            self.reader.wake();
        }
    }

    /// Marks that a channel's window for output is used up, until the mark is dropped.
    pub fn output_stalled(&self) -> Stalled<'_> {
        self.outputs_stalled.fetch_add(1, Ordering::AcqRel);
        self.reader.wake();
        Stalled(self)
    }

    /// Ends the connection: its reads and writes fail from now on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// Bytes that wait for their readers.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    fn is_open(&self) -> bool {
        let limit = if self.outputs_stalled.load(Ordering::Acquire) > 0 { HARD_LIMIT } else { HIGH_WATER };
        self.waiting() < limit
    }

    /// As much waits as may, and output waits for the client as well.
    fn is_stuck(&self) -> bool {
        self.waiting() >= HARD_LIMIT && self.outputs_stalled.load(Ordering::Acquire) > 0
    }

    fn check(&self) -> io::Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server ended the connection"));
        }
        Ok(())
    }
}

/// See [`Gate::output_stalled`].
pub struct Stalled<'a>(&'a Gate);

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        self.0.outputs_stalled.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A deadline that moves with activity. Moving it costs nothing; the timer catches up when it fires.
struct Idle {
    limit: Duration,
    since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, since: None, timer: Box::pin(sleep_until(Instant::now() + limit)) }
    }

    /// Something happened, or nothing is expected to happen.
    fn reset(&mut self) {
        self.since = None;
    }

    /// Ready when nothing has happened for the limit.
    fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = *self.since.get_or_insert_with(Instant::now) + self.limit;
        while Instant::now() < deadline {
            if self.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            // It fired for an older deadline.
            self.timer.as_mut().reset(deadline);
        }
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client does not answer"))
    }
}

/// A client's socket behind its [`Gate`].
pub struct GatedStream {
    socket: BufReader<TcpStream>,
    gate: std::sync::Arc<Gate>,
    read_idle: Idle,
    write_idle: Idle,
}

impl GatedStream {
    /// `idle`: how long a client may send nothing (keepalives are answered, so a live one does send), or take nothing.
    pub fn new(socket: TcpStream, gate: std::sync::Arc<Gate>, idle: Duration) -> Self {
        let socket = BufReader::with_capacity(READ_BUFFER, socket);
        Self { socket, gate, read_idle: Idle::new(idle), write_idle: Idle::new(idle) }
    }

    fn poll_writing<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut BufReader<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.gate.check()?;
        if let Poll::Ready(done) = write(Pin::new(&mut self.socket), context) {
            self.write_idle.reset();
            return Poll::Ready(done);
        }
        self.gate.writer.register(context.waker());
        self.gate.check()?;
        Poll::Ready(Err(ready!(self.write_idle.poll_expired(context))))
    }
}

impl AsyncRead for GatedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.gate.check()?;
        if !this.gate.is_open() {
            this.gate.reader.register(context.waker());
            if !this.gate.is_open() {
                this.gate.check()?;
                if !this.gate.is_stuck() {
                    this.read_idle.reset();
                    return Poll::Pending;
                }
                // Both sides wait for the other. What ends that is a reader, or this.
                return Poll::Ready(Err(ready!(this.read_idle.poll_expired(context))));
            }
        }
        if let Poll::Ready(done) = Pin::new(&mut this.socket).poll_read(context, buffer) {
            this.read_idle.reset();
            return Poll::Ready(done);
        }
        this.gate.reader.register(context.waker());
        this.gate.check()?;
        Poll::Ready(Err(ready!(this.read_idle.poll_expired(context))))
    }
}

impl AsyncWrite for GatedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_writing(context, |socket, context| socket.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_writing(context, |socket, context| socket.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_millis(300);

    async fn pair(gate: &Arc<Gate>, idle: Duration) -> (GatedStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"more").await.unwrap();
        (GatedStream::new(listener.accept().await.unwrap().0, gate.clone(), idle), client)
    }

    #[tokio::test]
    async fn the_socket_is_left_alone_until_readers_catch_up_or_output_waits() {
        let gate = Arc::<Gate>::default();
        let (mut stream, _client) = pair(&gate, Duration::from_secs(60)).await;
        gate.queued(2 * HIGH_WATER);
        let mut one = [0];
        assert!(timeout(SOON, stream.read(&mut one)).await.is_err());
        let stalled = gate.output_stalled();
        assert_eq!(timeout(20 * SOON, stream.read(&mut one)).await.unwrap().unwrap(), 1);
        drop(stalled);
        assert!(timeout(SOON, stream.read(&mut one)).await.is_err());
        gate.used(2 * HIGH_WATER);
        assert_eq!(timeout(20 * SOON, stream.read(&mut one)).await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn who_sends_and_takes_nothing_is_given_up() {
        let gate = Arc::<Gate>::default();
        let (mut stream, _client) = pair(&gate, SOON).await;
        gate.queued(HARD_LIMIT);
        let mut one = [0];
        // Without output that waits, its readers are only slow.
        assert!(timeout(3 * SOON, stream.read(&mut one)).await.is_err());
        let _stalled = gate.output_stalled();
        let error = timeout(20 * SOON, stream.read(&mut one)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // A reader that has caught up opens it again.
        gate.used(HARD_LIMIT);
        assert_eq!(timeout(20 * SOON, stream.read(&mut one)).await.unwrap().unwrap(), 1);
    }
}
