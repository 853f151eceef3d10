//! The event log: what happened on the platform, newest kept, oldest dropped.
//!
//! When there are too many, whoever has the most of them loses their oldest: a tenant whose app dies once a second drives out its own
//! history and nobody else's. Up to which number each has lost theirs is kept ([`Forgotten`]), so that whoever reads on from a number can be
//! told what they have missed.
//!
//! Events are numbered in the order in which they are written, and everybody sees a smaller number before a larger one: whoever has seen
//! number 7 has missed nothing before it. Those who record at the same time share one transaction.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use futures::{StreamExt, stream::BoxStream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{Change, Record, Revision, Store, StoreError, Stored};
use crate::domain::{AppRef, EnvRef, Event, EventData, EventKind, Tenant, TenantName, Timestamp, User, UserName};

/// How many events are kept.
pub const KEPT_EVENTS: usize = 10_000;
/// After so many new ones it is looked whether there are too many.
const SWEEP: u64 = 250;
/// Most events that one transaction writes.
const BATCH: usize = 256;
/// How often a batch is numbered anew when somebody else has taken the numbers.
const TRIES: usize = 32;

/// An event to be recorded; its number is given when it is written.
#[derive(Debug, Clone)]
pub struct NewEvent {
    kind: EventKind,
    at: Timestamp,
    message: String,
    tenant: Option<TenantName>,
    app: Option<AppRef>,
    env: Option<EnvRef>,
    actor: Option<UserName>,
    data: EventData,
}

impl NewEvent {
    /// An event of the platform as a whole. `message` is one line for people, without secrets; of a very long one, the end is left out.
    pub fn new(kind: EventKind, at: Timestamp, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > Event::MAX_MESSAGE {
            let end = (0..=Event::MAX_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
            message.push('…');
        }
        Self { kind, at, message, tenant: None, app: None, env: None, actor: None, data: EventData::default() }
    }

    /// About a tenant.
    pub fn tenant(mut self, tenant: &TenantName) -> Self {
        self.tenant = Some(tenant.clone());
        self
    }

    /// About an app.
    pub fn app(mut self, app: &AppRef) -> Self {
        self.app = Some(app.clone());
        self
    }

    /// About an environment.
    pub fn env(mut self, env: &EnvRef) -> Self {
        self.env = Some(env.clone());
        self
    }

    /// Caused by a user.
    pub fn by(mut self, actor: &UserName) -> Self {
        self.actor = Some(actor.clone());
        self
    }

    /// A field for programs, without secrets. See [`EventData::set`] for what becomes of one that is too large.
    pub fn data(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.data.set(name, value);
        self
    }

    /// What it is an event of.
    pub fn kind(&self) -> EventKind {
        self.kind
    }

    fn numbered(self, id: u64) -> Event {
        let app = self.env.as_ref().map(EnvRef::app_ref).or(self.app);
        Event {
            id,
            at: self.at,
            kind: self.kind,
            tenant: app.as_ref().map(|app| app.tenant.clone()).or(self.tenant),
            app: app.map(|app| app.app),
            env: self.env.map(|env| env.env),
            actor: self.actor,
            message: self.message,
            data: self.data,
        }
    }
}

/// Up to which number events were dropped because there were too many. What is left of each is newer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Of the platform as a whole.
    pub platform: u64,
    pub tenants: BTreeMap<TenantName, u64>,
}

impl Forgotten {
    /// Up to which number those of `tenant` (`None`: of no tenant) are gone; 0: none is.
    pub fn of(&self, tenant: Option<&TenantName>) -> u64 {
        tenant.map_or(self.platform, |tenant| self.tenants.get(tenant).copied().unwrap_or(0))
    }

    fn note(&mut self, event: &Event) {
        match &event.tenant {
            None => self.platform = self.platform.max(event.id),
            Some(tenant) => {
                let last = self.tenants.entry(tenant.clone()).or_default();
                *last = event.id.max(*last);
            }
        }
    }
}

impl Record for Forgotten {
    type Id = ();
    const KIND: &'static str = "events-forgotten";
    fn id_key((): &()) -> String {
        "all".to_owned()
    }
    fn own_key(&self) -> String {
        Self::id_key(&())
    }
}

/// What changes for those who read events as they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventChange {
    Recorded(Event),
    /// It was dropped: there were too many.
    Dropped(u64),
    Forgotten(Forgotten),
    /// The tenant as it is now; `None`: it is gone.
    Tenant(TenantName, Option<Tenant>),
    /// A user was added or changed.
    User,
    /// Changes were lost: list again.
    Lost,
}

