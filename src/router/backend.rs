//! One replica as the router sees it, and the requests under way on it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::table::Upstream;
use crate::domain::EnvRef;

/// How long a replica that refused a connection is asked only when no other one can be.
const SUSPECT_FOR: Duration = Duration::from_secs(1);

/// One replica as the router sees it.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) env: EnvRef,
    pub(super) upstream: Upstream,
    /// Unique in this process; the key of the connection pool.
    pub(super) key: u64,
    in_flight: AtomicU64,
    /// No longer in the table.
    retired: AtomicBool,
    /// Woken when it leaves the table.
    leaves: Notify,
    suspect_since: Mutex<Option<Instant>>,
    /// Whether `suspect_since` is worth a look.
    suspected: AtomicBool,
    /// Woken when a retired backend has answered its last request.
    drained: Arc<Notify>,
}

impl Backend {
    pub(super) fn new(env: EnvRef, upstream: Upstream, key: u64, drained: Arc<Notify>) -> Self {
        Self {
            env,
            upstream,
            key,
            in_flight: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            leaves: Notify::new(),
            suspect_since: Mutex::new(None),
            suspected: AtomicBool::new(false),
            drained,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.upstream.address
    }

    /// Requests under way.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(SeqCst)
    }

    /// It has left the table.
    pub(super) fn retire(&self) {
        self.retired.store(true, SeqCst);
        self.leaves.notify_waiters();
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(SeqCst)
    }

    /// Waits until it has left the table.
    pub(super) async fn left(&self) {
        // Counts from the moment it is made, so that a retirement between the look and the wait is not missed.
        let leaves = self.leaves.notified();
        if !self.is_retired() {
            leaves.await;
        }
    }

    /// Remembers that it refused a connection.
    pub(super) fn suspect(&self) {
        *self.suspect_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.suspected.store(true, SeqCst);
    }

    pub(super) fn is_suspect(&self) -> bool {
        if !self.suspected.load(SeqCst) {
            return false;
        }
        let since = *self.suspect_since.lock().unwrap_or_else(PoisonError::into_inner);
        let suspect = since.is_some_and(|since| since.elapsed() < SUSPECT_FOR);
        if !suspect {
            self.suspected.store(false, SeqCst);
        }
        suspect
    }
}

/// A request under way on a backend, from the choice of the backend to the last byte of the answer.
#[derive(Debug)]
pub(super) struct Lease(Arc<Backend>);

impl Lease {
    /// `None` when the backend has left the table: the caller's view of the route is old.
    ///
    /// The count goes up before the look at `retired`, and [`super::live::Routes::apply`] sets `retired` before it looks at the count, so
    /// one of the two sees the other.
    pub(super) fn take(backend: &Arc<Backend>) -> Option<Self> {
        backend.in_flight.fetch_add(1, SeqCst);
        let lease = Self(backend.clone());
        (!backend.is_retired()).then_some(lease)
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, SeqCst) == 1 && self.0.is_retired() {
            self.0.drained.notify_one();
        }
    }
}
