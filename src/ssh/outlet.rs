//! A channel's output: frames go to the client in order, as fast as its window and socket allow, and then the exit status.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use russh::{ChannelWriteHalf, server::Msg};
use tokio::{io::AsyncWrite, sync::mpsc};
use tokio_util::sync::{CancellationToken, PollSender};

use super::gate::Gate;
use crate::git::wire::Frame;

/// Frames that may wait for one channel; each is at most 64 KiB.
pub const WAITING_FRAMES: usize = 8;
/// The largest frame that [`FrameWriter`] makes, in bytes.
const MAX_FRAME: usize = 64 * 1024;
/// What waits for a window that is used up, in bytes; any adjustment is larger.
const SMALL_PIECE: usize = 1024;
/// RFC 4254, section 5.2: SSH_EXTENDED_DATA_STDERR.
const STDERR: u32 = 1;

/// Sends frames until their senders are gone or the channel is. After the channel is gone, senders get an error.
pub async fn relay(
    channel: &ChannelWriteHalf<Msg>,
    mut frames: mpsc::Receiver<Frame>,
    gate: Arc<Gate>,
    gone: &CancellationToken,
) {
    let send_all = async {
        while let Some(frame) = frames.recv().await {
            if send(channel, frame, &gate).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = send_all => {}
        () = gone.cancelled() => {}
    }
}

/// Sends a frame by pieces that fit the client's window, so that output counts as stalled only while that is used up: only then is
/// there nothing to do but to read on for the client's adjustment.
async fn send(channel: &ChannelWriteHalf<Msg>, frame: Frame, gate: &Gate) -> Result<(), russh::Error> {
    let (mut bytes, is_error) = match frame {
        Frame::Out(bytes) => (bytes, false),
        Frame::Err(bytes) => (bytes, true),
    };
    while !bytes.is_empty() {
        let window = channel.writable_packet_size().await;
        let _stalled = (window == 0).then(|| gate.output_stalled());
        let piece = bytes.split_to(bytes.len().min(if window == 0 { SMALL_PIECE } else { window }));
        match is_error {
            false => channel.data_bytes(piece).await?,
            true => channel.extended_data_bytes(STDERR, piece).await?,
        }
    }
    Ok(())
}

/// Ends a channel: exit status, end of file, close. The client may be gone; then nothing is to be told.
pub async fn finish(channel: &ChannelWriteHalf<Msg>, status: u32, gone: &CancellationToken) {
    let tell = async {
        channel.exit_status(status).await?;
        channel.eof().await?;
        channel.close().await
    };
    tokio::select! {
        _ = tell => {}
        () = gone.cancelled() => {}
    }
}

/// An [`AsyncWrite`] that makes frames. With `terminal`, a line feed alone becomes carriage return and line feed, as a terminal
/// driver would make it.
pub struct FrameWriter {
    frames: PollSender<Frame>,
    frame: fn(Bytes) -> Frame,
    terminal: bool,
    last: u8,
}

impl FrameWriter {
    /// Frames made by `frame` go to `frames`.
    pub fn new(frames: mpsc::Sender<Frame>, frame: fn(Bytes) -> Frame, terminal: bool) -> Self {
        Self { frames: PollSender::new(frames), frame, terminal, last: 0 }
    }

    fn make(&mut self, bytes: &[u8]) -> Bytes {
        if !self.terminal {
            return Bytes::copy_from_slice(bytes);
        }
        let mut cooked = Vec::with_capacity(bytes.len() + 16);
        for &byte in bytes {
            if byte == b'\n' && self.last != b'\r' {
                cooked.push(b'\r');
            }
            cooked.push(byte);
            self.last = byte;
        }
        Bytes::from(cooked)
    }
}

fn gone<T>(_: T) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")
}

impl AsyncWrite for FrameWriter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.frames.poll_reserve(context)).map_err(gone)?;
        let amount = bytes.len().min(MAX_FRAME);
        let frame = self.make(&bytes[..amount]);
        let frame = (self.frame)(frame);
        self.frames.send_item(frame).map_err(gone)?;
        Poll::Ready(Ok(amount))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.frames.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_terminal_gets_carriage_returns_once() {
        let (sender, mut frames) = mpsc::channel(8);
        let mut writer = FrameWriter::new(sender, Frame::Out, true);
        writer.write_all(b"a\nb\r\nc\r").await.unwrap();
        writer.write_all(b"\n").await.unwrap();
        drop(writer);
        let mut all = Vec::new();
        while let Some(Frame::Out(bytes)) = frames.recv().await {
            all.extend_from_slice(&bytes);
        }
        assert_eq!(all, b"a\r\nb\r\nc\r\n");
    }

    #[tokio::test]
    async fn a_writer_whose_reader_is_gone_fails() {
        let (sender, frames) = mpsc::channel(8);
        drop(frames);
        let error = FrameWriter::new(sender, Frame::Err, false).write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
