//! What commands ask of the deployer, the build queue, the cron jobs and the server around them, as small as it is; tests put something in
//! memory there.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::platform;
use crate::{
    build::{Builds, BuildsUnderWay, EnqueueError, NewBuild},
    cron::{Begun, Cron, CronRefusal},
    deploy::{CancelFailure, DeployFailure, Deployed, Deployer, Derive, EnvStatus, NewRelease, Progress},
    domain::{AppRef, Build, BuildNumber, EnvRef, JobName, Release, ReleaseVersion, UserName},
    receive::{NewSource, Receive, Refusal},
    store::StoreError,
};

/// Moves environments between releases: the [`Deployer`], whose methods of the same names these are.
#[async_trait]
pub trait Deployments: Send + Sync {
    /// As [`Deployer::derive_release`].
    async fn derive_release(
        &self,
        env: &EnvRef,
        from: ReleaseVersion,
        change: Derive,
        by: &UserName,
        reason: &str,
    ) -> Result<Release, StoreError>;
    /// As [`Deployer::create_target`].
    async fn create_target(&self, new: NewRelease) -> Result<Release, StoreError>;
    /// As [`Deployer::deploy`].
    async fn deploy(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        progress: &dyn Progress,
    ) -> Result<Deployed, DeployFailure>;
    /// As [`Deployer::cancel`].
    async fn cancel(
        &self,
        env: &EnvRef,
        version: Option<ReleaseVersion>,
        by: &UserName,
    ) -> Result<ReleaseVersion, CancelFailure>;
    /// As [`Deployer::status`].
    async fn status(&self, env: &EnvRef) -> Result<EnvStatus, StoreError>;
    /// As [`Deployer::retire`].
    async fn retire(&self, env: &EnvRef) -> anyhow::Result<()>;
    /// As [`Deployer::nudge`].
    fn nudge(&self, env: &EnvRef);
    /// As [`Deployer::await_settled`].
    async fn await_settled(&self, env: &EnvRef, deadline: Duration) -> Result<EnvStatus, EnvStatus>;
    /// As [`Deployer::statuses`].
    async fn statuses(&self) -> Vec<Arc<EnvStatus>>;
    /// As [`Deployer::url`].
    fn url(&self, env: &EnvRef) -> String;
}

#[async_trait]
impl Deployments for Deployer {
    async fn derive_release(
        &self,
        env: &EnvRef,
        from: ReleaseVersion,
        change: Derive,
        by: &UserName,
        reason: &str,
    ) -> Result<Release, StoreError> {
        Self::derive_release(self, env, from, change, by, reason).await
    }

    async fn create_target(&self, new: NewRelease) -> Result<Release, StoreError> {
        Self::create_target(self, new).await
    }

    async fn deploy(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        progress: &dyn Progress,
    ) -> Result<Deployed, DeployFailure> {
        Self::deploy(self, env, version, progress).await
    }

    async fn cancel(
        &self,
        env: &EnvRef,
        version: Option<ReleaseVersion>,
        by: &UserName,
    ) -> Result<ReleaseVersion, CancelFailure> {
        Self::cancel(self, env, version, by).await
    }

    async fn status(&self, env: &EnvRef) -> Result<EnvStatus, StoreError> {
        Self::status(self, env).await
    }

    async fn retire(&self, env: &EnvRef) -> anyhow::Result<()> {
        Self::retire(self, env).await
    }

    fn nudge(&self, env: &EnvRef) {
        Self::nudge(self, env);
    }

    async fn await_settled(&self, env: &EnvRef, deadline: Duration) -> Result<EnvStatus, EnvStatus> {
        Self::await_settled(self, env, deadline).await
    }

    async fn statuses(&self) -> Vec<Arc<EnvStatus>> {
        Self::statuses(self).await
    }

    fn url(&self, env: &EnvRef) -> String {
        Self::url(self, env)
    }
}

/// Queues and ends builds: [`Builds`], whose methods of the same names these are.
#[async_trait]
pub trait BuildQueue: Send + Sync {
    /// As [`Builds::enqueue`].
    async fn enqueue(&self, new: NewBuild) -> Result<Build, EnqueueError>;
    /// As [`Builds::active`].
    async fn active(&self, env: &EnvRef) -> Result<Option<Build>, StoreError>;
    /// As [`Builds::cancel`].
    async fn cancel(&self, env: &EnvRef, number: BuildNumber, reason: &str) -> Result<bool, StoreError>;
    /// As [`Builds::wait`].
    async fn wait(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, StoreError>;
    /// As [`Builds::purge_cache`].
    async fn purge_cache(&self, app: &AppRef) -> anyhow::Result<()>;
    /// As [`Builds::queue`].
    fn queue(&self) -> BuildsUnderWay;
}

#[async_trait]
impl BuildQueue for Builds {
    async fn enqueue(&self, new: NewBuild) -> Result<Build, EnqueueError> {
        Self::enqueue(self, new).await
    }

    async fn active(&self, env: &EnvRef) -> Result<Option<Build>, StoreError> {
        Self::active(self, env).await
    }

    async fn cancel(&self, env: &EnvRef, number: BuildNumber, reason: &str) -> Result<bool, StoreError> {
        Self::cancel(self, env, number, reason).await
    }

    async fn wait(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, StoreError> {
        Self::wait(self, env, number).await
    }

    async fn purge_cache(&self, app: &AppRef) -> anyhow::Result<()> {
        Self::purge_cache(self, app).await
    }

    fn queue(&self) -> BuildsUnderWay {
        Self::queue(self)
    }
}

/// Takes sources in that come without git: [`Receive`], whose method of the same name this is.
#[async_trait]
pub trait Sources: Send + Sync {
    /// As [`Receive::upload`].
    async fn upload(&self, source: NewSource) -> Result<Build, Refusal>;
}

#[async_trait]
impl Sources for Receive {
    async fn upload(&self, source: NewSource) -> Result<Build, Refusal> {
        Self::upload(self, source).await
    }
}

/// Runs jobs that otherwise run by the clock: [`Cron`], whose methods of the same names these are.
#[async_trait]
pub trait CronRuns: Send + Sync {
    /// As [`Cron::run_now`].
    async fn run_now(&self, env: &EnvRef, job: &JobName, by: &UserName) -> Result<Begun, CronRefusal>;
    /// As [`Cron::retire`].
    async fn retire(&self, env: &EnvRef);
    /// As [`Cron::under_way`].
    fn under_way(&self) -> (usize, usize);
}

#[async_trait]
impl CronRuns for Cron {
    async fn run_now(&self, env: &EnvRef, job: &JobName, by: &UserName) -> Result<Begun, CronRefusal> {
        Self::run_now(self, env, job, by).await
    }

    async fn retire(&self, env: &EnvRef) {
        Self::retire(self, env).await;
    }

    fn under_way(&self) -> (usize, usize) {
        Self::under_way(self)
    }
}

/// Looks at what the platform stands on. The server does: it alone knows which engine, registry and router these are.
#[async_trait]
pub trait PlatformStatus: Send + Sync {
    /// How they are now; within [`platform::DEADLINE`], whatever does not answer.
    async fn look(&self) -> platform::Foundations;
}
