//! One watch over the store for all who read events as they come.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{EventFilter, EventSink, EventWriter, MAX_LAG, Published, StreamEnd};
use crate::{
    domain::{Event, Tenant, TenantName},
    store::{EventChange, Forgotten, Store, StoreError},
};

/// Most events that a reader is given at once.
const PAGE: usize = 64;
/// Most events that are looked at for one page, so that nobody holds the lock for long.
const LOOK: usize = 1024;
/// Pause before the store is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether a reader may see events of a tenant (by its name, and as it is now if it is there) or, of `None`, of the platform as a whole.
pub trait Sees: Fn(Option<(&TenantName, Option<&Tenant>)>) -> bool + Send + Sync {}
impl<F: Fn(Option<(&TenantName, Option<&Tenant>)>) -> bool + Send + Sync> Sees for F {}

/// What the store keeps of events, and the tenants that they are of.
#[derive(Default)]
struct Kept {
    events: BTreeMap<u64, Arc<Published>>,
    /// The largest number there was.
    last: u64,
    forgotten: Arc<Forgotten>,
    /// Events up to this one were dropped by a version that kept no account of whose they were.
    lost_before: u64,
    tenants: BTreeMap<TenantName, Tenant>,
    /// Changes of users.
    users: u64,
}

struct Shared {
    kept: RwLock<Kept>,
    /// Counts the changes of `kept`; closed by the end of the service.
    changes: watch::Sender<u64>,
    stopped: CancellationToken,
    source_base: Arc<str>,
}

/// Where events are read as they come. Clones share it.
#[derive(Clone)]
pub struct EventHub {
    shared: Arc<Shared>,
    sink: EventSink,
}

/// Keeps the hub up to date and writes what its sink takes.
pub struct EventService {
    shared: Arc<Shared>,
    store: Store,
    changes: BoxStream<'static, EventChange>,
    writer: EventWriter,
}

impl EventHub {
    /// A hub that knows what the store has, and the service that keeps it so. `source_base` comes before the sources of CloudEvents.
    ///
    /// # Errors
    /// The store's.
    pub async fn start(store: Store, source_base: &str) -> Result<(Self, EventService), StoreError> {
        // Before the look, so that nothing falls between.
        let changes = store.watch_events(store.revision().await?).await?;
        let shared = Arc::new(Shared {
            kept: RwLock::default(),
            changes: watch::Sender::new(0),
            stopped: CancellationToken::new(),
            source_base: source_base.into(),
        });
        shared.reload(&store).await?;
        let (sink, writer) = EventSink::new(store.clone());
        let service = EventService { shared: shared.clone(), store, changes, writer };
        Ok((Self { shared, sink }, service))
    }

    /// Takes events to be recorded.
    pub fn sink(&self) -> &EventSink {
        &self.sink
    }

    /// The largest number of an event so far.
    pub fn last(&self) -> u64 {
        self.shared.kept().last
    }

    /// A reader of what comes after event `after`; without it, of what comes from now on.
    pub fn follow(&self, filter: EventFilter, after: Option<u64>) -> Follower {
        // Before the look, so that nothing falls between.
        let changes = self.shared.changes.subscribe();
        let last = self.last();
        let cursor = after.unwrap_or(last);
        let known = if after.is_some() { 0 } else { cursor };
        Follower {
            shared: self.shared.clone(),
            changes,
            filter,
            cursor,
            live_from: last.max(cursor),
            known,
            forgotten: None,
        }
    }
}

impl Shared {
    fn kept(&self) -> RwLockReadGuard<'_, Kept> {
        // A panic elsewhere leaves it whole: each change is one insertion or removal.
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reload(&self, store: &Store) -> Result<(), StoreError> {
        let tenants = store.list::<Tenant>("").await?;
        let forgotten = store.get::<Forgotten>(&()).await?;
        let events = store.list::<Event>("").await?;
        let mut kept = self.change();
        kept.tenants = tenants.into_iter().map(|tenant| (tenant.record.name.clone(), tenant.record)).collect();
        let oldest = events.first().map_or(1, |event| event.id);
        kept.lost_before = if forgotten.is_none() { oldest.saturating_sub(1) } else { 0 };
        kept.forgotten = Arc::new(forgotten.map(|stored| stored.record).unwrap_or_default());
        kept.users += 1;
        let mut before = std::mem::take(&mut kept.events);
        for event in events {
            let id = event.id;
            let published = before.remove(&id).unwrap_or_else(|| self.publish(event.record));
            kept.events.insert(id, published);
            kept.last = kept.last.max(id);
        }
        drop(kept);
        self.tell();
        Ok(())
    }

    fn publish(&self, event: Event) -> Arc<Published> {
        Arc::new(Published::new(event, self.source_base.clone()))
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn apply(&self, change: EventChange) {
        let mut kept = self.change();
        match change {
            // What was listed may come once more.
            EventChange::Recorded(event) if event.id <= kept.last => return,
            EventChange::Recorded(event) => {
                kept.last = event.id;
                kept.events.insert(event.id, self.publish(event));
            }
            EventChange::Dropped(id) => {
                kept.events.remove(&id);
                return;
            }
            EventChange::Forgotten(forgotten) => {
                kept.forgotten = Arc::new(forgotten);
                return;
            }
            EventChange::Tenant(name, Some(tenant)) => drop(kept.tenants.insert(name, tenant)),
            EventChange::Tenant(name, None) => drop(kept.tenants.remove(&name)),
            EventChange::User => kept.users += 1,
            // Seen to by the service.
            EventChange::Lost => return,
        }
        drop(kept);
        self.tell();
    }
}

impl EventService {
    /// Works until `shutdown`; whoever reads is then told that the server stops, and what the sink has taken is written.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared, store, changes, writer } = self;
        let writing = writer.run(shutdown.clone());
        let stopped = shared.stopped.clone();
        let following = async {
            shutdown.run_until_cancelled(follow(&shared, &store, changes)).await;
            stopped.cancel();
        };
        futures::join!(writing, following);
    }
}

