//! The engine's events about replicas, as hints.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bollard::{models::EventMessage, query_parameters::EventsOptionsBuilder};
use futures::{Stream, StreamExt, stream, stream::BoxStream};

use super::{engine::Engine, names};
use crate::domain::{ReplicaId, Timestamp};
use crate::runtime::{Change, RuntimeEvent};

/// Pause before connecting anew: grows from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long the engine may take to finish with a container whose death it told of.
const LISTING_DEADLINE: Duration = Duration::from_secs(2);

type Messages = BoxStream<'static, Result<EventMessage, bollard::errors::Error>>;

/// The events from now on, for ever.
pub fn follow(engine: Arc<Engine>) -> impl Stream<Item = RuntimeEvent> + Send + 'static {
    let state = Follower { since: nanoseconds(), messages: connect(&engine, nanoseconds()), pause: PAUSE.0, engine };
    stream::unfold(state, |mut state| async move {
        let event = state.next().await;
        Some((event, state))
    })
}

struct Follower {
    engine: Arc<Engine>,
    messages: Messages,
    /// When the last event happened, nanoseconds since the epoch, by the engine's clock.
    since: i64,
    pause: Duration,
}

impl Follower {
    async fn next(&mut self) -> RuntimeEvent {
        loop {
            match self.messages.next().await {
                Some(Ok(message)) => {
                    self.pause = PAUSE.0;
                    self.since = self.since.max(message.time_nano.unwrap_or(0));
                    if let Some(event) = event(&message) {
                        // One that was told to stop is not listed as a replica any more.
                        if !is_retired(&message) {
                            await_listing(&self.engine, &event).await;
                        }
                        return event;
                    }
                }
                end => {
                    if let Some(Err(error)) = end {
                        tracing::debug!(%error, "the engine's event stream broke");
                    }
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(PAUSE.1);
                    // The engine remembers only so many events, so that observing anew is the only safe thing.
                    self.messages = connect(&self.engine, self.since + 1);
                    return RuntimeEvent::Resync;
                }
            }
        }
    }
}

/// `since` makes the engine repeat what happens between this call and the moment that the connection stands.
fn connect(engine: &Engine, since: i64) -> Messages {
    let mut filters = HashMap::from([
        ("type", vec!["container".to_owned()]),
        ("event", ["start", "die", "oom", "destroy"].map(str::to_owned).to_vec()),
    ]);
    filters.insert("label", engine.recipe.names.role_filter(names::ROLE_REPLICA));
    let since = format!("{}.{:09}", since / 1_000_000_000, since % 1_000_000_000);
    let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
    let docker = engine.docker.clone();
    docker.events(Some(options)).boxed()
}

/// The engine tells of a death before its list of containers shows it, so that an observation upon the event could still see the replica
/// run, and nothing would hint at it again. An inspection waits for the lock under which the engine brings its list up to date.
async fn await_listing(engine: &Engine, event: &RuntimeEvent) {
    let RuntimeEvent::Changed { replica, what: Change::Died, .. } = event else { return };
    // Whatever the answer is: the event is a hint, and observing it is another's.
    if tokio::time::timeout(LISTING_DEADLINE, engine.inspect(&replica.0)).await.is_err() {
        tracing::debug!(replica = replica.0, "the engine does not say in time what became of a replica");
    }
}

fn nanoseconds() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0)
}

fn is_retired(message: &EventMessage) -> bool {
    let attributes = message.actor.as_ref().and_then(|actor| actor.attributes.as_ref());
    attributes.and_then(|attributes| attributes.get("name")).is_some_and(|name| names::is_retired(name))
}

fn event(message: &EventMessage) -> Option<RuntimeEvent> {
    let actor = message.actor.as_ref()?;
    let (set, _) = names::replica_identity(actor.attributes.as_ref()?)?;
    let what = match message.action.as_deref()? {
        "start" => Change::Started,
        "die" => Change::Died,
        "oom" => Change::OutOfMemory,
        "destroy" => Change::Removed,
        _ => return None,
    };
    Some(RuntimeEvent::Changed { set, replica: ReplicaId(actor.id.clone()?), what })
}
