//! A developer's checkout, pushed with the real git.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::platform::{Finished, Platform, User, run};

/// A git repository with a remote `paas-dev`.
pub struct Repository {
    pub path: PathBuf,
    ssh_config: PathBuf,
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        let kind = from.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            copy_tree(&from, &to);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from).unwrap(), to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

impl Repository {
    /// An empty repository whose `paas-dev` is `APP/dev`.
    pub fn new(platform: &Platform, user: &User, app: &str) -> Self {
        let path = platform.scratch(&platform.unique("repository"));
        let repository = Self { path, ssh_config: user.ssh_config.clone() };
        repository.git(&["init", "-q", "-b", "main"]).ok();
        repository.add_remote("paas-dev", &format!("{app}/dev"));
        repository
    }

    /// A repository with a fixture (a directory of `tests/`) committed.
    pub fn of_fixture(platform: &Platform, user: &User, app: &str, fixture: &str) -> Self {
        let repository = Self::new(platform, user, app);
        repository.add_fixture(fixture, "");
        repository.commit("First");
        repository
    }

    /// Copies a fixture to a subdirectory.
    pub fn add_fixture(&self, fixture: &str, below: &str) {
        copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(fixture), &self.path.join(below));
    }

    pub fn add_remote(&self, name: &str, env: &str) {
        self.git(&["remote", "add", name, &format!("ssh://berth/{env}")]).ok();
    }

    /// A git command in this repository, not yet run.
    pub fn git_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .current_dir(&self.path)
            .args(arguments)
            .env("GIT_SSH_COMMAND", format!("ssh -F '{}'", self.ssh_config.display()))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .envs([("GIT_AUTHOR_NAME", "Dev"), ("GIT_AUTHOR_EMAIL", "dev@localhost")])
            .envs([("GIT_COMMITTER_NAME", "Dev"), ("GIT_COMMITTER_EMAIL", "dev@localhost")]);
        command
    }

    pub fn git(&self, arguments: &[&str]) -> Finished {
        run(&mut self.git_command(arguments))
    }

    /// Writes a file, making directories as needed.
    pub fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        let path = self.path.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Replaces a text in a file, which must hold it.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.path.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} does not hold {from:?}:\n{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Commits everything; returns the commit.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]).ok();
        self.git(&["commit", "-q", "--allow-empty", "-m", message]).ok();
        self.git(&["rev-parse", "HEAD"]).ok().stdout.trim().to_owned()
    }

    /// `git push paas-dev main`.
    pub fn push(&self) -> Finished {
        self.git(&["push", "paas-dev", "main"])
    }

    /// The commit of a remote branch, if it exists.
    pub fn remote_commit(&self, remote: &str, branch: &str) -> Option<String> {
        let listed = self.git(&["ls-remote", remote, &format!("refs/heads/{branch}")]).ok().stdout;
        listed.split_whitespace().next().map(str::to_owned)
    }
}
