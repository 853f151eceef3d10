//! The task that follows events and webhooks, and has deliveries made.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream, stream::BoxStream};
use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Ask, TestRefusal, Tested, WebhookParts,
    attempt::Attempt,
    hook::Hook,
    message::{self, PING, kind_name},
    window::Window,
};
use crate::{
    domain::{Event, EventKind, TenantName, Timestamp, Webhook, WebhookDelivery, WebhookId, WebhookMark},
    places::{Place, Places},
    store::{NewEvent, StoreError},
};

/// Pause before something that failed in the store is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Longest pause before it is looked again whether something is due; the clock may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How long requests under way may take when the server stops; those that take longer are repeated after the next start.
const LAST_REQUESTS: Duration = Duration::from_secs(3);
/// Changes that are taken in at once.
const CHANGES: usize = 256;

type Key = (TenantName, WebhookId);

enum Change {
    Event(u64, Option<Event>),
    Webhook(Key, Option<Webhook>),
    /// Changes were lost: everything is read again.
    Lost,
}

/// What an attempt was made for.
struct Flight {
    key: Key,
    generation: u64,
    /// `None`: it is a test.
    event: Option<u64>,
    reply: Option<oneshot::Sender<Tested>>,
}

type Ended = Result<(Id, WebhookDelivery), JoinError>;

/// Tells webhooks; run it for as long as the server lives.
pub struct WebhookService {
    parts: Arc<WebhookParts>,
    asks: mpsc::Receiver<Ask>,
    places: Places<TenantName>,
    window: Window,
    hooks: BTreeMap<Key, Hook>,
    tasks: JoinSet<WebhookDelivery>,
    flights: HashMap<Id, Flight>,
    /// Removed webhooks whose records are still there.
    leaving: BTreeSet<Key>,
}

