//! When a set whose replicas keep dying may be started again: Marathon's launch delay, 1 s × 1.15ⁿ up to 300 s.

use std::time::Duration;

use crate::domain::Timestamp;

/// Delay after the first failure.
pub const FIRST: Duration = Duration::from_secs(1);
/// Growth with each further failure.
const FACTOR: f64 = 1.15;
/// The longest delay.
pub const LONGEST: Duration = Duration::from_secs(300);
/// So many failures in a row are a crash loop.
const CRASH_LOOP: u32 = 3;
/// A replica that was ready for this long before it died says nothing against its set: the replacement is started at once. When all have
/// been, the past is forgotten and the delay begins anew.
pub const HEALTHY_WHILE: Duration = Duration::from_secs(10);

/// How far apart sets are started again whose replicas were found dead: a server that comes back must not start all that crash at once.
pub const SPREAD: Duration = Duration::from_secs(10);

/// The launch delay of one replica set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    until: Option<Timestamp>,
}

impl Backoff {
    /// A replica died, or could not be started. `ready_for` is how long it had been ready, if it ever was.
    pub fn failed(&mut self, now: Timestamp, ready_for: Option<Duration>) {
        if ready_for.is_some_and(|time| time >= HEALTHY_WHILE) {
            // Another one of the set may be in a crash loop all the same.
            self.until = None;
            return;
        }
        let until = now + delay(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(self.until.map_or(until, |before| before.max(until)));
    }

    /// Goes on where another process was.
    pub fn resumed(failures: u32) -> Self {
        Self { failures, until: None }
    }

    /// Nothing is to be started for `pause`, for a reason that says nothing against the replicas.
    pub fn pause(&mut self, now: Timestamp, pause: Duration) {
        let until = now + pause;
        self.until = Some(self.until.map_or(until, |before| before.max(until)));
    }

    /// A replica was found dead that had ended before this process began; how often it had died before is not known. `share` (0..1) is the
    /// set's place within [`SPREAD`].
    pub fn found_dead(&mut self, now: Timestamp, lived: Option<Duration>, share: f64) {
        self.failed(now, lived);
        self.until = self.until.map(|until| until + SPREAD.mul_f64(share.clamp(0.0, 1.0)));
    }

    /// All replicas have been ready for `time`: the past is forgotten after a healthy while.
    pub fn healthy(&mut self, time: Duration) {
        if time >= HEALTHY_WHILE {
            *self = Self::default();
        }
    }

    /// Until when nothing may be started, if that is after `now`.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        self.until.filter(|until| *until > now)
    }

    /// Whether it looks as if starting again does not help.
    pub fn is_crash_looping(&self) -> bool {
        self.failures >= CRASH_LOOP
    }

    /// Failures since the last healthy while.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

fn delay(failures: u32) -> Duration {
    let exponent = i32::try_from(failures.min(100)).unwrap_or(100);
    FIRST.mul_f64(FACTOR.powi(exponent)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_limit_and_resets() {
        let now = Timestamp::UNIX_EPOCH;
        let mut backoff = Backoff::default();
        assert_eq!(backoff.until(now), None);
        backoff.failed(now, None);
        assert_eq!(backoff.until(now), Some(now + Duration::from_secs(1)));
        backoff.failed(now, Some(Duration::from_secs(2)));
        assert_eq!(backoff.until(now), Some(now + Duration::from_millis(1150)));
        for _ in 0..1000 {
            backoff.failed(now, None);
        }
        assert_eq!(backoff.until(now), Some(now + LONGEST));
        assert_eq!(backoff.until(now + LONGEST), None);
        backoff.healthy(Duration::from_secs(1));
        assert!(backoff.failures() > 0);
        assert!(backoff.is_crash_looping());
        backoff.failed(now, Some(HEALTHY_WHILE));
        assert_eq!(backoff.until(now), None, "it is made up for at once");
        assert!(backoff.is_crash_looping(), "another one may die still");
        backoff.healthy(HEALTHY_WHILE);
        assert_eq!(backoff, Backoff::default());
    }

    #[test]
    fn a_pause_is_no_failure() {
        let now = Timestamp::UNIX_EPOCH;
        let mut backoff = Backoff::default();
        (0..100).for_each(|_| backoff.pause(now, Duration::from_secs(2)));
        assert_eq!((backoff.until(now), backoff.failures()), (Some(now + Duration::from_secs(2)), 0));
        backoff.failed(now, None);
        assert_eq!(backoff.until(now), Some(now + Duration::from_secs(2)), "the later one counts");
    }

    #[test]
    fn what_is_found_dead_is_started_again_one_after_the_other() {
        let now = Timestamp::UNIX_EPOCH;
        for (share, millis) in [(0.0, 1000), (0.5, 6000), (1.0, 11_000), (7.0, 11_000)] {
            let mut backoff = Backoff::default();
            backoff.found_dead(now, Some(Duration::from_secs(3)), share);
            assert_eq!(backoff.until(now), Some(now + Duration::from_millis(millis)));
        }
        let mut backoff = Backoff::default();
        backoff.found_dead(now, Some(HEALTHY_WHILE), 1.0);
        assert_eq!(backoff.until(now), None, "what ran well is started at once");
    }
}
