//! Builds: one run of the pipeline for one push.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{EnvRef, ImageRef, OpenSpan, ReleaseVersion, Timestamp, UserName};

/// Counts up per environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildNumber(pub u64);

impl fmt::Display for BuildNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl FromStr for BuildNumber {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('#').unwrap_or(text).parse().ok().filter(|n| *n > 0);
        number.map(Self).ok_or_else(|| format!("{text:?} is not a build number"))
    }
}

/// Where a build stands: queued → running → succeeded | failed | cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BuildState {
    Queued,
    Running { stage: Stage },
    Succeeded,
    Failed { reason: String },
    Cancelled { reason: String },
}

impl BuildState {
    /// Whether nothing more will happen to it.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Queued | Self::Running { .. })
    }
}

/// What a running build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Source to image in the registry.
    Build,
    /// Image to release to healthy replicas.
    Deploy,
}

/// Where a queued build stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlace {
    /// Builds that wait before it.
    pub ahead: usize,
    /// Builds that run.
    pub running: usize,
}

impl fmt::Display for QueuePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} before it, {} running", self.ahead, self.running)
    }
}

/// One run of the pipeline: a push of `commit` to `env`, from accepted to live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub env: EnvRef,
    pub number: BuildNumber,
    /// Commit being built, 40 hexadecimal digits; pinned by `refs/berth/builds/NUMBER`.
    pub commit: String,
    /// The branch that will point at the commit when the push is accepted, as in `refs/heads/main`; `None` when no ref is to move
    /// (`redeploy`).
    pub branch: Option<String>,
    /// Where that branch pointed before (40 hexadecimal digits, zeros for "did not exist").
    pub old_commit: Option<String>,
    #[serde(flatten)]
    pub state: BuildState,
    pub queued_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub pushed_by: UserName,
    /// `-o no-cache`: build from nothing.
    #[serde(default)]
    pub no_cache: bool,
    /// `-o detach`: nobody waits, and the branch has moved already.
    #[serde(default)]
    pub detached: bool,
    /// Set once the image is in the registry.
    pub image: Option<ImageRef>,
    /// Set once the release exists.
    pub release: Option<ReleaseVersion>,
    /// Milliseconds spent, stage by stage, in order: `("receive", 12)`.
    #[serde(default)]
    pub timings: Vec<(String, u64)>,
    /// Servers that went down while they built it.
    #[serde(default)]
    pub interruptions: u32,
    /// Why it is to be cancelled. Written before anything is done about it, so that no later server goes on with the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelling: Option<String>,
    /// It was not let begin (yet): its push is still being looked at, or was refused.
    #[serde(default)]
    pub held: bool,
    /// What was to become of its branch after its success has been done.
    #[serde(default)]
    pub settled: bool,
    /// The span of the whole push, when its trace is recorded: a later server goes on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<OpenSpan>,
}