/// An event that waits to be written, and who waits for it.
struct Pending {
    event: NewEvent,
    reply: oneshot::Sender<Result<Event, StoreError>>,
}

/// What those who record share.
#[derive(Default)]
pub(super) struct EventLog {
    pending: Mutex<VecDeque<Pending>>,
    /// Whoever writes holds it; the last number given out, once it is known.
    last: tokio::sync::Mutex<Option<u64>>,
}

impl EventLog {
    fn pending(&self) -> std::sync::MutexGuard<'_, VecDeque<Pending>> {
        // A panic elsewhere leaves the queue whole.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Records an event, durably. From time to time, those that are too many go.
    ///
    /// # Errors
    /// The store's; the event is not recorded then.
    pub async fn record(&self, event: NewEvent) -> Result<Event, StoreError> {
        let written = self.submit(event);
        self.write_pending();
        answer(written).await
    }

    /// Records events in this order, as [`Self::record`] does each; those that could not be are told to the log.
    /// Returns how many that were.
    pub async fn record_all(&self, events: Vec<NewEvent>) -> usize {
        let written: Vec<_> = events.into_iter().map(|event| (event.kind(), self.submit(event))).collect();
        self.write_pending();
        let mut lost = 0;
        for (kind, written) in written {
            if let Err(error) = answer(written).await {
                tracing::error!(%error, %kind, "an event is not recorded");
                lost += 1;
            }
        }
        lost
    }

    fn submit(&self, event: NewEvent) -> oneshot::Receiver<Result<Event, StoreError>> {
        let (reply, written) = oneshot::channel();
        self.events.pending().push_back(Pending { event, reply });
        written
    }

    /// In a task of its own: it writes what others wait for too, whom a caller that gives up must not take along.
    fn write_pending(&self) {
        let store = self.clone();
        tokio::spawn(async move {
            let log = store.events.clone();
            let mut last = log.last.lock().await;
            let batch: Vec<Pending> = {
                let mut pending = log.pending();
                let count = pending.len().min(BATCH);
                pending.drain(..count).collect()
            };
            // Somebody before has written it.
            if batch.is_empty() {
                return;
            }
            if !log.pending().is_empty() {
                // Who came with these may have had their turn already.
                store.write_pending();
            }
            let (events, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|one| (one.event, one.reply)).unzip();
            let written = store.write_events(&mut last, events).await;
            let sweeps = written.as_ref().is_ok_and(|events| {
                events
                    .first()
                    .zip(events.last())
                    .is_some_and(|(first, last)| first.id.div_ceil(SWEEP) <= last.id / SWEEP)
            });
            match written {
                Ok(events) => replies.into_iter().zip(events).for_each(|(reply, event)| drop(reply.send(Ok(event)))),
                Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
            }
            if sweeps && let Err(error) = store.sweep_events().await {
                tracing::warn!(%error, "old events could not be removed; tried again later");
            }
        });
    }

    /// Numbers events after the last one and writes them, all or none.
    async fn write_events(&self, last: &mut Option<u64>, new: Vec<NewEvent>) -> Result<Vec<Event>, StoreError> {
        for _ in 0..TRIES {
            let from = match *last {
                Some(last) => last,
                None => self.last_event().await?,
            };
            let events: Vec<Event> = (from + 1..).zip(&new).map(|(id, event)| event.clone().numbered(id)).collect();
            let create = events.iter().fold(self.transaction(), |transaction, event| transaction.create(event));
            match create.commit().await {
                Ok(_) => {
                    *last = Some(from + events.len() as u64);
                    return Ok(events);
                }
                // Another store over the same records has taken the numbers.
                Err(StoreError::Conflict(_)) => *last = None,
                Err(error) => {
                    // Should they come into force after all, no others have their numbers.
                    *last = Some(from + events.len() as u64);
                    return Err(error);
                }
            }
        }
        Err(StoreError::Conflict(format!("{}/", Event::KIND)))
    }

