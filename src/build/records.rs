//! What builds remember, so as not to do it again. Losing any of it costs time, never correctness.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::slug::LayerRef;
use crate::{
    domain::{AppRef, BuildNumber, Digest, EnvRef, ImageRef, ProcessType, Timestamp},
    store::Record,
};

/// Repositories that a layer is remembered for.
const REPOSITORIES: usize = 256;

/// A layer that is in the registry, found by its uncompressed content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    pub layer: LayerRef,
    /// When it was pushed; the beginning of time for a record from before this was noted.
    #[serde(default)]
    pub made_at: Timestamp,
    /// Repositories that show it.
    pub repositories: Vec<String>,
}

impl LayerRecord {
    /// Made now, in no repository yet.
    pub fn new(layer: LayerRef) -> Self {
        Self { layer, made_at: Timestamp::now(), repositories: Vec::new() }
    }

    /// Whether the repository shows it.
    pub fn is_in(&self, repository: &str) -> bool {
        self.repositories.iter().any(|known| known == repository)
    }

    /// Notes that the repository shows it.
    pub fn add(&mut self, repository: &str) {
        if !self.is_in(repository) {
            if self.repositories.len() >= REPOSITORIES {
                self.repositories.remove(0);
            }
            self.repositories.push(repository.to_owned());
        }
    }
}

impl Record for LayerRecord {
    type Id = Digest;
    const KIND: &'static str = "layer";
    fn id_key(id: &Digest) -> String {
        id.hex().to_owned()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.layer.diff_id)
    }
}

/// A whole slug, found by everything that went into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlugRecord {
    pub app: AppRef,
    /// Digest of what went in: tree, buildpacks, stacks, build variables.
    pub key: Digest,
    pub image: ImageRef,
    /// What the buildpack would start, by process type.
    pub defaults: BTreeMap<ProcessType, String>,
    /// Buildpacks that ran.
    pub buildpacks: Vec<String>,
    /// The environment and build that made it.
    pub env: EnvRef,
    pub build: BuildNumber,
    pub made_at: Timestamp,
}

impl Record for SlugRecord {
    type Id = (AppRef, Digest);
    const KIND: &'static str = "slug";
    fn id_key((app, key): &Self::Id) -> String {
        format!("{app}/{}", key.hex())
    }
    fn own_key(&self) -> String {
        format!("{}/{}", self.app, self.key.hex())
    }
}

/// The results of an app's compile steps with one set of buildpacks, stacks and build variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompileRecord {
    pub app: AppRef,
    /// Digest of buildpacks, stacks, build variables and root.
    pub key: Digest,
    /// Newest last.
    pub results: Vec<CompileResult>,
}

/// Results kept of one app: environments and branches with different dependencies.
const RESULTS: usize = 6;

/// What a compile step made, and of which source files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompileResult {
    /// As in [`LayerRecord::made_at`].
    #[serde(default)]
    pub made_at: Timestamp,
    /// Globs of the files that the result depends on.
    pub inputs: Vec<String>,
    /// Paths that the source layer leaves out.
    pub shadow: Vec<String>,
    /// Digest over the files that match.
    pub digest: Digest,
    /// Layers between the stack and the source, from the bottom.
    pub layers: Vec<LayerRef>,
    /// Bytes of their files.
    pub files_size: u64,
    pub defaults: BTreeMap<ProcessType, String>,
    pub buildpacks: Vec<String>,
}

impl CompileRecord {
    /// Adds a result; one of the same inputs is replaced, the oldest goes.
    pub fn add(&mut self, result: CompileResult) {
        self.results.retain(|other| other.digest != result.digest || other.inputs != result.inputs);
        self.results.push(result);
        let surplus = self.results.len().saturating_sub(RESULTS);
        self.results.drain(..surplus);
    }
}

impl Record for CompileRecord {
    type Id = (AppRef, Digest);
    const KIND: &'static str = "compile";
    fn id_key((app, key): &Self::Id) -> String {
        format!("{app}/{}", key.hex())
    }
    fn own_key(&self) -> String {
        format!("{}/{}", self.app, self.key.hex())
    }
}
