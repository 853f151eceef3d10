//! A commit of one environment in the repository of another, for promotion.

use std::collections::BTreeSet;

use super::{GitError, Repositories, full_id, objects::link_objects, open};
use crate::domain::EnvRef;

/// Before the commit.
const PROMOTED: &str = "refs/berth/promoted/";

impl Repositories {
    /// Makes `commit` and all that it needs part of `to`'s repository, which is made if it is not there. The files of the objects are
    /// linked, so that either environment can be destroyed and no object has to be read, however large it is; a ref of its own keeps
    /// the commit.
    pub fn share_commit(&self, from: &EnvRef, to: &EnvRef, commit: &str) -> Result<(), GitError> {
        let what = || format!("commit {commit} of {from} cannot be brought to {to}");
        let target = self.ensure(to)?;
        let id = full_id(commit)?;
        link_objects(&self.path(from).join("objects"), &target.join("objects")).map_err(GitError::io(what()))?;
        let target = open(&target, None)?;
        let name = format!("{PROMOTED}{commit}");
        target.reference(&name, id, true, "promote").map_err(GitError::git(what()))?;
        super::sync_tree(&target.path().join("refs/berth")).map_err(GitError::io(what()))
    }

    /// The commits that are kept since they were promoted to the environment.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub fn promoted(&self, env: &EnvRef) -> Result<BTreeSet<String>, GitError> {
        let what = || format!("the promoted commits of {env} cannot be listed");
        let repository = open(&self.path(env), None)?;
        let references = repository.references_glob(&format!("{PROMOTED}*")).map_err(GitError::git(what()))?;
        let mut commits = BTreeSet::new();
        for reference in references {
            let reference = reference.map_err(GitError::git(what()))?;
            commits.extend(reference.name().ok().and_then(|name| name.strip_prefix(PROMOTED)).map(str::to_owned));
        }
        Ok(commits)
    }

    /// Lets go of these promoted commits.
    ///
    /// # Errors
    /// When a ref cannot be deleted.
    pub fn unpromote(&self, env: &EnvRef, commits: &BTreeSet<String>) -> Result<(), GitError> {
        let repository = open(&self.path(env), None)?;
        for commit in commits {
            if let Ok(mut reference) = repository.find_reference(&format!("{PROMOTED}{commit}")) {
                let what = format!("the promoted commit {commit} of {env} cannot be let go of");
                reference.delete().map_err(GitError::git(what))?;
            }
        }
        Ok(())
    }
}
