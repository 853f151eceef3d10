//! Releases and deployments.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    BuildNumber, CronJob, EnvRef, ImageRef, JobName, OpenSpan, ProcessSpec, ProcessType, Timestamp, TraceContext,
    UpgradePolicy, UserName,
};

/// `v7`: counts up per environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseVersion(pub u64);

impl fmt::Display for ReleaseVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("v{}", self.0))
    }
}

impl FromStr for ReleaseVersion {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('v').unwrap_or(text).parse().ok().filter(|n| *n > 0);
        number.map(Self).ok_or_else(|| format!("{text:?} is not a release; write it as v7"))
    }
}

/// For people: what serves after a deployment that has come to nothing; `serves` is what was deployed with success before.
pub fn still_serving(serves: Option<ReleaseVersion>) -> String {
    match serves {
        Some(version) => format!("{version}, the one before, goes on serving"),
        None => "nothing served before, so nothing serves now".to_owned(),
    }
}

/// Immutable: image + config + process definitions + who, when and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub env: EnvRef,
    pub version: ReleaseVersion,
    pub image: ImageRef,
    /// Commit (40 hexadecimal digits) that the image was built from.
    pub commit: String,
    /// The build that made the image in this environment, if it was made here.
    pub build: Option<BuildNumber>,
    pub config: BTreeMap<String, String>,
    pub processes: BTreeMap<ProcessType, ProcessSpec>,
    /// Command of the release phase: runs once before any replica of this release.
    pub release_command: Option<String>,
    pub upgrade: UpgradePolicy,
    /// Host names from the manifest.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Jobs that run by the clock while this release is the current one.
    #[serde(default)]
    pub cron: BTreeMap<JobName, CronJob>,
    pub created_at: Timestamp,
    pub created_by: UserName,
    /// Why it exists, for people: `push 1a2b3c4`, `config set FOO`, `rollback to v3`.
    pub reason: String,
    /// Whether the release phase of this release has succeeded (or there is none).
    #[serde(default)]
    pub release_phase_done: bool,
    /// How often the release phase was begun: more than once when the server died while it ran.
    #[serde(default)]
    pub release_phase_attempts: u32,
    /// What it was made for, when that has a trace: its deployment is a part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
}

/// Where a deployment stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DeploymentState {
    Running,
    Succeeded,
    /// It did not become healthy, or its release phase failed; the environment went back.
    Failed {
        reason: String,
    },
    /// Somebody cancelled it; the environment went back.
    Cancelled {
        by: UserName,
    },
    /// A newer deployment took its place.
    Superseded {
        by: ReleaseVersion,
    },
}

/// Log lines that the record of a deployment keeps at most.
pub const LAST_LOG_LINES: usize = 20;
/// Characters that are kept of each.
pub const LAST_LOG_LINE_CHARS: usize = 500;

/// The act of moving an environment to a release. Keyed by the release: a release is deployed once; doing it again
/// makes a new release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    pub env: EnvRef,
    pub to: ReleaseVersion,
    pub from: Option<ReleaseVersion>,
    #[serde(flatten)]
    pub state: DeploymentState,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// How far it had come while it was under way, for a server that takes it up; `None`: no further than begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<RolloutProgress>,
    /// The last lines of what failed, in the order in which they were written: plain text, [`LAST_LOG_LINES`] at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_log_lines: Vec<String>,
    /// Its span, when its trace is recorded: a later server goes on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<OpenSpan>,
}

/// How far a deployment under way has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutProgress {
    /// When it last came closer to its end, by the time of day.
    pub at: Timestamp,
    /// How close that was; more is closer.
    pub closest: u32,
    /// Servers that took it up since.
    pub adoptions: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_of_before_is_read() {
        let old = r#"{"env":"acme/shop/dev","to":3,"from":2,"state":"failed","reason":"x",
            "started_at":"2026-01-01T00:00:00Z","finished_at":"2026-01-01T00:00:10Z"}"#;
        let mut deployment: Deployment = serde_json::from_str(old).unwrap();
        assert!(deployment.last_log_lines.is_empty() && deployment.to == ReleaseVersion(3));
        assert!(!serde_json::to_string(&deployment).unwrap().contains("last_log_lines"));
        deployment.last_log_lines = vec!["Error: x".to_owned()];
        let text = serde_json::to_string(&deployment).unwrap();
        assert_eq!(serde_json::from_str::<Deployment>(&text).unwrap(), deployment);
    }
}
