//! Branches and the pins that keep the commits of builds.

use std::{fs, io, path::Path, sync::PoisonError};

use git2::{ErrorCode, Oid, Repository};

use super::{GitError, Repositories, full_id, open, sync_directory};
use crate::domain::{BuildNumber, EnvRef};

/// How an attempt to move a branch went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// It points at the new commit now.
    Yes,
    /// It did already.
    Already,
    /// It points elsewhere than expected, at this commit (`None`: there is no such branch); it was left alone.
    Elsewhere(Option<String>),
}

/// Where the hidden refs are that keep the commits of builds.
pub const PINS: &str = "refs/berth/builds/";

/// The hidden ref that keeps a build's commit: `refs/berth/builds/NUMBER`.
pub fn pin_name(number: BuildNumber) -> String {
    format!("{PINS}{number}")
}

/// Whether the full ref name is a branch that git would take.
pub fn is_branch(name: &str) -> bool {
    name.starts_with("refs/heads/") && git2::Reference::is_valid_name(name)
}

/// `refs/heads/main` → `main`; other names as they are.
pub fn short_branch(name: &str) -> &str {
    name.strip_prefix("refs/heads/").unwrap_or(name)
}

impl Repositories {
    /// Keeps the commit of a build from garbage collection, durably. Its objects must be in the repository.
    pub fn pin(&self, env: &EnvRef, number: BuildNumber, commit: &str) -> Result<(), GitError> {
        let what = || format!("commit {commit} of {env} cannot be pinned");
        let repository = open(&self.path(env), None)?;
        let name = pin_name(number);
        repository.reference(&name, full_id(commit)?, true, "build").map_err(GitError::git(what()))?;
        sync_reference(&repository, &name).map_err(GitError::io(what()))
    }

    /// Makes durable what a push has done to the references: git syncs what it writes into their files, and leaves it to chance when the
    /// renaming that puts a file into force comes to the disk.
    pub fn sync_references(&self, env: &EnvRef) -> Result<(), GitError> {
        let root = self.path(env);
        let sync = || -> io::Result<()> {
            // A directory after those in it, as they could be new.
            let mut found = vec![root.join("refs")];
            let mut next = 0;
            while let Some(directory) = found.get(next).cloned() {
                next += 1;
                // git takes directories away that have become empty.
                let Some(entries) = if_there(fs::read_dir(&directory))? else { continue };
                for entry in entries {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        found.push(entry.path());
                    }
                }
            }
            found.iter().rev().try_for_each(|directory| if_there(sync_directory(directory)).map(drop))?;
            sync_directory(&root)
        };
        sync().map_err(GitError::io(format!("what was pushed to {env} cannot be made durable")))
    }

    /// Points `branch` (a full name) at `new` if it points at `old` now (zeros: if it does not exist), durably.
    pub fn move_branch(&self, env: &EnvRef, branch: &str, old: &str, new: &str) -> Result<Moved, GitError> {
        let what = || format!("the branch {} of {env} cannot be moved", short_branch(branch));
        let repository = open(&self.path(env), None)?;
        let (old, new) = (full_id(old)?, full_id(new)?);
        let now = repository.refname_to_id(branch).ok();
        if now == Some(new) {
            return Ok(Moved::Already);
        }
        if now.unwrap_or(Oid::ZERO_SHA1) != old {
            return Ok(Moved::Elsewhere(now.map(|id| id.to_string())));
        }
        let moved = match now {
            Some(current) => repository.reference_matching(branch, new, true, current, "push"),
            None => repository.reference(branch, new, false, "push"),
        };
        match moved {
            Ok(_) => {}
            Err(error) if matches!(error.code(), ErrorCode::Modified | ErrorCode::Exists | ErrorCode::Locked) => {
                let now = repository.refname_to_id(branch).ok().map(|id| id.to_string());
                return Ok(Moved::Elsewhere(now));
            }
            Err(error) => return Err(GitError::git(what())(error)),
        }
        sync_reference(&repository, branch).map_err(GitError::io(what()))?;
        Ok(Moved::Yes)
    }

    /// The commit that a branch (full name) points at.
    pub fn branch_commit(&self, env: &EnvRef, branch: &str) -> Result<Option<String>, GitError> {
        let repository = open(&self.path(env), None)?;
        Ok(repository.refname_to_id(branch).ok().map(|id| id.to_string()))
    }

    /// Makes `branch` (full name) what a clone checks out.
    pub fn set_head(&self, env: &EnvRef, branch: &str) -> Result<(), GitError> {
        let what = || format!("HEAD of {env} cannot be set to {}", short_branch(branch));
        let repository = open(&self.path(env), None)?;
        let _one_at_a_time = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let now = repository.find_reference("HEAD").map_err(GitError::git(what()))?;
        if now.symbolic_target().ok().flatten() == Some(branch) {
            return Ok(());
        }
        repository.set_head(branch).map_err(GitError::git(what()))?;
        sync_reference(&repository, "HEAD").map_err(GitError::io(what()))
    }
}

fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// libgit2 renames a ref into place without syncing it.
fn sync_reference(repository: &Repository, name: &str) -> io::Result<()> {
    let file = repository.path().join(name);
    match fs::File::open(&file) {
        Ok(file) => file.sync_all()?,
        // Packed meanwhile; git syncs what it packs.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let inside = |directory: &&Path| directory.starts_with(repository.path());
    file.ancestors().skip(1).take_while(inside).try_for_each(sync_directory)
}
