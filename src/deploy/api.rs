//! What callers of the deployer say and hear.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Serialize;

use super::domains::Given;
use crate::domain::{
    BuildNumber, CronJob, Deployment, EnvRef, ImageRef, JobName, ProcessSpec, ProcessType, ReleaseVersion,
    ReplicaState, Timestamp, TraceContext, UpgradePolicy, UserName,
};
use crate::{store::StoreError, traces::Traces};

/// How the deployer works; from the server's configuration.
#[derive(Debug, Clone)]
pub struct DeploySettings {
    /// Environments answer below this domain.
    pub base_domain: String,
    /// Host names at which the platform itself is reached: no app gets them.
    pub own_hosts: Vec<String>,
    /// Port of the router, for URLs.
    pub router_port: u16,
    /// `http` or `https`, for URLs.
    pub public_scheme: &'static str,
    /// `DATA/router`.
    pub router_dir: PathBuf,
    /// How long requests of a replica that is to be stopped may go on.
    pub drain_timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// The same for a release phase when the server stops, if that is less: a server has to end in time.
    pub shutdown_grace: Duration,
    /// How long a router that does not acknowledge is waited for. After that nothing can be known of it, and a deployment goes on.
    pub ack_timeout: Duration,
    /// How long a process without a port must have run to count as ready: long enough for a wrong command, a missing module or missing
    /// configuration to end it (well below a second for Node and Python), short enough to wait for in every push.
    pub stability: Duration,
    /// How long a release phase may take.
    pub release_phase_timeout: Duration,
    /// Processes and threads per replica.
    pub pids: u32,
    /// Replicas of a release that may die before any of its process type was ready; then the deployment has failed.
    pub crashes: u32,
    /// Where it is told what took how long.
    pub traces: Traces,
}

impl DeploySettings {
    /// Host names that no environment can ask for.
    pub(super) fn given(&self) -> Given {
        Given { base: self.base_domain.clone(), own: self.own_hosts.clone() }
    }
}

impl Default for DeploySettings {
    fn default() -> Self {
        Self {
            base_domain: "localhost".to_owned(),
            own_hosts: Vec::new(),
            router_port: 8080,
            public_scheme: "http",
            router_dir: PathBuf::from("/var/lib/berth/router"),
            drain_timeout: Duration::from_secs(30),
            stop_grace: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(12),
            ack_timeout: Duration::from_secs(5),
            stability: Duration::from_secs(1),
            release_phase_timeout: Duration::from_secs(900),
            pids: 1024,
            crashes: 3,
            traces: Traces::off(),
        }
    }
}

/// A release to be made. Its configuration is the environment's at that moment.
#[derive(Debug, Clone)]
pub struct NewRelease {
    pub env: EnvRef,
    pub image: ImageRef,
    /// 40 hexadecimal digits.
    pub commit: String,
    pub build: Option<BuildNumber>,
    pub processes: BTreeMap<ProcessType, ProcessSpec>,
    pub release_command: Option<String>,
    pub upgrade: UpgradePolicy,
    pub domains: Vec<String>,
    pub cron: BTreeMap<JobName, CronJob>,
    pub created_by: UserName,
    /// For people: `push 1a2b3c4`.
    pub reason: String,
    /// Whether the release phase is to run: for new code, not for new configuration.
    pub run_release_phase: bool,
    /// What its deployment is a part of; `None`: of nothing, or there are no traces.
    pub trace: Option<TraceContext>,
}

/// How a derived release differs from the one it is made from.
///
/// Either way the release's configuration becomes the environment's in the same transaction; should the release fail, the environment
/// goes back to that of the release that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Derive {
    /// Only in its configuration: the environment's with these changes (`None`: without that variable).
    Config(BTreeMap<String, Option<String>>),
    /// In nothing (a rollback).
    Everything,
}

/// A deployment that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    pub release: ReleaseVersion,
    pub url: String,
    /// Ready replicas by process type.
    pub healthy: Vec<(ProcessType, u32)>,
    /// Milliseconds by stage, in order.
    pub timings: Vec<(String, u64)>,
}

/// A deployment that does not.
#[derive(Debug, thiserror::Error)]
pub enum DeployFailure {
    /// It did not become healthy, or its release phase failed. What served before still does.
    #[error("{release} was not deployed: {reason}")]
    Failed { release: ReleaseVersion, reason: String, last_log_lines: Vec<String> },
    /// A newer release took its place.
    #[error("superseded by {by}")]
    Superseded { by: ReleaseVersion },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An environment as it runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EnvStatus {
    pub env: EnvRef,
    /// The release that should run, and the one that was last deployed with success.
    pub target: Option<ReleaseVersion>,
    pub current: Option<ReleaseVersion>,
    pub processes: Vec<ProcessStatus>,
    /// The deployment under way.
    pub deployment: Option<Deployment>,
    /// What the process types wait for, and since when.
    pub why: Vec<WaitStatus>,
    /// What is waited for and why, one line each; also what is wrong (the engine or the router does not answer, a domain is taken).
    pub waits: Vec<String>,
    /// What runs is what should.
    pub settled: bool,
}

/// One process type as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessStatus {
    pub process: ProcessType,
    /// Replicas wanted.
    pub wanted: u32,
    /// Replicas of the wanted release that are ready.
    pub ready: u32,
    /// Some of them die again and again.
    pub crash_looping: bool,
    pub replicas: Vec<ReplicaStatus>,
}

impl ProcessStatus {
    /// Replicas that serve, of whichever release, up to as many as are wanted: a push under way takes nothing from them.
    pub fn serving(&self) -> u32 {
        let ready = self.replicas.iter().filter(|replica| replica.health == ReplicaHealth::Ready).count();
        u32::try_from(ready).unwrap_or(u32::MAX).min(self.wanted)
    }
}

/// One replica as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicaStatus {
    pub index: u32,
    pub release: ReleaseVersion,
    #[serde(flatten)]
    pub state: ReplicaState,
    pub health: ReplicaHealth,
    /// Since when it has been so (`health`), by the time of day.
    pub since: Timestamp,
    pub started_at: Option<Timestamp>,
    /// Why it is not ready, in words.
    pub reason: Option<String>,
}

/// What a replica is worth, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaHealth {
    Starting,
    Ready,
    Unhealthy,
    Stopping,
    Exited,
    /// Ended because it used more memory than it may.
    OomKilled,
    /// Ended, as the ones before it.
    CrashLooping,
}

/// What a process type waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaitStatus {
    pub process: ProcessType,
    /// New replicas that serve, and that are wanted.
    pub ready: u32,
    pub wanted: u32,
    /// In words.
    pub why: String,
    /// Since when it has been waiting for that, by the time of day.
    pub since: Timestamp,
    /// When the waiting ends by itself: the next start after crashes, or when the deployment is given up.
    pub until: Option<Timestamp>,
}

/// Why no deployment was cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelFailure {
    /// None is under way.
    #[error("no deployment is under way")]
    Idle,
    /// The one under way is to another release.
    #[error("the deployment under way is that of {0}")]
    Other(ReleaseVersion),
    /// The environment's actor is busy or the deployer stops.
    #[error("the deployer does not answer in time; try again")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EnvStatus {
    /// The status of an environment nothing is known of yet.
    pub(crate) fn unknown(env: EnvRef, why: &str) -> Self {
        Self {
            env,
            target: None,
            current: None,
            processes: Vec::new(),
            deployment: None,
            why: Vec::new(),
            waits: vec![why.to_owned()],
            settled: false,
        }
    }
}
