//! How the control plane learns that a routes table is in force and that removed upstreams have answered their last request.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::Context;
use tokio::time::Instant;

use super::{
    table::{ACK_FILE, Ack},
    watch::FileWatch,
};

/// What came of waiting for the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AckOutcome {
    /// The generation, or a later one, is in force, and the removed upstreams have no request under way.
    Acked,
    /// The deadline passed first. The newest acknowledgement, if there is one, says how far the router got.
    TimedOut(Option<Ack>),
}

/// Follows `ack.json` of the router that serves from a directory. Wakes on changes of the file; never polls.
pub struct AckWatch {
    path: PathBuf,
    watch: FileWatch,
}

impl AckWatch {
    /// Follows the acknowledgements below `dir` (`DATA/router`), which is made if it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made or watched.
    pub fn new(dir: &std::path::Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        Ok(Self { path: dir.join(ACK_FILE), watch: FileWatch::new(dir, ACK_FILE)? })
    }

    /// The newest acknowledgement; `None` when no router has ever run here.
    pub fn current(&self) -> Option<Ack> {
        serde_json::from_slice(&fs::read(&self.path).ok()?).ok()
    }

    /// Waits until the router serves `generation` (or a later one) and none of `removed` has requests under way, at most until
    /// `deadline`. With `removed` empty only the generation counts.
    pub async fn wait_for(&self, generation: u64, removed: &[SocketAddr], deadline: Instant) -> AckOutcome {
        loop {
            let changed = self.watch.changed();
            let ack = self.current();
            if ack.as_ref().is_some_and(|ack| satisfies(ack, generation, removed)) {
                return AckOutcome::Acked;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                // The last change and the deadline may have come together.
                let ack = self.current();
                return match ack.as_ref().is_some_and(|ack| satisfies(ack, generation, removed)) {
                    true => AckOutcome::Acked,
                    false => AckOutcome::TimedOut(ack),
                };
            }
        }
    }
}

fn satisfies(ack: &Ack, generation: u64, removed: &[SocketAddr]) -> bool {
    ack.generation >= generation && removed.iter().all(|address| !ack.draining.contains_key(address))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::{super::table::replace, *};

    fn write(dir: &std::path::Path, generation: u64, draining: &[(&str, u64)]) {
        let draining = draining.iter().map(|(address, count)| (address.parse().unwrap(), *count)).collect();
        let ack = Ack { generation, draining, pid: 1 };
        replace(&dir.join(ACK_FILE), &serde_json::to_vec(&ack).unwrap(), false).unwrap();
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test]
    async fn waits_for_generation_and_drain() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Arc::new(AckWatch::new(dir.path()).unwrap());
        let gone: SocketAddr = "10.0.0.1:5000".parse().unwrap();
        let waiter = tokio::spawn({
            let watch = watch.clone();
            async move { watch.wait_for(3, &[gone], soon()).await }
        });
        for (generation, draining) in [(2, vec![]), (3, vec![("10.0.0.1:5000", 2)]), (4, vec![("10.0.0.1:5000", 1)])] {
            write(dir.path(), generation, &draining);
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!waiter.is_finished(), "generation {generation} satisfied it");
        }
        write(dir.path(), 4, &[("10.0.0.2:5000", 9)]);
        assert_eq!(waiter.await.unwrap(), AckOutcome::Acked);
        assert_eq!(watch.wait_for(4, &[], soon()).await, AckOutcome::Acked);
    }

    #[tokio::test]
    async fn several_waiters_all_wake() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Arc::new(AckWatch::new(dir.path()).unwrap());
        let waiters: Vec<_> = (1..=5)
            .map(|generation| {
                let watch = watch.clone();
                tokio::spawn(async move { watch.wait_for(generation, &[], soon()).await })
            })
            .collect();
        tokio::task::yield_now().await;
        write(dir.path(), 5, &[]);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), AckOutcome::Acked);
        }
    }

    #[tokio::test]
    async fn times_out_and_says_how_far_it_got() {
        let dir = tempfile::tempdir().unwrap();
        let watch = AckWatch::new(dir.path()).unwrap();
        let deadline = || Instant::now() + Duration::from_millis(30);
        assert_eq!(watch.wait_for(1, &[], deadline()).await, AckOutcome::TimedOut(None));
        write(dir.path(), 1, &[("10.0.0.1:5000", 2)]);
        let outcome = watch.wait_for(1, &["10.0.0.1:5000".parse().unwrap()], deadline()).await;
        assert!(matches!(outcome, AckOutcome::TimedOut(Some(ack)) if ack.generation == 1));
    }
}
