//! How many events of the same thing are recorded: so many at once, then one every so often. Pure.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

/// Things that are remembered at the same time; of those beyond, nothing is recorded.
const MAX_KEYS: usize = 1024;

/// A bound on how often each of many things is told of (GCRA: one moment for each thing).
#[derive(Debug)]
pub struct Pace<K> {
    burst: u32,
    every: Duration,
    things: HashMap<K, Thing>,
}

#[derive(Debug)]
struct Thing {
    /// When all that was told would have been told evenly.
    due: Instant,
    /// What was not told since.
    suppressed: u64,
}

impl<K: Hash + Eq + Clone> Pace<K> {
    /// So many (at least one) at once, and one more each `every`.
    pub fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, things: HashMap::new() }
    }

    /// Whether this is to be told now: `Some` of how often it was not, before.
    pub fn take(&mut self, key: &K, now: Instant) -> Option<u64> {
        if self.things.len() >= MAX_KEYS && !self.things.contains_key(key) {
            self.things.retain(|_, thing| thing.due > now);
            if self.things.len() >= MAX_KEYS {
                return None;
            }
        }
        let thing = self.things.entry(key.clone()).or_insert(Thing { due: now, suppressed: 0 });
        let due = thing.due.max(now);
        if due.duration_since(now) > self.every * self.burst.saturating_sub(1) {
            thing.suppressed += 1;
            return None;
        }
        thing.due = due + self.every;
        Some(std::mem::take(&mut thing.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_then_evenly() {
        let minute = Duration::from_secs(60);
        let mut pace = Pace::new(3, minute);
        let now = Instant::now();
        let taken: Vec<_> = (0..6).map(|_| pace.take(&"a", now)).collect();
        assert_eq!(taken, [Some(0), Some(0), Some(0), None, None, None]);
        assert_eq!(pace.take(&"b", now), Some(0), "others are not held up");
        assert_eq!(pace.take(&"a", now + minute), Some(3), "it says how many were left out");
        assert_eq!(pace.take(&"a", now + minute), None);
        let later = now + minute * 10;
        assert_eq!((0..9).filter(|_| pace.take(&"a", later).is_some()).count(), 3);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut pace = Pace::new(1, Duration::from_secs(60));
        let now = Instant::now();
        assert_eq!((0..MAX_KEYS * 2).filter(|key| pace.take(key, now).is_some()).count(), MAX_KEYS);
        assert!(pace.take(&usize::MAX, now + Duration::from_secs(61)).is_some(), "the old ones make room");
        assert_eq!(pace.things.len(), 1);
    }
}
