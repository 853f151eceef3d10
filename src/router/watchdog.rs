//! Time limits on a request as a whole, which the proxy library's limits per read and per write do not give.
//!
//! Two things may take too long: the client with its request head (a slow-loris), and the replica with the first byte of its answer.
//! The proxy marks in a [`Watchdog`] where the request stands; [`guard`], in the same task, acts when that takes too long: it drops
//! the connection of a slow client, and shuts down the socket to a slow replica, which the proxy then sees as closed.

use std::{
    future::{Future, poll_fn},
    os::fd::{BorrowedFd, RawFd},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::time::{Instant, sleep_until};

/// No deadline.
const NEVER: u64 = u64::MAX;
/// The deadline is the client's, not a replica's.
const NO_SOCKET: RawFd = -1;

/// Limits of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// From the moment the connection is ready for a request to the end of its head; idle time between requests included.
    pub(super) head: Duration,
    /// From the end of the request to the first byte of the answer.
    pub(super) first_byte: Duration,
    /// How much longer than `first_byte` a replica may wait while the client is still sending.
    pub(super) client_pause: Duration,
}

/// Where a request stands. Written by the proxy's callbacks, read by [`guard`]; both run in the request's own task, so the atomics only
/// satisfy `Sync`.
#[derive(Debug)]
pub(super) struct Watchdog {
    limits: Limits,
    origin: Instant,
    /// Milliseconds after `origin`, or [`NEVER`].
    deadline: AtomicU64,
    /// The socket to the replica whose first byte is awaited, or [`NO_SOCKET`].
    socket: AtomicI32,
    fired: AtomicBool,
}

tokio::task_local! {
    static CURRENT: Arc<Watchdog>;
}

impl Watchdog {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            origin: Instant::now(),
            deadline: AtomicU64::new(millis(limits.head)),
            socket: AtomicI32::new(NO_SOCKET),
            fired: AtomicBool::new(false),
        }
    }

    /// The watchdog of the request that the current task serves.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// The request's head is complete; nothing is awaited from the client or a replica until further notice.
    pub(super) fn rest(&self) {
        self.deadline.store(NEVER, Relaxed);
        self.socket.store(NO_SOCKET, Relaxed);
    }

    /// A replica is connected, and from now on its first byte is awaited. `socket` must stay open until [`Self::rest`].
    pub(super) fn await_first_byte(&self, socket: RawFd, request_complete: bool) {
        self.socket.store(socket, Relaxed);
        self.progress(request_complete);
    }

    /// A part of the request body was passed on.
    pub(super) fn progress(&self, request_complete: bool) {
        if self.socket.load(Relaxed) == NO_SOCKET {
            return;
        }
        let pause = if request_complete { Duration::ZERO } else { self.limits.client_pause };
        self.deadline.store(millis(self.origin.elapsed() + self.limits.first_byte + pause), Relaxed);
    }

    /// Whether a replica's first byte came too late.
    pub(super) fn fired(&self) -> bool {
        self.fired.load(Relaxed)
    }

    /// Acts if the deadline has passed. `true` when the client's connection is to be dropped.
    fn check(&self) -> bool {
        if millis(self.origin.elapsed()) < self.deadline.load(Relaxed) {
            return false;
        }
        let socket = self.socket.load(Relaxed);
        if socket == NO_SOCKET {
            return true;
        }
        self.rest();
        self.fired.store(true, Relaxed);
        // SAFETY: the proxy's session owns the socket and keeps it open while the first byte is awaited (`await_first_byte`); that
        // session belongs to the future that `guard` polls, and it is not being polled now.
        let socket = unsafe { BorrowedFd::borrow_raw(socket) };
        if let Err(error) = shutdown(std::os::fd::AsRawFd::as_raw_fd(&socket), Shutdown::Both) {
            tracing::debug!(%error, "a late replica's socket was closed already");
        }
        false
    }

    /// When to look again. Every deadline set later lies at least the shortest limit ahead, so a look that often misses none.
    fn next_check(&self) -> Instant {
        let shortest = self.limits.head.min(self.limits.first_byte);
        let look_again = Instant::now() + shortest;
        match self.deadline.load(Relaxed) {
            NEVER => look_again,
            deadline => look_again.min(self.origin + Duration::from_millis(deadline)),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER - 1)
}

/// Runs `request`, which serves one request on a connection, under `limits`. `None` when the client took too long.
pub(super) async fn guard<T>(limits: Limits, request: impl Future<Output = Option<T>>) -> Option<T> {
    let watchdog = Arc::new(Watchdog::new(limits));
    let mut request = pin!(CURRENT.scope(watchdog.clone(), request));
    let mut timer = pin!(sleep_until(watchdog.next_check()));
    poll_fn(|context| {
        if let Poll::Ready(result) = request.as_mut().poll(context) {
            return Poll::Ready(result);
        }
        while timer.as_mut().poll(context).is_ready() {
            if watchdog.check() {
                return Poll::Ready(None);
            }
            timer.as_mut().reset(watchdog.next_check());
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use tokio::{io::AsyncReadExt, net::UnixStream};

    use super::*;

    const LIMITS: Limits = Limits {
        head: Duration::from_secs(10),
        first_byte: Duration::from_secs(30),
        client_pause: Duration::from_secs(60),
    };

    /// Reads from a replica that never answers, after the client has paused `pauses` times for 50 s within its request.
    async fn silent_replica(pauses: u32) -> Option<(usize, Duration, bool)> {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        guard(LIMITS, async move {
            let watchdog = Watchdog::current().unwrap();
            watchdog.rest();
            let mut ours = ours;
            watchdog.await_first_byte(ours.as_raw_fd(), pauses == 0);
            for pause in 0..pauses {
                tokio::time::sleep(Duration::from_secs(50)).await;
                watchdog.progress(pause + 1 == pauses);
            }
            let read = ours.read(&mut [0; 16]).await.unwrap();
            Some((read, start.elapsed(), watchdog.fired()))
        })
        .await
    }

    fn about(seconds: u64, measured: Duration) -> bool {
        (Duration::from_secs(seconds)..Duration::from_secs(seconds) + Duration::from_millis(500)).contains(&measured)
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_has_its_limit_after_the_request_is_complete() {
        let (read, waited, fired) = silent_replica(0).await.unwrap();
        assert!(read == 0 && fired && about(30, waited), "{waited:?}");
        let (read, waited, fired) = silent_replica(3).await.unwrap();
        assert!(read == 0 && fired && about(180, waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_finishes_its_head_is_dropped() {
        let start = Instant::now();
        let trickle = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        assert_eq!(guard::<()>(LIMITS, trickle).await, None);
        assert!(about(10, start.elapsed()), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_not_limited_once_it_has_begun() {
        let answer = guard(LIMITS, async {
            let watchdog = Watchdog::current().unwrap();
            watchdog.await_first_byte(0, true);
            watchdog.rest();
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Some(watchdog.fired())
        });
        assert_eq!(answer.await, Some(false));
    }
}
