//! What was sent over a connection that has no acknowledgements, until it may be taken as received.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use nix::{errno::Errno, libc};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::source::Batch;

/// Batches that wait to be taken as received; then no more are sent.
const WINDOW: usize = 1024;

/// A stream that counts what is written to it, below TLS.
#[derive(Debug)]
pub(super) struct Counted<S> {
    stream: S,
    written: Arc<AtomicU64>,
}

impl<S> Counted<S> {
    /// With the counter of bytes.
    pub(super) fn new(stream: S) -> (Self, Arc<AtomicU64>) {
        let written = Arc::<AtomicU64>::default();
        (Self { stream, written: written.clone() }, written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(length)) = &polled {
            self.written.fetch_add(*length as u64, Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Bytes written to a TCP socket that the other end's kernel has not acknowledged (SIOCOUTQ, tcp(7)).
pub(super) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, which lives until the call is over; the socket is open as long as it is borrowed.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(done)?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

struct Sent {
    batch: Batch,
    /// Where it ends among all bytes written to the connection.
    end: u64,
    /// Since when the other end's kernel has it.
    delivered: Option<Instant>,
}

/// Batches in the order in which they were sent.
pub(super) struct Window {
    sent: VecDeque<Sent>,
    settle: Duration,
}

impl Window {
    pub(super) fn new(settle: Duration) -> Self {
        Self { sent: VecDeque::new(), settle }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.sent.len() >= WINDOW
    }

    /// Takes a batch that has been written, up to the byte `end` of the connection. What it looked like is not needed any more: if need be
    /// it is read again.
    pub(super) fn push(&mut self, mut batch: Batch, end: u64) {
        batch.body = Vec::new();
        self.sent.push_back(Sent { batch, end, delivered: None });
    }

    /// The batches that have been with the other end for long enough, when its kernel has all but `outstanding` of the `written` bytes.
    pub(super) fn settled(&mut self, written: u64, outstanding: u64, now: Instant) -> Vec<Batch> {
        let acknowledged = written.saturating_sub(outstanding);
        for sent in self.sent.iter_mut().filter(|sent| sent.end <= acknowledged) {
            sent.delivered.get_or_insert(now);
        }
        let is_settled = |sent: &mut Sent| sent.delivered.is_some_and(|at| at + self.settle <= now);
        std::iter::from_fn(|| self.sent.pop_front_if(is_settled)).map(|sent| sent.batch).collect()
    }

    /// All that is left, when the other end has said that it has read everything.
    pub(super) fn all(&mut self) -> Vec<Batch> {
        self.sent.drain(..).map(|sent| sent.batch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_settles_in_order() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut window = Window::new(second);
        for lines in 1..=3 {
            window.push(Batch { lines, ..Batch::default() }, lines * 100);
        }
        let mut settled = |outstanding, seconds| {
            let batches = window.settled(300, outstanding, start + second * seconds);
            batches.iter().map(|batch| batch.lines).collect::<Vec<_>>()
        };
        assert_eq!(settled(300, 0), [0; 0]);
        assert_eq!(settled(99, 1), [0; 0]);
        assert_eq!(settled(99, 2), [1, 2]);
        assert_eq!(settled(0, 3), [0; 0]);
        assert_eq!(settled(0, 4), [3]);
        assert!(window.is_empty());
    }
}
