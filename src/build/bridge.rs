//! Between blocking code (git, tar, gzip) and asynchronous streams, with a bound in between.

use std::io::{self, Read, Write};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

/// Size of a chunk, and how many may wait: at most 2 MiB in flight.
const CHUNK: usize = 256 * 1024;
const IN_FLIGHT: usize = 8;

/// Runs `produce` on a blocking thread; what it writes can be read asynchronously. An error it returns reaches the reader.
pub fn produce<E, F>(produce: F) -> impl AsyncRead + Send + Unpin + 'static
where
    E: std::error::Error + Send + Sync + 'static,
    F: FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::task::spawn_blocking(move || {
        let mut writer = ChannelWriter { sender, buffer: BytesMut::new() };
        let result = produce(&mut writer).map_err(io::Error::other).and_then(|()| writer.flush());
        if let Err(error) = result {
            // The reader is gone: then nobody needs to know.
            let _ = writer.sender.blocking_send(Err(error));
        }
    });
    StreamReader::new(ReceiverStream::new(receiver))
}

struct ChannelWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.buffer.split().freeze();
        self.sender.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Runs `consume` on a blocking thread, which reads what arrives on `source`.
pub async fn consume<R, T, F>(mut source: R, consume: F) -> io::Result<T>
where
    R: AsyncRead + Send + Unpin,
    T: Send + 'static,
    F: FnOnce(&mut dyn Read) -> T + Send + 'static,
{
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(IN_FLIGHT);
    let consumer = tokio::task::spawn_blocking(move || consume(&mut ChannelReader { receiver, chunk: Bytes::new() }));
    let feed = async {
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            // Fill the chunk, so that a stream of small pieces does not become a stream of small messages.
            let read = loop {
                match source.read_buf(&mut chunk).await {
                    Ok(0) => break Ok(()),
                    Ok(_) if chunk.len() >= CHUNK / 2 => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            };
            let last = chunk.is_empty() || read.is_err();
            let message = read.map(|()| chunk.freeze());
            if sender.send(message).await.is_err() || last {
                return;
            }
        }
    };
    feed.await;
    drop(sender);
    consumer.await.map_err(io::Error::other)
}

struct ChannelReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => {
                    self.chunk = chunk?;
                    if self.chunk.is_empty() {
                        return Ok(0);
                    }
                }
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn there_and_back() {
        let data: Vec<u8> = (0..5_000_001u32).map(|n| (n * 7 % 251) as u8).collect();
        let sent = data.clone();
        let reader = produce(move |out| out.write_all(&sent));
        let got = consume(reader, |from| {
            let mut all = Vec::new();
            from.read_to_end(&mut all).map(|_| all)
        });
        assert!(got.await.unwrap().unwrap() == data);
    }

    #[tokio::test]
    async fn an_error_of_the_producer_reaches_the_consumer() {
        let reader = produce(|out| {
            out.write_all(b"begin")?;
            Err(io::Error::other("the disk burns"))
        });
        let result = consume(reader, |from| from.read_to_end(&mut Vec::new()));
        assert!(result.await.unwrap().unwrap_err().to_string().contains("the disk burns"));
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_the_producer() {
        let (done, ended) = std::sync::mpsc::channel();
        let reader = produce(move |out| {
            let result = std::iter::repeat_with(|| out.write_all(&[0; 4096])).find_map(Result::err);
            done.send(()).map_err(io::Error::other)?;
            result.map_or(Ok(()), Err)
        });
        drop(reader);
        tokio::task::spawn_blocking(move || ended.recv_timeout(std::time::Duration::from_secs(10)))
            .await
            .unwrap()
            .unwrap();
    }
}
