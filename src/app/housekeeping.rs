//! What piles up on the engine and is not needed any more is taken away from time to time.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{build::Builds, deploy::Deployer, domain::ImageRef, runtime::Runtime};

/// How often. Images are only a cache of the registry's; nobody waits for their end.
const EVERY: Duration = Duration::from_secs(600);

/// Removes the engine's copies of images that neither run nor may be rolled back to.
pub(super) struct Housekeeping {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) deployer: Deployer,
    pub(super) builds: Builds,
}

impl Housekeeping {
    /// Works until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut turns = interval(EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = turns.tick() => {}
            }
            match self.collect().await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "removed images that are not needed any more"),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "old images could not be removed; trying again later")
                }
            }
        }
    }

    async fn collect(&self) -> anyhow::Result<usize> {
        // What the engine was still making when an earlier server was killed came after this one looked.
        self.runtime.end_orphaned_jobs().await?;
        let mut keep: Vec<ImageRef> = self.deployer.images_to_keep().await?;
        keep.extend(self.builds.stack_images().await?);
        Ok(self.runtime.collect_images(&keep).await?)
    }
}
