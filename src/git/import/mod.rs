//! A source that comes without git: an archive is made a commit, in quarantine as what a push brings.
//!
//! The archive is read here ([`archive`]); git itself makes the objects (`git fast-import`) and judges them (`git index-pack --strict`, as
//! `receive-pack` does), so that a tree which no push could bring does not come in by this door either.

mod archive;
mod feed;
mod names;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read},
    path::Path,
};

use git2::{Repository, RepositoryInitOptions};
use tempfile::TempDir;

use self::feed::{FastImport, Signature};
use super::{Git, GitError, Repositories};
use crate::domain::{EnvRef, UserName};

/// What an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Bytes once it is unpacked, headers included.
    pub unpacked: u64,
    /// Files and directories.
    pub entries: usize,
    /// Bytes of their paths.
    pub names: usize,
}

/// Unpacked bytes for each byte that may be sent. Code shrinks to a quarter or so; what shrinks to much less is made to.
const EXPANSION: u64 = 4;

impl ImportLimits {
    /// For archives of up to so many bytes: with as many files as a build takes.
    pub fn for_input(bytes: u64) -> Self {
        Self { unpacked: bytes.saturating_mul(EXPANSION), entries: 200_000, names: 64 << 20 }
    }
}

/// Why an archive was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is something else; the text says what.
    #[error("it is neither a tar archive nor one compressed with gzip ({0})")]
    NotAnArchive(&'static str),
    /// There is no file in it.
    #[error("there are no files in it")]
    Empty,
    /// One entry cannot be taken.
    #[error("{path} {why}")]
    Refused { path: String, why: &'static str },
    /// It is damaged or has not come to its end.
    #[error("it cannot be read: {0}")]
    Broken(String),
    /// It unpacks to more than may be.
    #[error("it unpacks to more than {} MiB", limit >> 20)]
    TooMuch { limit: u64 },
    /// It holds more than any project has.
    #[error("it has more than {limit} files and directories, or paths of more than 64 MiB")]
    TooMany { limit: usize },
    /// git does not take such a tree.
    #[error("git does not take what is in it: {0}")]
    Fsck(String),
    /// Not the archive's fault.
    #[error("{0}")]
    Platform(String),
}

impl From<io::Error> for ImportError {
    fn from(error: io::Error) -> Self {
        Self::Platform(error.to_string())
    }
}

impl From<GitError> for ImportError {
    fn from(error: GitError) -> Self {
        Self::Platform(error.to_string())
    }
}

/// Who brings a source, and what the commit is to say.
#[derive(Debug, Clone)]
pub struct Author {
    pub user: UserName,
    /// Seconds since 1970.
    pub seconds: i64,
    pub message: String,
}

/// A commit whose objects are in quarantine until they are kept ([`Repositories::keep_objects`]); gone when it is dropped.
#[derive(Debug)]
pub struct Quarantined {
    /// 40 hexadecimal digits.
    pub commit: String,
    directory: TempDir,
}

impl Quarantined {
    /// The object directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Repositories {
    /// Makes a commit without parents of an archive (tar, or tar in gzip) that is read as it comes. The repository must be there, and in
    /// use ([`Repositories::use_of`]): objects that it has are not brought again. Blocking.
    ///
    /// A directory around all the rest is taken off, unless the archive names its own root (`./`). Directories without files are not part
    /// of a git tree.
    ///
    /// # Errors
    /// See [`ImportError`]; nothing is left behind then.
    pub fn import(
        &self,
        git: &Git,
        env: &EnvRef,
        source: impl Read,
        limits: &ImportLimits,
        author: &Author,
    ) -> Result<Quarantined, ImportError> {
        let repository = self.path(env);
        // Both have names that are cleared away at the next start should this server die.
        let aside = tempfile::Builder::new().prefix(".new-").tempdir_in(self.root())?;
        let scratch = aside.path().join("scratch.git");
        init(&scratch)?;
        let objects = repository.join("objects");
        let mut import = FastImport::start(git, &scratch, &objects)?;
        let files = match archive::read(source, limits, &mut import) {
            Ok(files) => files,
            Err(error) => return Err(import.why(error)),
        };
        // Nobody's address (RFC 2606).
        let email = format!("{}@berth.invalid", author.user);
        let Author { user, seconds, message } = author;
        let signature = Signature { name: user.as_str(), email: &email, seconds: *seconds, message };
        let commit = import.commit(&files, &signature)?;
        let directory = tempfile::Builder::new().prefix("tmp_objdir-incoming-").tempdir_in(&objects)?;
        feed::index(git, &scratch, &repository, directory.path())?;
        Ok(Quarantined { commit, directory })
    }
}

/// A bare repository that only lives for a moment.
fn init(path: &Path) -> Result<(), GitError> {
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false).initial_head("main");
    Repository::init_opts(path, &options).map(drop).map_err(GitError::git("a repository to import into cannot be made"))
}
