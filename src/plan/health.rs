//! From probe results to a verdict on a replica, and when to probe next.

use std::time::Duration;

use crate::domain::{Health, Timestamp};

use super::rollout::Phase;

/// Probes of a replica that has not answered yet come this fast at first: the time to the first answer is what people wait for, and a
/// refused connection costs next to nothing.
const EAGER: Duration = Duration::from_millis(10);
/// How long they come that fast.
const EAGER_FOR: Duration = Duration::from_millis(1500);
/// The slowest they come before the replica is ready.
const PATIENT: Duration = Duration::from_millis(250);

/// How a replica's probes are spaced until it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSchedule {
    next: Duration,
}

impl Default for ProbeSchedule {
    fn default() -> Self {
        Self { next: EAGER }
    }
}

impl ProbeSchedule {
    /// The pause before the next probe of a replica that has been starting for `age`.
    pub fn pause(&mut self, age: Duration) -> Duration {
        let pause = self.next;
        if age >= EAGER_FOR {
            self.next = (self.next * 5 / 4).min(PATIENT);
        }
        pause
    }
}

/// Judges one replica. Starting → ready → unhealthy; a ready one that fails its probes a few times in a row is unhealthy, and ready again
/// with the first success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracker {
    health: Health,
    since: Timestamp,
    phase: Phase,
    failures: u32,
}

impl Tracker {
    /// A replica that runs since `since` and has not answered yet.
    pub fn starting(health: Health, since: Timestamp) -> Self {
        Self { health, since, phase: Phase::Starting, failures: 0 }
    }

    /// A replica that was found serving: it is ready until its probes say otherwise.
    pub fn adopted(health: Health, since: Timestamp) -> Self {
        Self { phase: Phase::Ready, ..Self::starting(health, since) }
    }

    /// The verdict now.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes a probe's result. A failure while starting counts for nothing before the grace time is over, and ends the waiting then.
    pub fn observe(&mut self, succeeded: bool, now: Timestamp) -> Phase {
        match (self.phase, succeeded) {
            (_, true) => {
                self.failures = 0;
                self.phase = Phase::Ready;
            }
            (Phase::Starting, false) => {
                if now >= self.since + self.health.grace {
                    self.phase = Phase::Unhealthy;
                }
            }
            (_, false) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.health.failures.max(1) {
                    self.phase = Phase::Unhealthy;
                }
            }
        }
        self.phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::HealthProbe;

    fn health() -> Health {
        Health {
            probe: HealthProbe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            grace: Duration::from_secs(30),
            failures: 3,
        }
    }

    #[test]
    fn refused_while_starting_is_no_failure_before_the_grace_ends() {
        let start = Timestamp::UNIX_EPOCH;
        let mut tracker = Tracker::starting(health(), start);
        for second in 0..30 {
            assert_eq!(tracker.observe(false, start + Duration::from_secs(second)), Phase::Starting);
        }
        assert_eq!(tracker.observe(false, start + Duration::from_secs(30)), Phase::Unhealthy);
        assert_eq!(tracker.observe(true, start + Duration::from_secs(31)), Phase::Ready);
    }

    #[test]
    fn only_consecutive_failures_make_a_ready_one_unhealthy() {
        let now = Timestamp::UNIX_EPOCH;
        let mut tracker = Tracker::adopted(health(), now);
        let verdicts = [false, false, true, false, false, false].map(|result| tracker.observe(result, now));
        assert_eq!(verdicts[..5], [Phase::Ready; 5]);
        assert_eq!(verdicts[5], Phase::Unhealthy);
    }

    #[test]
    fn probes_are_eager_then_patient() {
        let mut schedule = ProbeSchedule::default();
        assert_eq!(schedule.pause(Duration::ZERO), EAGER);
        assert_eq!(schedule.pause(Duration::from_secs(1)), EAGER);
        for _ in 0..40 {
            schedule.pause(Duration::from_secs(2));
        }
        assert_eq!(schedule.pause(Duration::from_secs(2)), PATIENT);
    }
}
