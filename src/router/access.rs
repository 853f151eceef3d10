//! Access records on their way to the control plane: bounded, never in a request's way, dropped and counted when nobody listens.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{
    net::UnixDatagram,
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::domain::{EnvRef, Timestamp};

/// Records waiting to be sent.
const QUEUE: usize = 8192;
/// Largest datagram, in bytes. One record is at most about 5 KiB.
const MAX_DATAGRAM: usize = 64 * 1024;
/// Longest path and query in a record, in bytes.
const MAX_PATH: usize = 2048;
/// Longest host in a record, in bytes.
const MAX_HOST: usize = 256;
/// How long a receiver that does not read is waited for.
const SEND_LIMIT: Duration = Duration::from_millis(500);
/// Records are gathered for this long after a datagram, so that a busy router sends few of them.
const GATHER: Duration = Duration::from_millis(20);
/// How long nobody is looked for after nobody was there.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Takes access records. Cheap to clone.
#[derive(Clone)]
pub(super) struct AccessLog {
    queue: mpsc::Sender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

/// One request, borrowed from where it was served.
pub(super) struct Line<'a> {
    pub(super) env: &'a EnvRef,
    pub(super) request_id: &'a str,
    pub(super) method: &'a str,
    pub(super) host: &'a [u8],
    pub(super) path: &'a [u8],
    pub(super) status: u16,
    pub(super) replica: &'a str,
    pub(super) client: IpAddr,
    pub(super) connect: Duration,
    pub(super) total: Duration,
    pub(super) bytes: u64,
    pub(super) error: Option<&'a str>,
}

/// [`super::table::AccessRecord`] as it is written, without owning its parts.
#[derive(Serialize)]
struct Wire<'a> {
    env: &'a EnvRef,
    at: Timestamp,
    request_id: &'a str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    status: u16,
    replica: &'a str,
    client: IpAddr,
    connect_ms: u64,
    total_ms: u64,
    bytes: u64,
    error: Option<&'a str>,
}

impl AccessLog {
    /// A log and the task that sends its records to the socket at `path`; the task ends when the last handle is dropped.
    pub(super) fn new(path: PathBuf) -> (Self, impl Future<Output = ()>) {
        let (queue, records) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let sender = Sender { path, socket: None, look_again: None, dropped: dropped.clone(), reported: 0 };
        (Self { queue, dropped }, sender.run(records))
    }

    /// Records that nobody read, since this process began.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Queues a record, or drops it when the queue is full.
    pub(super) fn record(&self, line: &Line<'_>) {
        let Ok(permit) = self.queue.try_reserve() else {
            self.dropped.fetch_add(1, Relaxed);
            return;
        };
        permit.send(encode(line, Timestamp::now()));
    }
}

fn encode(line: &Line<'_>, at: Timestamp) -> Vec<u8> {
    let (host, path) = (printable(line.host, MAX_HOST), printable(line.path, MAX_PATH));
    let wire = Wire {
        env: line.env,
        at,
        request_id: line.request_id,
        method: line.method,
        host: &host,
        path: &path,
        status: line.status,
        replica: line.replica,
        client: line.client,
        connect_ms: whole_millis(line.connect),
        total_ms: whole_millis(line.total),
        bytes: line.bytes,
        error: line.error,
    };
    let mut text = Vec::with_capacity(384);
    // Writing strings and numbers to memory cannot fail; an empty line would be skipped by the receiver.
    if serde_json::to_writer(&mut text, &wire).is_err() {
        text.clear();
    }
    text.push(b'\n');
    text
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The bytes as text with everything but printable ASCII escaped, at most `limit` bytes.
fn printable(bytes: &[u8], limit: usize) -> std::borrow::Cow<'_, str> {
    let cut = &bytes[..bytes.len().min(limit)];
    match std::str::from_utf8(cut) {
        Ok(text) if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) => text.into(),
        _ => {
            let mut text = cut.escape_ascii().to_string();
            text.truncate(limit);
            text.into()
        }
    }
}

/// Sends batches of records as datagrams.
struct Sender {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    /// When to try to connect again, after nobody was there.
    look_again: Option<Instant>,
    dropped: Arc<AtomicU64>,
    /// Drops that the router's own log has told of.
    reported: u64,
}

