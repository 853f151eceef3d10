//! Keeps those who publish images and whoever collects what is not needed any more apart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
    time::timeout,
};

/// How long publishers are held back for a collection that has found no moment without any; twice as long with each further one, up to
/// [`LONGEST_SQUEEZE`], so that some collection comes to its turn.
const SQUEEZE: Duration = Duration::from_secs(2);
const LONGEST_SQUEEZE: Duration = Duration::from_secs(60);

/// A registry's collector takes blobs for garbage that no manifest names yet, and an image is only kept once a record names it. So nobody
/// is between the first blob and the record while a collection runs. Clones share the gate.
#[derive(Debug, Clone, Default)]
pub struct PublishGate(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    lock: Arc<RwLock<()>>,
    /// Somebody has ended publishing.
    left: Notify,
    /// Collections in a row that did not come to their turn.
    vain: AtomicU32,
}

/// Held from the first use of a blob or an image until a record names the image.
#[derive(Debug)]
pub struct Publishing {
    // Let go of before it is told.
    _held: OwnedRwLockReadGuard<()>,
    _tell: Tell,
}

#[derive(Debug)]
struct Tell(Arc<Inner>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.left.notify_one();
    }
}

/// Held while what is not needed is taken away.
#[derive(Debug)]
pub struct Collecting {
    _held: OwnedRwLockWriteGuard<()>,
}

impl PublishGate {
    /// Waits for the end of a collection, if one is under way.
    pub async fn enter(&self) -> Publishing {
        Publishing { _held: self.0.lock.clone().read_owned().await, _tell: Tell(self.0.clone()) }
    }

    /// Waits for a moment in which nobody publishes, and keeps others from it from then on. Nobody is held back by the wait; only when
    /// `patience` is over, publishers that come are for some seconds, so that those who are there can end. `None`: they did not, and the
    /// next collection holds publishers back longer.
    pub async fn close(&self, patience: Duration) -> Option<Collecting> {
        let held = match timeout(patience, self.free()).await {
            Ok(held) => Some(held),
            Err(_) => timeout(self.squeeze(), self.0.lock.clone().write_owned()).await.ok(),
        };
        match &held {
            Some(_) => self.0.vain.store(0, Ordering::Relaxed),
            None => drop(self.0.vain.fetch_add(1, Ordering::Relaxed)),
        }
        held.map(|held| Collecting { _held: held })
    }

    async fn free(&self) -> OwnedRwLockWriteGuard<()> {
        loop {
            if let Ok(held) = self.0.lock.clone().try_write_owned() {
                return held;
            }
            // Who left between the look and the wait has left word.
            self.0.left.notified().await;
        }
    }

    fn squeeze(&self) -> Duration {
        let times = 1u32.checked_shl(self.0.vain.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        SQUEEZE.saturating_mul(times).min(LONGEST_SQUEEZE)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI32;

    use tokio::time::{Instant, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn publishing_and_collecting_exclude_each_other() {
        let gate = PublishGate::default();
        let (one, two) = (gate.enter().await, gate.enter().await);
        assert!(gate.close(SECOND).await.is_none(), "closed beside somebody who publishes");
        drop(one);
        let late = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close(9 * SECOND).await.is_some() }
        });
        drop(two);
        assert!(late.await.unwrap());
        let collecting = gate.close(SECOND).await.unwrap();
        assert!(timeout(60 * SECOND, gate.enter()).await.is_err());
        drop(collecting);
        gate.enter().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_publishes_during_a_collection_whatever_comes_when() {
        let gate = PublishGate::default();
        // Publishers count up, a collection counts far down.
        let inside = Arc::new(AtomicI32::new(0));
        let publishers = (0..4).map(|_| {
            let (gate, inside) = (gate.clone(), inside.clone());
            tokio::spawn(async move {
                for _ in 0..500 {
                    let held = gate.enter().await;
                    assert!(inside.fetch_add(1, Ordering::SeqCst) >= 0, "published during a collection");
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(held);
                }
            })
        });
        let publishers: Vec<_> = publishers.collect();
        for _ in 0..200 {
            let held = gate.close(SECOND).await.expect("no turn for a collection");
            assert_eq!(inside.fetch_sub(1000, Ordering::SeqCst), 0, "collected while somebody publishes");
            tokio::task::yield_now().await;
            inside.fetch_add(1000, Ordering::SeqCst);
            drop(held);
        }
        for publisher in publishers {
            publisher.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_collection_that_waits_holds_nobody_back_for_long() {
        let gate = PublishGate::default();
        let _slow = gate.enter().await;
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close(120 * SECOND).await.is_none() }
        });
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        while began.elapsed() < 130 * SECOND {
            let before = Instant::now();
            drop(gate.enter().await);
            longest = longest.max(before.elapsed());
            sleep(Duration::from_millis(100)).await;
        }
        assert!(waiting.await.unwrap());
        assert!(longest <= SQUEEZE + Duration::from_millis(50), "held back for {longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn collections_come_to_their_turn_in_the_end() {
        let gate = PublishGate::default();
        // Always somebody there: each takes 20 s, and the next comes after 10 s.
        for start in 0..2 {
            let gate = gate.clone();
            tokio::spawn(async move {
                sleep(SECOND * 10 * start).await;
                loop {
                    let held = gate.enter().await;
                    sleep(20 * SECOND).await;
                    drop(held);
                }
            });
        }
        sleep(15 * SECOND).await;
        let mut tries = 1;
        while gate.close(25 * SECOND).await.is_none() {
            tries += 1;
        }
        assert!((2..=6).contains(&tries), "{tries}");
        assert!(gate.squeeze() == SQUEEZE, "the next one begins anew");
    }
}
