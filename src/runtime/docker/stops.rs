//! Stopping and removing containers in the background: at most one task per container, owned by the runtime, repeated until it
//! succeeds or hope is gone. Whoever wants to wait for the end, can.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch};
use tokio_util::task::TaskTracker;

use super::engine::Engine;
use crate::runtime::RuntimeError;

/// Pauses between tries; after the last, the container is left to the next observation, or to the next start of the server.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

type Outcome = Option<Result<(), String>>;

/// The stops under way.
#[derive(Debug, Clone)]
pub struct Stops {
    tasks: TaskTracker,
    handle: Handle,
    under_way: Arc<Mutex<HashMap<String, watch::Receiver<Outcome>>>>,
}

/// A stop under way.
pub struct Stop(watch::Receiver<Outcome>);

impl Stop {
    /// Waits until the container is gone.
    pub async fn finished(mut self) -> Result<(), RuntimeError> {
        match self.0.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(reason))) => Err(RuntimeError::Refused(reason.clone())),
            Ok(None) | Err(_) => Err(RuntimeError::Unavailable("Berth is shutting down".to_owned())),
        }
    }
}

impl Stops {
    /// Tasks run on the current tokio runtime.
    pub fn new() -> Self {
        Self { tasks: TaskTracker::new(), handle: Handle::current(), under_way: Arc::default() }
    }

    /// Stops a container (SIGTERM, `grace`, SIGKILL) and removes it. When that is under way already, it stays as it is.
    pub fn begin(&self, engine: &Arc<Engine>, id: &str, grace: Duration) -> Stop {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = under_way.get(id) {
            return Stop(outcome.clone());
        }
        let (tell, outcome) = watch::channel(None);
        under_way.insert(id.to_owned(), outcome.clone());
        let (engine, id, all) = (engine.clone(), id.to_owned(), self.under_way.clone());
        self.tasks.spawn_on(
            async move {
                let result = stop_and_remove(&engine, &id, grace).await;
                all.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                tell.send_replace(Some(result.map_err(|error| error.to_string())));
            },
            &self.handle,
        );
        Stop(outcome)
    }

    /// Waits for all stops to end, but not longer than `deadline`. Returns whether they did.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.tasks.close();
        let drained = tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok();
        self.tasks.reopen();
        drained
    }
}

async fn stop_and_remove(engine: &Engine, id: &str, grace: Duration) -> Result<(), RuntimeError> {
    let mut pauses = PAUSES.iter();
    loop {
        let result = async {
            if !grace.is_zero() {
                engine.stop(id, grace).await?;
            }
            engine.remove(id).await
        };
        let error = match result.await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let Some(pause) = pauses.next() else {
            tracing::warn!(container = id, %error, "a container could not be stopped and removed");
            return Err(error);
        };
        tokio::time::sleep(*pause).await;
    }
}
