//! A client's connection as the proxy library takes it: writes are gathered into one packet, and the first bytes, which tell the
//! version of HTTP, can be read ahead.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use async_trait::async_trait;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    raw_connect::ProxyDigest,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf},
    net::TcpStream,
};

/// Answers up to this size, head included, are one write.
const WRITE_BUFFER: usize = 8 * 1024;
/// A usual request head fits.
const READ_AHEAD: usize = 2 * 1024;
/// What an HTTP/2 client with prior knowledge sends first (RFC 9113, 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection from a client.
#[derive(Debug)]
pub(super) struct ClientStream {
    stream: BufWriter<TcpStream>,
    /// What was read ahead and is still to be given out.
    ahead: Vec<u8>,
    given: usize,
    digest: Arc<SocketDigest>,
    accepted_at: SystemTime,
}

impl ClientStream {
    /// `local` is what the listener is bound to; only its port is used.
    pub(super) fn new(stream: TcpStream, client: SocketAddr, local: Option<SocketAddr>) -> Self {
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        // A cell that was just made is empty, so neither can fail.
        let _ = digest.peer_addr.set(Some(client.into()));
        let _ = digest.local_addr.set(local.map(Into::into));
        Self {
            stream: BufWriter::with_capacity(WRITE_BUFFER, stream),
            ahead: Vec::new(),
            given: 0,
            digest: Arc::new(digest),
            accepted_at: SystemTime::now(),
        }
    }

    /// Waits for the first bytes, and tells whether they are the start of HTTP/2 with prior knowledge.
    ///
    /// # Errors
    /// When the client closes before that can be told.
    pub(super) async fn begins_with_h2_preface(&mut self) -> io::Result<bool> {
        self.ahead.reserve_exact(READ_AHEAD);
        loop {
            if self.stream.read_buf(&mut self.ahead).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let common = self.ahead.len().min(H2_PREFACE.len());
            if self.ahead[..common] != H2_PREFACE[..common] {
                return Ok(false);
            }
            if common == H2_PREFACE.len() {
                return Ok(true);
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given < self.ahead.len() {
            let count = buffer.remaining().min(self.ahead.len() - self.given);
            buffer.put_slice(&self.ahead[self.given..self.given + count]);
            self.given += count;
            if self.given == self.ahead.len() {
                self.ahead = Vec::new();
                self.given = 0;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(self).await {
            tracing::trace!(%error, "the client closed first");
        }
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> i32 {
        self.stream.get_ref().as_raw_fd()
    }
}

impl Ssl for ClientStream {}

/// Not offered: which version of HTTP it is has been found out already.
impl Peek for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.accepted_at,
            establishment_duration: None,
            offload_wait_duration: None,
        })]
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Sends the pieces one after the other, each when the one before was read, then closes.
    async fn ahead(pieces: &[&[u8]]) -> (io::Result<bool>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, address) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        let mut server = ClientStream::new(server, address, None);
        let send = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            client.shutdown().await.unwrap();
        };
        let ((), http2) = tokio::join!(send, server.begins_with_h2_preface());
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        (http2, all)
    }

    #[tokio::test]
    async fn tells_the_versions_apart_and_loses_nothing() {
        let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nframes";
        let long = vec![b'x'; 5000];
        let cases: [(&[&[u8]], bool); 6] = [
            (&[b"GET / HTTP/1.0\r\n\r\n"], false),
            (&[b"P", b"OST / HTTP/1.1\r\n\r\n"], false),
            (&[b"PRI * HTTP/1.1\r\n\r\n"], false),
            (&[&long], false),
            (&[preface], true),
            (&[&preface[..1], &preface[1..20], &preface[20..]], true),
        ];
        for (pieces, want) in cases {
            let (http2, all) = ahead(pieces).await;
            assert_eq!(http2.unwrap(), want, "{pieces:?}");
            assert_eq!(all, pieces.concat());
        }
        for pieces in [&[][..], &[&preface[..4]]] {
            assert!(ahead(pieces).await.0.is_err(), "{pieces:?}");
        }
    }
}
