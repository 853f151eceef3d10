//! From a release to N healthy replicas behind the router: observe → plan → execute, level-triggered; events only nudge.

use std::collections::BTreeMap;

use crate::{
    domain::{
        BuildNumber, EnvRef, ImageRef, ProcessSpec, ProcessType, Release, ReleaseVersion, UpgradePolicy, UserName,
    },
    store::StoreError,
};

/// A release to be made.
#[derive(Debug, Clone)]
pub struct NewRelease {
    pub env: EnvRef,
    pub image: ImageRef,
    pub commit: String,
    pub build: Option<BuildNumber>,
    pub processes: BTreeMap<ProcessType, ProcessSpec>,
    pub release_command: Option<String>,
    pub upgrade: UpgradePolicy,
    pub domains: Vec<String>,
    pub created_by: UserName,
    pub reason: String,
    pub run_release_phase: bool,
}

/// Where a push's (or a command's) output goes.
pub trait Progress: Send + Sync {
    /// `-----> text`
    fn step(&self, text: &str);
    /// `=====> text`
    fn heading(&self, text: &str);
    /// Seven spaces.
    fn detail(&self, text: &str);
    /// ` !     text`
    fn error(&self, text: &str);
    /// Container output as it is.
    fn raw(&self, bytes: &[u8]);
}

/// How a deployment ended well.
#[derive(Debug, Clone)]
pub struct Deployed {
    pub release: ReleaseVersion,
    pub url: String,
    pub healthy: Vec<(ProcessType, u32)>,
    pub timings: Vec<(String, u64)>,
}

/// How a deployment did not.
#[derive(Debug)]
pub enum DeployFailure {
    Failed { release: ReleaseVersion, reason: String, last_log_lines: Vec<String> },
    Superseded { by: ReleaseVersion },
    Store(StoreError),
}

/// Stub.
#[derive(Clone)]
pub struct Deployer {}

impl Deployer {
    /// Stub.
    pub async fn create_release(&self, _new: NewRelease) -> Result<Release, StoreError> {
        Err(StoreError::Failed("stub".into()))
    }
    /// Stub.
    pub async fn deploy(
        &self,
        _env: &EnvRef,
        _version: ReleaseVersion,
        _progress: &dyn Progress,
    ) -> Result<Deployed, DeployFailure> {
        Err(DeployFailure::Store(StoreError::Failed("stub".into())))
    }
    /// Stub.
    pub fn url(&self, _env: &EnvRef) -> String {
        String::new()
    }
}