impl WebhookService {
    pub(super) fn new(parts: Arc<WebhookParts>, asks: mpsc::Receiver<Ask>) -> Self {
        let places = Places::new(parts.settings.concurrency, parts.settings.concurrency_per_tenant);
        let window = Window::new(parts.settings.settle);
        Self {
            parts,
            asks,
            places,
            window,
            hooks: BTreeMap::new(),
            tasks: JoinSet::new(),
            flights: HashMap::new(),
            leaving: BTreeSet::new(),
        }
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            match self.begin().await {
                Ok(changes) => self.serve(changes, &shutdown).await,
                Err(error) => {
                    tracing::error!(%error, "the webhooks cannot be read; trying again");
                    tokio::select! {
                        () = sleep(STORE_AGAIN) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
            }
        }
        let last = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
                self.write_down().await;
            }
        };
        if timeout(LAST_REQUESTS, last).await.is_err() {
            tracing::info!("webhook deliveries under way are repeated after the next start");
        }
    }

    /// Reads everything, and hears of changes from then on.
    async fn begin(&mut self) -> Result<BoxStream<'static, Vec<Change>>, StoreError> {
        let parts = self.parts.clone();
        let store = &parts.store;
        let from = store.revision().await?;
        let events = store.watch::<Event>("", from).await?.filter_map(async |change| match change {
            Ok((key, event)) => Some(Change::Event(key.parse().ok()?, event)),
            Err(_) => Some(Change::Lost),
        });
        let webhooks = store.watch::<Webhook>("", from).await?.filter_map(async |change| match change {
            Ok((key, webhook)) => Some(Change::Webhook(parse_key(&key)?, webhook)),
            Err(_) => Some(Change::Lost),
        });
        let listed = store.list::<Event>("").await?;
        let hooks = store.list::<Webhook>("").await?;
        let marks = store.list::<WebhookMark>("").await?;
        let ids: BTreeSet<u64> = listed.iter().map(|event| event.id).collect();
        for id in self.window.missing_from(&ids) {
            self.event_dropped(id);
        }
        for event in listed {
            let seen = seen_at(event.at, parts.clock.now());
            self.window.insert(event.record, seen);
        }
        self.take_hooks(hooks.into_iter().map(|stored| stored.record), marks.into_iter().map(|stored| stored.record));
        Ok(stream::select(events.boxed(), webhooks.boxed()).ready_chunks(CHANGES).boxed())
    }

    fn take_hooks(&mut self, hooks: impl Iterator<Item = Webhook>, marks: impl Iterator<Item = WebhookMark>) {
        let mut marks: BTreeMap<Key, WebhookMark> =
            marks.map(|mark| ((mark.tenant.clone(), mark.id.clone()), mark)).collect();
        let mut gone: BTreeSet<Key> = self.hooks.keys().cloned().collect();
        for webhook in hooks {
            let key = (webhook.tenant.clone(), webhook.id.clone());
            gone.remove(&key);
            let mark = marks.remove(&key);
            match self.hooks.get_mut(&key) {
                Some(hook) => hook.update(webhook),
                None => {
                    let mut hook = Hook::new(webhook, mark);
                    hook.forget_dropped_retry(&self.window);
                    self.hooks.insert(key, hook);
                }
            }
        }
        for key in gone.into_iter().chain(marks.into_keys()) {
            self.hooks.remove(&key);
            self.leaving.insert(key);
        }
    }

    /// Works until shutdown, or until changes were lost.
    async fn serve(&mut self, mut changes: BoxStream<'static, Vec<Change>>, shutdown: &CancellationToken) {
        loop {
            let written = self.write_down().await;
            let wait = self.pass().min(if written { LOOK_AGAIN } else { STORE_AGAIN });
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(ask) = self.asks.recv() => self.take(ask).await,
                changes = changes.next() => {
                    let Some(changes) = changes else { return };
                    for change in changes {
                        if self.change(change).is_none() {
                            return;
                        }
                    }
                }
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(ended),
                () = sleep(wait) => {}
            }
        }
    }

    /// `None`: everything has to be read again.
    fn change(&mut self, change: Change) -> Option<()> {
        match change {
            Change::Lost => return None,
            Change::Event(_, Some(event)) => self.window.insert(event, Instant::now()),
            Change::Event(id, None) => self.event_dropped(id),
            Change::Webhook(key, Some(webhook)) => match self.hooks.get_mut(&key) {
                Some(hook) => hook.update(webhook),
                None => drop(self.hooks.insert(key, Hook::new(webhook, None))),
            },
            Change::Webhook(key, None) => {
                self.hooks.remove(&key);
                self.leaving.insert(key);
            }
        }
        Some(())
    }

    fn event_dropped(&mut self, id: u64) {
        let Some(event) = self.window.remove(id) else { return };
        for hook in self.hooks.values_mut() {
            hook.dropped(&event);
        }
    }

    async fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Nudge(key) => {
                if let Some(hook) = self.hooks.get_mut(&key) {
                    hook.nudge(self.parts.clock.now());
                }
            }
            Ask::Test(key, reply) => {
                self.look_for(&key).await;
                if let Err((refusal, reply)) = self.test(key, reply) {
                    // Whoever asked may have gone.
                    let _ = reply.send(Err(refusal));
                }
            }
        }
    }

    /// Takes in a webhook that was added a moment ago, if this one was.
    async fn look_for(&mut self, key: &Key) {
        if self.hooks.contains_key(key) {
            return;
        }
        match self.parts.store.get::<Webhook>(key).await {
            Ok(Some(webhook)) => drop(self.hooks.insert(key.clone(), Hook::new(webhook.record, None))),
            Ok(None) => {}
            Err(error) => tracing::error!(webhook = %key.1, %error, "a webhook cannot be read"),
        }
    }

    fn test(&mut self, key: Key, reply: oneshot::Sender<Tested>) -> Result<(), (TestRefusal, oneshot::Sender<Tested>)> {
        let Some(hook) = self.hooks.get_mut(&key) else { return Err((TestRefusal::Unknown, reply)) };
        if hook.testing {
            return Err((TestRefusal::Busy, reply));
        }
        let Ok(place) = self.places.try_take(&key.0) else { return Err((TestRefusal::NoPlace, reply)) };
        hook.testing = true;
        let delivery = format!("{}-test-{:016x}", key.1, rand::random::<u64>());
        let body = message::ping(&key.0, &key.1, &delivery, self.parts.clock.now(), &self.parts.settings.source_base);
        let webhook = hook.webhook.clone();
        let generation = webhook.generation;
        let body = body.to_string().into_bytes();
        let attempt = Attempt { webhook, delivery, event: None, kind: PING.to_owned(), body, attempt: 1, missed: 0 };
        self.fly(attempt, Flight { key, generation, event: None, reply: Some(reply) }, place);
        Ok(())
    }

    /// Begins what is due, those that have waited longest first; returns how long nothing else will be, unless something happens.
    fn pass(&mut self) -> Duration {
        let now = self.parts.clock.now();
        let mut wait = self.window.advance(Instant::now()).unwrap_or(LOOK_AGAIN);
        // Nothing waits longer than this, unless the clock was set back.
        let latest = now + self.parts.settings.longest_retry * 2;
        let mut due = Vec::new();
        for (key, hook) in &mut self.hooks {
            match hook.next(&self.window) {
                Some((at, event)) if at <= now || at > latest => due.push((at, key.clone(), event)),
                Some((at, _)) => wait = wait.min(Duration::try_from(at.duration_since(now)).unwrap_or_default()),
                None => {}
            }
        }
        due.sort_by_key(|(at, _, _)| *at);
        for (_, key, event) in due {
            // Without a place it is looked again when an attempt ends.
            if let Ok(place) = self.places.try_take(&key.0) {
                self.tell(key, &event, place);
            }
        }
        wait
    }

    fn tell(&mut self, key: Key, event: &Event, place: Place) {
        let Some(hook) = self.hooks.get_mut(&key) else { return };
        hook.flying = Some(event.id);
        let attempt = Attempt {
            webhook: hook.webhook.clone(),
            delivery: format!("{}-{}", key.1, event.id),
            event: Some(event.id),
            kind: kind_name(event.kind),
            body: message::cloud_event(event, &self.parts.settings.source_base).to_string().into_bytes(),
            attempt: hook.attempt(event.id),
            missed: hook.mark.missed,
        };
        let generation = hook.webhook.generation;
        self.fly(attempt, Flight { key, generation, event: Some(event.id), reply: None }, place);
    }

    fn fly(&mut self, attempt: Attempt, flight: Flight, place: Place) {
        let parts = self.parts.clone();
        let task = self.tasks.spawn(async move {
            let delivery = attempt.make(&parts.outbound, &parts.settings, parts.clock.now()).await;
            drop(place);
            delivery
        });
        self.flights.insert(task.id(), flight);
    }

    /// Takes in how an attempt went.
    fn ended(&mut self, ended: Ended) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(flight) = self.flights.remove(&id) else { return };
        let delivery = match ended {
            Ok((_, delivery)) => delivery,
            Err(error) => {
                tracing::error!(%error, "a webhook delivery has ended by itself");
                broken(&flight, self.parts.clock.now())
            }
        };
        if let Some(reply) = flight.reply {
            // Whoever asked may have gone.
            let _ = reply.send(Ok(delivery.clone()));
        }
        let now = self.parts.clock.now();
        if let Some(hook) = self.hooks.get_mut(&flight.key) {
            let of = (flight.generation, flight.event);
            hook.settle(of, delivery, &self.window, &self.parts.settings, now);
        }
    }

    /// Writes down what has changed; `false` when some of it could not be.
    async fn write_down(&mut self) -> bool {
        let mut whole = true;
        for key in self.leaving.clone() {
            match self.clear_up(&key).await {
                Ok(()) => drop(self.leaving.remove(&key)),
                Err(error) => {
                    tracing::error!(tenant = %key.0, webhook = %key.1, %error, "records of a removed webhook stay; trying again");
                    whole = false;
                }
            }
        }
        for hook in self.hooks.values_mut().filter(|hook| hook.dirty || hook.disabling.is_some()) {
            if let Err(error) = write(&self.parts, hook).await {
                let (tenant, webhook) = (&hook.webhook.tenant, &hook.webhook.id);
                tracing::error!(%tenant, %webhook, %error, "how far a webhook has come cannot be written; trying again");
                whole = false;
            }
        }
        whole
    }

    /// Removes what is recorded of a webhook that is gone; the mark last, by which the next start finds it.
    async fn clear_up(&self, key: &Key) -> Result<(), StoreError> {
        let store = &self.parts.store;
        if self.hooks.contains_key(key) {
            return Ok(());
        }
        let deliveries = store.list::<WebhookDelivery>(&format!("{}/{}/", key.0, key.1)).await?;
        let mut transaction = deliveries.iter().fold(store.transaction(), |all, one| all.delete(one));
        if let Some(mark) = store.get::<WebhookMark>(key).await? {
            transaction = transaction.delete(&mark);
        }
        transaction.commit().await.map(drop)
    }
}