    /// Deletes the events that are too many.
    async fn sweep_events(&self) -> Result<(), StoreError> {
        let events = self.list::<Event>("").await?;
        let surplus = surplus(&events, KEPT_EVENTS);
        for chunk in surplus.chunks(SWEEP as usize) {
            let stored = self.get::<Forgotten>(&()).await?;
            let mut forgotten = stored.as_ref().map(|stored| stored.record.clone()).unwrap_or_default();
            chunk.iter().for_each(|event| forgotten.note(event));
            let noted = match &stored {
                Some(stored) => self.transaction().update(stored, &forgotten),
                None => self.transaction().create(&forgotten),
            };
            let delete = chunk.iter().fold(noted, |transaction, event| transaction.delete(event));
            match delete.commit().await {
                // Somebody else sweeps.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The largest number of an event; 0 without any.
    async fn last_event(&self) -> Result<u64, StoreError> {
        let entries = self.kv().scan(&format!("{}/", Event::KIND)).await?;
        Ok(entries.last().and_then(|entry| entry.key.rsplit('/').next()?.parse().ok()).unwrap_or(0))
    }

    /// What changes after `from` for those who read events, in the order in which it was written.
    ///
    /// # Errors
    /// The store's.
    pub async fn watch_events(&self, from: Revision) -> Result<BoxStream<'static, EventChange>, StoreError> {
        // One watch over all records: whoever loses a membership sees no event that was recorded after that.
        let changes = self.kv().watch("", from).await?;
        Ok(changes.filter_map(|change| std::future::ready(event_change(change))).boxed())
    }
}

async fn answer(written: oneshot::Receiver<Result<Event, StoreError>>) -> Result<Event, StoreError> {
    let stopping = |_| StoreError::Failed("the server is stopping, and the event was not recorded".to_owned());
    written.await.map_err(stopping)?
}

fn event_change(change: Change) -> Option<EventChange> {
    let (key, value) = match change {
        Change::Resync(_) => return Some(EventChange::Lost),
        Change::Key { key, value, .. } => (key, value),
    };
    let (kind, own) = key.split_once('/')?;
    // One that cannot be read cannot be told; who lists hears why.
    match (kind, value) {
        (Event::KIND, Some(value)) => serde_json::from_slice(&value).ok().map(EventChange::Recorded),
        (Event::KIND, None) => own.parse().ok().map(EventChange::Dropped),
        (Forgotten::KIND, Some(value)) => serde_json::from_slice(&value).ok().map(EventChange::Forgotten),
        (Tenant::KIND, value) => {
            // One that cannot be read has no members: what it had may be seen by nobody.
            let tenant = value.and_then(|value| serde_json::from_slice(&value).ok());
            own.parse().ok().map(|name| EventChange::Tenant(name, tenant))
        }
        (User::KIND, _) => Some(EventChange::User),
        _ => None,
    }
}

/// Which of these (oldest first) go so that `kept` are left: each time the oldest of the tenant that has the most; those of no tenant count
/// as one tenant's.
fn surplus(events: &[Stored<Event>], kept: usize) -> Vec<&Stored<Event>> {
    let mut holders: BTreeMap<Option<&TenantName>, VecDeque<&Stored<Event>>> = BTreeMap::new();
    for event in events {
        holders.entry(event.tenant.as_ref()).or_default().push_back(event);
    }
    let too_many = events.len().saturating_sub(kept);
    let next = |_| holders.values_mut().max_by_key(|events| events.len())?.pop_front();
    (0..too_many).filter_map(next).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{MemoryKv, Revision};

    fn of(tenant: &str) -> NewEvent {
        NewEvent::new(EventKind::ReplicaDied, Timestamp::UNIX_EPOCH, "it died").tenant(&tenant.parse().unwrap())
    }

    #[test]
    fn whoever_has_the_most_loses_the_oldest() {
        let tenants = ["quiet", "loud", "loud", "other", "loud", "other", "loud"];
        let event = |(n, tenant): (u64, &&str)| Stored { record: of(tenant).numbered(n), revision: Revision(n) };
        let events: Vec<_> = (1..).zip(&tenants).map(event).collect();
        let gone = |kept| surplus(&events, kept).iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(gone(7), Vec::<u64>::new());
        assert_eq!(gone(5), [2, 3]);
        // Then they are alike.
        assert_eq!(gone(3), [2, 3, 4, 5]);
        assert_eq!(gone(0).len(), 7);
    }

    #[tokio::test]
    async fn one_tenant_does_not_drive_out_the_history_of_others() {
        let store = Store::new(Arc::new(MemoryKv::new()));
        for _ in 0..20 {
            store.record(of("quiet")).await.unwrap();
        }
        for _ in 0..KEPT_EVENTS + 300 {
            store.record(of("loud")).await.unwrap();
        }
        let events = store.list::<Event>("").await.unwrap();
        let quiet =
            events.iter().filter(|event| event.tenant.as_ref().is_some_and(|tenant| tenant.as_str() == "quiet"));
        assert_eq!(quiet.count(), 20);
        assert!((KEPT_EVENTS..KEPT_EVENTS + 2 * SWEEP as usize).contains(&events.len()), "{} are kept", events.len());
    }
}
