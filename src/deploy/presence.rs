//! Telling that something the platform needs is away, and that it is back.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::clock::Clock;
use crate::{
    domain::EventKind,
    events::{EventSink, Pace},
    store::NewEvent,
};

/// Of what comes and goes all the time, so many are told at once, and then one every so often.
const BURST: u32 = 5;
const EVERY: Duration = Duration::from_secs(60);

/// Whether the engine, or the router, is there, as far as has been told.
pub(super) struct Presence {
    lost: EventKind,
    back: EventKind,
    told_lost: bool,
    pace: Pace<()>,
    events: EventSink,
    clock: Arc<dyn Clock>,
}

impl Presence {
    /// Nothing has been told. The kinds are those of its loss and of its return.
    pub(super) fn new((lost, back): (EventKind, EventKind), events: EventSink, clock: Arc<dyn Clock>) -> Self {
        Self { lost, back, told_lost: false, pace: Pace::new(BURST, EVERY), events, clock }
    }

    /// It is away; may be said again and again.
    pub(super) fn lost(&mut self, what: &str, why: &str) {
        if self.told_lost {
            return;
        }
        if let Some(suppressed) = self.pace.take(&(), Instant::now()) {
            self.told_lost = true;
            let event = NewEvent::new(self.lost, self.clock.now(), format!("{what}: {why}")).data("reason", why);
            self.events.send(event.data("suppressed", suppressed));
        }
    }

    /// It is there; may be said again and again.
    pub(super) fn back(&mut self, what: &str) {
        if std::mem::take(&mut self.told_lost) {
            self.events.send(NewEvent::new(self.back, self.clock.now(), what));
        }
    }
}
