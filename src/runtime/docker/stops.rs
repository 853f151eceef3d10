//! Stopping and removing containers in the background: at most one task per container, owned by the runtime, repeated until it
//! succeeds or the engine refuses it again and again. Whoever wants to wait for the end, can; after a while they are told that it is not
//! there yet, and the task goes on, so that an engine that is away for long leaves nothing behind.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch, task::AbortHandle};
use tokio_util::task::TaskTracker;

use super::engine::Engine;
use crate::runtime::RuntimeError;

/// Pauses between tries. After the last, those who wait are told; a container that the engine refuses to remove is left to the next
/// observation, or to the next start of the server, and an engine that does not answer is asked on.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// Pause between tries after that.
const PATIENT: Duration = Duration::from_secs(15);

type Outcome = Option<Result<(), RuntimeError>>;

/// The stops under way.
#[derive(Debug, Clone)]
pub struct Stops {
    tasks: TaskTracker,
    handle: Handle,
    under_way: Arc<Mutex<HashMap<String, UnderWay>>>,
}

/// What came of a stop, as far as that is known, and its task.
type UnderWay = (watch::Receiver<Outcome>, AbortHandle);

/// A stop under way.
pub struct Stop(watch::Receiver<Outcome>);

impl Stop {
    /// Waits until the container is gone.
    pub async fn finished(mut self) -> Result<(), RuntimeError> {
        match self.0.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(error))) => Err(error.clone()),
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
        self.begin_with(engine, id, Some(grace))
    }

    /// The same for one that somebody else has told to stop, perhaps with a grace that is not known here: it has the one it was made with.
    pub fn adopt(&self, engine: &Arc<Engine>, id: &str) -> Stop {
        self.begin_with(engine, id, None)
    }

    /// Whether it is being stopped, or its stop waits for the engine.
    pub fn is_under_way(&self, id: &str) -> bool {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    fn begin_with(&self, engine: &Arc<Engine>, id: &str, grace: Option<Duration>) -> Stop {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((outcome, task)) = under_way.get(id) {
            if outcome.borrow().is_none() {
                return Stop(outcome.clone());
            }
            // It waits for an engine that did not answer. Whoever asks anew need not.
            task.abort();
        }
        let (tell, outcome) = watch::channel(None);
        let (engine, name, all) = (engine.clone(), id.to_owned(), self.under_way.clone());
        let task = self.tasks.spawn_on(
            async move {
                let result = stop_and_remove(&engine, &name, grace, &tell).await;
                all.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                tell.send_replace(Some(result));
            },
            &self.handle,
        );
        under_way.insert(id.to_owned(), (outcome.clone(), task.abort_handle()));
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

async fn stop_and_remove(
    engine: &Engine,
    id: &str,
    grace: Option<Duration>,
    tell: &watch::Sender<Outcome>,
) -> Result<(), RuntimeError> {
    let mut pauses = PAUSES.iter();
    loop {
        let result = async {
            engine.let_go(id).await;
            match grace {
                None => engine.stop_as_made(id).await?,
                Some(Duration::ZERO) => {}
                Some(grace) => engine.stop(id, grace).await?,
            }
            engine.remove(id).await
        };
        let error = match result.await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let pause = match pauses.next() {
            Some(pause) => *pause,
            None if error.is_passing() => {
                tracing::warn!(container = id, %error, "a container is not stopped and removed yet");
                tell.send_replace(Some(Err(error)));
                PATIENT
            }
            None => {
                tracing::warn!(container = id, %error, "a container could not be stopped and removed");
                return Err(error);
            }
        };
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Answers, NO_CONTENT, engine, json},
        *,
    };

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_is_away_for_long_is_asked_on() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("engine.sock");
        let (engine, stops) = (engine(&socket), Stops::new());
        let gone = stops.begin(&engine, "c1", Duration::ZERO).finished().await;
        assert!(gone.unwrap_err().to_string().contains("does not answer"));
        assert!(stops.under_way.lock().unwrap().contains_key("c1"), "it was given up");
        tokio::time::resume();
        std::fs::remove_file(&socket).unwrap();
        let answers = Answers::serve(&socket, |request| request.starts_with("DELETE ").then(|| NO_CONTENT.to_owned()));
        // Whoever asks anew does not wait for the next try.
        let began = std::time::Instant::now();
        stops.begin(&engine, "c1", Duration::ZERO).finished().await.unwrap();
        assert!(began.elapsed() < PATIENT / 2, "it took {:?}", began.elapsed());
        assert!(stops.under_way.lock().unwrap().is_empty());
        assert_eq!(answers.asked().len(), 1);
    }

    #[tokio::test]
    async fn what_another_process_began_to_stop_has_the_grace_it_was_made_with() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("engine.sock");
        let (engine, stops) = (engine(&socket), Stops::new());
        std::fs::remove_file(&socket).unwrap();
        let answers = Answers::serve(&socket, |request| match request.split(' ').next() {
            Some("GET") => Some(json(r#"{"Id":"c1","Config":{"StopTimeout":90}}"#)),
            _ => Some(NO_CONTENT.to_owned()),
        });
        stops.adopt(&engine, "c1").finished().await.unwrap();
        let stopped: Vec<String> = answers.asked().into_iter().filter(|asked| asked.contains("/stop")).collect();
        assert!(stopped.len() == 1 && !stopped[0].contains("t="), "{stopped:?}");
        stops.begin(&engine, "c1", Duration::from_millis(1500)).finished().await.unwrap();
        assert!(answers.asked().iter().any(|asked| asked.contains("/stop?t=2")), "{:?}", answers.asked());
    }
}
