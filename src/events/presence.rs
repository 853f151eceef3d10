//! Telling that something the platform needs is away, and that it is back.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{EventSink, Pace};
use crate::{
    domain::{EventKind, Timestamp},
    store::NewEvent,
};

/// Of what comes and goes all the time, so many losses are told at once, and then one every so often.
const BURST: u32 = 5;
const EVERY: Duration = Duration::from_secs(60);

/// Whether something is there, as far as has been told.
#[derive(Debug)]
pub struct Presence {
    lost: EventKind,
    back: EventKind,
    events: EventSink,
    told: Mutex<Said>,
}

#[derive(Debug)]
struct Said {
    lost: bool,
    pace: Pace<()>,
}

impl Presence {
    /// Nothing has been told. The kinds are those of its loss and of its return.
    pub fn new((lost, back): (EventKind, EventKind), events: EventSink) -> Self {
        Self { lost, back, events, told: Mutex::new(Said { lost: false, pace: Pace::new(BURST, EVERY) }) }
    }

    /// It is away; may be said again and again. `what` is for people: `the engine does not answer`.
    pub fn lost(&self, what: &str, why: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.lost {
            return;
        }
        if let Some(suppressed) = told.pace.take(&(), Instant::now()) {
            told.lost = true;
            let event = NewEvent::new(self.lost, Timestamp::now(), format!("{what}: {why}")).data("reason", why);
            self.events.send(event.data("suppressed", suppressed));
        }
    }

    /// It is there; may be said again and again.
    pub fn back(&self, what: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut told.lost) {
            self.events.send(NewEvent::new(self.back, Timestamp::now(), what));
        }
    }
}
