//! One environment in one interval of ten seconds, and the same as a row of numbers that packs well.

use crate::router::meter::{CLASSES, Counts, LATENCY_BUCKETS};

/// Seconds of one interval; a point is called by the number of its interval since 1970 (its tick), at whose end it was taken.
pub const INTERVAL: u32 = 10;
/// Points kept: 24 hours.
pub const KEPT: u32 = 24 * 3600 / INTERVAL;

/// Numbers in a row.
pub(super) const COLUMNS: usize = 10 + CLASSES + LATENCY_BUCKETS;
/// A point as numbers.
pub(super) type Row = [u32; COLUMNS];

/// What is known of an interval; what could not be asked is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    pub requests: Option<Requests>,
    pub used: Option<Used>,
    pub replicas: Option<Replicas>,
}

/// Requests that ended in the interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// By class of status, from 1xx to 5xx.
    pub classes: [u32; CLASSES],
    /// By latency, in the buckets of [`crate::router::meter::LATENCY_BOUNDS`].
    pub latency: [u32; LATENCY_BUCKETS],
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Under way at the end of the interval.
    pub under_way: u32,
}

/// What the replicas used together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Thousandths of a core, on average.
    pub cpu_millis: u32,
    /// Bytes of memory at the end of the interval.
    pub memory: u64,
    /// Bytes received and sent in the interval.
    pub received: u64,
    pub sent: u64,
}

/// Replicas of all process types at the end of the interval, and how many died in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replicas {
    pub wanted: u32,
    pub ready: u32,
    pub crashes: u32,
}

/// Bits of the first column: what is known.
const REQUESTS: u32 = 1;
const USED: u32 = 2;
const REPLICAS: u32 = 4;

impl Point {
    /// Whether nothing is to be told: no request, no replica, nothing used.
    pub fn is_idle(&self) -> bool {
        self.requests.is_none_or(|requests| requests == Requests::default())
            && self.used.is_none_or(|used| used == Used::default())
            && self.replicas.is_none_or(|replicas| replicas == Replicas::default())
    }

    pub(super) fn to_row(self) -> Row {
        let mut row = [0; COLUMNS];
        if let Some(requests) = self.requests {
            row[0] |= REQUESTS;
            row[10..10 + CLASSES].copy_from_slice(&requests.classes);
            row[10 + CLASSES..].copy_from_slice(&requests.latency);
            (row[1], row[2]) = (coarse(requests.bytes), requests.under_way);
        }
        if let Some(used) = self.used {
            row[0] |= USED;
            row[3..7].copy_from_slice(&[
                used.cpu_millis,
                coarse(used.memory),
                coarse(used.received),
                coarse(used.sent),
            ]);
        }
        if let Some(replicas) = self.replicas {
            row[0] |= REPLICAS;
            row[7..10].copy_from_slice(&[replicas.wanted, replicas.ready, replicas.crashes]);
        }
        row
    }

    pub(super) fn of_row(row: &Row) -> Self {
        let known = |bit: u32| row[0] & bit != 0;
        let mut requests = Requests { bytes: fine(row[1]), under_way: row[2], ..Requests::default() };
        requests.classes.copy_from_slice(&row[10..10 + CLASSES]);
        requests.latency.copy_from_slice(&row[10 + CLASSES..]);
        let (memory, received, sent) = (fine(row[4]), fine(row[5]), fine(row[6]));
        let used = Used { cpu_millis: row[3], memory, received, sent };
        let replicas = Replicas { wanted: row[7], ready: row[8], crashes: row[9] };
        Self {
            requests: known(REQUESTS).then_some(requests),
            used: known(USED).then_some(used),
            replicas: known(REPLICAS).then_some(replicas),
        }
    }
}

impl Requests {
    /// What came between two readings of the same meter. A counter that is lower than before began anew meanwhile.
    pub(super) fn between(before: &Counts, now: &Counts) -> Self {
        let small = |before: u64, now: u64| u32::try_from(grown(before, now)).unwrap_or(u32::MAX);
        Self {
            classes: std::array::from_fn(|class| small(before.classes[class], now.classes[class])),
            latency: std::array::from_fn(|bucket| small(before.latency[bucket], now.latency[bucket])),
            bytes: grown(before.bytes, now.bytes),
            under_way: u32::try_from(now.under_way).unwrap_or(u32::MAX),
        }
    }
}

/// By how much a counter has grown, which may have begun at zero again: then by all it says (as Prometheus' `increase`).
pub(super) fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// Bits of a large number that are kept: an error of less than a two-thousandth.
const MANTISSA: u32 = 11;

/// A large number with its leading bits alone; below 2048 it is itself. Grows with the number.
fn coarse(number: u64) -> u32 {
    let exponent = (u64::BITS - number.leading_zeros()).saturating_sub(MANTISSA);
    (exponent << (MANTISSA - 1)) + (number >> exponent) as u32
}

/// The middle of what [`coarse`] makes the same of.
fn fine(code: u32) -> u64 {
    let exponent = (code >> (MANTISSA - 1)).saturating_sub(1).min(u64::BITS - MANTISSA);
    let mantissa = u64::from(code - (exponent << (MANTISSA - 1)));
    (mantissa << exponent) + (1 << exponent) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_lose_little() {
        for number in (0..4096).chain((0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) + 12_345, u64::MAX >> bit])) {
            let error = fine(coarse(number)).abs_diff(number);
            assert!(error <= number / 2000, "{number} became {}", fine(coarse(number)));
        }
        assert!((0..100_000_u64).is_sorted_by_key(|number| coarse(number * 7919)));
    }

    #[test]
    fn rows_say_what_points_say() {
        let requests = Requests { classes: [1, 2, 3, 4, 5], latency: [7; LATENCY_BUCKETS], bytes: 100, under_way: 3 };
        let used = Used { cpu_millis: 250, memory: 1000, received: 10, sent: 20 };
        let replicas = Replicas { wanted: 3, ready: 2, crashes: 1 };
        for point in [
            Point::default(),
            Point { requests: Some(requests), ..Point::default() },
            Point { used: Some(used), replicas: Some(Replicas::default()), ..Point::default() },
            Point { requests: Some(requests), used: Some(used), replicas: Some(replicas) },
        ] {
            assert_eq!(Point::of_row(&point.to_row()), point);
        }
    }

    #[test]
    fn a_counter_that_began_anew_is_not_negative() {
        assert_eq!((grown(5, 12), grown(12, 12), grown(12, 5)), (7, 0, 5));
        let before = Counts { classes: [0, 90, 0, 0, 4], bytes: 1000, ..Counts::default() };
        let now = Counts { classes: [0, 3, 0, 0, 5], bytes: 30, under_way: 2, ..Counts::default() };
        let between = Requests::between(&before, &now);
        assert_eq!((between.classes, between.bytes, between.under_way), ([0, 3, 0, 0, 1], 30, 2));
    }
}
