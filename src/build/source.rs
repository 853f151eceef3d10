//! The pushed tree, read straight from the repository's objects: no work tree, nothing of it ever on the host's file system.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use git2::{ObjectType, Oid, Repository};
use jiff::Timestamp;

use super::walk::{Budget, MAX_ENTRIES, MAX_NAMES, MAX_TIME, Walk};
use crate::{git::MAX_COMMIT, manifest::Problem};

/// Why a tree cannot be read or used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The repository lacks an object or is damaged.
    #[error("the repository cannot be read: {0}")]
    Git(#[from] git2::Error),
    /// A file that is to be read is a symbolic link, which could point anywhere.
    #[error("{0} is a symbolic link; commit the file itself")]
    Symlink(String),
    /// A file that is to be read is too large for what it is.
    #[error("{path} has {size} bytes; at most {limit} are allowed")]
    TooLarge { path: String, size: usize, limit: usize },
    /// `build.root` names nothing.
    #[error("build.root is {0:?}, but the pushed tree has no such directory")]
    NoRoot(String),
    /// A name that no tree made by git has.
    #[error("the tree has an entry with the impossible name {0:?}")]
    Name(String),
    /// Submodules.
    #[error("{0} is a submodule, and submodules cannot be built")]
    Submodule(String),
    /// More than any project has.
    #[error("the commit has more than {MAX_ENTRIES} files and folders, or more than {} MiB of their names", MAX_NAMES >> 20)]
    TooManyFiles,
    /// Made to be slow.
    #[error("the files of the commit cannot be read in {} s", MAX_TIME.as_secs())]
    TooSlow,
    /// What was written to is gone.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

/// What a tree entry is, apart from directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Executable,
    Symlink,
}

/// A file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceEntry {
    /// Relative to the root that was listed, `/`-separated, bytes as in git.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// The blob's object id.
    pub oid: Oid,
    /// Bytes of the blob.
    pub size: u64,
}

/// One commit of a bare repository.
pub struct SourceTree {
    repository: Repository,
    commit: Oid,
    tree: Oid,
    committed_at: Timestamp,
    subject: String,
    opened: Instant,
}

/// Paths of which only the first few are told.
#[derive(Default)]
struct Told {
    paths: Vec<String>,
    more: usize,
}

impl Told {
    fn add(&mut self, path: &[u8]) {
        if self.paths.len() < LISTED {
            self.paths.push(lossy(path));
        } else {
            self.more += 1;
        }
    }
}

/// How long the contents of one tree's files may take to read, the other end's time to take them included.
const CONTENT_TIME: Duration = Duration::from_secs(900);
/// Modes in a tree of what is no file.
const DIRECTORY: i32 = 0o040_000;
const LINK: i32 = 0o120_000;
const SUBMODULE: i32 = 0o160_000;

/// The largest git object that can be a Git LFS pointer (specification, "The Pointer").
const LFS_POINTER_SIZE: usize = 1024;
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Problems of one kind that are listed one by one.
const LISTED: usize = 10;

impl SourceTree {
    /// Opens `commit` (40 hexadecimal digits) of the bare repository at `repository`. `extra_objects`: a further object directory to look
    /// in, such as the quarantine of a push.
    pub fn open(repository: &Path, extra_objects: Option<&Path>, commit: &str) -> Result<Self, SourceError> {
        let repository = Repository::open_bare(repository)?;
        if let Some(directory) = extra_objects {
            let directory = directory.to_str().ok_or_else(|| git2::Error::from_str("object directory is not UTF-8"))?;
            repository.odb()?.add_disk_alternate(directory)?;
        }
        let (oid, tree, committed_at, subject) = {
            let oid = Oid::from_str(commit)?;
            let (size, _) = repository.odb()?.read_header(oid)?;
            if size > MAX_COMMIT {
                return Err(SourceError::TooLarge { path: format!("the commit {oid}"), size, limit: MAX_COMMIT });
            }
            let commit = repository.find_commit(oid)?;
            let committed_at = Timestamp::from_second(commit.time().seconds()).unwrap_or_default();
            let subject = String::from_utf8_lossy(commit.summary_bytes().unwrap_or_default()).into_owned();
            (commit.id(), commit.tree_id(), committed_at, subject)
        };
        Ok(Self { repository, commit: oid, tree, committed_at, subject, opened: Instant::now() })
    }

    /// The commit, 40 hexadecimal digits.
    pub fn commit(&self) -> String {
        self.commit.to_string()
    }

    /// When it was committed, by the committer's clock.
    pub fn committed_at(&self) -> Timestamp {
        self.committed_at
    }

