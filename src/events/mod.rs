//! Events on their way: from whoever has something to tell into the store, and from there to all who read them as they come.
//!
//! [`EventSink`] takes events off hot paths: a bounded queue with one writer, which drops and counts when it is full. [`EventHub`] has one
//! watch over the store for all readers and keeps what the store keeps of events, so that a reader is no more than a place in it
//! ([`Follower`]): one that is slow costs nothing, and is told when it has fallen too far behind. Nobody's queue grows.
//!
//! Who may see what is not decided here, but by whoever reads: see `commands`.

mod filter;
mod hub;
mod pace;
mod presence;
mod sink;
#[cfg(test)]
mod tests;

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

pub use filter::{EventFilter, FilterError, KindFilter};
pub use hub::{EventHub, EventService, Follower, Page, Sees};
pub use pace::Pace;
pub use presence::Presence;
pub use sink::{EventSink, EventWriter};

use crate::domain::Event;

/// How many events a reader may be behind what comes, of those that it wants.
pub const MAX_LAG: usize = 1000;

/// An event for all who read it: shared, and made text once.
#[derive(Debug)]
pub struct Published {
    event: Event,
    source_base: Arc<str>,
    cloud_event: OnceLock<String>,
}

impl Published {
    fn new(event: Event, source_base: Arc<str>) -> Self {
        Self { event, source_base, cloud_event: OnceLock::new() }
    }

    /// The event itself.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The event as a CloudEvent 1.0, JSON in one line.
    pub fn cloud_event(&self) -> &str {
        self.cloud_event.get_or_init(|| {
            // Texts, numbers and a bounded object: nothing that JSON cannot say.
            serde_json::to_string(&self.event.cloud_event(&self.source_base)).unwrap_or_default()
        })
    }
}

impl Deref for Published {
    type Target = Event;
    fn deref(&self) -> &Event {
        &self.event
    }
}

/// What a reader of events is told.
#[derive(Debug, Clone)]
pub enum Told {
    Event(Arc<Published>),
    /// Events between these numbers, both included, are not kept any more; what follows is the rest.
    Missed {
        from: u64,
        to: u64,
    },
}

/// Why there are no more events for a reader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// It has read so slowly that more than [`MAX_LAG`] events wait for it.
    #[error("too slow: more than {MAX_LAG} events wait; read on after event {last_id}")]
    TooSlow {
        /// The last event that it has had, or that was not for it.
        last_id: u64,
    },
    /// It may not read this any more.
    #[error("{reason}")]
    AccessLost { reason: String },
    /// The server stops; read on with the next one.
    #[error("the server is stopping; read on after event {last_id}")]
    Stopping { last_id: u64 },
}
