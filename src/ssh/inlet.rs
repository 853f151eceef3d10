//! A channel's input: what the client sent and its reader has not used yet. How much may wait is the [`Gate`]'s affair.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use super::gate::Gate;

#[derive(Default)]
struct Queue {
    bytes: BytesMut,
    ended: Option<End>,
    reader_gone: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client said so.
    Eof,
    /// The connection broke off: what came may be only a part.
    Broken,
}

/// The end that the SSH session fills. Dropping it without [`Inlet::eof`] tells the reader that the input broke off.
pub struct Inlet {
    queue: Arc<Mutex<Queue>>,
    gate: Arc<Gate>,
}

/// The end that a command or git reads.
pub struct InletReader {
    queue: Arc<Mutex<Queue>>,
    gate: Arc<Gate>,
    current: BytesMut,
}

/// Both ends.
pub fn inlet(gate: Arc<Gate>) -> (Inlet, InletReader) {
    let queue = Arc::<Mutex<Queue>>::default();
    let reader = InletReader { queue: queue.clone(), gate: gate.clone(), current: BytesMut::new() };
    (Inlet { queue, gate }, reader)
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    // Nothing panics while it is held.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inlet {
    /// Queues bytes; drops them when nobody will read.
    pub fn push(&self, bytes: &[u8]) {
        let mut queue = lock(&self.queue);
        if queue.reader_gone || queue.ended.is_some() {
            return;
        }
        self.gate.queued(bytes.len());
        queue.bytes.extend_from_slice(bytes);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    /// The client will send nothing more.
    pub fn eof(&self) {
        self.end(End::Eof);
    }

    fn end(&self, end: End) {
        let mut queue = lock(&self.queue);
        queue.ended.get_or_insert(end);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.end(End::Broken);
    }
}

impl AsyncBufRead for InletReader {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.current.is_empty() {
            let mut queue = lock(&this.queue);
            if !queue.bytes.is_empty() {
                // The used buffer goes back, so that two take turns.
                this.current.clear();
                std::mem::swap(&mut this.current, &mut queue.bytes);
            } else if let Some(end) = queue.ended {
                return Poll::Ready(match end {
                    End::Eof => Ok(&[]),
                    End::Broken => Err(io::Error::new(io::ErrorKind::ConnectionReset, "the client is gone")),
                });
            } else {
                queue.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(&this.current))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.current.advance(amount);
        this.gate.used(amount);
    }
}

impl AsyncRead for InletReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let available = ready!(self.as_mut().poll_fill_buf(context))?;
        let amount = available.len().min(buffer.remaining());
        buffer.put_slice(&available[..amount]);
        self.consume(amount);
        Poll::Ready(Ok(()))
    }
}

impl Drop for InletReader {
    fn drop(&mut self) {
        let mut queue = lock(&self.queue);
        queue.reader_gone = true;
        self.gate.used(self.current.len() + queue.bytes.len());
        queue.bytes = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn bytes_come_out_in_order_and_the_end_is_told() {
        let gate = Arc::<Gate>::default();
        let (input, mut reader) = inlet(gate.clone());
        input.push(b"hello ");
        input.push(b"world");
        input.eof();
        input.push(b"too late");
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello world");
        assert_eq!(gate.waiting(), 0);
    }

    #[tokio::test]
    async fn a_broken_input_is_an_error_after_what_came() {
        let (input, mut reader) = inlet(Arc::default());
        input.push(b"half");
        drop(input);
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!((bytes.as_slice(), error.kind()), (b"half".as_slice(), io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn what_nobody_reads_does_not_count() {
        let gate = Arc::<Gate>::default();
        let (input, reader) = inlet(gate.clone());
        input.push(&[0; 1000]);
        assert_eq!(gate.waiting(), 1000);
        drop(reader);
        input.push(&[0; 1000]);
        assert_eq!(gate.waiting(), 0);
    }
}
