//! What the sampler asks of the deployer and the build queue, as small as it is.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    build::Builds,
    deploy::{Deployer, EnvStatus, Picture},
};

/// What runs and what is built.
#[async_trait]
pub trait Running: Send + Sync {
    /// As [`Deployer::statuses`].
    async fn statuses(&self) -> Vec<Arc<EnvStatus>>;
    /// As [`Deployer::observed`].
    fn observed(&self) -> Arc<Picture>;
    /// As [`Builds::under_way`]: queued and running.
    fn builds(&self) -> (usize, usize);
}

#[async_trait]
impl Running for (Deployer, Builds) {
    async fn statuses(&self) -> Vec<Arc<EnvStatus>> {
        self.0.statuses().await
    }

    fn observed(&self) -> Arc<Picture> {
        self.0.observed()
    }

    fn builds(&self) -> (usize, usize) {
        self.1.under_way()
    }
}
