//! Replicas that would slow their neighbours down are held up: while they do what no app needs to do, they have next to nothing of the
//! processor. The kernel lets those wait that have just been woken, for some milliseconds, while others use what they may have of it; with
//! a fork bomb beside it, one request in ten notices, whatever the bomb's limits are.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    domain::ReplicaId,
    runtime::{Runtime, RuntimeError},
};

/// What it is held to, in thousandths of a core: the least that there is.
const HELD: u32 = 10;
/// Refused processes that are no mishap any more, within [`SPAN`]; an app that now and then has one thread too many is refused fewer.
const REFUSED: u64 = 300;
const SPAN: Duration = Duration::from_secs(1);
/// For how long it must be refused fewer than so many to be let go of; with what it is held to, a bomb is refused some hundreds in that time.
const REST: Duration = Duration::from_secs(30);
const STILL: u64 = 100;
/// Pause after an engine that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Why a replica is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Forks,
    Writes,
}

/// Holds one replica, whoever reads its output meanwhile.
pub(super) struct Hold {
    runtime: Arc<dyn Runtime>,
    id: ReplicaId,
    /// Those for which it is held, or may be: what became of a call that failed or was given up is not known.
    reasons: Mutex<Vec<Why>>,
}

impl Hold {
    /// Not held.
    pub(super) fn new(runtime: Arc<dyn Runtime>, id: ReplicaId) -> Self {
        Self { runtime, id, reasons: Mutex::default() }
    }

    /// Holds it, or lets go of it as far as that is why.
    ///
    /// # Errors
    /// Those of [`Runtime::hold`].
    pub(super) async fn set(&self, why: Why, holds: bool) -> Result<(), RuntimeError> {
        let mut reasons = self.reasons.lock().await;
        let mut wanted = reasons.clone();
        wanted.retain(|other| *other != why);
        wanted.extend(holds.then_some(why));
        if holds {
            reasons.clone_from(&wanted);
        }
        let result = self.runtime.hold(&self.id, (!wanted.is_empty()).then_some(HELD)).await;
        match &result {
            Ok(()) => *reasons = wanted,
            // It has not been done, for certain.
            Err(RuntimeError::Gone(_) | RuntimeError::Refused(_)) => reasons.retain(|other| *other != why || !holds),
            Err(_) => {}
        }
        if let Err(error) = &result
            && !matches!(error, RuntimeError::Gone(_))
        {
            tracing::warn!(replica = %self.id.0, %error, "what a replica may have of the processor cannot be changed");
        }
        result
    }

    /// Lets go of it, if it is held.
    pub(super) async fn let_go(&self) {
        let mut reasons = self.reasons.lock().await;
        if !reasons.is_empty() && self.runtime.hold(&self.id, None).await.is_ok() {
            reasons.clear();
        }
    }

    /// Whether it is held for that, as far as is known.
    pub(super) async fn has(&self, why: Why) -> bool {
        self.reasons.lock().await.contains(&why)
    }

