//! What a server that was killed leaves in the repositories.

use std::{fs, io, path::Path};

use super::{GitError, Repositories};

/// Where git keeps what a push brought until it is accepted, inside `objects/`.
const QUARANTINES: [&str; 2] = ["tmp_objdir-", "incoming-"];

impl Repositories {
    /// Removes what a server that was killed left behind: half-made and half-removed repositories, quarantined objects, and the
    /// locks of refs, which would refuse every push from now on. Only at start, before anything else runs: the git processes of
    /// the server before this one died with it.
    pub fn clean(&self) -> Result<(), GitError> {
        let what = "leftovers in the repositories directory cannot be removed";
        fs::create_dir_all(&self.root).map_err(GitError::io(what))?;
        for tenant in directories(&self.root).map_err(GitError::io(what))? {
            let name = tenant.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".new-") || name.starts_with(".old-") {
                fs::remove_dir_all(tenant.path()).map_err(GitError::io(what))?;
                continue;
            }
            for app in directories(&tenant.path()).map_err(GitError::io(what))? {
                for repository in directories(&app.path()).map_err(GitError::io(what))? {
                    clean_repository(&repository.path()).map_err(GitError::io(what))?;
                }
            }
        }
        Ok(())
    }
}

fn clean_repository(repository: &Path) -> io::Result<()> {
    for entry in fs::read_dir(repository)? {
        let entry = entry?;
        remove_lock(&entry)?;
    }
    if repository.join("refs").is_dir() {
        remove_locks(&repository.join("refs"))?;
    }
    if !repository.join("objects").is_dir() {
        return Ok(());
    }
    for entry in directories(&repository.join("objects"))? {
        let name = entry.file_name();
        if QUARANTINES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn remove_locks(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_locks(&entry.path())?;
        } else {
            remove_lock(&entry)?;
        }
    }
    Ok(())
}

/// No ref can be called `….lock`: git refuses such names.
fn remove_lock(entry: &fs::DirEntry) -> io::Result<()> {
    if entry.file_type()?.is_file() && entry.file_name().to_string_lossy().ends_with(".lock") {
        tracing::info!(path = %entry.path().display(), "removing the lock of a git process that was killed");
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

fn directories(parent: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry);
        }
    }
    Ok(found)
}
