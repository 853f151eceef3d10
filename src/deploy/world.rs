//! What runs, as one picture for all environments: observed when something hints at a change, never by each of them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use crate::{
    domain::{EnvRef, Replica},
    events::Presence,
    runtime::{Runtime, RuntimeError, RuntimeEvent},
};

/// How long an observation may take. Generous, since an engine that is slow is not to be taken for one that is gone.
const DEADLINE: Duration = Duration::from_secs(150);
/// After this long, those who wait are told that the engine does not answer, and nothing is done on the strength of the last picture.
const SILENT: Duration = Duration::from_secs(10);
/// First and longest pause before an engine that does not answer is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A hint can get lost in ways nobody thought of; that costs at most this long, for what runs is looked at in any case.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// When many hints come one after another, as when a set of many replicas starts, they share looks: the next one begins so many times later
/// as the last one took, so that looking does not take from the engine what it needs for what is being waited for.
const BREATH: u32 = 2;
/// But no more than this much later.
const LONGEST_BREATH: Duration = Duration::from_millis(250);
/// Hints that one look answers at the most.
const HINTS: usize = 1024;
/// An engine that takes long to answer is looked at less often: a hundredth of the time goes into it at the most.
const SHARE: u32 = 100;
/// And no less often than this.
const RARELY: Duration = Duration::from_secs(60);

/// The newest picture of what runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Picture {
    /// Requests up to this one were made before the picture was taken.
    pub ticket: u64,
    /// Whether there has been an observation at all.
    pub known: bool,
    pub replicas: BTreeMap<EnvRef, Vec<Replica>>,
    /// Why there is no newer one.
    pub error: Option<String>,
}

/// Asks for pictures and sees them.
#[derive(Clone)]
pub(super) struct World {
    wanted: Arc<AtomicU64>,
    wake: Arc<Notify>,
    picture: watch::Receiver<Arc<Picture>>,
}

impl World {
    /// Asks for a new picture. One with at least the returned ticket was taken after this call.
    pub(super) fn look(&self) -> u64 {
        let ticket = self.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.wake.notify_one();
        ticket
    }

    pub(super) fn pictures(&self) -> watch::Receiver<Arc<Picture>> {
        self.picture.clone()
    }
}

/// Takes the pictures.
pub(super) struct Observer {
    runtime: Arc<dyn Runtime>,
    world: World,
    picture: watch::Sender<Arc<Picture>>,
    engine: Presence,
}

impl Observer {
    pub(super) fn new(runtime: Arc<dyn Runtime>, engine: Presence) -> (World, Self) {
        let (picture, receiver) = watch::channel(Arc::new(Picture::default()));
        let world = World { wanted: Arc::default(), wake: Arc::default(), picture: receiver };
        (world.clone(), Self { runtime, world, picture, engine })
    }

    /// Runs until it is dropped.
    pub(super) async fn run(self) {
        let mut events: Option<BoxStream<'static, RuntimeEvent>> = None;
        let mut pause = RETRY.0;
        loop {
            if events.is_none() {
                // Before the look, so that nothing falls between.
                events = timeout(DEADLINE, self.runtime.events()).await.ok().and_then(Result::ok);
            }
            let began = Instant::now();
            if self.observe().await && events.is_some() {
                pause = RETRY.0;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
                continue;
            }
            let (took, ended) = (began.elapsed(), Instant::now());
            tokio::select! {
                () = self.world.wake.notified() => {}
                event = next(&mut events) => if event.is_none() { events = None },
                () = sleep(interval(took)) => {}
            }
            gather(&mut events, ended + (took * BREATH).min(LONGEST_BREATH)).await;
        }
    }

    async fn observe(&self) -> bool {
        let ticket = self.world.wanted.load(Ordering::SeqCst);
        match self.patiently().await {
            Ok(replicas) => {
                let mut by_env: BTreeMap<EnvRef, Vec<Replica>> = BTreeMap::new();
                for replica in replicas {
                    by_env.entry(replica.set.env.clone()).or_default().push(replica);
                }
                self.engine.back("the engine answers again");
                let picture = Picture { ticket, known: true, replicas: by_env, error: None };
                // One like the one before tells nobody anything.
                self.picture.send_if_modified(|before| {
                    let changed = **before != picture;
                    if changed {
                        *before = Arc::new(picture);
                    }
                    changed
                });
                true
            }
            Err(error) => {
                tracing::warn!(%error, "what runs cannot be observed; trying again");
                self.doubt(&error);
                false
            }
        }
    }

    async fn patiently(&self) -> Result<Vec<Replica>, RuntimeError> {
        let late = |time: Duration| RuntimeError::Unavailable(format!("no answer within {} s", time.as_secs()));
        let mut look = self.runtime.observe();
        if let Ok(result) = timeout(SILENT, &mut look).await {
            return result;
        }
        self.doubt(&late(SILENT));
        timeout(DEADLINE - SILENT, look).await.unwrap_or_else(|_| Err(late(DEADLINE)))
    }

    /// Says why there is no newer picture.
    fn doubt(&self, error: &RuntimeError) {
        self.engine.lost("the engine does not answer", &error.to_string());
        let before = self.picture.borrow().clone();
        let error = Some(error.to_string());
        self.picture.send_replace(Arc::new(Picture { error, ..Picture::clone(&before) }));
    }
}

/// The pause until the next look that nothing asked for, when the last one took `took`.
fn interval(took: Duration) -> Duration {
    (took * SHARE).clamp(INTERVAL, RARELY)
}

/// Takes the hints that are there, and those that come until `until`, if that is still to come.
async fn gather(events: &mut Option<BoxStream<'static, RuntimeEvent>>, until: Instant) {
    for _ in 0..HINTS {
        match timeout_at(until, next(events)).await {
            Ok(Some(_)) => {}
            Ok(None) => *events = None,
            Err(_) => return,
        }
    }
    sleep_until(until).await;
}

async fn next(events: &mut Option<BoxStream<'static, RuntimeEvent>>) -> Option<RuntimeEvent> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}
