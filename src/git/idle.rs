//! Sessions in which nothing moves any more.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// When a session was last seen to move, and how long it may be still.
#[derive(Debug)]
pub struct Idle {
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    moved: Instant,
    excused: bool,
}

impl Idle {
    /// A session that begins now.
    pub fn new(limit: Duration) -> Self {
        Self { limit, state: Mutex::new(State { moved: Instant::now(), excused: false }) }
    }

    /// How long the session may be still.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Something went from one side to the other.
    pub fn moved(&self) {
        self.state().moved = Instant::now();
    }

    /// The session waits for something that neither side does, until the guard is dropped.
    pub fn excuse(&self) -> Excused<'_> {
        self.state().excused = true;
        Excused(self)
    }

    /// Returns when nothing has moved for the limit.
    pub async fn expired(&self) {
        loop {
            let deadline = {
                let mut state = self.state();
                if state.excused {
                    state.moved = Instant::now();
                }
                state.moved + self.limit
            };
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Idle::excuse`].
pub struct Excused<'a>(&'a Idle);

impl Drop for Excused<'_> {
    fn drop(&mut self) {
        *self.0.state() = State { moved: Instant::now(), excused: false };
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_stillness_that_nothing_excuses_counts() {
        let idle = Idle::new(Duration::from_secs(10));
        let started = Instant::now();
        let session = async {
            sleep(Duration::from_secs(9)).await;
            idle.moved();
            sleep(Duration::from_secs(5)).await;
            let excused = idle.excuse();
            sleep(Duration::from_secs(61)).await;
            drop(excused);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = session => {}
            () = idle.expired() => {}
        }
        assert_eq!(started.elapsed().as_secs(), 9 + 5 + 61 + 10);
    }
}