    /// First line of the commit message.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The content of the file at `path`, `None` when there is none. Symbolic links are not followed but refused.
    pub fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        self.read_below(self.tree, path, limit)
    }

    /// As [`Self::read`], with the path relative to the directory `tree`.
    pub fn read_below(&self, tree: Oid, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        let Some((oid, mode)) = self.find(tree, path)? else { return Ok(None) };
        if mode == LINK {
            return Err(SourceError::Symlink(path.to_owned()));
        }
        let (size, kind) = self.repository.odb()?.read_header(oid)?;
        if kind != ObjectType::Blob {
            return Ok(None);
        }
        if size > limit {
            return Err(SourceError::TooLarge { path: path.to_owned(), size, limit });
        }
        Ok(Some(self.repository.find_blob(oid)?.content().to_vec()))
    }

    /// The tree object of the directory `root` (empty: of the whole repository). Its id names its content.
    pub fn directory(&self, root: &str) -> Result<Oid, SourceError> {
        if root.is_empty() {
            return Ok(self.tree);
        }
        let found = self.find(self.tree, root)?.filter(|(_, mode)| *mode == DIRECTORY);
        found.map(|(oid, _)| oid).ok_or_else(|| SourceError::NoRoot(root.to_owned()))
    }

    /// What is at `path` below `tree`, and its mode. `None` also for a submodule, whose files are elsewhere.
    fn find(&self, tree: Oid, path: &str) -> Result<Option<(Oid, i32)>, SourceError> {
        let mut budget = Budget::new();
        let mut found = (tree, DIRECTORY);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if found.1 != DIRECTORY {
                return Ok(None);
            }
            let tree = budget.tree(&self.repository, found.0)?;
            let Some(entry) = tree.get_name_bytes(name.as_bytes()) else { return Ok(None) };
            found = (entry.id(), entry.filemode_raw());
        }
        Ok(Some(found).filter(|(_, mode)| *mode != SUBMODULE))
    }

    /// All files below the tree object `directory`, sorted by the bytes of their paths.
    pub fn list(&self, directory: Oid) -> Result<Vec<SourceEntry>, SourceError> {
        let odb = self.repository.odb()?;
        let mut entries = Vec::new();
        let walk = |path: &[u8], oid, mode| {
            let kind = match mode {
                LINK => Kind::Symlink,
                SUBMODULE => return Err(SourceError::Submodule(lossy(path))),
                mode if mode & 0o111 != 0 => Kind::Executable,
                _ => Kind::File,
            };
            let (size, _) = odb.read_header(oid)?;
            entries.push(SourceEntry { path: path.to_vec(), kind, oid, size: size as u64 });
            Ok(())
        };
        Walk::new(&self.repository, walk).through(directory, None)?;
        Ok(entries)
    }

    /// The content of a listed file, all of it in memory: its size must be known to be reasonable.
    pub fn content(&self, entry: &SourceEntry) -> Result<git2::Blob<'_>, SourceError> {
        if self.opened.elapsed() > CONTENT_TIME {
            return Err(SourceError::TooSlow);
        }
        Ok(self.repository.find_blob(entry.oid)?)
    }

    /// What keeps this commit from being built whatever its manifest says: submodules and Git LFS pointers. Files that `known_good`, a
    /// commit checked before, has as well are not looked at again.
    pub fn refusals(&self, known_good: Option<&str>) -> Result<Vec<Problem>, SourceError> {
        let known = known_good.and_then(|commit| Oid::from_str(commit).ok());
        let known = known.and_then(|commit| self.repository.find_commit(commit).ok()).map(|commit| commit.tree_id());
        let odb = self.repository.odb()?;
        let (mut submodules, mut pointers) = (Told::default(), Told::default());
        let look = |path: &[u8], oid, mode| {
            if mode == SUBMODULE {
                submodules.add(path);
            } else if mode != LINK {
                let (size, _) = odb.read_header(oid)?;
                if size <= LFS_POINTER_SIZE
                    && size > LFS_POINTER.len()
                    && odb.read(oid)?.data().starts_with(LFS_POINTER)
                {
                    pointers.add(path);
                }
            }
            Ok(())
        };
        Walk::new(&self.repository, look).through(self.tree, known)?;
        let mut problems: Vec<Problem> = submodules.paths.iter().map(|path| self.submodule_problem(path)).collect();
        problems.extend(pointers.paths.iter().map(|path| pointer_problem(path)));
        for (more, what) in [(submodules.more, "submodules"), (pointers.more, "Git LFS pointers")] {
            if more > 0 {
                problems.push(problem("", None, None, format!("… and {more} more {what}"), None));
            }
        }
        Ok(problems)
    }

    /// Where `.gitmodules` declares the submodule, if it does.
    fn submodule_problem(&self, path: &str) -> Problem {
        let text = self.read(".gitmodules", 1 << 20).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let declares =
            |line: &str| line.split_once('=').is_some_and(|(key, value)| key.trim() == "path" && value.trim() == path);
        let line = text.lines().position(declares);
        let excerpt = line.and_then(|line| text.lines().nth(line)).map(|text| text.trim().chars().take(120).collect());
        let (file, line) = line.map_or((path, None), |line| (".gitmodules", Some(line + 1)));
        problem(
            file,
            line,
            excerpt,
            format!("{path} is a git submodule; its files are not part of the push"),
            Some("commit the files themselves (git rm --cached the submodule, then git add), or depend on a released package".to_owned()),
        )
    }
}

