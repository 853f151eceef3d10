//! What builds need of their neighbours, as small as it is: somebody who deploys, somewhere to write.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::output::Transcript;
use crate::{
    deploy::{CancelFailure, DeployFailure, Deployed, Deployer, NewRelease, Progress},
    domain::{BuildNumber, EnvRef, Release, ReleaseVersion},
    logs::{BuildLogWriter, Logs},
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
    /// As [`Deployer::abandon`].
    async fn abandon(&self, env: &EnvRef, version: ReleaseVersion, reason: &str) -> Result<(), CancelFailure>;
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

    async fn abandon(&self, env: &EnvRef, version: ReleaseVersion, reason: &str) -> Result<(), CancelFailure> {
        Self::abandon(self, env, version, reason).await
    }
}

/// Keeps the logs of builds.
pub trait BuildLogs: Send + Sync {
    /// The log of a build, to append to; of a build that goes on after a restart, the same one.
    fn open(&self, env: &EnvRef, number: BuildNumber) -> Box<dyn Transcript>;
}

impl BuildLogs for Logs {
    fn open(&self, env: &EnvRef, number: BuildNumber) -> Box<dyn Transcript> {
        let writer = self.build_writer(env, number).map_err(|error| {
            // A build without a log is still a build.
            tracing::error!(%env, build = %number, "the build log cannot be opened: {error:#}");
        });
        Box::new(LogTranscript(Mutex::new(writer.ok())))
    }
}

/// A build's log; `None` once it is finished, or when it could not be opened.
struct LogTranscript(Mutex<Option<BuildLogWriter>>);

impl Transcript for LogTranscript {
    fn write(&self, bytes: &[u8]) {
        if let Some(writer) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            writer.write(bytes);
        }
    }

    fn finish(&self) {
        let writer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = writer.map(BuildLogWriter::finish) {
            tracing::warn!("a build log could not be closed: {error:#}");
        }
    }
}
