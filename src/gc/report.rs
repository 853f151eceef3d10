//! What went, or would go.

use std::collections::BTreeMap;

use serde::Serialize;

/// Things that are named one by one; more are only counted.
const NAMED: usize = 2000;

/// What kind of thing went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Release,
    Build,
    BuildLog,
    Pin,
    /// A commit that was promoted, of which no build and no release is left.
    Promoted,
    /// What could be reused of a build whose image goes.
    ReuseRecord,
    RegistryImage,
    EngineImage,
    BuildCache,
    Buildpack,
    /// Of an environment that is not there any more.
    Repository,
    Log,
    /// Packs that became one.
    Repack,
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "releases",
            Self::Build => "builds",
            Self::BuildLog => "build logs",
            Self::Pin => "pinned commits",
            Self::Promoted => "promoted commits",
            Self::ReuseRecord => "reuse records",
            Self::RegistryImage => "images in the registry",
            Self::EngineImage => "images on the engine",
            Self::BuildCache => "build caches",
            Self::Buildpack => "fetched buildpacks",
            Self::Repository => "repositories of no environment",
            Self::Log => "logs of no environment",
            Self::Repack => "repositories packed anew",
        }
    }
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Gone {
    pub kind: Kind,
    pub name: String,
}

/// How many of a kind, and how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sum {
    pub count: u64,
    pub bytes: u64,
}

/// What a collection did, or with `dry_run` would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    pub dry_run: bool,
    /// At most 2000 of them.
    pub gone: Vec<Gone>,
    pub sums: BTreeMap<Kind, Sum>,
    /// Milliseconds; while the registry was read-only, and in all.
    pub registry_millis: u64,
    pub millis: u64,
    /// What could not be taken, and goes the next time.
    pub failures: Vec<String>,
}

impl Report {
    /// Notes one thing.
    pub(super) fn add(&mut self, kind: Kind, name: impl Into<String>, bytes: u64) {
        let sum = self.sums.entry(kind).or_default();
        sum.count += 1;
        sum.bytes += bytes;
        if self.gone.len() < NAMED {
            self.gone.push(Gone { kind, name: name.into() });
        }
    }

    /// Notes bytes of a kind that belong to no single thing.
    pub(super) fn add_bytes(&mut self, kind: Kind, bytes: u64) {
        if bytes > 0 {
            self.sums.entry(kind).or_default().bytes += bytes;
        }
    }

    pub(super) fn fail(&mut self, what: &str, error: impl Into<anyhow::Error>) {
        let text = format!("{what}: {:#}", error.into());
        tracing::warn!("{text}; trying again at the next collection");
        if self.failures.len() < NAMED {
            self.failures.push(text);
        }
    }

    /// Bytes in all. Layers that images on the engine share count more than once.
    pub fn bytes(&self) -> u64 {
        self.sums.values().map(|sum| sum.bytes).sum()
    }

    /// Things in all.
    pub fn count(&self) -> u64 {
        self.sums.values().map(|sum| sum.count).sum()
    }
}
