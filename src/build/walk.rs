//! Going through a tree at a bounded cost.
//!
//! A few kilobytes of tree objects that name each other again and again stand for billions of paths, git takes them without looking
//! twice, and an object of a few megabytes in the pack may be gigabytes when it is read. So everything is counted before it is read.

use std::time::{Duration, Instant};

use git2::{ObjectType, Oid, Repository, Tree};

use super::source::{SourceError, lossy};

/// Files and folders that a tree may have.
pub const MAX_ENTRIES: usize = 200_000;
/// Bytes of their paths, and of the tree objects that name them.
pub const MAX_NAMES: usize = 64 << 20;
/// How long it may take: small objects can be deltas of large ones, each of which is a lot of work.
pub const MAX_TIME: Duration = Duration::from_secs(60);
/// Nesting of directories that is followed; git itself allows more, no file system path that long can be made.
const MAX_DEPTH: usize = 512;

/// What is left of what one reading may cost.
#[derive(Debug)]
pub struct Budget {
    entries: usize,
    names: usize,
    until: Instant,
}

impl Budget {
    /// For one tree, from now on.
    pub fn new() -> Self {
        Self { entries: MAX_ENTRIES, names: MAX_NAMES, until: Instant::now() + MAX_TIME }
    }

    fn entry(&mut self, path: &[u8]) -> Result<(), SourceError> {
        self.entries = self.entries.checked_sub(1).ok_or(SourceError::TooManyFiles)?;
        self.names(path.len())
    }

    fn names(&mut self, bytes: usize) -> Result<(), SourceError> {
        self.names = self.names.checked_sub(bytes).ok_or(SourceError::TooManyFiles)?;
        if Instant::now() > self.until { Err(SourceError::TooSlow) } else { Ok(()) }
    }

    /// Reads a tree object, once it is known to be within the budget.
    pub fn tree<'r>(&mut self, repository: &'r Repository, tree: Oid) -> Result<Tree<'r>, SourceError> {
        let (size, _) = repository.odb()?.read_header(tree)?;
        self.names(size)?;
        Ok(repository.find_tree(tree)?)
    }
}

/// One way through a tree. `visit` is shown path, object and mode of everything that is no directory, in path order.
pub struct Walk<'r, F> {
    repository: &'r Repository,
    visit: F,
    path: Vec<u8>,
    budget: Budget,
    /// For the trees of what is known already, which are only compared with.
    known_budget: Budget,
}

impl<'r, F: FnMut(&[u8], Oid, i32) -> Result<(), SourceError>> Walk<'r, F> {
    /// Nothing visited yet.
    pub fn new(repository: &'r Repository, visit: F) -> Self {
        Self { repository, visit, path: Vec::new(), budget: Budget::new(), known_budget: Budget::new() }
    }

    /// Visits what is below `tree`; what is the same in `known` is left out.
    pub fn through(&mut self, tree: Oid, known: Option<Oid>) -> Result<(), SourceError> {
        self.directory(tree, known, 0)
    }

    fn directory(&mut self, tree: Oid, known: Option<Oid>, depth: usize) -> Result<(), SourceError> {
        if known == Some(tree) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(SourceError::Name(lossy(&self.path[..self.path.len().min(80)])));
        }
        let tree = self.budget.tree(self.repository, tree)?;
        // One that cannot be read, or not cheaply, leaves nothing out.
        let known = known.and_then(|known| self.known_budget.tree(self.repository, known).ok());
        for entry in tree.iter() {
            let name = entry.name_bytes();
            if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
                return Err(SourceError::Name(lossy(name)));
            }
            let before = known.as_ref().and_then(|known| known.get_name_bytes(name)).map(|entry| entry.id());
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            self.budget.entry(&self.path)?;
            if entry.kind() == Some(ObjectType::Tree) {
                self.directory(entry.id(), before, depth + 1)?;
            } else if before != Some(entry.id()) {
                (self.visit)(&self.path, entry.id(), entry.filemode_raw())?;
            }
            self.path.truncate(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{check_push, testing::Fixture};

    /// A commit of `leaf` (name, object, mode) in ten trees, each of which names the one below it ten times.
    fn bomb(fixture: &Fixture, leaf: Option<(Oid, i32)>) -> String {
        let repository = fixture.repository();
        let mut builder = repository.treebuilder(None).unwrap();
        if let Some((oid, mode)) = leaf {
            builder.insert("leaf", oid, mode).unwrap();
        }
        let mut tree = builder.write().unwrap();
        for _ in 0..10 {
            let mut builder = repository.treebuilder(None).unwrap();
            for name in 0..10 {
                builder.insert(name.to_string(), tree, 0o040_000).unwrap();
            }
            tree = builder.write().unwrap();
        }
        fixture.commit_tree(tree, "bomb")
    }

    fn push(fixture: &Fixture, commit: &str) -> String {
        let repository = fixture.repository();
        let problems =
            check_push(repository.path(), None, commit, None, &"acme/shop/dev".parse().unwrap(), 1 << 20).unwrap_err();
        crate::manifest::render_problems(&problems)
    }

    #[test]
    fn a_few_trees_that_stand_for_billions_of_paths_are_refused() {
        let fixture = Fixture::new();
        // libgit2 wants objects that exist; what a submodule's commit is does not matter.
        let file = fixture.repository().blob(b"version https://git-lfs.github.com/spec/v1\n").unwrap();
        let module = Oid::from_str(&fixture.commit(&[("a", "1")])).unwrap();
        for leaf in [Some((file, 0o100_644)), Some((module, 0o160_000)), None] {
            let commit = bomb(&fixture, leaf);
            let tree = fixture.tree(&commit);
            assert!(matches!(tree.refusals(None), Err(SourceError::TooManyFiles)), "{leaf:?}");
            let listed = tree.list(tree.directory("").unwrap());
            assert!(matches!(listed, Err(SourceError::TooManyFiles | SourceError::Submodule(_))), "{leaf:?}");
            let said = push(&fixture, &commit);
            assert!(said.starts_with("the commit has more than 200000 files") && said.contains(".gitignore"), "{said}");
        }
    }

    #[test]
    fn huge_commits_and_trees_are_refused_unread() {
        let fixture = Fixture::new();
        let repository = fixture.repository();
        let tree = repository.treebuilder(None).unwrap().write().unwrap();
        let commit = fixture.commit_tree(tree, &"x".repeat(2 << 20));
        assert!(push(&fixture, &commit).contains("has 2097"), "{}", push(&fixture, &commit));

        let mut budget = Budget { entries: 1, names: 10, until: Instant::now() + MAX_TIME };
        let files = repository.find_commit(Oid::from_str(&fixture.commit(&[("a", "1")])).unwrap()).unwrap().tree_id();
        assert!(matches!(budget.tree(&repository, files), Err(SourceError::TooManyFiles)));
        let mut late = Budget { until: Instant::now(), ..Budget::new() };
        assert!(matches!(late.tree(&repository, files), Err(SourceError::TooSlow)));
    }

    #[test]
    fn only_the_first_of_many_problems_are_told() {
        let fixture = Fixture::new();
        let names: Vec<String> = (0..300).map(|number| format!("lib/{number:03}")).collect();
        let module = "=>1111111111111111111111111111111111111111";
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), module)).collect();
        let problems = fixture.tree(&fixture.commit(&files)).refusals(None).unwrap();
        assert_eq!(problems.len(), 11);
        assert_eq!(
            (problems[0].file.as_str(), problems[10].message.as_str()),
            ("lib/000", "… and 290 more submodules")
        );
    }
}
