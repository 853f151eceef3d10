//! What in a pushed commit cannot be built from the commit alone.

use std::path::Path;

use git2::{ObjectType, Oid, Repository, Tree, TreeWalkMode, TreeWalkResult};

use super::{GitError, full_id, open};

/// The largest LFS pointer (Git LFS specification, "The Pointer").
const MAX_POINTER: usize = 1024;
const POINTER_MARK: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// How many paths of each sort are named.
const NAMED: usize = 5;
/// A `.gitattributes` larger than this is not looked into; git itself ignores those over 100 MB.
const MAX_ATTRIBUTES: usize = 1024 * 1024;

/// Why a commit cannot be built as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// There is nothing in it.
    EmptyTree,
    /// Submodules: their content is elsewhere. The first few paths.
    Submodules(Vec<String>),
    /// Git LFS pointers instead of content. The first few paths.
    LfsPointers(Vec<String>),
    /// The history is cut off (a shallow clone) where the server does not know the rest.
    Shallow,
}

/// What stands in the way of building `commit`, whose objects may be in quarantine (`extra_objects`). With `shallow`, the history
/// is also checked to be whole.
///
/// Blobs are read only when a `.gitattributes` uses LFS, and then only small ones, so that a large tree takes milliseconds.
pub fn obstacles(
    repository: &Path,
    extra_objects: Option<&Path>,
    commit: &str,
    shallow: bool,
) -> Result<Vec<Obstacle>, GitError> {
    let what = || format!("commit {commit} cannot be read");
    let repository = open(repository, extra_objects)?;
    let id = full_id(commit)?;
    let tree = repository.find_commit(id).and_then(|commit| commit.tree()).map_err(GitError::git(what()))?;
    let mut found = Vec::new();
    if tree.is_empty() {
        found.push(Obstacle::EmptyTree);
    }
    found.extend(tree_obstacles(&repository, &tree).map_err(GitError::git(what()))?);
    if shallow && !history_is_whole(&repository, id) {
        found.push(Obstacle::Shallow);
    }
    Ok(found)
}

fn tree_obstacles(repository: &Repository, tree: &Tree<'_>) -> Result<Vec<Obstacle>, git2::Error> {
    let mut submodules = Vec::new();
    let mut attributes = Vec::new();
    tree.walk(TreeWalkMode::PreOrder, |directory, entry| {
        match entry.kind() {
            Some(ObjectType::Commit) if submodules.len() < NAMED => submodules.push(path_of(directory, entry.name_bytes())),
            Some(ObjectType::Blob) if entry.name_bytes() == b".gitattributes" => attributes.push(entry.id()),
            _ => {}
        }
        TreeWalkResult::Ok
    })?;
    let mut found = Vec::new();
    if !submodules.is_empty() {
        found.push(Obstacle::Submodules(submodules));
    }
    let pointers = if uses_lfs(repository, &attributes) { lfs_pointers(repository, tree)? } else { Vec::new() };
    if !pointers.is_empty() {
        found.push(Obstacle::LfsPointers(pointers));
    }
    Ok(found)
}

fn path_of(directory: &str, name: &[u8]) -> String {
    let path = format!("{directory}{}", String::from_utf8_lossy(name));
    path.chars().map(|c| if c.is_control() { '?' } else { c }).take(200).collect()
}

fn uses_lfs(repository: &Repository, attributes: &[Oid]) -> bool {
    attributes.iter().any(|id| {
        let blob = repository.find_blob(*id).ok().filter(|blob| blob.size() <= MAX_ATTRIBUTES);
        blob.is_some_and(|blob| String::from_utf8_lossy(blob.content()).contains("filter=lfs"))
    })
}

fn lfs_pointers(repository: &Repository, tree: &Tree<'_>) -> Result<Vec<String>, git2::Error> {
    let odb = repository.odb()?;
    let mut pointers = Vec::new();
    tree.walk(TreeWalkMode::PreOrder, |directory, entry| {
        if pointers.len() >= NAMED {
            return TreeWalkResult::Abort;
        }
        let small = || odb.read_header(entry.id()).is_ok_and(|(size, _)| size <= MAX_POINTER);
        if entry.kind() == Some(ObjectType::Blob)
            && entry.filemode() != 0o120_000
            && small()
            && odb.read(entry.id()).is_ok_and(|blob| blob.data().starts_with(POINTER_MARK))
        {
            pointers.push(path_of(directory, entry.name_bytes()));
        }
        TreeWalkResult::Ok
    })
    .or_else(|error| if pointers.is_empty() { Err(error) } else { Ok(()) })?;
    Ok(pointers)
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
