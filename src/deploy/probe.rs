//! Asking a replica, from outside its container, whether it answers.

use std::{net::SocketAddr, time::Duration};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::domain::HealthProbe;

/// A first packet that is lost is sent again only after a second; a replica that listens answers in less than a millisecond, so it is
/// cheaper to give up early and try anew, as long as it is waited for. One that has answered before may be busy, and has all of its time.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The status line is within this many bytes, or it is none.
const HEAD: usize = 512;

/// Whom to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    pub address: SocketAddr,
    pub probe: HealthProbe,
    /// Value of the `Host` header: a host that the app answers to.
    pub host: String,
    /// How long the whole probe may take.
    pub timeout: Duration,
    /// It has not answered yet: it is asked often, and each time is given up on early.
    pub starting: bool,
}

/// Why a probe failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens there.
    #[error("nothing listens on port {0}")]
    Refused(u16),
    /// It cannot be reached, or does not answer in time.
    #[error("{0}")]
    Silent(String),
    /// It answers, and not as it should.
    #[error("{0}")]
    Wrong(String),
}

/// Probes replicas; an argument of the deployer, so that tests need no sockets.
#[async_trait]
pub trait Prober: Send + Sync {
    /// Asks once.
    async fn probe(&self, target: &ProbeTarget) -> Result<(), ProbeError>;
}

/// Probes over the network.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetProber;

#[async_trait]
impl Prober for NetProber {
    async fn probe(&self, target: &ProbeTarget) -> Result<(), ProbeError> {
        let late = || ProbeError::Silent(format!("no answer within {:?}", target.timeout));
        timeout(target.timeout, ask(target)).await.unwrap_or_else(|_| Err(late()))
    }
}

async fn ask(target: &ProbeTarget) -> Result<(), ProbeError> {
    let port = target.address.port();
    let patience = if target.starting { CONNECT_TIMEOUT } else { target.timeout };
    let stream = match timeout(patience, TcpStream::connect(target.address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Err(ProbeError::Refused(port));
        }
        Ok(Err(error)) => return Err(ProbeError::Silent(format!("port {port} cannot be reached: {error}"))),
        Err(_) => return Err(ProbeError::Silent(format!("port {port} does not take the connection"))),
    };
    match &target.probe {
        // Commands are not a matter of the network; whoever runs them does not come here.
        HealthProbe::Running | HealthProbe::Tcp | HealthProbe::Command { .. } => Ok(()),
        HealthProbe::Http { path } => get(stream, path, &target.host).await,
    }
}

async fn get(mut stream: TcpStream, path: &str, host: &str) -> Result<(), ProbeError> {
    let failed = |error: std::io::Error| ProbeError::Wrong(format!("the connection broke: {error}"));
    let path = request_target(path);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: berth-probe\r\nAccept: */*\r\nX-Forwarded-Proto: http\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::with_capacity(HEAD);
    while head.len() < HEAD && !head.contains(&b'\n') {
        if stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            break;
        }
    }
    match status(&head) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(ProbeError::Wrong(format!("GET {path} answers {code}"))),
        None => Err(ProbeError::Wrong(format!("GET {path} is not answered in HTTP"))),
    }
}

/// The path as it may stand in a request line: what could end the line or the target is percent-encoded.
fn request_target(path: &str) -> String {
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_graphic() { target.push(char::from(byte)) } else { target.push_str(&format!("%{byte:02X}")) }
    }
    target
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn request_targets_cannot_break_out() {
        assert_eq!(request_target("healthz"), "/healthz");
        assert_eq!(request_target("/a b\r\nX: y"), "/a%20b%0D%0AX:%20y");
    }

    #[test]
    fn status_lines() {
        for (head, want) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 503 \r\n", Some(503)),
            (b"HTTP/1.1 2000 OK\r\n", None),
            (b"SSH-2.0-x\r\n", None),
            (b"", None),
        ] {
            assert_eq!(status(head), want);
        }
    }

    #[tokio::test]
    async fn asks_over_the_network() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            for answer in ["", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 500 Oh\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                if !answer.is_empty() {
                    let mut request = [0; 1024];
                    let length = stream.read(&mut request).await.unwrap();
                    assert!(request[..length].starts_with(b"GET /up HTTP/1.1\r\nHost: shop.example\r\n"));
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let (host, timeout) = ("shop.example".to_owned(), Duration::from_secs(5));
        let target = |probe| ProbeTarget { address, probe, host: host.clone(), timeout, starting: true };
        let http = target(HealthProbe::Http { path: "/up".into() });
        assert_eq!(NetProber.probe(&target(HealthProbe::Tcp)).await, Ok(()));
        assert_eq!(NetProber.probe(&http).await, Ok(()));
        assert_eq!(NetProber.probe(&http).await, Err(ProbeError::Wrong("GET /up answers 500".into())));
        server.await.unwrap();
        assert_eq!(NetProber.probe(&http).await, Err(ProbeError::Refused(address.port())));
    }

    #[tokio::test]
    async fn one_that_has_answered_before_has_all_its_time() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // So busy that it takes no further connections: one waits to be accepted, and what comes after gets no answer.
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let _waits = TcpStream::connect(address).await.unwrap();
        let target = |starting| ProbeTarget {
            address,
            probe: HealthProbe::Tcp,
            host: String::new(),
            timeout: Duration::from_secs(20),
            starting,
        };
        let silent = ProbeError::Silent(format!("port {} does not take the connection", address.port()));
        assert_eq!(NetProber.probe(&target(true)).await, Err(silent));
        let asked = tokio::spawn({
            let target = target(false);
            async move { NetProber.probe(&target).await }
        });
        // Longer than a replica that starts is given.
        tokio::time::sleep(CONNECT_TIMEOUT * 2).await;
        let _accepted = listener.accept().await.unwrap();
        assert_eq!(asked.await.unwrap(), Ok(()));
    }
}
