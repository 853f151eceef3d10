//! A commit of one environment in the repository of another, for promotion.

use super::{GitError, Repositories, full_id, objects::link_objects, open};
use crate::domain::EnvRef;

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
        let name = format!("refs/berth/promoted/{commit}");
        target.reference(&name, id, true, "promote").map_err(GitError::git(what()))?;
        super::sync_tree(&target.path().join("refs/berth")).map_err(GitError::io(what()))
    }
}
