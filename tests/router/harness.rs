//! A running router, replicas for it, and requests to it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use berth::{
    domain::{EnvRef, ReleaseVersion},
    router::table::{Ack, AckOutcome, AckWatch, Route, RoutesTable, Upstream, publish},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Long enough for a loaded machine; a test that gets here fails.
pub const LIMIT: Duration = Duration::from_secs(20);
pub const HOST: &str = "dev.shop.acme.localhost";

pub fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

/// `berth router` as a child process, with options as `KEY=value` in its environment; killed when dropped.
pub struct Router {
    data: TempDir,
    child: Child,
    pub address: SocketAddr,
    options: Vec<String>,
    pub acks: AckWatch,
    generation: u64,
}

impl Router {
    pub async fn start(options: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let address = free_address();
        let options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
        let acks = AckWatch::new(&data.path().join("router")).unwrap();
        let child = spawn(&data, address, &options);
        let router = Self { data, child, address, options, acks, generation: 0 };
        router.up().await;
        router
    }

    /// Waits until the child has acknowledged and listens.
    async fn up(&self) {
        let deadline = Instant::now() + LIMIT;
        while self.acks.current().is_none_or(|ack| ack.pid != self.pid()) {
            assert!(Instant::now() < deadline, "the router did not start");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(self.connect().await);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn directory(&self) -> PathBuf {
        self.data.path().join("router")
    }

    /// SIGKILL, and a new process on the same data.
    pub async fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.data, self.address, &self.options);
        self.up().await;
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Whether the child ended with success within the limit.
    pub async fn ended(&mut self) -> bool {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "the router did not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn table(&mut self, replicas: &[&Replica]) -> RoutesTable {
        self.generation += 1;
        let upstreams = replicas.iter().map(|replica| replica.upstream()).collect();
        RoutesTable {
            generation: self.generation,
            hosts: [(HOST.to_owned(), env())].into(),
            environments: [(env(), Route { released: true, upstreams })].into(),
        }
    }

    /// Publishes and waits until it is in force.
    pub async fn publish(&mut self, table: &RoutesTable) {
        publish(&self.directory(), table).unwrap();
        let outcome = self.acks.wait_for(table.generation, &[], Instant::now() + LIMIT).await;
        assert_eq!(outcome, AckOutcome::Acked);
    }

    pub async fn serve(&mut self, replicas: &[&Replica]) {
        let table = self.table(replicas);
        self.publish(&table).await;
    }

    pub async fn connect(&self) -> TcpStream {
        timeout(LIMIT, TcpStream::connect(self.address)).await.unwrap().unwrap()
    }

    /// Sends raw bytes and reads until the router closes.
    pub async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is the router's refusal to read on.
        let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("no end of the answer");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// `GET path` of the app, on a connection of its own.
    pub async fn get(&self, path: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").as_bytes()).await
    }

    pub fn ack(&self) -> Ack {
        self.acks.current().unwrap()
    }

    /// Waits until the router says that no request is under way to a replica that has left the table; whether it does by `deadline`.
    pub async fn drained(&self, address: SocketAddr, deadline: Instant) -> bool {
        self.acks.wait_for(self.ack().generation, &[address], deadline).await == AckOutcome::Acked
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(data: &TempDir, address: SocketAddr, options: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["router", "--data-dir"])
        .arg(data.path())
        .args(["--listen", &address.to_string()])
        .envs(options.iter().filter_map(|option| option.split_once('=')))
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// An address of 127.0.0.1 where nothing listens.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The status code of an answer.
pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// A replica: a small HTTP/1.1 server that tells what it was asked.
///
/// Every answer but the special ones has as its body the replica's name, the request head as it came and the request body. Special:
/// `/sleep/MS` answers late; `/never` never; `/close` closes without an answer; `/stream` sends a chunk for every chunk it gets; `/chunked` answers
/// in chunks; `/half` answers less than it announces; any `Upgrade: websocket` is accepted and echoed.
pub struct Replica {
    pub name: String,
    pub release: u64,
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Replica {
    pub async fn start(name: &str) -> Self {
        Self::start_at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn({
            let (name, connections, requests) = (name.to_owned(), connections.clone(), requests.clone());
            async move {
                let mut tasks = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.fetch_add(1, SeqCst);
                    let (name, requests) = (name.clone(), requests.clone());
                    tasks.spawn(async move { while_open(stream, &name, &requests).await });
                }
            }
        });
        Self { name: name.to_owned(), release: 1, address, connections, requests, server }
    }

    /// A replica whose address takes no connection and refuses none, like that of a machine which is gone.
    pub async fn silent(name: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        // One fills the queue of connections that nobody takes; more are not answered.
        let filling = TcpStream::connect(address).await.unwrap();
        let server = tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop((listener, filling));
        });
        let name = name.to_owned();
        Self { name, release: 1, address, connections: Arc::default(), requests: Arc::default(), server }
    }

    /// A replica that nothing listens for.
    pub async fn dead(name: &str) -> Self {
        let replica = Self::start(name).await;
        replica.stop();
        while TcpStream::connect(replica.address).await.is_ok() {}
        replica
    }

    /// Closes the listener and every connection.
    pub fn stop(&self) {
        self.server.abort();
    }

    pub fn upstream(&self) -> Upstream {
        Upstream { address: self.address, replica: self.name.clone(), release: ReleaseVersion(self.release) }
    }

    pub fn served(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn while_open(mut stream: TcpStream, name: &str, requests: &AtomicUsize) {
    let mut buffer = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut buffer).await {
        requests.fetch_add(1, SeqCst);
        let lower = head.to_ascii_lowercase();
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if lower.contains("upgrade: websocket") {
            return echo(stream, buffer).await;
        }
        if lower.contains("expect: 100-continue") {
            let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        if target == "/stream" {
            return echo_chunks(stream, buffer).await;
        }
        let Some(body) = read_body(&mut stream, &mut buffer, &lower).await else { return };
        match target.as_str() {
            "/close" => return,
            "/never" => return std::future::pending().await,
            "/chunked" => {
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
                    .await;
                continue;
            }
            "/half" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
                return;
            }
            _ => {}
        }
        if let Some(millis) = target.strip_prefix("/sleep/") {
            tokio::time::sleep(Duration::from_millis(millis.parse().unwrap())).await;
        }
        let mut answer = format!("{name}\n{head}").into_bytes();
        answer.extend_from_slice(&body);
        let extra = "Keep-Alive: timeout=5\r\nX-Own: yes\r\n";
        let head = format!("HTTP/1.1 200 OK\r\n{extra}Content-Length: {}\r\n\r\n", answer.len());
        let mut bytes = head.into_bytes();
        if !lower.starts_with("head ") {
            bytes.extend_from_slice(&answer);
        }
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            let head = std::mem::replace(buffer, rest);
            return Some(String::from_utf8_lossy(&head).into_owned());
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

async fn read_body(stream: &mut TcpStream, buffer: &mut Vec<u8>, lower: &str) -> Option<Vec<u8>> {
    let length =
        lower.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
    let is_whole = |buffer: &[u8]| match length {
        Some(length) => buffer.len() >= length,
        None if lower.contains("transfer-encoding: chunked") => buffer.ends_with(b"0\r\n\r\n"),
        None => true,
    };
    while !is_whole(buffer) {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(std::mem::take(buffer))
}

async fn echo(mut stream: TcpStream, rest: Vec<u8>) {
    let accept = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
    if stream.write_all(accept).await.is_err() || stream.write_all(&rest).await.is_err() {
        return;
    }
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// Answers at once, and sends back every piece of a chunked body as it comes, raw.
async fn echo_chunks(mut stream: TcpStream, mut buffer: Vec<u8>) {
    if stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.is_err() {
        return;
    }
    loop {
        let last = buffer.ends_with(b"0\r\n\r\n");
        if stream.write_all(&buffer).await.is_err() || last {
            return;
        }
        buffer.clear();
        if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

/// Reads from a stream until `text` has come; everything read.
pub async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = Vec::new();
    loop {
        let so_far = String::from_utf8_lossy(&seen).into_owned();
        if so_far.contains(text) {
            return so_far;
        }
        let count =
            timeout(LIMIT, stream.read_buf(&mut seen)).await.unwrap_or_else(|_| panic!("no {text:?} in {so_far:?}"));
        assert_ne!(count.unwrap(), 0, "closed before {text:?}: {so_far:?}");
    }
}

/// Reads one answer with a Content-Length, and nothing after it.
pub async fn read_answer(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") {
        timeout(LIMIT, stream.read_exact(&mut byte))
            .await
            .expect("no end of the head")
            .expect("closed within the head");
        seen.push(byte[0]);
    }
    let head = String::from_utf8(seen).unwrap();
    let length =
        head.to_lowercase().split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    timeout(LIMIT, stream.read_exact(&mut body)).await.expect("no end of the body").expect("closed within the body");
    head + &String::from_utf8(body).unwrap()
}
