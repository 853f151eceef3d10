//! Bare repositories, one per environment, and reading what was pushed.
//!
//! git's own `receive-pack` and `upload-pack` speak the wire protocol (in [`wire`]); git2 reads trees. A repository's path is made
//! from parsed names only. Every git process gets the configuration in [`settings`] and nothing of the host's.

mod bundle;
mod clean;
pub mod idle;
mod import;
mod limits;
mod objects;
mod refs;
pub mod settings;
mod share;
mod tree;
mod upkeep;
mod uses;
pub mod wire;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use git2::{Oid, Repository, RepositoryInitOptions};

use uses::Uses;

use crate::domain::EnvRef;

pub use bundle::{Refs, full_commit};
pub use import::{Author, ImportError, ImportLimits, Quarantined};
pub use refs::{Moved, PINS, is_branch, pin_name, short_branch};
pub use settings::{Git, GitVersion, MIN_VERSION};
pub use tree::{MAX_COMMIT, Obstacle, commit_obstacle, is_cut_off};
pub use uses::{Owned, Used};

/// Why a repository could not be made, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The file system refused.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// libgit2 refused: damaged repository, missing object.
    #[error("{what}: {}", source.message())]
    Git { what: String, source: git2::Error },
}

impl GitError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
    pub(crate) fn git(what: impl Into<String>) -> impl FnOnce(git2::Error) -> Self {
        let what = what.into();
        move |source| Self::Git { what, source }
    }
}

/// Where the repositories are. Clones share it. Everything here blocks on the disk: call it from a blocking task.
#[derive(Debug, Clone)]
pub struct Repositories {
    root: PathBuf,
    /// Held while a `HEAD` is changed: libgit2 does not wait for the lock of a ref, it fails.
    heads: Arc<Mutex<()>>,
    uses: Uses,
}

impl Repositories {
    /// Repositories below `root` (`DATA/repositories`).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), heads: Arc::default(), uses: Uses::default() }
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

    /// Makes the environment's repository if it is not there: made aside, synced, then renamed into place, so that a half-made one
    /// is never seen. `HEAD` is `main` until the first push says otherwise.
    pub fn ensure(&self, env: &EnvRef) -> Result<PathBuf, GitError> {
        let path = self.path(env);
        if path.join("HEAD").is_file() {
            return Ok(path);
        }
        let what = || format!("the repository of {env} cannot be made");
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(GitError::io(what()))?;
        // A name that no tenant can have; removed when it is dropped before the rename.
        let aside = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.root).map_err(GitError::io(what()))?;
        let fresh = aside.path().join("repository.git");
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false).initial_head("main");
        Repository::init_opts(&fresh, &options).map_err(GitError::git(what()))?;
        // libgit2's samples; the hooks that run are in core.hooksPath.
        fs::remove_dir_all(fresh.join("hooks")).map_err(GitError::io(what()))?;
        sync_tree(&fresh).map_err(GitError::io(what()))?;
        match fs::rename(&fresh, &path) {
            Ok(()) => sync_directory(parent).map_err(GitError::io(what()))?,
            // Somebody else made it meanwhile.
            Err(_) if path.join("HEAD").is_file() => {}
            Err(error) => return Err(GitError::io(what())(error)),
        }
        Ok(path)
    }

    /// Removes the environment's repository; that there is none is no error. It is gone at once, by a rename.
    pub fn remove(&self, env: &EnvRef) -> Result<(), GitError> {
        let path = self.path(env);
        let what = || format!("the repository of {env} cannot be removed");
        if !path.exists() {
            return Ok(());
        }
        let aside = tempfile::Builder::new().prefix(".old-").tempdir_in(&self.root).map_err(GitError::io(what()))?;
        fs::rename(&path, aside.path().join("repository.git")).map_err(GitError::io(what()))?;
        for parent in path.ancestors().skip(1).take_while(|parent| *parent != self.root) {
            // Only empty ones go.
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
        aside.close().map_err(GitError::io(what()))
    }
}

/// A bare repository, with the objects of a push that is still in quarantine when `extra_objects` names that directory.
pub fn open(repository: &Path, extra_objects: Option<&Path>) -> Result<Repository, GitError> {
    let what = || format!("the repository {} cannot be read", repository.display());
    let opened = Repository::open_bare(repository).map_err(GitError::git(what()))?;
    if let Some(extra) = extra_objects {
        let extra = extra.to_str().unwrap_or_default();
        let odb = opened.odb().map_err(GitError::git(what()))?;
        odb.add_disk_alternate(extra).map_err(GitError::git(what()))?;
    }
    Ok(opened)
}

/// An object id of exactly 40 hexadecimal digits.
pub(crate) fn full_id(text: &str) -> Result<Oid, GitError> {
    let malformed = || git2::Error::from_str("not 40 hexadecimal digits");
    if text.len() != 40 {
        return Err(GitError::git(format!("{text:.50?} is no object id"))(malformed()));
    }
    Oid::from_str(text).map_err(GitError::git(format!("{text:.50?} is no object id")))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(path)
}

#[cfg(test)]
mod tests;
