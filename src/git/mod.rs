//! Bare repositories, one per environment, and reading what was pushed.
//!
//! git's own `receive-pack` and `upload-pack` speak the wire protocol (in `wire`); git2 reads trees. A repository's path is made
//! from parsed names only.

use std::path::{Path, PathBuf};

use crate::domain::EnvRef;

/// Where the repositories are. Clones share it.
#[derive(Debug, Clone)]
pub struct Repositories {
    root: PathBuf,
}

impl Repositories {
    /// Repositories below `root` (`DATA/repositories`).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The bare repository of an environment: `ROOT/TENANT/APP/ENV.git`. It may not exist.
    pub fn path(&self, env: &EnvRef) -> PathBuf {
        let app = self.root.join(env.tenant.as_str()).join(env.app.as_str());
        app.join(format!("{}.git", env.env))
    }

    /// The directory that holds them all.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
