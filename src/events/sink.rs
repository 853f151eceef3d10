//! Recording events off the path of whoever has something to tell.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{EventKind, Timestamp},
    store::{NewEvent, Store},
};

/// Events that may wait to be written.
const QUEUE: usize = 1024;
/// Events that are written at once.
const BATCH: usize = 128;

/// Takes events and never waits: what there is no room for is dropped and counted. Clones share the queue.
#[derive(Debug, Clone)]
pub struct EventSink {
    queue: mpsc::Sender<NewEvent>,
    dropped: Arc<AtomicU64>,
}

/// Writes what the sink takes, in its order.
pub struct EventWriter {
    store: Store,
    queue: mpsc::Receiver<NewEvent>,
    dropped: Arc<AtomicU64>,
}

impl EventSink {
    /// A sink, and what writes; nothing is written before [`EventWriter::run`].
    pub fn new(store: Store) -> (Self, EventWriter) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        (Self { queue: sender, dropped: dropped.clone() }, EventWriter { store, queue, dropped })
    }

    /// Has an event recorded, soon.
    pub fn send(&self, event: NewEvent) {
        let kind = event.kind();
        if self.queue.try_send(event).is_err() && self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(%kind, "events are dropped: too many wait to be recorded, or the server is stopping");
        }
    }
}

impl EventWriter {
    /// Writes until `shutdown`, and then what is left in the queue; or until nobody can send any more.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                count = self.queue.recv_many(&mut batch, BATCH) => if count == 0 { return },
                () = shutdown.cancelled() => {
                    self.queue.close();
                    while self.queue.recv_many(&mut batch, BATCH).await > 0 {
                        self.write(&mut batch).await;
                    }
                    return;
                }
            }
            self.write(&mut batch).await;
        }
    }

    async fn write(&self, batch: &mut Vec<NewEvent>) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let message = format!("{dropped} events were not recorded: too many came at once");
            let event = NewEvent::new(EventKind::EventsDropped, Timestamp::now(), message).data("dropped", dropped);
            batch.insert(0, event);
        }
        let wanted = batch.len();
        let lost = self.store.record_all(std::mem::take(batch)).await as u64;
        // The event about those before is none of them.
        let again =
            if lost as usize == wanted { (lost + dropped).saturating_sub(u64::from(dropped > 0)) } else { lost };
        self.dropped.fetch_add(again, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::Event, store::MemoryKv};

    fn event(n: usize) -> NewEvent {
        NewEvent::new(EventKind::ReplicaDied, Timestamp::UNIX_EPOCH, n.to_string())
    }

    #[tokio::test]
    async fn what_is_too_much_is_dropped_and_told() {
        let store = Store::new(Arc::new(MemoryKv::new()));
        let (sink, writer) = EventSink::new(store.clone());
        (0..QUEUE + 7).for_each(|n| sink.send(event(n)));
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        writer.run(shutdown).await;
        let events = store.list::<Event>("").await.unwrap();
        let (told, others): (Vec<_>, Vec<_>) = events.iter().partition(|event| event.kind == EventKind::EventsDropped);
        assert_eq!(told[0].data.get("dropped"), Some(&7.into()));
        let order: Vec<usize> = others.iter().map(|event| event.message.parse().unwrap()).collect();
        assert_eq!(order, (0..QUEUE).collect::<Vec<_>>(), "the rest is in order");
        // Nothing waits, and nothing fails, once nobody writes.
        sink.send(event(0));
    }
}