/// Takes in what changes, as long as it is polled.
async fn follow(shared: &Shared, store: &Store, mut changes: BoxStream<'static, EventChange>) {
    loop {
        match changes.next().await {
            Some(EventChange::Lost) => {
                while let Err(error) = shared.reload(store).await {
                    tracing::error!(%error, "the events cannot be listed; trying again");
                    sleep(AGAIN).await;
                }
            }
            Some(change) => shared.apply(change),
            // The store is closed: the server is ending.
            None => std::future::pending::<()>().await,
        }
    }
}

/// What a reader is given.
pub struct Page {
    /// In the order of their numbers; may be empty.
    pub events: Vec<Arc<Published>>,
    /// Up to which number events that the reader would have been given are gone, if it has not been told.
    pub missed: Option<(u64, u64)>,
    /// Whether the reader may see the one tenant that it asked for.
    pub allowed: bool,
    /// Grows when a user was changed.
    pub users: u64,
}

/// A reader of events: a place among them.
pub struct Follower {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    filter: EventFilter,
    /// Events up to this one have been given, or are not for this reader.
    cursor: u64,
    /// What comes after this one came while it was read.
    live_from: u64,
    /// Up to where it knows what is gone, and what it has looked at for that.
    known: u64,
    forgotten: Option<Arc<Forgotten>>,
}

impl Follower {
    /// Up to which event it has read.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// What is there for it, waiting until there is something or somebody's rights have changed.
    ///
    /// # Errors
    /// [`StreamEnd::TooSlow`] and [`StreamEnd::Stopping`].
    pub async fn page(&mut self, sees: &impl Sees) -> Result<Page, StreamEnd> {
        loop {
            self.changes.mark_unchanged();
            let (page, more) = self.look(sees)?;
            if !more || !page.events.is_empty() || page.missed.is_some() {
                return Ok(page);
            }
            // More to look through.
            tokio::task::yield_now().await;
        }
    }

    /// Waits for a change after the last page.
    ///
    /// # Errors
    /// [`StreamEnd::Stopping`].
    pub async fn changed(&mut self) -> Result<(), StreamEnd> {
        tokio::select! {
            biased;
            // The sender lives as long as this.
            _ = self.changes.changed() => Ok(()),
            () = self.shared.stopped.cancelled() => Err(StreamEnd::Stopping { last_id: self.cursor }),
        }
    }

    /// One look; whether there is more to look at.
    fn look(&mut self, sees: &impl Sees) -> Result<(Page, bool), StreamEnd> {
        let shared = self.shared.clone();
        let kept = shared.kept();
        let visible = |name: Option<&TenantName>| sees(name.map(|name| (name, kept.tenants.get(name))));
        let wanted = |event: &Event| self.filter.takes(event) && visible(event.tenant.as_ref());
        let allowed = self.filter.of_tenant().is_none_or(|name| visible(Some(name)));
        let range = |from: u64| kept.events.range((Bound::Excluded(from), Bound::Unbounded)).map(|(_, event)| event);
        let live = self.cursor.max(self.live_from);
        if kept.last.saturating_sub(live) > MAX_LAG as u64
            && range(live).filter(|event| wanted(event)).take(MAX_LAG + 1).count() > MAX_LAG
        {
            return Err(StreamEnd::TooSlow { last_id: self.cursor });
        }
        let from = self.cursor;
        // Rarely anything has gone since the last look.
        let looked_at = self.forgotten.as_ref().is_some_and(|forgotten| Arc::ptr_eq(forgotten, &kept.forgotten));
        let gone = if looked_at { 0 } else { self.gone(&kept, &visible) };
        let mut events = Vec::new();
        for event in range(from).take(LOOK) {
            if events.len() == PAGE {
                break;
            }
            self.cursor = event.id;
            if wanted(event) {
                events.push(event.clone());
            }
        }
        let more = range(self.cursor).next().is_some();
        let missed = (gone > from.max(self.known)).then_some((from + 1, gone));
        self.known = self.known.max(gone);
        self.forgotten = Some(kept.forgotten.clone());
        Ok((Page { events, missed, allowed, users: kept.users }, more))
    }

    /// Up to which number events that this reader would have been given are gone.
    fn gone(&self, kept: &Kept, visible: &impl Fn(Option<&TenantName>) -> bool) -> u64 {
        let forgotten = &kept.forgotten;
        let fits = |name: Option<&TenantName>| {
            self.filter.of_tenant().is_none_or(|tenant| name == Some(tenant)) && visible(name)
        };
        let tenants = forgotten.tenants.iter().map(|(name, id)| (Some(name), *id));
        let all = tenants.chain([(None, forgotten.platform)]);
        let newer = all.filter(|(_, id)| *id > self.cursor.max(self.known)).filter(|(name, _)| fits(*name));
        newer.map(|(_, id)| id).max().unwrap_or(0).max(kept.lost_before)
    }
}
