//! The event log: what happened on the platform, newest kept, oldest dropped.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Record, Store, StoreError};
use crate::domain::{AppRef, EnvRef, Event, EventKind, TenantName, Timestamp, UserName};

/// How many events are kept.
const KEPT: u64 = 10_000;

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
    /// Records an event, durably, and drops the one that is now too old.
    pub async fn record(&self, event: NewEvent) -> Result<Event, StoreError> {
        if LAST.load(Ordering::Relaxed) == 0 {
            self.find_last_event().await?;
        }
        loop {
            let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            let event = event.clone().numbered(id);
            let mut transaction = self.transaction().create(&event);
            if let Some(old) = id.checked_sub(KEPT)
                && let Some(old) = self.get::<Event>(&old).await?
            {
                transaction = transaction.delete(&old);
            }
            match transaction.commit().await {
                Ok(_) => return Ok(event),
                Err(StoreError::Conflict(_)) => self.find_last_event().await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn find_last_event(&self) -> Result<(), StoreError> {
        let entries = self.kv().scan(&format!("{}/", Event::KIND)).await?;
        let last = entries.last().and_then(|entry| entry.key.rsplit('/').next()?.parse().ok()).unwrap_or(0);
        LAST.fetch_max(last, Ordering::Relaxed);
        Ok(())
    }
}
