//! Receivers of lines, on loopback.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::post,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What has arrived: the texts of the lines, and everything as it was on the wire.
#[derive(Clone, Default)]
pub struct Arrived(Arc<Mutex<(Vec<String>, Vec<u8>)>>);

impl Arrived {
    pub fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().0.clone()
    }

    pub fn wire(&self) -> Vec<u8> {
        self.0.lock().unwrap().1.clone()
    }

    fn add(&self, text: String, wire: &[u8]) {
        let mut arrived = self.0.lock().unwrap();
        arrived.0.push(text);
        arrived.1.extend_from_slice(wire);
    }

    /// Reads frames until the connection ends, at most `most` of them.
    pub async fn read_frames(&self, stream: impl AsyncRead + Unpin, most: usize) {
        let mut stream = BufReader::new(stream);
        for _ in 0..most {
            let mut length = Vec::new();
            if stream.read_until(b' ', &mut length).await.unwrap_or(0) == 0 {
                return;
            }
            let Some(number) = length.strip_suffix(b" ") else { return };
            let mut message = vec![0; std::str::from_utf8(number).unwrap().parse().unwrap()];
            if stream.read_exact(&mut message).await.is_err() {
                return;
            }
            let text = String::from_utf8(message.clone()).unwrap();
            self.add(text.split_once('\u{feff}').unwrap().1.to_owned(), &message);
        }
    }
}

/// A free port of loopback.
pub async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn bind(address: SocketAddr) -> TcpListener {
    // The port may still be another's for a moment.
    for _ in 0..500 {
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{address} stays taken");
}

/// Ends with what holds it.
pub struct Receiver {
    pub arrived: Arrived,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes syslog frames, `most` of each connection.
pub async fn syslog(address: SocketAddr, arrived: Arrived, most: usize) -> Receiver {
    let listener = bind(address).await;
    let all = arrived.clone();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            all.read_frames(stream, most).await;
        }
    });
    Receiver { arrived, task }
}

/// Accepts, and never reads.
pub async fn deaf(address: SocketAddr) -> Receiver {
    let listener = bind(address).await;
    let task = tokio::spawn(async move {
        let mut held: Vec<TcpStream> = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    Receiver { arrived: Arrived::default(), task }
}

/// The answers that come first; then 200.
pub type Answers = Arc<Mutex<Vec<(u16, &'static str)>>>;

/// Takes NDJSON at `/in`.
pub async fn http(address: SocketAddr, arrived: Arrived, answers: Answers) -> Receiver {
    let listener = bind(address).await;
    let app = Router::new().route("/in", post(take)).with_state((arrived.clone(), answers));
    let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Receiver { arrived, task }
}

async fn take(
    State((arrived, answers)): State<(Arrived, Answers)>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap) {
    let mut head = HeaderMap::new();
    let next = {
        let mut answers = answers.lock().unwrap();
        if answers.is_empty() { None } else { Some(answers.remove(0)) }
    };
    if let Some((status, retry_after)) = next {
        if !retry_after.is_empty() {
            head.insert("retry-after", retry_after.parse().unwrap());
        }
        return (StatusCode::from_u16(status).unwrap(), head);
    }
    if headers.get(AUTHORIZATION).is_none_or(|value| value != "Basic YW5uOmh1bnRlciAy") {
        return (StatusCode::UNAUTHORIZED, head);
    }
    assert_eq!(headers["content-type"], "application/x-ndjson");
    assert!(body.len() <= 1 << 20);
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let read: serde_json::Value = serde_json::from_slice(line).unwrap();
        assert_eq!((&read["tenant"], &read["env"]), (&"acme".into(), &"dev".into()));
        arrived.add(read["text"].as_str().unwrap().to_owned(), line);
    }
    (StatusCode::OK, head)
}