/// A path for people.
pub fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn pointer_problem(path: &str) -> Problem {
    problem(
        path,
        Some(1),
        Some(String::from_utf8_lossy(LFS_POINTER).into_owned() + "…"),
        format!("{path} is a Git LFS pointer; the file itself is not part of the push"),
        Some(
            "take it out of LFS (git lfs migrate export --include=PATH), or let the app fetch it when it starts"
                .to_owned(),
        ),
    )
}

fn problem(
    file: &str,
    line: Option<usize>,
    excerpt: Option<String>,
    message: String,
    suggestion: Option<String>,
) -> Problem {
    Problem { file: file.to_owned(), line, column: line.map(|_| 1), excerpt, caret: None, message, suggestion }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::testing::Fixture;

    #[test]
    fn lists_in_path_order_and_reads_within_limits() {
        let fixture = Fixture::new();
        let commit =
            fixture.commit(&[("a/z", "1"), ("a.txt", "2"), ("b", "->a.txt"), ("run.sh", "#!/bin/sh"), ("a-b", "3")]);
        let tree = fixture.tree(&commit);
        let root = tree.directory("").unwrap();
        let paths: Vec<_> =
            tree.list(root).unwrap().into_iter().map(|entry| (lossy(&entry.path), entry.kind)).collect();
        let want = [
            ("a-b", Kind::File),
            ("a.txt", Kind::File),
            ("a/z", Kind::File),
            ("b", Kind::Symlink),
            ("run.sh", Kind::Executable),
        ];
        assert_eq!(paths, want.map(|(path, kind)| (path.to_owned(), kind)));
        assert_eq!(tree.read("a/z", 10).unwrap().unwrap(), b"1");
        assert_eq!(tree.read("nothing", 10).unwrap(), None);
        assert_eq!(tree.read("a", 10).unwrap(), None);
        assert!(matches!(tree.read("b", 10), Err(SourceError::Symlink(_))));
        assert!(matches!(tree.read("run.sh", 3), Err(SourceError::TooLarge { .. })));
        assert!(matches!(tree.directory("a.txt"), Err(SourceError::NoRoot(_))));
        assert_eq!(tree.list(tree.directory("a").unwrap()).unwrap().len(), 1);
    }

    #[test]
    fn lfs_pointers_and_submodules_are_refused() {
        let fixture = Fixture::new();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";
        let first = fixture.commit(&[("data/model.bin", pointer), ("ok.txt", "fine")]);
        let problems = fixture.tree(&first).refusals(None).unwrap();
        assert_eq!(problems.len(), 1);
        assert_eq!((problems[0].file.as_str(), problems[0].line), ("data/model.bin", Some(1)));
        let second = fixture.commit(&[("data/model.bin", pointer), ("ok.txt", "changed")]);
        assert!(
            fixture.tree(&second).refusals(Some(&first)).unwrap().is_empty(),
            "what was taken before is looked at again"
        );

        let gitmodules = "[submodule \"lib\"]\n\tpath = vendor/lib\n\turl = https://example.com/lib\n";
        let third = fixture
            .commit(&[(".gitmodules", gitmodules), ("vendor/lib", "=>1111111111111111111111111111111111111111")]);
        let problems = fixture.tree(&third).refusals(None).unwrap();
        assert_eq!((problems[0].file.as_str(), problems[0].line), (".gitmodules", Some(2)));
        assert!(problems[0].message.contains("vendor/lib"));
        assert!(matches!(
            fixture.tree(&third).list(fixture.tree(&third).directory("").unwrap()),
            Err(SourceError::Submodule(_))
        ));
    }
}
