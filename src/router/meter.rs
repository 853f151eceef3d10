//! What the router counts: requests by environment, in the process that serves them, so that nothing is missed while the control plane is
//! slow or away.
//!
//! A meter belongs to a route, so there are as many as environments in the routes table. Whoever connects to the unix socket `meter.sock`
//! is told a [`Reading`] as one JSON document, and the connection ends; [`read`] does that. Counters begin at zero with each router
//! process, which `boot` tells apart, and with each environment that comes into the table.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::{access::AccessLog, live::Routes, table::METER_SOCKET};
use crate::domain::EnvRef;

/// Upper bounds of the latency buckets in milliseconds, inclusive; one more bucket has what took longer.
pub const LATENCY_BOUNDS: [u32; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000];
/// Latency buckets.
pub const LATENCY_BUCKETS: usize = LATENCY_BOUNDS.len() + 1;
/// Classes of status codes: 1xx to 5xx.
pub const CLASSES: usize = 5;

/// How long one who asks may take to read the answer, and the router to give it.
const DEADLINE: Duration = Duration::from_secs(2);
/// Largest reading taken, in bytes: some hundreds for each environment that was asked something.
const MAX_READING: u64 = 64 << 20;
/// Pause after a failure to accept, which would else repeat at once.
const AGAIN: Duration = Duration::from_secs(1);

/// The requests of one environment, as they are counted.
#[derive(Debug, Default)]
pub(super) struct Meter {
    classes: [AtomicU64; CLASSES],
    latency: [AtomicU64; LATENCY_BUCKETS],
    latency_micros: AtomicU64,
    bytes: AtomicU64,
    under_way: AtomicU64,
}

/// The requests of one environment since its meter began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Answers by class of status, from 1xx to 5xx.
    pub classes: [u64; CLASSES],
    /// Answers by the time from the request's first byte to the answer's last, in the buckets of [`LATENCY_BOUNDS`]. Without upgraded
    /// connections (101), which last as long as they like.
    pub latency: [u64; LATENCY_BUCKETS],
    /// The sum of those times, in microseconds.
    pub latency_micros: u64,
    /// Bytes of answers' bodies.
    pub bytes: u64,
    /// Requests under way now.
    pub under_way: u64,
}

/// What a router process has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Tells one router process from another.
    pub boot: u64,
    /// Environments in the routes table that were asked something.
    pub environments: BTreeMap<EnvRef, Counts>,
    /// What environments were asked that have left the table since.
    pub departed: Counts,
    /// Requests that asked for no environment there is, or were malformed.
    pub unrouted: u64,
    /// Connections of clients, now.
    pub connections: u64,
    /// Access records that were dropped since nobody read them.
    pub access_dropped: u64,
}

impl Counts {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        self.classes.iter_mut().zip(other.classes).for_each(|(sum, more)| add(sum, more));
        self.latency.iter_mut().zip(other.latency).for_each(|(sum, more)| add(sum, more));
        add(&mut self.latency_micros, other.latency_micros);
        add(&mut self.bytes, other.bytes);
        add(&mut self.under_way, other.under_way);
    }
}

impl Meter {
    /// Counts a request that has ended.
    pub(super) fn count(&self, status: u16, total: Duration, bytes: u64) {
        let class = usize::from(status / 100).clamp(1, CLASSES) - 1;
        self.classes[class].fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        if status != 101 {
            let micros = u64::try_from(total.as_micros()).unwrap_or(u64::MAX);
            let bucket = LATENCY_BOUNDS.partition_point(|bound| u64::from(*bound) * 1000 < micros);
            self.latency[bucket].fetch_add(1, Relaxed);
            self.latency_micros.fetch_add(micros, Relaxed);
        }
    }

    pub(super) fn read(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        Counts {
            classes: self.classes.each_ref().map(load),
            latency: self.latency.each_ref().map(load),
            latency_micros: load(&self.latency_micros),
            bytes: load(&self.bytes),
            under_way: load(&self.under_way),
        }
    }
}

/// A request under way, until it is dropped.
pub(super) struct UnderWay(Arc<Meter>);

impl UnderWay {
    pub(super) fn begin(meter: &Arc<Meter>) -> Self {
        meter.under_way.fetch_add(1, Relaxed);
        Self(meter.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

/// Tells whoever connects to the socket in `directory`, one after another. That it cannot be made is logged and costs no request.
pub(super) async fn serve(directory: PathBuf, routes: Arc<Routes>, connections: TaskTracker, access: AccessLog) {
    let path = directory.join(METER_SOCKET);
    let listener = match bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "the socket for metrics cannot be made; requests are served, but not shown");
            return;
        }
    };
    let boot = rand::random();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let reading = Reading {
                    boot,
                    environments: routes.counts(),
                    departed: routes.departed(),
                    unrouted: routes.unrouted.load(Relaxed),
                    connections: connections.len() as u64,
                    access_dropped: access.dropped(),
                };
                if let Err(error) =
                    timeout(DEADLINE, tell(stream, &reading)).await.unwrap_or_else(|late| Err(late.into()))
                {
                    tracing::debug!(%error, "what was counted could not be told");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "nobody can be told what was counted; trying again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn tell(mut stream: UnixStream, reading: &Reading) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(reading)?).await?;
    stream.shutdown().await
}

/// For this user alone; in the place of a socket that was left there.
fn bind(path: &Path) -> io::Result<UnixListener> {
    // Under another name until nobody else may connect to it.
    let temporary = path.with_file_name(format!("{METER_SOCKET}.{}.tmp", std::process::id()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

/// Asks the router that serves from `directory` (`DATA/router`) what it has counted.
///
/// # Errors
/// When no router runs there, it does not answer within two seconds, or says something else.
pub async fn read(directory: &Path) -> io::Result<Reading> {
    let ask = async {
        let stream = UnixStream::connect(directory.join(METER_SOCKET)).await?;
        let mut text = Vec::new();
        stream.take(MAX_READING).read_to_end(&mut text).await?;
        Ok(serde_json::from_slice(&text)?)
    };
    timeout(DEADLINE, ask).await.unwrap_or_else(|late| Err(late.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_class_and_bucket() {
        let meter = Arc::new(Meter::default());
        let millis = Duration::from_millis;
        for (status, total) in
            [(200, millis(1)), (204, millis(2)), (404, millis(3)), (503, millis(90_000)), (999, millis(30_000))]
        {
            meter.count(status, total, 10);
        }
        // An upgraded connection is no slow answer.
        meter.count(101, Duration::from_secs(3600), 0);
        let under_way = UnderWay::begin(&meter);
        let counts = meter.read();
        assert_eq!((counts.classes, counts.bytes, counts.under_way), ([1, 2, 0, 1, 2], 50, 1));
        assert_eq!(counts.latency, [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        drop(under_way);
        assert_eq!(meter.read().under_way, 0);
    }
}
