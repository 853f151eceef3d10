//! What a process of a release is to run like.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One process type of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Shell command line, run in the container by the run stack's launcher.
    pub command: String,
    /// Number of replicas wanted unless `scale` says otherwise.
    pub replicas: u32,
    /// CPU limit in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory limit in bytes.
    pub memory: u64,
    /// The port that the process listens on, and the value of `PORT`.
    pub port: u16,
    pub health: Health,
}

/// When a replica counts as ready and alive. Names follow Marathon's health checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub probe: HealthProbe,
    /// Time between two probes of a ready replica.
    pub interval: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// How long after its start a replica may be not ready before that counts as a failure.
    pub grace: Duration,
    /// Consecutive failures after which a replica is replaced.
    pub failures: u32,
}

/// How readiness is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthProbe {
    /// It runs (processes other than web).
    Running,
    /// Its port takes a TCP connection.
    Tcp,
    /// `GET path` answers 200–399.
    Http { path: String },
    /// A shell command line, run in the replica's container, ends with status 0.
    Command { command: String },
}

/// How a deployment replaces replicas; Marathon's `upgradeStrategy` with a deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradePolicy {
    /// Share of the wanted replicas kept healthy throughout, percent, 0–100.
    pub min_healthy: u32,
    /// Share of the wanted replicas that may run in addition, percent.
    pub max_over: u32,
    /// Without progress for this long, the deployment fails and is rolled back.
    pub progress_deadline: Duration,
}

impl Default for UpgradePolicy {
    fn default() -> Self {
        Self { min_healthy: 100, max_over: 100, progress_deadline: Duration::from_secs(600) }
    }
}
