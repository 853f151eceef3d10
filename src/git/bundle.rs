//! A repository as its refs and one pack: how it goes into a backup and comes out of it. Everything here blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{Git, GitError, Repositories, full_id, open, sync_tree};
use crate::domain::EnvRef;

/// Most of a git process's complaints that is passed on, bytes.
const COMPLAINT: u64 = 4096;

/// Where the refs of a repository point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refs {
    /// What `HEAD` names, as in `refs/heads/main`.
    pub head: Option<String>,
    /// Full name → 40 hexadecimal digits.
    pub targets: BTreeMap<String, String>,
}

/// Whether a commit and the tree it names are in an environment's repository.
///
/// # Errors
/// When the repository cannot be read.
pub fn full_commit(repositories: &Repositories, env: &EnvRef, commit: &str) -> Result<bool, GitError> {
    let repository = open(&repositories.path(env), None)?;
    let id = full_id(commit)?;
    Ok(repository.find_commit(id).and_then(|commit| commit.tree()).is_ok())
}

/// A git process that is ended when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail for one that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Repositories {
    /// The environments that have a repository here.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn environments(&self) -> io::Result<Vec<EnvRef>> {
        let names = |directory: &Path| -> io::Result<Vec<String>> {
            let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
            let directories = entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            Ok(directories.filter_map(|entry| entry.file_name().into_string().ok()).collect())
        };
        let mut found = Vec::new();
        for tenant in names(self.root())? {
            for app in names(&self.root().join(&tenant))? {
                for repository in names(&self.root().join(&tenant).join(&app))? {
                    // What has another name is none of ours.
                    let env =
                        repository.strip_suffix(".git").and_then(|env| format!("{tenant}/{app}/{env}").parse().ok());
                    found.extend(env);
                }
            }
        }
        Ok(found)
    }

    /// Where everything points; nothing, when there is no repository.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub fn refs(&self, env: &EnvRef) -> Result<Refs, GitError> {
        let path = self.path(env);
        if !path.exists() {
            return Ok(Refs::default());
        }
        let what = || format!("the refs of {env} cannot be read");
        let repository = open(&path, None)?;
        let mut refs = Refs::default();
        for reference in repository.references().map_err(GitError::git(what()))? {
            let reference = reference.map_err(GitError::git(what()))?;
            if let (Ok(name), Some(target)) = (reference.name(), reference.target()) {
                refs.targets.insert(name.to_owned(), target.to_string());
            }
        }
        let head = repository.find_reference("HEAD").map_err(GitError::git(what()))?;
        refs.head = head.symbolic_target().ok().flatten().map(str::to_owned);
        Ok(refs)
    }

    /// Deletes a ref; that it does not exist is no error.
    ///
    /// # Errors
    /// When the repository cannot be changed.
    pub fn delete_ref(&self, env: &EnvRef, name: &str) -> Result<(), GitError> {
        let repository = open(&self.path(env), None)?;
        match repository.find_reference(name) {
            Ok(mut reference) => {
                reference.delete().map_err(GitError::git(format!("{name} of {env} cannot be deleted")))
            }
            Err(_) => Ok(()),
        }
    }

    /// Makes a repository with these refs out of a pack that holds all they need, durably; checks that it does.
    ///
    /// # Errors
    /// When an object is missing or damaged, or the disk fails.
    pub fn restore(&self, git: &Git, env: &EnvRef, refs: &Refs, pack: Option<&Path>) -> Result<PathBuf, GitError> {
        let what = || format!("the repository of {env} cannot be restored");
        let path = self.ensure(env)?;
        if let Some(pack) = pack {
            let pack = File::open(pack).map_err(GitError::io(what()))?;
            git.run(&path, &["index-pack", "--stdin", "--strict"], pack.into()).map_err(GitError::io(what()))?;
        }
        let repository = open(&path, None)?;
        for (name, target) in &refs.targets {
            repository.reference(name, full_id(target)?, true, "restore").map_err(GitError::git(what()))?;
        }
        if let Some(head) = &refs.head {
            repository.set_head(head).map_err(GitError::git(what()))?;
        }
        git.check(&path).map_err(GitError::io(what()))?;
        sync_tree(&path).map_err(GitError::io(what()))?;
        Ok(path)
    }
}

impl Git {
    fn in_repository(&self, repository: &Path, arguments: &[&str], stdin: Stdio) -> io::Result<Running> {
        let place = format!("--git-dir={}", repository.display());
        let arguments: Vec<&str> = [place.as_str()].into_iter().chain(arguments.iter().copied()).collect();
        let mut command = self.command(&arguments).into_std();
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Running(command.spawn()?))
    }

    /// Runs a command to its end; what it prints is dropped.
    fn run(&self, repository: &Path, arguments: &[&str], stdin: Stdio) -> io::Result<()> {
        let mut running = self.in_repository(repository, arguments, stdin)?;
        finish(&mut running, &mut io::sink())
    }

    /// Whether everything that the refs need is there.
    ///
    /// # Errors
    /// What `git fsck` complains about.
    pub fn check(&self, repository: &Path) -> io::Result<()> {
        self.run(repository, &["fsck", "--connectivity-only", "--no-dangling", "--no-progress"], Stdio::null())
    }

    /// Writes a pack of all that these objects need.
    ///
    /// # Errors
    /// When an object is missing, or `to` fails.
    pub fn pack(&self, repository: &Path, wanted: &BTreeSet<String>, to: &mut dyn Write) -> io::Result<()> {
        let arguments = ["pack-objects", "--stdout", "--revs", "--delta-base-offset", "-q"];
        let mut list = tempfile::tempfile()?;
        for id in wanted {
            writeln!(list, "{id}")?;
        }
        io::Seek::rewind(&mut list)?;
        let mut running = self.in_repository(repository, &arguments, list.into())?;
        finish(&mut running, to)
    }
}

/// Copies the output, and waits for the end.
fn finish(running: &mut Running, to: &mut dyn Write) -> io::Result<()> {
    let (output, complaints) = (running.0.stdout.take(), running.0.stderr.take());
    // In a thread, so that neither pipe can fill while the other is read.
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut complaints) = complaints {
            let _ = (&mut complaints).take(COMPLAINT).read_to_end(&mut text);
            let _ = io::copy(&mut complaints, &mut io::sink());
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    if let Some(mut output) = output {
        io::copy(&mut output, to)?;
    }
    let status = running.0.wait()?;
    let complaints = complaints.join().unwrap_or_default();
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("git ended with {status}: {complaints}"))) }
}