async fn write(parts: &WebhookParts, hook: &mut Hook) -> Result<(), StoreError> {
    if hook.dirty {
        let transaction = parts.store.transaction().put(&hook.mark);
        hook.unwritten.iter().fold(transaction, |all, delivery| all.put(delivery)).commit().await?;
        hook.unwritten.clear();
        hook.dirty = false;
    }
    if let Some(reason) = &hook.disabling {
        disable(parts, &hook.webhook, reason).await?;
        // What the record says comes by the watch; until then nothing may be sent.
        hook.webhook.enabled = false;
        hook.disabling = None;
    }
    Ok(())
}

/// Disables a webhook, unless somebody has changed it meanwhile.
async fn disable(parts: &WebhookParts, webhook: &Webhook, reason: &str) -> Result<(), StoreError> {
    let id = (webhook.tenant.clone(), webhook.id.clone());
    let Some(stored) = parts.store.get::<Webhook>(&id).await? else { return Ok(()) };
    if !stored.enabled || stored.generation != webhook.generation {
        return Ok(());
    }
    let disabled = Webhook { enabled: false, disabled_reason: Some(reason.to_owned()), ..stored.record.clone() };
    match parts.store.transaction().update(&stored, &disabled).commit().await {
        Ok(_) => {}
        Err(StoreError::Conflict(_)) => return Ok(()),
        Err(error) => return Err(error),
    }
    let text = format!("the webhook {} to {} is disabled: {reason}", webhook.id, webhook.target);
    let event = NewEvent::new(EventKind::WebhookDisabled, parts.clock.now(), text).tenant(&webhook.tenant);
    if let Err(error) = parts.store.record(event).await {
        tracing::warn!(%error, webhook = %webhook.id, "that a webhook was disabled is not in the events");
    }
    Ok(())
}

/// What is said of an attempt that did not come to an end.
fn broken(flight: &Flight, now: Timestamp) -> WebhookDelivery {
    WebhookDelivery {
        tenant: flight.key.0.clone(),
        id: flight.key.1.clone(),
        number: 0,
        delivery: flight.event.map_or_else(String::new, |event| format!("{}-{event}", flight.key.1)),
        event: flight.event,
        kind: String::new(),
        attempt: 1,
        at: now,
        duration_ms: 0,
        status: None,
        error: Some("the attempt broke off within the server; its log says why".to_owned()),
        missed: 0,
    }
}

/// When an event that was there already is taken to have been seen: old ones wait for no others.
fn seen_at(recorded: Timestamp, now: Timestamp) -> Instant {
    let age = Duration::try_from(now.duration_since(recorded)).unwrap_or_default();
    let present = Instant::now();
    present.checked_sub(age.min(LOOK_AGAIN)).unwrap_or(present)
}

fn parse_key(key: &str) -> Option<Key> {
    let (tenant, id) = key.split_once('/')?;
    Some((tenant.parse().ok()?, id.parse().ok()?))
}