impl Sender {
    async fn run(mut self, mut records: mpsc::Receiver<Vec<u8>>) {
        let mut batch = Vec::with_capacity(256);
        let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
        while records.recv_many(&mut batch, QUEUE).await > 0 {
            let mut count = 0;
            for record in batch.drain(..) {
                if datagram.len() + record.len() > MAX_DATAGRAM {
                    self.flush(&mut datagram, &mut count).await;
                }
                datagram.extend_from_slice(&record);
                count += 1;
            }
            self.flush(&mut datagram, &mut count).await;
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Sends what is collected, or counts it as dropped.
    async fn flush(&mut self, datagram: &mut Vec<u8>, count: &mut u64) {
        // The second try is for a socket that was made anew since.
        let sent = self.send(datagram).await.is_ok() || self.send(datagram).await.is_ok();
        if sent {
            let dropped = self.dropped.load(Relaxed);
            if dropped > self.reported {
                tracing::warn!(dropped = dropped - self.reported, "access records were dropped; nobody read them");
                self.reported = dropped;
            }
        } else {
            self.dropped.fetch_add(*count, Relaxed);
        }
        datagram.clear();
        *count = 0;
    }

    async fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None if self.look_again.is_some_and(|then| Instant::now() < then) => {
                return Err(io::ErrorKind::NotConnected.into());
            }
            None => connect(&self.path).inspect_err(|_| self.look_again = Some(Instant::now() + LOOK_AGAIN))?,
        };
        timeout(SEND_LIMIT, socket.send(datagram)).await??;
        self.socket = Some(socket);
        Ok(())
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::{super::table::AccessRecord, *};

    fn line<'a>(env: &'a EnvRef, request_id: &'a str, path: &'a [u8]) -> Line<'a> {
        Line {
            env,
            request_id,
            method: "GET",
            host: b"shop.acme.localhost:8080",
            path,
            status: 200,
            replica: "web.2",
            client: "192.0.2.7".parse().unwrap(),
            connect: Duration::from_micros(1999),
            total: Duration::from_millis(12),
            bytes: 345,
            error: Some("closed"),
        }
    }

    fn env() -> EnvRef {
        "acme/shop/dev".parse().unwrap()
    }

    #[test]
    fn the_wire_form_is_an_access_record() {
        let at: Timestamp = "2030-01-02T03:04:05.678Z".parse().unwrap();
        let text = encode(&line(&env(), "id", b"/a?b=\x1b[31m\n"), at);
        let record: AccessRecord = serde_json::from_slice(&text).unwrap();
        let want = AccessRecord {
            env: env(),
            at,
            request_id: "id".into(),
            method: "GET".into(),
            host: "shop.acme.localhost:8080".into(),
            path: "/a?b=\\x1b[31m\\n".into(),
            status: 200,
            replica: "web.2".into(),
            client: "192.0.2.7".into(),
            connect_ms: 1,
            total_ms: 12,
            bytes: 345,
            error: Some("closed".into()),
        };
        assert_eq!(record, want);
        let long: AccessRecord = serde_json::from_slice(&encode(&line(&env(), "id", &[0xff; 9000]), at)).unwrap();
        assert_eq!(long.path.len(), MAX_PATH);
    }

    /// The ids of the records in the next datagrams, until none comes for a moment.
    async fn receive(socket: &UnixDatagram) -> Vec<String> {
        let mut ids = Vec::new();
        let mut buffer = vec![0; MAX_DATAGRAM];
        while let Ok(length) = timeout(10 * GATHER, socket.recv(&mut buffer)).await {
            for line in buffer[..length.unwrap()].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                ids.push(serde_json::from_slice::<AccessRecord>(line).unwrap().request_id);
            }
        }
        ids
    }

    #[tokio::test]
    async fn records_arrive_and_a_new_socket_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.sock");
        let (log, sender) = AccessLog::new(path.clone());
        let sender = tokio::spawn(sender);
        let record = |id: &str| log.record(&line(&env(), id, b"/"));
        record("nobody listens");
        while log.dropped.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        for round in ["one", "two"] {
            let socket = UnixDatagram::bind(&path).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while receive(&socket).await.is_empty() {
                assert!(Instant::now() < deadline, "the new socket is not found");
                record("anybody there?");
            }
            (0..500).for_each(|_| record(round));
            assert_eq!(receive(&socket).await, vec![round; 500]);
            std::fs::remove_file(&path).unwrap();
        }
        drop(log);
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _not_running) = AccessLog::new(dir.path().join("access.sock"));
        (0..QUEUE + 7).for_each(|_| log.record(&line(&env(), "id", b"/")));
        assert_eq!(log.dropped.load(Relaxed), 7);
    }
}
