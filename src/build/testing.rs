//! What several tests here need: repositories with commits.

use std::path::PathBuf;

use git2::{Index, IndexEntry, IndexTime, Oid, Repository, Signature, Time};

use super::source::SourceTree;

/// Paths with their content; see [`Fixture::commit`].
pub type Files<'f> = &'f [(&'f str, &'f str)];

/// A bare repository in a temporary directory.
pub struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Repository::init_bare(directory.path()).unwrap();
        Self { directory }
    }

    pub fn at(path: PathBuf) -> PathBuf {
        std::fs::create_dir_all(&path).unwrap();
        Repository::init_bare(&path).unwrap();
        path
    }

    /// A commit of these files. Content that begins with `->` is a symbolic link, with `=>` a submodule, with `#!` an executable.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        commit(self.directory.path(), files)
    }

    pub fn repository(&self) -> Repository {
        Repository::open_bare(self.directory.path()).unwrap()
    }

    /// A commit of a tree object.
    pub fn commit_tree(&self, tree: Oid, message: &str) -> String {
        commit_tree(&self.repository(), tree, message)
    }

    pub fn tree(&self, commit: &str) -> SourceTree {
        SourceTree::open(self.directory.path(), None, commit).unwrap()
    }
}

/// As [`Fixture::commit`], in any repository.
pub fn commit(repository: &std::path::Path, files: &[(&str, &str)]) -> String {
    let repository = Repository::open_bare(repository).unwrap();
    let mut index = Index::new().unwrap();
    for (path, content) in files {
        let blob = |text: &str| repository.blob(text.as_bytes()).unwrap();
        let (mode, id) = match content {
            link if link.starts_with("->") => (0o120_000, blob(&link[2..])),
            module if module.starts_with("=>") => (0o160_000, Oid::from_str(&module[2..]).unwrap()),
            script if script.starts_with("#!") => (0o100_755, blob(script)),
            text => (0o100_644, blob(text)),
        };
        index.add(&entry(path, mode, id)).unwrap();
    }
    commit_tree(&repository, index.write_tree_to(&repository).unwrap(), "Test")
}

fn commit_tree(repository: &Repository, tree: Oid, message: &str) -> String {
    let tree = repository.find_tree(tree).unwrap();
    let who = Signature::new("A", "a@example.com", &Time::new(1_700_000_000, 0)).unwrap();
    repository.commit(None, &who, &who, message, &tree, &[]).unwrap().to_string()
}

fn entry(path: &str, mode: u32, id: Oid) -> IndexEntry {
    let zero = IndexTime::new(0, 0);
    IndexEntry {
        ctime: zero,
        mtime: zero,
        dev: 0,
        ino: 0,
        mode,
        uid: 0,
        gid: 0,
        file_size: 0,
        id,
        flags: 0,
        flags_extended: 0,
        path: path.as_bytes().to_vec(),
    }
}

/// Stacks of a few bytes, as `scripts/stacks` would leave them in `directory`.
pub fn fake_stacks(directory: &std::path::Path) {
    use sha2::{Digest as _, Sha256};
    for name in ["run", "build"] {
        let tar = format!("the {name} stack").into_bytes();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&tar)));
        let described = serde_json::json!({
            "name": name, "stack": "berth-12", "hash": "abc", "tar": format!("{name}-abc.tar.gz"), "diff_id": digest, "digest": digest,
            "size": tar.len(), "env": {"PATH": "/usr/bin:/bin"}, "user": "app", "workdir": "/app",
        });
        std::fs::write(directory.join(format!("{name}-abc.tar.gz")), tar).unwrap();
        std::fs::write(directory.join(format!("{name}-abc.json")), described.to_string()).unwrap();
    }
    std::fs::write(directory.join("current.json"), r#"{"run":"run-abc.json","build":"build-abc.json","hash":"abc"}"#)
        .unwrap();
}
