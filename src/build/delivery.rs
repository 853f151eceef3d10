//! What builds need of their neighbours, as small as it is: somebody who deploys, somewhere to write.

use async_trait::async_trait;

use super::output::Transcript;
use crate::{
    deploy::{DeployFailure, Deployed, Deployer, NewRelease, Progress},
    domain::{BuildNumber, EnvRef, Release, ReleaseVersion},
    store::StoreError,
};

/// Makes and deploys releases: the [`Deployer`].
#[async_trait]
pub trait Delivery: Send + Sync {
    /// As [`Deployer::create_release`].
    async fn create_release(&self, new: NewRelease) -> Result<Release, StoreError>;
    /// As [`Deployer::deploy`].
    async fn deploy(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        progress: &dyn Progress,
    ) -> Result<Deployed, DeployFailure>;
}

#[async_trait]
impl Delivery for Deployer {
    async fn create_release(&self, new: NewRelease) -> Result<Release, StoreError> {
        Self::create_release(self, new).await
    }

    async fn deploy(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        progress: &dyn Progress,
    ) -> Result<Deployed, DeployFailure> {
        Self::deploy(self, env, version, progress).await
    }
}

/// Keeps the logs of builds.
pub trait BuildLogs: Send + Sync {
    /// The log of a build, to append to; of a build that goes on after a restart, the same one.
    fn open(&self, env: &EnvRef, number: BuildNumber) -> Box<dyn Transcript>;
}
