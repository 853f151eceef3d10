//! For how long a registry that fails for a passing reason is asked again, and when an upload is given up.

use std::{future::Future, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// Pause before the second try; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Tries that there are even if each takes long: an upload that is cut off late is worth another.
const TRIES: u32 = 3;
/// An upload of which nothing was taken for this long is given up. Longer than what the kernel's buffers hold takes at the slowest rate that
/// is worth waiting for.
pub(super) const STALLED: Duration = Duration::from_secs(120);

/// One operation's tries.
#[derive(Debug)]
pub(super) struct Patience {
    until: Instant,
    tries: u32,
    next: Duration,
}

impl Patience {
    /// Tries that begin now.
    pub(super) fn new(patience: Duration) -> Self {
        Self { until: Instant::now() + patience, tries: 0, next: FIRST_PAUSE }
    }

    /// A try has failed: the pause before the next, or `None` when it was the last.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        self.tries += 1;
        if self.tries >= TRIES && Instant::now() + self.next > self.until {
            return None;
        }
        let pause = self.next;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

/// The upload's result, or `None` when nothing moved for [`STALLED`]: neither another piece was taken (`moves`), nor, after the last, an
/// answer came.
pub(super) async fn unless_stalled<T>(upload: impl Future<Output = T>, mut moves: watch::Receiver<()>) -> Option<T> {
    tokio::pin!(upload);
    loop {
        tokio::select! {
            done = &mut upload => return Some(done),
            moved = timeout(STALLED, moves.changed()) => match moved {
                Ok(Ok(())) => {}
                // All pieces are taken.
                Ok(Err(_)) => return timeout(STALLED, upload).await.ok(),
                Err(_) => return None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tries_until_the_patience_is_over() {
        let mut patience = Patience::new(Duration::from_secs(60));
        let (mut pauses, began) = (Vec::new(), Instant::now());
        while let Some(pause) = patience.pause() {
            pauses.push(pause.as_millis());
            advance(pause).await;
        }
        assert_eq!(pauses[..8], [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!((50..=60).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn tries_that_take_long_are_few() {
        let mut patience = Patience::new(Duration::from_secs(60));
        let mut tries = 1;
        advance(Duration::from_secs(100)).await;
        while patience.pause().is_some() {
            tries += 1;
            advance(Duration::from_secs(100)).await;
        }
        assert_eq!(tries, TRIES);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_may_take_long_but_not_stand_still() {
        let (moved, moves) = watch::channel(());
        let slow = async move {
            for _ in 0..10 {
                sleep(STALLED - Duration::from_secs(1)).await;
                moved.send(()).unwrap();
            }
            drop(moved);
            sleep(STALLED - Duration::from_secs(1)).await;
        };
        assert_eq!(unless_stalled(slow, moves).await, Some(()));
        let (moved, moves) = watch::channel(());
        let began = Instant::now();
        assert_eq!(unless_stalled(pending::<()>(), moves).await, None);
        assert_eq!(began.elapsed(), STALLED);
        drop(moved);
        let (moved, moves) = watch::channel(());
        drop(moved);
        assert_eq!(unless_stalled(pending::<()>(), moves).await, None);
    }
}
