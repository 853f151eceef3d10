//! How much of one replica's output is taken: so much at once, and so much a second. Pure.

use std::collections::VecDeque;

use crate::{domain::Timestamp, runtime::LogLine};

/// What keeping a line costs beside its text, in bytes: an endless stream of empty lines is work too.
const PER_LINE: u64 = 128;
/// How many seconds' worth may come at once.
const BURST_SECONDS: u64 = 8;
/// Of what is left out, the lines that are kept until it is known whether they were the last.
const LAST: usize = 100;

/// A budget that fills with time (a token bucket).
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Bytes a second.
    rate: u64,
    left: u64,
    /// Milliseconds, on whatever clock the caller has.
    at: u64,
}

impl Pace {
    /// Full, at `now` milliseconds.
    pub(super) fn new(rate: u64, now: u64) -> Self {
        Self { rate, left: rate.saturating_mul(BURST_SECONDS), at: now }
    }

    /// Whether a line of `length` bytes may be taken at `now` milliseconds; it is paid for then.
    pub(super) fn take(&mut self, length: usize, now: u64) -> bool {
        let earned = self.rate.saturating_mul(now.saturating_sub(self.at)) / 1000;
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(self.rate.saturating_mul(BURST_SECONDS));
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
