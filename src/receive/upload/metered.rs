//! What is sent, within its bounds: so many bytes, never silent for too long, and no longer than the server lives.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// Why reading was given up. Whoever reads may make something else of the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    TooLarge,
    /// Nothing came for too long.
    Idle,
    /// The server is stopping.
    Stopping,
    /// The sender's side failed.
    Lost(String),
}

/// A reader within bounds.
pub(super) struct Metered {
    inner: Box<dyn AsyncRead + Send + Unpin>,
    left: u64,
    idle: Duration,
    /// Begins anew with each wait: how long what has come is being worked on does not count.
    silence: Pin<Box<Sleep>>,
    waiting: bool,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    fault: Arc<OnceLock<Fault>>,
}

impl Metered {
    /// Of at most `limit` bytes; where it says why it has failed.
    pub(super) fn new(
        inner: Box<dyn AsyncRead + Send + Unpin>,
        limit: u64,
        idle: Duration,
        stop: WaitForCancellationFutureOwned,
    ) -> (Self, Arc<OnceLock<Fault>>) {
        let fault = Arc::<OnceLock<Fault>>::default();
        let (silence, stop) = (Box::pin(sleep(idle)), Box::pin(stop));
        (Self { inner, left: limit, idle, silence, waiting: false, stop, fault: fault.clone() }, fault)
    }

    fn fail(&self, fault: Fault) -> Poll<io::Result<()>> {
        let error = io::Error::other(format!("{fault:?}"));
        // The first one is the reason.
        let _ = self.fault.set(fault);
        Poll::Ready(Err(error))
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stop.as_mut().poll(context).is_ready() {
            return self.fail(Fault::Stopping);
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.inner).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => {
                self.waiting = false;
                match self.left.checked_sub((buffer.filled().len() - before) as u64) {
                    Some(left) => self.left = left,
                    None => {
                        // Who is told of an error must not find anything to read.
                        buffer.set_filled(before);
                        return self.fail(Fault::TooLarge);
                    }
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => self.fail(Fault::Lost(error.to_string())),
            Poll::Pending => {
                if !self.waiting {
                    self.waiting = true;
                    let until = Instant::now() + self.idle;
                    self.silence.as_mut().reset(until);
                }
                if self.silence.as_mut().poll(context).is_ready() { self.fail(Fault::Idle) } else { Poll::Pending }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn read(inner: impl AsyncRead + Send + Unpin + 'static, stop: &CancellationToken) -> (usize, Option<Fault>) {
        let idle = Duration::from_secs(10);
        let (mut metered, fault) = Metered::new(Box::new(inner), 100, idle, stop.clone().cancelled_owned());
        let mut all = Vec::new();
        let read = metered.read_to_end(&mut all).await;
        assert_eq!(read.is_err(), fault.get().is_some());
        (all.len(), fault.get().cloned())
    }

    #[tokio::test(start_paused = true)]
    async fn reading_ends_for_a_reason() {
        let stop = CancellationToken::new();
        assert_eq!(read(tokio::io::repeat(1).take(100), &stop).await, (100, None));
        assert_eq!(read(tokio::io::repeat(1).take(101), &stop).await.1, Some(Fault::TooLarge));
        let (_held, silent) = tokio::io::duplex(8);
        let began = Instant::now();
        assert_eq!(read(silent, &stop).await.1, Some(Fault::Idle));
        assert_eq!(began.elapsed().as_secs(), 10);
        let broken = breaking_off();
        assert_eq!(read(broken, &stop).await.1, Some(Fault::Lost("gone".to_owned())));
        stop.cancel();
        assert_eq!(read(tokio::io::repeat(1).take(1), &stop).await, (0, Some(Fault::Stopping)));
    }

    /// A reader that fails.
    fn breaking_off() -> impl AsyncRead + Send + Unpin {
        let pieces = futures::stream::iter([Ok(bytes::Bytes::from_static(b"x")), Err(io::Error::other("gone"))]);
        tokio_util::io::StreamReader::new(pieces)
    }
}
