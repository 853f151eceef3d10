//! How much of one replica's output is taken: so much at once, and so much a second. Pure.

use std::{collections::VecDeque, time::Instant};

use crate::{domain::Timestamp, runtime::LogLine};

/// What keeping a line costs beside its text, in bytes: an endless stream of empty lines is work too.
const PER_LINE: u64 = 128;
/// How many seconds' worth may come at once.
const BURST_SECONDS: u64 = 8;
/// What nobody could ever want to read: so many bytes a second, and at once.
const FLOOD: u64 = 6 << 20;
const FLOOD_BURST: u64 = 2 << 20;
/// Milliseconds by which lines of two streams may be out of order.
const FLOOD_CLOCK: u64 = 1000;
/// Milliseconds for which a line that was too much makes a flood of those after it: of a stream that is twice as fast as may be, every
/// other line is not too much, and output comes in pulses.
const FLOOD_PULSE: u64 = 200;
/// Of what is left out, the lines that are kept until it is known whether they were the last.
const LAST: usize = 100;

/// A budget that fills with time (a token bucket).
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Bytes a second.
    rate: u64,
    /// What may come at once, in bytes.
    burst: u64,
    left: u64,
    /// Milliseconds, on whatever clock the caller has.
    at: u64,
}

impl Pace {
    /// Full, at `now` milliseconds.
    pub(super) fn new(rate: u64, now: u64) -> Self {
        Self::with_burst(rate, rate.saturating_mul(BURST_SECONDS), now)
    }

    /// The same with another bound, in bytes, of what may come at once.
    pub(super) fn with_burst(rate: u64, burst: u64, now: u64) -> Self {
        Self { rate, burst, left: burst, at: now }
    }

    /// Whether a line of `length` bytes may be taken at `now` milliseconds; it is paid for then.
    pub(super) fn take(&mut self, length: usize, now: u64) -> bool {
        let earned = self.rate.saturating_mul(now.saturating_sub(self.at)) / 1000;
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(self.burst);
            self.at = now;
        }
        let cost = (length as u64).saturating_add(PER_LINE);
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// How fast a replica writes.
#[derive(Debug)]
pub(super) struct Speed {
    clock: Instant,
    /// What may be kept of it, by this server's clock.
    kept: Pace,
    /// What it writes, by the clock of its engine; with the last moment of that, in milliseconds.
    written: Option<(Pace, u64)>,
    /// When a line was too much last, by that clock.
    flooded: Option<u64>,
    floods: bool,
}

impl Speed {
    /// `rate`: what is kept of it, in bytes a second.
    pub(super) fn new(rate: u64) -> Self {
        Self { clock: Instant::now(), kept: Pace::new(rate, 0), written: None, flooded: None, floods: false }
    }

    /// Takes note of a line that was written at `at`.
    pub(super) fn note(&mut self, length: usize, at: Timestamp) {
        let now = u64::try_from(at.as_millisecond()).unwrap_or(0);
        // After its clock was set back, it would not earn anything for long.
        let known = self.written.take().filter(|(_, last)| now + FLOOD_CLOCK >= *last);
        let (mut pace, last) = known.unwrap_or_else(|| (Pace::with_burst(FLOOD, FLOOD_BURST, now), now));
        if !pace.take(length, now) {
            self.flooded = Some(now);
        }
        self.floods = self.flooded.is_some_and(|flooded| flooded.abs_diff(now) <= FLOOD_PULSE);
        self.written = Some((pace, now.max(last)));
    }

    /// Whether a line may be kept; it is paid for then.
    pub(super) fn may_be_kept(&mut self, length: usize) -> bool {
        let now = u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.kept.take(length, now)
    }

    /// Whether what was taken note of last is part of more than anybody could ever want to read.
    pub(super) fn floods(&self) -> bool {
        self.floods
    }
}

/// Output that came too fast: it is counted and thrown away, but for the last lines, which say why a replica ended if it does.
#[derive(Debug)]
pub(super) struct LeftOut {
    /// What is newer is wanted again.
    until: Timestamp,
    /// Lines that the engine still had.
    pub(super) lines: u64,
    last: VecDeque<LogLine>,
}

impl LeftOut {
    pub(super) fn new(until: Timestamp) -> Self {
        Self { until, lines: 0, last: VecDeque::new() }
    }

    /// Whether a line is part of it.
    pub(super) fn covers(&self, line: &LogLine) -> bool {
        line.at < self.until
    }

    pub(super) fn add(&mut self, line: LogLine) {
        self.lines += 1;
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The lines to keep when nothing came after them.
    pub(super) fn into_last(mut self) -> (u64, VecDeque<LogLine>) {
        self.lines -= self.last.len() as u64;
        (self.lines, self.last)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::runtime::Source;

    #[test]
    fn a_burst_then_so_much_a_second() {
        let mut pace = Pace::new(1000, 5);
        let all = |pace: &mut Pace, now: u64| (0..1000).take_while(|_| pace.take(72, now)).count();
        assert_eq!(all(&mut pace, 5), 40);
        assert_eq!(all(&mut pace, 5), 0);
        assert_eq!(all(&mut pace, 1005), 5);
        assert_eq!(all(&mut pace, 1_000_000), 40, "no more is saved up than a burst");
        assert_eq!(all(&mut pace, 7), 0, "a clock that goes back earns nothing");
        assert!(!Pace::new(1000, 0).take(8000, 0), "a line may cost more than there ever is");
    }

    #[test]
    fn a_flood_is_told_from_much() {
        let at = |millis: i64| Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap();
        // Lines of 1000 bytes and what they cost, so many a second, for three seconds.
        let floods = |speed: &mut Speed, lines: i64| {
            (0..3 * lines).for_each(|line| speed.note(872, at(line * 1000 / lines)));
            speed.floods()
        };
        assert!(!floods(&mut Speed::new(1), 6_000));
        let mut speed = Speed::new(1);
        assert!(floods(&mut speed, 8_000));
        speed.note(872, at(4000));
        assert!(!speed.floods(), "that was before");
        // In pulses, of which each begins with what may be.
        let mut speed = Speed::new(1);
        for pulse in 0..20 {
            (0..2000).for_each(|_| speed.note(872, at(pulse * 150)));
            assert!(speed.floods() || pulse == 0);
        }
        speed.note(872, at(20 * 150));
        assert!(speed.floods());
        // What comes at once is no flood.
        let mut speed = Speed::new(1);
        (0..2000).for_each(|_| speed.note(872, at(0)));
        assert!(!speed.floods());
        // With a clock that was set back.
        (0..10_000).for_each(|line| speed.note(872, at(line - 90_000_000)));
        assert!(!speed.floods());
    }

    #[test]
    fn however_often_it_is_asked_nothing_earned_is_lost() {
        let mut pace = Pace::new(100, 0);
        let took = (0..=100_000).filter(|now| pace.take(72, *now)).count();
        assert_eq!(took, 4 + 50);
    }

    #[test]
    fn the_last_lines_are_kept() {
        let line = |second: i64| LogLine {
            at: Timestamp::from_second(second).unwrap(),
            source: Source::Stdout,
            bytes: Bytes::from(second.to_string()),
        };
        let mut left_out = LeftOut::new(Timestamp::from_second(1000).unwrap());
        assert!(left_out.covers(&line(999)) && !left_out.covers(&line(1000)));
        (0..250).for_each(|second| left_out.add(line(second)));
        let (lines, last) = left_out.into_last();
        assert_eq!((lines, last.len(), last[0].at.as_second()), (150, 100, 150));
    }
}
