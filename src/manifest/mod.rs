//! `berth.yaml` and `Procfile` → a validated [`Definition`]. Pure: text in, definition or [`Problem`]s out.

use std::{collections::BTreeMap, time::Duration};

use crate::domain::{AppRef, EnvName, ProcessType, UpgradePolicy};

/// What a tree says about how to build and run it, for one environment: defaults filled in, overrides merged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Definition {
    /// `app:`; must match the remote when present.
    pub app: Option<AppRef>,
    /// `auth:`; the project token.
    pub auth: Option<String>,
    pub build: BuildDefinition,
    /// Declared process types, from the manifest or else the Procfile. Empty when neither names any: the buildpack's default then applies.
    pub processes: BTreeMap<ProcessType, ProcessDefinition>,
    /// `release:`, or the Procfile's `release:` line.
    pub release: Option<String>,
    pub upgrade: UpgradePolicy,
    /// Host names for this environment.
    pub domains: Vec<String>,
}

/// `build:`.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct BuildDefinition {
    /// Directory within the repository, `/`-separated, no leading slash, no `..`; empty for the root.
    pub root: String,
    /// Names or git URLs; empty: detect.
    pub buildpacks: Vec<String>,
    /// Variables that the build sees.
    pub env: BTreeMap<String, String>,
}

/// One process type as declared; what is not said is filled from the platform's defaults by [`ProcessDefinition::to_spec`].
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessDefinition {
    pub command: String,
    /// `None`: 1 for `web`; for other types 1 when the manifest declares them, 0 when only a Procfile or buildpack does.
    pub replicas: Option<u32>,
    pub cpu_millis: Option<u32>,
    pub memory: Option<u64>,
    pub port: Option<u16>,
    pub health: Option<HealthDefinition>,
    /// Whether the manifest (not merely the Procfile or a buildpack) declares it.
    pub declared: bool,
}

/// `health:`; each part may be left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HealthDefinition {
    pub path: Option<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub grace: Option<Duration>,
    pub failures: Option<u32>,
}

/// Something wrong with a manifest or Procfile, placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File name as in the repository.
    pub file: String,
    /// From 1; `None` when the problem has no one place.
    pub line: Option<usize>,
    pub column: Option<usize>,
    /// The offending line, cleaned of control characters and cut to a sane width.
    pub excerpt: Option<String>,
    pub message: String,
    /// What to do next, or a "did you mean".
    pub suggestion: Option<String>,
}

/// Environments that a manifest names, for messages.
pub type EnvironmentNames = Vec<EnvName>;
