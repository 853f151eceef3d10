//! The git binary, and the configuration and environment that every git process of the server gets.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

/// Where git is looked for, and the `PATH` of its hooks.
const SEARCH_PATH: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// The oldest git whose `core.fsync` can be set by component.
pub const MIN_VERSION: GitVersion = GitVersion { major: 2, minor: 36 };

/// A git release, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GitVersion {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for GitVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl GitVersion {
    /// From what `git --version` prints, `git version 2.39.5`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.strip_prefix("git version ")?.split(['.', ' ', '\n']);
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

/// How git is run.
#[derive(Debug, Clone)]
pub struct Git {
    /// The binary.
    pub binary: PathBuf,
    /// The directory with our `pre-receive` (`core.hooksPath`).
    pub hooks: PathBuf,
    /// Largest pack that a push may bring, in bytes (`receive.maxInputSize`).
    pub max_input: u64,
}

/// What git says for itself or we for it when a repository is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `git push`.
    ReceivePack,
    /// `git clone`, `fetch`, `ls-remote`.
    UploadPack,
}

impl Service {
    /// git's subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReceivePack => "receive-pack",
            Self::UploadPack => "upload-pack",
        }
    }
}

impl Git {
    /// The first git in a fixed list of directories: what the server's `PATH` says does not matter.
    pub fn find() -> io::Result<PathBuf> {
        let candidates = SEARCH_PATH.iter().map(|directory| Path::new(directory).join("git"));
        candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("git is not installed (looked in {})", SEARCH_PATH.join(", ")),
            )
        })
    }

    /// Version of a git binary.
    pub async fn version(binary: &Path) -> io::Result<GitVersion> {
        let output = Command::new(binary).arg("--version").env_clear().stdin(Stdio::null()).output().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        GitVersion::parse(&text).ok_or_else(|| io::Error::other(format!("`git --version` said {text:?}")))
    }

    /// A git process with our configuration and nothing of the host's, in a process group of its own.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env_clear().process_group(0).kill_on_drop(true);
        command.env("PATH", SEARCH_PATH.join(":")).env("LC_ALL", "C.UTF-8").env("HOME", "/nonexistent");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
        let settings = self.settings();
        command.env("GIT_CONFIG_COUNT", settings.len().to_string());
        for (index, (key, value)) in settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), key).env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        command
    }

    /// A process that serves one end of the wire protocol for a repository. `protocol` is the client's `GIT_PROTOCOL`, checked by
    /// [`super::wire::protocol`].
    pub fn serve(&self, service: Service, repository: &Path, protocol: Option<&str>) -> Command {
        let mut command = self.command(&[service.name()]);
        command.arg(repository).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(protocol) = protocol {
            command.env("GIT_PROTOCOL", protocol);
        }
        command
    }

    /// Configuration in the scope of the command, which nothing in a repository can override.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let fixed = [
            // Blobs larger than this are not held in memory; see also `limits`.
            ("core.bigFileThreshold", "64m"),
            ("core.fsync", "all"),
            ("core.logAllRefUpdates", "false"),
            ("core.packedGitLimit", "512m"),
            ("core.packedGitWindowSize", "32m"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("pack.threads", "2"),
            ("pack.windowMemory", "128m"),
            ("protocol.allow", "never"),
            ("receive.advertisePushOptions", "true"),
            ("receive.autogc", "false"),
            ("receive.denyDeleteCurrent", "ignore"),
            ("receive.fsckObjects", "true"),
            // Harmless oddities of old repositories, which nobody can mend without rewriting history.
            ("receive.fsck.badTimezone", "ignore"),
            ("receive.fsck.missingSpaceBeforeDate", "ignore"),
            ("receive.fsck.zeroPaddedFilemode", "ignore"),
            // The hook refuses shallow pushes with a better message than git's.
            ("receive.shallowUpdate", "true"),
            // Always a pack: one synced file instead of one per object, and something that can be hard-linked.
            ("receive.unpackLimit", "1"),
            ("safe.bareRepository", "explicit"),
            ("transfer.hideRefs", "refs/berth"),
            ("uploadpack.allowFilter", "true"),
        ];
        let mut settings: Vec<_> = fixed.into_iter().map(|(key, value)| (key, value.to_owned())).collect();
        settings.push(("core.hooksPath", self.hooks.to_string_lossy().into_owned()));
        settings.push(("receive.maxInputSize", self.max_input.to_string()));
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(GitVersion::parse("git version 2.39.5\n"), Some(GitVersion { major: 2, minor: 39 }));
        assert_eq!(GitVersion::parse("git version 2.47.rc1 (x)"), Some(GitVersion { major: 2, minor: 47 }));
        assert_eq!(GitVersion::parse("gut"), None);
        assert!(GitVersion { major: 2, minor: 9 } < MIN_VERSION);
    }
}
