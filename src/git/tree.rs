//! What in a pushed commit cannot be built, apart from what its files say.

use std::path::Path;

use git2::{ObjectType, Oid, Repository};

use super::{GitError, full_id, open};

/// Why a pushed object cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// A branch must point at a commit.
    NotACommit,
    /// There is nothing in the commit.
    EmptyTree,
    /// The history is cut off (a shallow clone) where the server does not know the rest.
    Shallow,
}

/// What stands in the way of building `commit`, whose objects may be in quarantine (`extra_objects`).
pub fn commit_obstacle(
    repository: &Path,
    extra_objects: Option<&Path>,
    commit: &str,
) -> Result<Option<Obstacle>, GitError> {
    let repository = open(repository, extra_objects)?;
    let id = full_id(commit)?;
    let Ok(commit) = repository.find_commit(id) else { return Ok(Some(Obstacle::NotACommit)) };
    let tree = commit.tree().map_err(GitError::git(format!("commit {id} cannot be read")))?;
    Ok(tree.is_empty().then_some(Obstacle::EmptyTree))
}

/// Whether a push from a shallow clone lacks history that the repository does not have either. `tips` are the pushed objects.
pub fn is_cut_off(repository: &Path, extra_objects: Option<&Path>, tips: &[&str]) -> Result<bool, GitError> {
    let repository = open(repository, extra_objects)?;
    for tip in tips {
        let id = full_id(tip)?;
        let commit = repository.find_object(id, None).and_then(|object| object.peel(ObjectType::Commit));
        // A tag of a blob or tree has no history.
        if let Ok(commit) = commit
            && !history_is_whole(&repository, commit.id())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether every parent of every commit that no ref reaches yet is there.
fn history_is_whole(repository: &Repository, commit: Oid) -> bool {
    let walk = || -> Result<(), git2::Error> {
        let mut walk = repository.revwalk()?;
        walk.push(commit)?;
        walk.hide_glob("refs/*")?;
        for id in walk {
            for parent in repository.find_commit(id?)?.parent_ids() {
                repository.find_commit(parent)?;
            }
        }
        Ok(())
    };
    walk().is_ok()
}
