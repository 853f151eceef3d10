//! Waiting for an engine that does not answer at the moment.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Runtime, RuntimeError};

/// First and longest pause between two tries: nothing tells when an engine that was restarted answers again, nor when its registry does.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// How long something that the engine is asked for is tried again. By the monotonic clock: the time of day may jump.
pub struct Patience<'r> {
    runtime: &'r dyn Runtime,
    until: Instant,
    pause: Duration,
    told: bool,
}

impl<'r> Patience<'r> {
    /// For so long from now on. No time at all: nothing is tried again.
    pub fn new(runtime: &'r dyn Runtime, limit: Duration) -> Self {
        Self { runtime, until: Instant::now() + limit, pause: PAUSES.0, told: false }
    }

    /// After a try that failed: returns when it is time for another. `tell` hears why, before the first wait alone.
    ///
    /// # Errors
    /// The error itself, when it is not a passing one or the time is over.
    pub async fn again(&mut self, error: RuntimeError, tell: impl FnOnce(&RuntimeError)) -> Result<(), RuntimeError> {
        let failed = Instant::now();
        if !error.is_passing() || failed >= self.until {
            return Err(error);
        }
        if !std::mem::replace(&mut self.told, true) {
            tell(&error);
        }
        let (runtime, pause) = (self.runtime, self.pause);
        self.pause = (pause * 2).min(PAUSES.1);
        let another = async {
            runtime.until_there().await;
            sleep_until(failed + pause).await;
        };
        timeout_at(self.until, another).await.map_err(|_| error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{
        LateRuntime,
        fake::{Behaviour, FakeRuntime},
    };

    fn away() -> RuntimeError {
        RuntimeError::Unavailable("no such socket".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn passing_errors_alone_and_for_so_long() {
        let runtime = FakeRuntime::new(Behaviour::default());
        let mut patience = Patience::new(&runtime, Duration::from_secs(60));
        let refused = RuntimeError::Refused("no".to_owned());
        assert!(matches!(patience.again(refused, |_| {}).await, Err(RuntimeError::Refused(_))));
        let (began, mut tries, mut told) = (Instant::now(), 0, 0);
        while patience.again(away(), |_| told += 1).await.is_ok() {
            tries += 1;
        }
        assert_eq!((began.elapsed(), told), (Duration::from_secs(60), 1));
        assert!((10..=20).contains(&tries), "{tries} tries");
        assert!(Patience::new(&runtime, Duration::ZERO).again(away(), |_| told += 1).await.is_err());
        assert_eq!(told, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_is_there_at_once() {
        let late = LateRuntime::new("not yet");
        let arrival = tokio::spawn({
            let late = late.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(100)).await;
                late.arrived(FakeRuntime::new(Behaviour::default()));
            }
        });
        let began = Instant::now();
        Patience::new(&late, Duration::from_secs(300)).again(away(), |_| {}).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(100));
        arrival.await.unwrap();
    }
}