    /// As long as the replica is there, holds it while it asks for processes without end; says so by `say`.
    pub(super) async fn while_it_forks(&self, process: &str, say: impl Fn(String)) {
        loop {
            let error = match self.runtime.refused_processes(&self.id).await {
                Ok(refused) => return self.while_refused(refused, process, say).await.unwrap_or_default(),
                Err(RuntimeError::Gone(_)) => return,
                Err(error) => error,
            };
            if !error.is_passing() {
                return tracing::warn!(replica = %self.id.0, %error, "whether it forks without end is not known");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// `None`: the replica has ended.
    async fn while_refused(
        &self,
        refused: impl Stream<Item = u64> + Unpin,
        process: &str,
        say: impl Fn(String),
    ) -> Option<()> {
        let mut refusals = Refusals::of(refused).await?;
        loop {
            if !self.has(Why::Forks).await {
                refusals.until_too_many().await?;
                match self.set(Why::Forks, true).await {
                    Ok(()) => say(format!(
                        "{process} has as many processes as it may, and asks for more without end: it is slowed down to {} of a core until it has not done so for {} s, or is restarted",
                        f64::from(HELD) / 1000.0,
                        REST.as_secs()
                    )),
                    // It is not held, and will not be: whoever made it did not write down what it may have.
                    Err(RuntimeError::Refused(_)) => return None,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
            if self.has(Why::Forks).await {
                refusals.until_calm().await?;
                if self.set(Why::Forks, false).await.is_ok() {
                    say(format!("{process} is not slowed down any more"));
                }
            }
        }
    }
}

/// The processes that one replica is refused.
struct Refusals<S> {
    refused: S,
    /// How many it were when last told.
    count: u64,
}

impl<S: Stream<Item = u64> + Unpin> Refusals<S> {
    /// What it was refused before does not count.
    async fn of(mut refused: S) -> Option<Self> {
        let count = refused.next().await?;
        Some(Self { refused, count })
    }

    /// Waits until more are refused in a moment than a mishap brings. `None`: the replica has ended.
    async fn until_too_many(&mut self) -> Option<()> {
        let (mut began, mut before) = (Instant::now(), self.count);
        loop {
            let next = self.refused.next().await?;
            if began.elapsed() > SPAN {
                (began, before) = (Instant::now(), self.count);
            }
            self.count = next;
            if next.saturating_sub(before) >= REFUSED {
                return Some(());
            }
        }
    }

    /// Waits until a rest has gone by in which few are refused. `None`: the replica has ended.
    async fn until_calm(&mut self) -> Option<()> {
        let (mut began, mut before) = (Instant::now(), self.count);
        loop {
            tokio::select! {
                next = self.refused.next() => self.count = next?,
                () = tokio::time::sleep_until(began + REST) => return Some(()),
            }
            if self.count.saturating_sub(before) >= STILL {
                (began, before) = (Instant::now(), self.count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Digest, ImageRef, Limits, ReleaseVersion, ReplicaSet, SetId},
        runtime::fake::{Behaviour, FakeRuntime},
    };

    async fn replica() -> (Arc<FakeRuntime>, ReplicaId) {
        let runtime = Arc::new(FakeRuntime::new(Behaviour::default()));
        let set = ReplicaSet {
            id: SetId {
                env: "acme/shop/dev".parse().unwrap(),
                process: "web".parse().unwrap(),
                release: ReleaseVersion(1),
                restarts: 0,
            },
            image: ImageRef { repository: "berth/acme/shop".to_owned(), digest: Digest::from_sha256([0; 32]) },
            command: "run".to_owned(),
            environment: [].into(),
            count: 1,
            limits: Limits { cpu_millis: 1000, memory: 1 << 20, pids: 10 },
            stop_grace: Duration::ZERO,
        };
        runtime.apply(&set).await.unwrap();
        let id = runtime.observe().await.unwrap().remove(0).id;
        (runtime, id)
    }

    /// Lets what waits for no time go on.
    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_forks_without_end_is_held_until_it_stops_that() {
        let (runtime, id) = replica().await;
        let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
        let hold = Arc::new(Hold::new(runtime.clone(), id.clone()));
        let again = hold.clone();
        let watch = tokio::spawn(async move { hold.while_it_forks("web.1", |text| told.send(text).unwrap()).await });
        // Mishaps: some now, and some later.
        for _ in 0..3 {
            settle().await;
            runtime.refuse(&id, REFUSED - 1);
            tokio::time::sleep(SPAN * 2).await;
        }
        assert_eq!((runtime.held(&id), tells.len()), (None, 0));
        runtime.refuse(&id, REFUSED);
        settle().await;
        assert_eq!(runtime.held(&id), Some(HELD));
        assert!(tells.recv().await.unwrap().starts_with("web.1 has as many processes as it may"));
        // It goes on.
        for _ in 0..3 {
            tokio::time::sleep(REST / 2).await;
            runtime.refuse(&id, STILL);
        }
        tokio::time::sleep(REST - SPAN).await;
        assert_eq!(runtime.held(&id), Some(HELD));
        // Now and then one is none.
        runtime.refuse(&id, STILL - 1);
        tokio::time::sleep(SPAN * 2).await;
        assert_eq!(runtime.held(&id), None);
        assert_eq!(tells.recv().await.unwrap(), "web.1 is not slowed down any more");
        // What it was refused before counts no more, neither here nor for whoever reads it next; he lets go of it too.
        runtime.refuse(&id, 1);
        settle().await;
        assert_eq!(runtime.held(&id), None);
        runtime.refuse(&id, REFUSED);
        settle().await;
        assert_eq!(runtime.held(&id), Some(HELD));
        watch.abort();
        let next = tokio::spawn(async move { again.while_it_forks("web.1", |_| ()).await });
        tokio::time::sleep(REST + SPAN).await;
        assert_eq!(runtime.held(&id), None);
        next.abort();
        let fresh = Hold::new(runtime.clone(), id.clone());
        let last = tokio::spawn(async move { fresh.while_it_forks("web.1", |_| ()).await });
        tokio::time::sleep(SPAN * 2).await;
        assert_eq!(runtime.held(&id), None, "it was refused many, long ago");
        runtime.kill(&id, 1, false);
        last.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_does_not_answer_is_asked_again() {
        let (runtime, id) = replica().await;
        let hold = Arc::new(Hold::new(runtime.clone(), id.clone()));
        runtime.set_dead(true);
        let watch = tokio::spawn(async move { hold.while_it_forks("web.1", |_| ()).await });
        tokio::time::sleep(RETRY * 3).await;
        runtime.set_dead(false);
        tokio::time::sleep(RETRY * 2).await;
        runtime.refuse(&id, REFUSED);
        settle().await;
        assert_eq!(runtime.held(&id), Some(HELD));
        runtime.set_dead(true);
        tokio::time::sleep(REST * 2).await;
        runtime.set_dead(false);
        tokio::time::sleep(REST * 2).await;
        assert_eq!(runtime.held(&id), None);
        watch.abort();
    }

    #[tokio::test]
    async fn it_is_held_as_long_as_there_is_a_reason() {
        let (runtime, id) = replica().await;
        let hold = Hold::new(runtime.clone(), id.clone());
        for (why, holds, held) in [
            (Why::Writes, true, Some(HELD)),
            (Why::Forks, true, Some(HELD)),
            (Why::Writes, false, Some(HELD)),
            (Why::Forks, false, None),
        ] {
            hold.set(why, holds).await.unwrap();
            assert_eq!(runtime.held(&id), held, "{why:?} {holds}");
        }
        runtime.set_dead(true);
        hold.set(Why::Writes, true).await.unwrap_err();
        assert!(hold.has(Why::Writes).await, "it may have been done, and must be undone");
        runtime.set_dead(false);
        hold.set(Why::Forks, true).await.unwrap();
        hold.set(Why::Writes, false).await.unwrap();
        assert_eq!(runtime.held(&id), Some(HELD));
        hold.let_go().await;
        assert!(runtime.held(&id).is_none() && !hold.has(Why::Forks).await);
        runtime.kill(&id, 1, false);
        hold.set(Why::Forks, true).await.unwrap_err();
        assert!(!hold.has(Why::Forks).await);
    }
}
