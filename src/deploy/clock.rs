//! Time, as an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Timestamp;

/// Tells the time; a constructor argument, so that tests can run ahead.
pub trait Clock: Send + Sync {
    /// The time of day.
    fn now(&self) -> Timestamp;
}

/// The time that the system tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A time line for the planner that never jumps: the time of day when it was made, and from then on the monotonic clock. A leap of the
/// system's clock must neither end a grace time early nor hold a start for hours.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    origin: Timestamp,
    since: Instant,
}

impl Steady {
    /// A time line that begins at `origin`, now.
    pub fn starting_at(origin: Timestamp) -> Self {
        Self { origin, since: Instant::now() }
    }

    /// Now, on this time line.
    pub fn now(&self) -> Timestamp {
        self.origin + self.since.elapsed()
    }

    /// When the time line reaches `moment`; now if it has passed.
    pub fn instant(&self, moment: Timestamp) -> Instant {
        Instant::now() + elapsed(self.now(), moment)
    }
}

/// Time from `earlier` to `later`; zero if it is the other way round.
pub fn elapsed(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}
