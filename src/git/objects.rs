//! Making the objects of a push permanent before git does, so that a build may outlive the push that brought it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{GitError, Repositories, sync_directory};
use crate::domain::EnvRef;

impl Repositories {
    /// Hard-links what is in a push's quarantine (`GIT_QUARANTINE_PATH`) into the repository's object store, durably. git finds the
    /// same files there later and takes them as they are.
    ///
    /// The quarantine must be a directory `tmp_objdir-incoming-…` directly in the repository's `objects`: anything else is refused.
    pub fn keep_objects(&self, env: &EnvRef, quarantine: &Path) -> Result<(), GitError> {
        let what = || format!("the pushed objects of {env} cannot be kept");
        let objects = self.objects_of_quarantine(env, quarantine).map_err(GitError::io(what()))?;
        link_tree(quarantine, &objects).map_err(GitError::io(what()))
    }

    /// Checks that `quarantine` is one of this environment's, and returns the object store it belongs to.
    pub fn objects_of_quarantine(&self, env: &EnvRef, quarantine: &Path) -> io::Result<PathBuf> {
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let objects = self.path(env).join("objects").canonicalize()?;
        let name = quarantine.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with("tmp_objdir-") {
            return refuse("not a quarantine directory");
        }
        if quarantine.canonicalize()?.parent() != Some(&objects) {
            return refuse("not a quarantine directory of this repository");
        }
        Ok(objects)
    }
}

/// An index makes its pack visible, so it comes last (as in git's `tmp-objdir.c`).
fn link_order(name: &str) -> u8 {
    match name.rsplit('.').next() {
        Some("keep") => 0,
        Some("pack") => 1,
        Some("rev") => 2,
        Some("idx") => 4,
        _ => 3,
    }
}

/// Hard-links all that one object store has into another, durably; what is being received is left out.
pub(super) fn link_objects(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let holds_objects = name == "pack" || name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if holds_objects && entry.file_type()?.is_dir() {
            let target = to.join(&name);
            match fs::create_dir(&target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => link_tree(&entry.path(), &target)?,
            }
        }
    }
    sync_directory(to)
}

fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(|entry| link_order(&entry.file_name().to_string_lossy()));
    let mut changed = false;
    for entry in entries {
        let name = entry.file_name();
        let target = to.join(&name);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            match fs::create_dir(&target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => changed = true,
            }
            link_tree(&entry.path(), &target)?;
        } else if kind.is_file()
            && !name.to_string_lossy().ends_with(".keep")
            && !name.to_string_lossy().starts_with("tmp_")
        {
            match fs::hard_link(entry.path(), &target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => changed = true,
            }
        }
    }
    if changed { sync_directory(to) } else { Ok(()) }
}
