//! The events that there are, as far as they may be told.
//!
//! Events are numbered before they are committed, so a higher number can be seen before a lower one. To tell them in order, an event whose
//! predecessor is missing waits a moment for it; after that the gap is one for good (a commit that failed, an old event that was dropped).

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::domain::Event;

struct Seen {
    event: Arc<Event>,
    at: Instant,
}

/// The event log in memory, which bounds it: what it drops goes here too.
pub(super) struct Window {
    events: BTreeMap<u64, Seen>,
    /// All events up to this one may be told.
    horizon: u64,
    settle: Duration,
}

impl Window {
    pub(super) fn new(settle: Duration) -> Self {
        Self { events: BTreeMap::new(), horizon: 0, settle }
    }

    pub(super) fn horizon(&self) -> u64 {
        self.horizon
    }

    pub(super) fn insert(&mut self, event: Event, now: Instant) {
        self.events.entry(event.id).or_insert_with(|| Seen { event: Arc::new(event), at: now });
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Arc<Event>> {
        self.events.remove(&id).map(|seen| seen.event)
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.events.contains_key(&id)
    }

    /// The ids of events that are here and not among these.
    pub(super) fn missing_from(&self, ids: &std::collections::BTreeSet<u64>) -> Vec<u64> {
        self.events.keys().filter(|id| !ids.contains(id)).copied().collect()
    }

    /// Moves the horizon as far as it goes; returns how long to wait for what is missing, if something is.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Duration> {
        for (id, seen) in self.events.range(self.horizon + 1..) {
            let waited = now.saturating_duration_since(seen.at);
            if *id != self.horizon + 1 && waited < self.settle {
                return Some(self.settle - waited);
            }
            self.horizon = *id;
        }
        None
    }

    /// The first event after `position` that is wanted, if it may be told yet.
    pub(super) fn next(&self, position: u64, wanted: impl Fn(&Event) -> bool) -> Option<Arc<Event>> {
        if position >= self.horizon {
            return None;
        }
        let mut between = self.events.range(position + 1..=self.horizon);
        between.find(|(_, seen)| wanted(&seen.event)).map(|(_, seen)| seen.event.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EventKind, Timestamp};

    const SETTLE: Duration = Duration::from_secs(5);

    fn event(id: u64) -> Event {
        let (kind, at) = (EventKind::BuildQueued, Timestamp::UNIX_EPOCH);
        Event {
            id,
            at,
            kind,
            tenant: None,
            app: None,
            env: None,
            actor: None,
            message: String::new(),
            data: crate::domain::EventData::default(),
        }
    }

    fn next(window: &Window, position: u64) -> Option<u64> {
        window.next(position, |_| true).map(|event| event.id)
    }

    #[test]
    fn a_late_event_keeps_its_place() {
        let start = Instant::now();
        let mut window = Window::new(SETTLE);
        window.insert(event(1), start);
        window.insert(event(3), start);
        assert_eq!(window.advance(start), Some(SETTLE));
        assert_eq!((next(&window, 0), next(&window, 1)), (Some(1), None));
        window.insert(event(2), start + Duration::from_secs(1));
        assert_eq!(window.advance(start + Duration::from_secs(1)), None);
        assert_eq!((next(&window, 1), next(&window, 2), next(&window, 3)), (Some(2), Some(3), None));
    }

    #[test]
    fn a_gap_for_good_holds_up_for_a_moment_only() {
        let start = Instant::now();
        let mut window = Window::new(SETTLE);
        window.insert(event(8), start);
        window.insert(event(11), start);
        window.insert(event(12), start);
        assert_eq!(window.advance(start + SETTLE / 2), Some(SETTLE / 2));
        assert_eq!(next(&window, 0), None);
        assert_eq!(window.advance(start + SETTLE), None);
        assert_eq!((next(&window, 0), next(&window, 8), window.horizon()), (Some(8), Some(11), 12));
        window.remove(11);
        assert_eq!(next(&window, 8), Some(12));
    }
}
