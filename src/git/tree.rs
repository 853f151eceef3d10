//! What in a pushed commit cannot be built, apart from what its files say.

use std::path::Path;

use git2::{ObjectType, Oid, Repository};

use super::{GitError, full_id, open};

/// The largest commit or tag object that is read, bytes; it is almost all message.
pub const MAX_COMMIT: usize = 1 << 20;
/// Tags of tags that are followed.
const TAGS_OF_TAGS: usize = 10;
/// The id of a tree without entries.
const EMPTY_TREE: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";

/// Why a pushed object cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// A branch must point at a commit.
    NotACommit,
    /// The commit object itself is larger than [`MAX_COMMIT`].
    HugeCommit,
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
    let what = || format!("commit {id} cannot be read");
    match repository.odb().and_then(|odb| odb.read_header(id)) {
        Ok((size, ObjectType::Commit)) if size > MAX_COMMIT => return Ok(Some(Obstacle::HugeCommit)),
        Ok((_, ObjectType::Commit)) => {}
        _ => return Ok(Some(Obstacle::NotACommit)),
    }
    let commit = repository.find_commit(id).map_err(GitError::git(what()))?;
    Ok((commit.tree_id().to_string() == EMPTY_TREE).then_some(Obstacle::EmptyTree))
}

/// The commit that an object is or, as a tag, is put on. What is read is looked at first: anything can be tagged, a blob larger than the
/// host's memory as well.
fn commit_of(repository: &Repository, object: Oid) -> Result<Option<Oid>, git2::Error> {
    let mut id = object;
    for _ in 0..TAGS_OF_TAGS {
        match repository.odb()?.read_header(id)? {
            (_, ObjectType::Commit) => return Ok(Some(id)),
            (size, ObjectType::Tag) if size <= MAX_COMMIT => id = repository.find_tag(id)?.target_id(),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Whether a push from a shallow clone lacks history that the repository does not have either. `tips` are the pushed objects.
pub fn is_cut_off(repository: &Path, extra_objects: Option<&Path>, tips: &[&str]) -> Result<bool, GitError> {
    let repository = open(repository, extra_objects)?;
    for tip in tips {
        // A tag of a blob or tree has no history.
        if let Ok(Some(commit)) = commit_of(&repository, full_id(tip)?)
            && !history_is_whole(&repository, commit)
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
        for known in repository.references()?.flatten().filter_map(|reference| reference.target()) {
            if let Ok(Some(known)) = commit_of(repository, known) {
                walk.hide(known)?;
            }
        }
        let odb = repository.odb()?;
        for id in walk {
            for parent in repository.find_commit(id?)?.parent_ids() {
                odb.read_header(parent)?;
            }
        }
        Ok(())
    };
    walk().is_ok()
}
