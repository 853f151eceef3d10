//! The router's access records become lines of the apps' logs.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::Context;
use tokio::net::UnixDatagram;
use tokio_util::sync::CancellationToken;

use super::{LogRecord, LogSource, LogStream, Logs};
use crate::router::table::AccessRecord;

/// Pause after a failure, which would else repeat at once.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
/// Largest datagram that the router sends, in bytes.
const MAX_DATAGRAM: usize = 64 * 1024;

/// Receives access records and adds a line for each to its app's log.
#[derive(Debug)]
pub struct AccessReceiver {
    socket: UnixDatagram,
}

impl AccessReceiver {
    /// Binds `path` (`DATA/router/access.sock`), readable and writable by this user alone. A socket that is left there is replaced; the
    /// router finds the new one by itself. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let bind = || -> io::Result<UnixDatagram> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            // Under another name until nobody else may write to it.
            let temporary = path.with_file_name(format!(".tmp-access-{}", std::process::id()));
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let socket = UnixDatagram::bind(&temporary)?;
            fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
            fs::rename(&temporary, path)?;
            Ok(socket)
        };
        let socket = bind().with_context(|| format!("the socket {} cannot be made", path.display()))?;
        Ok(Self { socket })
    }

    /// Receives until `stop` is cancelled. What the log has no room for is dropped and counted there.
    pub async fn run(self, logs: Logs, stop: CancellationToken) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let received = tokio::select! {
                received = self.socket.recv(&mut buffer) => received,
                () = stop.cancelled() => return,
            };
            match received {
                Ok(length) => take(&logs, &buffer[..length]),
                Err(error) => {
                    tracing::warn!(%error, "access records could not be received; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }
}

fn take(logs: &Logs, datagram: &[u8]) {
    for line in datagram.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice::<AccessRecord>(line) {
            Ok(record) => {
                let text = access_line(&record);
                let process = "router".to_owned();
                let (at, source, stream) = (record.at, LogSource::Router, LogStream::Stdout);
                logs.append(&record.env, LogRecord { at, source, process, stream, text, replica: None });
            }
            Err(error) => tracing::warn!(%error, "the router sent something that is no access record"),
        }
    }
}

/// One request in the form of Heroku's router: `at=info method=GET path="/" host=… …`.
fn access_line(record: &AccessRecord) -> String {
    let AccessRecord { request_id, method, host, path, status, replica, client, connect_ms, total_ms, bytes, .. } =
        record;
    let outcome = match &record.error {
        Some(error) => format!("at=error error={}", quoted(error)),
        None => "at=info".to_owned(),
    };
    format!(
        "{outcome} method={} path={:?} host={} request_id={} fwd={:?} replica={} connect={connect_ms}ms total={total_ms}ms \
         status={status} bytes={bytes}",
        quoted(method),
        path,
        quoted(host),
        quoted(request_id),
        client,
        quoted(replica),
    )
}

/// The word, in quotes if it could be mistaken for more than one.
fn quoted(word: &str) -> std::borrow::Cow<'_, str> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '=');
    match word.chars().all(plain) {
        true => word.into(),
        false => format!("{word:?}").into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{LogFilter, LogLimits, MAX_TAIL},
        *,
    };
    use crate::domain::EnvRef;

    fn env() -> EnvRef {
        "acme/shop/dev".parse().unwrap()
    }

    fn record() -> AccessRecord {
        AccessRecord {
            env: env(),
            at: "2030-01-02T03:04:05Z".parse().unwrap(),
            request_id: "0123-abc".into(),
            method: "GET".into(),
            host: "shop.acme.localhost".into(),
            path: "/a?b=\"c\" status=200".into(),
            status: 503,
            replica: String::new(),
            client: "192.0.2.7".into(),
            connect_ms: 0,
            total_ms: 12,
            bytes: 345,
            error: Some("no-healthy-replica".into()),
        }
    }

    #[test]
    fn lines() {
        assert_eq!(
            access_line(&record()),
            "at=error error=no-healthy-replica method=GET path=\"/a?b=\\\"c\\\" status=200\" host=shop.acme.localhost \
             request_id=0123-abc fwd=\"192.0.2.7\" replica= connect=0ms total=12ms status=503 bytes=345"
        );
        let fine = AccessRecord { error: None, replica: "web.2".into(), method: "A B=C".into(), ..record() };
        assert!(access_line(&fine).starts_with("at=info method=\"A B=C\" "));
    }

    #[tokio::test]
    async fn records_become_lines_of_the_right_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("router").join("access.sock");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "left over").unwrap();
        let logs = Logs::open(dir.path().join("logs"), LogLimits::default()).unwrap();
        let receiver = AccessReceiver::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let stop = CancellationToken::new();
        let task = tokio::spawn(receiver.run(logs.clone(), stop.clone()));
        let sender = UnixDatagram::unbound().unwrap();
        let mut datagram = Vec::new();
        for _ in 0..3 {
            datagram.extend(serde_json::to_vec(&record()).unwrap());
            datagram.push(b'\n');
        }
        datagram.extend(b"no record\n");
        sender.send_to(&datagram, &path).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let lines = logs.tail(&env(), MAX_TAIL, &LogFilter::process("router")).await.unwrap();
            if lines.len() == 3 {
                assert!(lines.iter().all(|line| line.source == LogSource::Router && line.at == record().at));
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{lines:?}");
        }
        stop.cancel();
        task.await.unwrap();
    }
}
