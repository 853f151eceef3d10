//! The pushed tree, read straight from the repository's objects: no work tree, nothing of it ever on the host's file system.

use std::path::Path;

use git2::{ObjectType, Oid, Repository};
use jiff::Timestamp;

use crate::manifest::Problem;

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
}

/// One commit of a bare repository.
pub struct SourceTree {
    repository: Repository,
    commit: Oid,
    tree: Oid,
    committed_at: Timestamp,
    subject: String,
}

/// Is shown a path, the object there, and its mode as in the tree.
type Visit<'v> = dyn FnMut(&[u8], Oid, i32) -> Result<(), SourceError> + 'v;

/// The largest git object that can be a Git LFS pointer (specification, "The Pointer").
const LFS_POINTER_SIZE: usize = 1024;
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Problems of one kind that are listed one by one.
const LISTED: usize = 10;
/// Nesting of directories that is followed; git itself allows more, no file system path that long can be made.
const MAX_DEPTH: usize = 512;

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
            let commit = repository.find_commit(Oid::from_str(commit)?)?;
            let committed_at = Timestamp::from_second(commit.time().seconds()).unwrap_or_default();
            let subject = String::from_utf8_lossy(commit.summary_bytes().unwrap_or_default()).into_owned();
            (commit.id(), commit.tree_id(), committed_at, subject)
        };
        Ok(Self { repository, commit: oid, tree, committed_at, subject })
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
        let tree = self.repository.find_tree(tree)?;
        let entry = match tree.get_path(Path::new(path)) {
            Ok(entry) => entry,
            Err(error) if error.code() == git2::ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if entry.filemode() == i32::from(git2::FileMode::Link) {
            return Err(SourceError::Symlink(path.to_owned()));
        }
        if entry.kind() != Some(ObjectType::Blob) {
            return Ok(None);
        }
        let (size, _) = self.repository.odb()?.read_header(entry.id())?;
        if size > limit {
            return Err(SourceError::TooLarge { path: path.to_owned(), size, limit });
        }
        Ok(Some(self.repository.find_blob(entry.id())?.content().to_vec()))
    }

    /// The tree object of the directory `root` (empty: of the whole repository). Its id names its content.
    pub fn directory(&self, root: &str) -> Result<Oid, SourceError> {
        if root.is_empty() {
            return Ok(self.tree);
        }
        let tree = self.repository.find_tree(self.tree)?;
        let entry = tree.get_path(Path::new(root)).ok().filter(|entry| entry.kind() == Some(ObjectType::Tree));
        entry.map(|entry| entry.id()).ok_or_else(|| SourceError::NoRoot(root.to_owned()))
    }

    /// All files below the tree object `directory`, sorted by the bytes of their paths.
    pub fn list(&self, directory: Oid) -> Result<Vec<SourceEntry>, SourceError> {
        let mut entries = Vec::new();
        self.walk(directory, None, &mut Vec::new(), 0, &mut |path, oid, mode| {
            let kind = match mode {
                0o120_000 => Kind::Symlink,
                0o160_000 => return Err(SourceError::Submodule(lossy(path))),
                mode if mode & 0o111 != 0 => Kind::Executable,
                _ => Kind::File,
            };
            entries.push(SourceEntry { path: path.to_vec(), kind, oid });
            Ok(())
        })?;
        Ok(entries)
    }

    /// The content of a listed file.
    pub fn content(&self, entry: &SourceEntry) -> Result<git2::Blob<'_>, SourceError> {
        Ok(self.repository.find_blob(entry.oid)?)
    }

    /// What keeps this commit from being built whatever its manifest says: submodules and Git LFS pointers. Files that `known_good`, a
    /// commit checked before, has as well are not looked at again.
    pub fn refusals(&self, known_good: Option<&str>) -> Result<Vec<Problem>, SourceError> {
        let known = known_good.and_then(|commit| Oid::from_str(commit).ok());
        let known = known.and_then(|commit| self.repository.find_commit(commit).ok()).map(|commit| commit.tree_id());
        let odb = self.repository.odb()?;
        let (mut submodules, mut pointers) = (Vec::new(), Vec::new());
        self.walk(self.tree, known, &mut Vec::new(), 0, &mut |path, oid, mode| {
            if mode == 0o160_000 {
                submodules.push(lossy(path));
            } else if mode != 0o120_000 {
                let (size, _) = odb.read_header(oid)?;
                if size <= LFS_POINTER_SIZE
                    && size > LFS_POINTER.len()
                    && odb.read(oid)?.data().starts_with(LFS_POINTER)
                {
                    pointers.push(lossy(path));
                }
            }
            Ok(())
        })?;
        let modules = submodules.iter().take(LISTED).map(|path| self.submodule_problem(path));
        let mut problems: Vec<Problem> = modules.collect();
        problems.extend(pointers.iter().take(LISTED).map(|path| pointer_problem(path)));
        for (count, what) in [(submodules.len(), "submodules"), (pointers.len(), "Git LFS pointers")] {
            if count > LISTED {
                problems.push(problem("", None, None, format!("… and {} more {what}", count - LISTED), None));
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

    /// Visits everything that is no directory, in path order; directories that are the same in `known` are left out.
    fn walk(
        &self,
        tree: Oid,
        known: Option<Oid>,
        path: &mut Vec<u8>,
        depth: usize,
        visit: &mut Visit<'_>,
    ) -> Result<(), SourceError> {
        if known == Some(tree) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(SourceError::Name(lossy(&path[..path.len().min(80)])));
        }
        let tree = self.repository.find_tree(tree)?;
        let known = known.and_then(|known| self.repository.find_tree(known).ok());
        for entry in tree.iter() {
            let name = entry.name_bytes();
            if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
                return Err(SourceError::Name(lossy(name)));
            }
            let before = known.as_ref().and_then(|known| known.get_name_bytes(name)).map(|entry| entry.id());
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if entry.kind() == Some(ObjectType::Tree) {
                self.walk(entry.id(), before, path, depth + 1, visit)?;
            } else if before != Some(entry.id()) {
                visit(path, entry.id(), entry.filemode_raw())?;
            }
            path.truncate(length);
        }
        Ok(())
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
