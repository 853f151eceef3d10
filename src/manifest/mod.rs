//! `berth.yaml` and `Procfile` → a validated [`Definition`]. Pure: text in, definition or [`Problem`]s out.
//!
//! A push is read in three steps: [`parse`] the manifest, if there is one, and take [`Manifest::for_environment`] to know
//! how to build; [`parse_procfile`] of the file in the build root; and, when the buildpacks have named their defaults,
//! [`resolve()`] for the processes of the release. Whatever is wrong is found in the first two, before anything is built.

mod checks;
mod cron;
mod layer;
mod procfile;
mod read;
mod reader;
mod resolve;
pub mod schema;
mod source;
mod suggest;
mod template;
mod tree;
mod units;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

pub use checks::MAX_COMMAND;
pub use cron::{CronDefinition, MAX_CRON_JOBS};
pub use layer::Manifest;
pub use procfile::{PROCFILE, parse_procfile};
pub use read::{MAX_PROCESS_TYPES, MAX_REPLICAS};
pub use resolve::{Defaults, release_command, resolve};
pub use schema::schema;
pub use source::{MAX_BYTES, render_problems};
pub use template::template;
pub use units::{format_duration, format_memory};

use crate::domain::{AppRef, JobName, ProcessType, UpgradePolicy};

/// What the manifest is called, at the root of the repository.
pub const FILE_NAME: &str = "berth.yaml";

/// Parses and checks a manifest for all its environments; `file_name` is what messages call it, usually [`FILE_NAME`].
///
/// Takes any bytes, in bounded time: what is too large, too deep, not UTF-8 or not YAML is a [`Problem`] like any other. All
/// problems that can be told apart are reported at once, in the order of the file.
pub fn parse(text: impl AsRef<[u8]>, file_name: &str) -> Result<Manifest, Vec<Problem>> {
    let source = source::Source::open(text.as_ref(), file_name).map_err(|problem| vec![*problem])?;
    read::manifest(&source)
}

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
    /// Jobs that run by the clock.
    pub cron: BTreeMap<JobName, CronDefinition>,
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
    /// Run in the replica's container instead of asking its port.
    pub command: Option<String>,
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
    /// Which character of the excerpt, from 0, stands at `column`.
    pub caret: Option<usize>,
    pub message: String,
    /// What to do next, or a "did you mean".
    pub suggestion: Option<String>,
}
