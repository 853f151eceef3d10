//! The event log: what happened on the platform, newest kept, oldest dropped.
//!
//! When there are too many, whoever has the most of them loses their oldest: a tenant whose app dies once a second drives out its own
//! history and nobody else's.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Record, Store, StoreError, Stored};
use crate::domain::{AppRef, EnvRef, Event, EventKind, TenantName, Timestamp, UserName};

/// How many events are kept.
const KEPT: usize = 10_000;
/// After so many new ones it is looked whether there are too many.
const SWEEP: u64 = 100;

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
}

impl NewEvent {
    /// An event of the platform as a whole. `message` is one line for people, without secrets.
    pub fn new(kind: EventKind, at: Timestamp, message: impl Into<String>) -> Self {
        Self { kind, at, message: message.into(), tenant: None, app: None, env: None, actor: None }
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
        }
    }
}

/// The last number given out by this process: a hint where to begin, the store's guard decides.
static LAST: AtomicU64 = AtomicU64::new(0);

impl Store {
    /// Records an event, durably. From time to time, those that are too many go.
    pub async fn record(&self, event: NewEvent) -> Result<Event, StoreError> {
        if LAST.load(Ordering::Relaxed) == 0 {
            self.find_last_event().await?;
        }
        loop {
            let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            let event = event.clone().numbered(id);
            match self.transaction().create(&event).commit().await {
                Ok(_) => {}
                Err(StoreError::Conflict(_)) => {
                    self.find_last_event().await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if id.is_multiple_of(SWEEP)
                && let Err(error) = self.sweep_events().await
            {
                tracing::warn!(%error, "old events could not be removed; tried again later");
            }
            return Ok(event);
        }
    }

    /// Deletes the events that are too many.
    async fn sweep_events(&self) -> Result<(), StoreError> {
        let events = self.list::<Event>("").await?;
        let surplus = surplus(&events, KEPT);
        for chunk in surplus.chunks(SWEEP as usize) {
            let delete = chunk.iter().fold(self.transaction(), |transaction, event| transaction.delete(event));
            match delete.commit().await {
                // Somebody else sweeps.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn find_last_event(&self) -> Result<(), StoreError> {
        let entries = self.kv().scan(&format!("{}/", Event::KIND)).await?;
        let last = entries.last().and_then(|entry| entry.key.rsplit('/').next()?.parse().ok()).unwrap_or(0);
        LAST.fetch_max(last, Ordering::Relaxed);
        Ok(())
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
        for _ in 0..KEPT + 300 {
            store.record(of("loud")).await.unwrap();
        }
        let events = store.list::<Event>("").await.unwrap();
        let quiet =
            events.iter().filter(|event| event.tenant.as_ref().is_some_and(|tenant| tenant.as_str() == "quiet"));
        assert_eq!(quiet.count(), 20);
        assert!((KEPT..KEPT + 2 * SWEEP as usize).contains(&events.len()), "{} are kept", events.len());
    }
}
