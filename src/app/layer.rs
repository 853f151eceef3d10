//! Tasks that stop together.

use std::time::Duration;

use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long each part may take to stop.
pub(super) const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// Some tasks, and how to stop them.
pub(super) struct Layer {
    name: &'static str,
    pub(super) stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Layer {
    /// None yet. The name is for the log.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    /// One more; it ends when [`Self::stop`] is cancelled, and not before.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Tells the tasks to stop and waits until they have.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_DEADLINE, ended).await.is_err() {
            tracing::warn!(layer = self.name, "it did not stop in time and is abandoned");
        }
    }

    /// Waits until a task ends that nobody told to.
    pub(super) async fn failed(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(_) => self.name,
            None => std::future::pending().await,
        }
    }
}
