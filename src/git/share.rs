//! A commit of one environment in the repository of another, for promotion.

use super::{GitError, Repositories, open};
use crate::domain::EnvRef;

impl Repositories {
    /// Makes `commit` and all that it needs part of `to`'s repository, which is made if it is not there. The objects are copied, so that
    /// either environment can be destroyed; a ref of its own keeps the commit.
    pub fn share_commit(&self, from: &EnvRef, to: &EnvRef, commit: &str) -> Result<(), GitError> {
        let what = || format!("commit {commit} of {from} cannot be brought to {to}");
        let target = self.ensure(to)?;
        let source = open(&self.path(from), None)?;
        let target = open(&target, None)?;
        let id = git2::Oid::from_str(commit).map_err(GitError::git(what()))?;
        let mut pack = source.packbuilder().map_err(GitError::git(what()))?;
        let mut walk = source.revwalk().map_err(GitError::git(what()))?;
        walk.push(id).map_err(GitError::git(what()))?;
        // What the other one has already need not travel; most often that is nearly everything.
        for reference in target.references().map_err(GitError::git(what()))?.flatten() {
            if let Some(known) = reference.target().filter(|known| source.find_commit(*known).is_ok()) {
                walk.hide(known).map_err(GitError::git(what()))?;
            }
        }
        pack.insert_walk(&mut walk).map_err(GitError::git(what()))?;
        if pack.object_count() > 0 {
            let objects = target.odb().map_err(GitError::git(what()))?;
            let mut writer = objects.packwriter().map_err(GitError::git(what()))?;
            let mut failed = None;
            let copied = pack.foreach(|bytes| {
                let written = std::io::Write::write_all(&mut writer, bytes);
                failed = written.err();
                failed.is_none()
            });
            if let Some(error) = failed {
                return Err(GitError::io(what())(error));
            }
            copied.map_err(GitError::git(what()))?;
            writer.commit().map_err(GitError::git(what()))?;
        }
        let name = format!("refs/berth/promoted/{commit}");
        target.reference(&name, id, true, "promote").map_err(GitError::git(what()))?;
        super::sync_tree(&target.path().join("objects/pack")).map_err(GitError::io(what()))?;
        super::sync_tree(&target.path().join("refs/berth")).map_err(GitError::io(what()))
    }
}
