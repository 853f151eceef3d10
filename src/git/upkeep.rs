//! Repositories as a whole: which there are, which pins they have, and packing them anew.

use std::{collections::BTreeSet, fs, io, time::Duration};

use super::{Git, GitError, Owned, PINS, Repositories, open, pin_name};
use crate::{
    disk::size_of,
    domain::{BuildNumber, EnvRef},
};

/// Packs from which on packing them into one is worth while: every push leaves one.
const MANY_PACKS: usize = 20;
/// Objects that nothing refers to stay so long: whoever brought them may be about to refer to them.
const EXPIRY: &str = "1.day.ago";
/// How long packing may take.
const DEADLINE: Duration = Duration::from_secs(300);

impl Repositories {
    /// Every environment that has a repository.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn all(&self) -> Result<Vec<EnvRef>, GitError> {
        let what = "the repositories cannot be listed";
        let mut found = Vec::new();
        for tenant in names(&self.root).map_err(GitError::io(what))? {
            let tenant_path = self.root.join(&tenant);
            for app in names(&tenant_path).map_err(GitError::io(what))? {
                for repository in names(&tenant_path.join(&app)).map_err(GitError::io(what))? {
                    let Some(env) = repository.strip_suffix(".git") else { continue };
                    // Half-made ones have names that no tenant can have.
                    found.extend(format!("{tenant}/{app}/{env}").parse::<EnvRef>());
                }
            }
        }
        Ok(found)
    }

    /// The builds whose commits are pinned.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub fn pins(&self, env: &EnvRef) -> Result<BTreeSet<BuildNumber>, GitError> {
        let what = || format!("the pins of {env} cannot be listed");
        let repository = open(&self.path(env), None)?;
        let references = repository.references_glob(&format!("{PINS}*")).map_err(GitError::git(what()))?;
        let mut pins = BTreeSet::new();
        for reference in references {
            let reference = reference.map_err(GitError::git(what()))?;
            let number = reference.name().ok().and_then(|name| name.rsplit('/').next()?.parse::<BuildNumber>().ok());
            pins.extend(number);
        }
        Ok(pins)
    }

    /// Lets go of the commits of these builds.
    ///
    /// # Errors
    /// When a ref cannot be deleted.
    pub fn unpin(&self, env: &EnvRef, numbers: &BTreeSet<BuildNumber>) -> Result<(), GitError> {
        let repository = open(&self.path(env), None)?;
        for number in numbers {
            if let Ok(mut reference) = repository.find_reference(&pin_name(*number)) {
                let what = format!("the pin of build {number} of {env} cannot be removed");
                reference.delete().map_err(GitError::git(what))?;
            }
        }
        Ok(())
    }

    /// Whether packing the repository anew would be worth while.
    pub fn wants_packing(&self, env: &EnvRef) -> bool {
        let Ok(entries) = fs::read_dir(self.path(env).join("objects/pack")) else { return false };
        let is_pack = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "pack");
        entries.flatten().filter(is_pack).count() >= MANY_PACKS
    }

    /// Bytes of the repository's files.
    pub fn size(&self, env: &EnvRef) -> u64 {
        size_of(&self.path(env)).unwrap_or(0)
    }

    /// Packs everything that refs reach into one pack, and removes objects that nothing has referred to for a day.
    ///
    /// # Errors
    /// When git fails or takes too long; the repository is then as it was.
    pub async fn repack(&self, git: &Git, env: &EnvRef, _owned: &Owned) -> io::Result<()> {
        let unreachable = format!("--unpack-unreachable={EXPIRY}");
        let expire = format!("--expire={EXPIRY}");
        for words in [vec!["repack", "-q", "-A", "-d", "-l", &unreachable], vec!["prune", &expire]] {
            let mut command = git.command(&words);
            command.env("GIT_DIR", self.path(env)).stdin(std::process::Stdio::null());
            let ended = tokio::time::timeout(DEADLINE, command.output()).await;
            let output = ended.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "git took too long"))??;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(io::Error::other(format!(
                    "git {} ended with {}: {}",
                    words[0],
                    output.status,
                    text.trim()
                )));
            }
        }
        Ok(())
    }
}

fn names(path: &std::path::Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packing_keeps_what_is_pinned_and_what_has_just_come() {
        let directory = tempfile::tempdir().unwrap();
        let repositories = Repositories::new(directory.path());
        let env: EnvRef = "acme/shop/dev".parse().unwrap();
        let path = repositories.ensure(&env).unwrap();
        let repository = git2::Repository::open_bare(&path).unwrap();
        let mut commits = Vec::new();
        for n in 0..MANY_PACKS as u64 {
            let blob = repository.blob(format!("file {n}").as_bytes()).unwrap();
            let mut tree = repository.treebuilder(None).unwrap();
            tree.insert("file", blob, 0o100_644).unwrap();
            let tree = repository.find_tree(tree.write().unwrap()).unwrap();
            let who = git2::Signature::now("a", "a@example.com").unwrap();
            let commit = repository.commit(None, &who, &who, "x", &tree, &[]).unwrap();
            let mut pack = repository.packbuilder().unwrap();
            pack.insert_commit(commit).unwrap();
            pack.write(&path.join("objects/pack"), 0).unwrap();
            commits.push(commit);
        }
        assert!(repositories.wants_packing(&env));
        let pinned = commits[3].to_string();
        repositories.pin(&env, BuildNumber(7), &pinned).unwrap();
        repositories.pin(&env, BuildNumber(8), &pinned).unwrap();
        repositories.unpin(&env, &BTreeSet::from([BuildNumber(8), BuildNumber(9)])).unwrap();
        assert_eq!(repositories.pins(&env).unwrap(), BTreeSet::from([BuildNumber(7)]));
        assert_eq!(repositories.all().unwrap(), std::slice::from_ref(&env));
        let git = Git { binary: Git::find().unwrap(), hooks: "/nonexistent".into(), max_input: 1 << 20 };
        let owned = repositories.try_own(&env).unwrap();
        repositories.repack(&git, &env, &owned).await.unwrap();
        assert!(!repositories.wants_packing(&env));
        let fresh = git2::Repository::open_bare(&path).unwrap();
        for commit in &commits {
            // Nothing refers to the others, but they have only just come.
            assert!(fresh.find_commit(*commit).is_ok(), "{commit} is lost");
        }
    }
}
