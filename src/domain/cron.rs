//! Jobs that run by the clock: what a release says of them, and what became of each run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{EnvRef, JobName, ReleaseVersion, Timestamp, UserName};

/// A job of a release, as its manifest declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronJob {
    /// Five fields (minute to day of week) or a nickname such as `@daily`; [`crate::plan::schedule::Schedule`] reads it.
    pub schedule: String,
    /// Name in the IANA time zone database that the schedule is read in.
    #[serde(default = "utc")]
    pub timezone: String,
    /// Shell command line, run in the container by the run stack's launcher.
    pub command: String,
    pub overlap: Overlap,
    /// A run that takes longer is ended.
    pub timeout: Duration,
    /// CPU limit in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory limit in bytes.
    pub memory: u64,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// What happens when a job is due while a run of it is under way; Kubernetes' `concurrencyPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The new run is left out (`Forbid`).
    #[default]
    Skip,
    /// The run under way is ended and the new one started.
    Replace,
    /// Both run.
    Allow,
}

impl Overlap {
    /// As manifests write them.
    pub const NAMES: [&'static str; 3] = ["skip", "replace", "allow"];
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CronState {
    /// Begun, or about to.
    Running,
    Succeeded,
    /// `exit`: its exit status (128 + signal number when a signal ended it), if it came to one.
    Failed {
        reason: String,
        exit: Option<i64>,
    },
    /// It was ended before it was over, by no fault of its own: another run replaces it, or the server stops.
    Stopped {
        reason: String,
    },
    /// It was due and was not started.
    Skipped {
        reason: String,
    },
    /// It came due while nobody could start it (the server was down), and too long ago to be started late.
    Missed {
        reason: String,
    },
}

impl CronState {
    /// Whether the run is under way.
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running)
    }

    /// One word, as it is serialised.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Stopped { .. } => "stopped",
            Self::Skipped { .. } => "skipped",
            Self::Missed { .. } => "missed",
        }
    }

    /// Why it is so, where there is something to say.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Failed { reason, .. }
            | Self::Stopped { reason }
            | Self::Skipped { reason }
            | Self::Missed { reason } => Some(reason),
            Self::Running | Self::Succeeded => None,
        }
    }
}

/// One run of a job, or why there was none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronRun {
    pub env: EnvRef,
    pub job: JobName,
    /// Counts up per job, from 1.
    pub number: u64,
    /// The moment of the schedule that it is for; `None` when a person asked for it.
    pub scheduled_at: Option<Timestamp>,
    /// Who asked for it, if a person did.
    #[serde(default)]
    pub requested_by: Option<UserName>,
    pub release: ReleaseVersion,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    #[serde(flatten)]
    pub state: CronState,
    /// How many more moments in a row were left out for the same reason; kept as one record.
    #[serde(default)]
    pub repeats: u64,
    /// Its last lines of output.
    #[serde(default)]
    pub tail: Vec<String>,
}

/// How far the schedule of a job has been dealt with. Written in one commit with the run that it led to, so that no moment of a schedule
/// is dealt with twice, whenever the server dies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronMark {
    pub env: EnvRef,
    pub job: JobName,
    /// Moments of the schedule up to here (inclusive) are dealt with.
    pub considered: Timestamp,
    /// The schedule and time zone that this was of; another one begins anew.
    pub schedule: String,
    pub timezone: String,
    /// The number of the newest run.
    pub last_number: u64,
    /// When the environment was made: one of the same name that was made later begins anew.
    pub env_created_at: Timestamp,
}
