//! The buildpacks that a build has: those that come with Berth, and custom ones that the operator allows.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use include_dir::{Dir, include_dir};
use sha2::{Digest as _, Sha256};

use super::slug::TarWriter;
use crate::domain::Digest;

/// The repository's `buildpacks/` as it was when Berth was compiled.
static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/buildpacks");

/// How long fetching a custom buildpack may take.
const FETCH_DEADLINE: Duration = Duration::from_secs(120);
/// How the directory of one that is being fetched begins.
const FETCHING: &str = "fetching-";
/// Largest custom buildpack, bytes and files.
const MAX_SIZE: u64 = 64 << 20;
const MAX_FILES: usize = 20_000;

/// Why there are no buildpacks to build with.
#[derive(Debug, thiserror::Error)]
pub enum BuildpackError {
    /// The push asks for what it may not have, or what does not exist.
    #[error("{0}")]
    Refused(String),
    #[error("buildpacks cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PackFile {
    executable: bool,
    content: Vec<u8>,
}

/// The buildpacks for one build: `bin/build`, `lib`, and one directory each.
#[derive(Debug, Clone)]
pub struct Buildpacks {
    files: BTreeMap<String, PackFile>,
    hash: Digest,
}

impl Buildpacks {
    /// Those that come with Berth.
    pub fn embedded() -> Self {
        let mut files = BTreeMap::new();
        let mut directories = vec![&EMBEDDED];
        while let Some(directory) = directories.pop() {
            directories.extend(directory.dirs());
            for file in directory.files() {
                // The permissions are lost when embedding; a script says itself that it is one.
                let executable = file.contents().starts_with(b"#!");
                let content = file.contents().to_vec();
                files.insert(file.path().to_string_lossy().into_owned(), PackFile { executable, content });
            }
        }
        Self::of(files)
    }

    /// Those of a directory of the same shape.
    pub fn from_directory(directory: &Path) -> Result<Self, BuildpackError> {
        let mut files = BTreeMap::new();
        read_directory(directory, "", &mut files)?;
        Ok(Self::of(files))
    }

    fn of(files: BTreeMap<String, PackFile>) -> Self {
        let mut hash = Sha256::new();
        for (path, file) in &files {
            hash.update((path.len() as u64).to_le_bytes());
            hash.update(path);
            hash.update([u8::from(file.executable)]);
            hash.update((file.content.len() as u64).to_le_bytes());
            hash.update(&file.content);
        }
        Self { files, hash: Digest::from_sha256(hash.finalize()) }
    }

    /// Names the content of all of them.
    pub fn hash(&self) -> &Digest {
        &self.hash
    }

    /// With the buildpack in `directory` added as `name`.
    pub fn with(&self, name: &str, directory: &Path) -> Result<Self, BuildpackError> {
        let mut files = self.files.clone();
        read_directory(directory, &format!("{name}/"), &mut files)?;
        if !files.contains_key(&format!("{name}/bin/compile")) {
            return Err(BuildpackError::Refused(format!("{name} is no buildpack: it has no bin/compile")));
        }
        Ok(Self::of(files))
    }

    /// The globs of files that the `bin/detect` of these buildpacks looks at (all that come with Berth, when `names` is empty). `None`
    /// when one does not say.
    pub fn detect_globs(&self, names: &[String]) -> Option<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct About {
            detect: Vec<String>,
        }
        let about = |path: &str, file: &PackFile| {
            let name = path.strip_suffix("/buildpack.yaml")?;
            (names.is_empty() || names.iter().any(|asked| asked == name))
                .then(|| serde_yaml::from_slice::<About>(&file.content))
        };
        let found: Vec<_> = self.files.iter().filter_map(|(path, file)| about(path, file)).collect();
        if found.len() < names.len().max(1) {
            return None;
        }
        let mut globs = Vec::new();
        for about in found {
            globs.extend(about.ok()?.detect);
        }
        Some(globs)
    }

    /// Writes them as a tar.
    pub fn write(&self, output: &mut dyn Write) -> std::io::Result<()> {
        let mut tar = TarWriter::new(output);
        for (path, file) in &self.files {
            let mode = if file.executable { 0o755 } else { 0o644 };
            tar.file(path.as_bytes(), mode, file.content.len() as u64, file.content.as_slice())?;
        }
        tar.finish()?;
        Ok(())
    }
}

fn read_directory(
    directory: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, PackFile>,
) -> Result<(), BuildpackError> {
    use std::os::unix::fs::PermissionsExt;
    let mut pending = vec![(directory.to_owned(), prefix.to_owned())];
    let mut size = 0;
    while let Some((directory, prefix)) = pending.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() && name != ".git" {
                pending.push((entry.path(), format!("{prefix}{name}/")));
            } else if kind.is_file() {
                let about = entry.metadata()?;
                size += about.len();
                if size > MAX_SIZE || files.len() > MAX_FILES {
                    return Err(BuildpackError::Refused("the buildpack is too large".to_owned()));
                }
                let executable = about.permissions().mode() & 0o111 != 0;
                files.insert(format!("{prefix}{name}"), PackFile { executable, content: std::fs::read(entry.path())? });
            }
        }
    }
    Ok(())
}

/// Which custom buildpacks may be used, and where they are kept.
#[derive(Debug, Clone)]
pub struct CustomBuildpacks {
    /// What git URLs may begin with; empty: none may be used.
    pub allow: Vec<String>,
    /// git protocols that may be used, as in `https`.
    pub protocols: Vec<String>,
    /// Fetched ones, one directory each.
    pub directory: PathBuf,
    /// Certificates that servers of buildpacks are checked against, in PEM; `None`: the host's.
    pub ca_bundle: Option<PathBuf>,
}

/// Whether an entry of `build.buildpacks` is a URL and no name.
pub fn is_url(buildpack: &str) -> bool {
    buildpack.contains("://")
}

impl CustomBuildpacks {
    /// Removes what a server that was killed had fetched in part. Before any build runs.
    pub fn clean(&self) -> std::io::Result<()> {
        if !self.directory.is_dir() {
            return Ok(());
        }
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(FETCHING) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Adds the custom buildpacks among `asked` to `known`; returns the names to run, in order.
    pub async fn resolve(
        &self,
        known: &Buildpacks,
        asked: &[String],
    ) -> Result<(Buildpacks, Vec<String>), BuildpackError> {
        let mut packs = known.clone();
        let mut names = Vec::new();
        for buildpack in asked {
            if !is_url(buildpack) {
                names.push(buildpack.clone());
                continue;
            }
            self.check(buildpack)?;
            let (url, reference) = buildpack.split_once('#').unwrap_or((buildpack, "HEAD"));
            let commit = self.commit_of(url, reference).await?;
            let directory = self.fetched(url, reference, &commit).await?;
            let name = format!("custom-{}-{}", names.len() + 1, &commit[..12]);
            packs = packs.with(&name, &directory)?;
            names.push(name);
        }
        Ok((packs, names))
    }

    /// Whether the operator allows the URL.
    pub fn check(&self, buildpack: &str) -> Result<(), BuildpackError> {
        let url = buildpack.split_once('#').map_or(buildpack, |(url, _)| url);
        let matches = self.allow.iter().any(|allowed| {
            // A prefix ends where a part of the path does: `https://git.example.com` is not `https://git.example.com.evil.net`.
            let rest = url.strip_prefix(allowed.as_str());
            rest.is_some_and(|rest| {
                allowed.ends_with('/') || matches!(rest.chars().next(), None | Some('/')) || rest == ".git"
            })
        });
        let plain = url.chars().all(|c| c.is_ascii_graphic()) && !url.starts_with('-') && !url.contains("..");
        if matches && plain {
            return Ok(());
        }
        Err(BuildpackError::Refused(format!(
            "the buildpack {url} is not allowed on this server; its operator can add it to builds.allowed_buildpacks"
        )))
    }

    async fn commit_of(&self, url: &str, reference: &str) -> Result<String, BuildpackError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if reference.is_empty() || reference.starts_with('-') || !reference.chars().all(plain) {
            return Err(BuildpackError::Refused(format!("{reference:?} is no branch or tag of the buildpack {url}")));
        }
        // Whole names, since git takes a bare one for the end of any; what an annotated tag points at has `^{}` after its name.
        let wanted = match reference {
            "HEAD" => vec!["HEAD".to_owned()],
            name => vec![format!("refs/heads/{name}"), format!("refs/tags/{name}^{{}}"), format!("refs/tags/{name}")],
        };
        let mut arguments = vec!["ls-remote", "--", url];
        arguments.extend(wanted.iter().map(String::as_str));
        let listing = self.git(&arguments).await?;
        let commit_at = |wanted: &String| {
            let line = listing.lines().find(|line| line.split_whitespace().nth(1) == Some(wanted))?;
            line.split_whitespace().next().filter(|commit| commit.len() == 40)
        };
        let commit = wanted.iter().find_map(commit_at);
        commit
            .map(str::to_owned)
            .ok_or_else(|| BuildpackError::Refused(format!("the buildpack {url} has no branch or tag {reference}")))
    }

    async fn fetched(&self, url: &str, reference: &str, commit: &str) -> Result<PathBuf, BuildpackError> {
        let name = hex::encode(Sha256::digest(format!("{url} {commit}")));
        let wanted = self.directory.join(name);
        if wanted.is_dir() {
            // When it was last used, for whoever clears away what is not. That it cannot be noted costs fetching it again.
            let _ = std::fs::File::open(&wanted).and_then(|file| file.set_modified(std::time::SystemTime::now()));
            return Ok(wanted);
        }
        tokio::fs::create_dir_all(&self.directory).await?;
        let fetching = tempfile::Builder::new().prefix(FETCHING).tempdir_in(&self.directory)?;
        let target = fetching.path().join("pack");
        let target_text = target.to_string_lossy().into_owned();
        let mut arguments = vec!["clone", "--quiet", "--depth", "1", "--no-recurse-submodules"];
        if reference != "HEAD" {
            arguments.extend(["--branch", reference]);
        }
        arguments.extend(["--", url, &target_text]);
        self.git(&arguments).await?;
        let head = self.git(&["-C", &target_text, "rev-parse", "HEAD"]).await?;
        if head.trim() != commit {
            return Err(BuildpackError::Refused(format!(
                "the buildpack {url} changed while it was fetched; push again"
            )));
        }
        match std::fs::rename(&target, &wanted) {
            // Another build was faster, with the same content.
            Err(_) if wanted.is_dir() => Ok(wanted),
            result => Ok(result.map(|()| wanted)?),
        }
    }

    async fn git(&self, arguments: &[&str]) -> Result<String, BuildpackError> {
        let mut command = tokio::process::Command::new("git");
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("GIT_TERMINAL_PROMPT", "0");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("HOME", "/nonexistent");
        command.env("GIT_ALLOW_PROTOCOL", self.protocols.join(":"));
        for name in ["SSL_CERT_FILE", "GIT_SSL_CAINFO", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(bundle) = &self.ca_bundle {
            command.env("GIT_SSL_CAINFO", bundle);
        }
        // Where a redirection leads, nobody has allowed.
        command.args(["-c", "http.followRedirects=false"]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(FETCH_DEADLINE, command.output()).await.map_err(|_| {
            BuildpackError::Refused(format!("fetching the buildpack took longer than {} s", FETCH_DEADLINE.as_secs()))
        })??;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
        Err(BuildpackError::Refused(format!("the buildpack cannot be fetched: {said}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_ones_are_whole() {
        let packs = Buildpacks::embedded();
        assert_eq!(packs.hash(), Buildpacks::embedded().hash());
        let mut tar = Vec::new();
        packs.write(&mut tar).unwrap();
        assert!(!tar.is_empty());
        let globs = packs.detect_globs(&[]).expect("each buildpack.yaml says what bin/detect looks at");
        assert!(
            globs.iter().any(|glob| glob == "package.json") && globs.iter().any(|glob| glob == "Procfile"),
            "{globs:?}"
        );
    }

    #[test]
    fn detect_globs_come_from_the_candidates() {
        let directory = tempfile::tempdir().unwrap();
        for (name, detect) in [("nodejs", "[package.json]"), ("static", "[index.html, '*.json']")] {
            std::fs::create_dir_all(directory.path().join(name).join("bin")).unwrap();
            let about = format!("name: {name}\ndetect: {detect}\n");
            std::fs::write(directory.path().join(name).join("buildpack.yaml"), about).unwrap();
            std::fs::write(directory.path().join(name).join("bin/compile"), "#!/bin/sh\n").unwrap();
        }
        let packs = Buildpacks::from_directory(directory.path()).unwrap();
        assert_eq!(packs.detect_globs(&[]).unwrap(), ["package.json", "index.html", "*.json"]);
        assert_eq!(packs.detect_globs(&["static".to_owned()]).unwrap(), ["index.html", "*.json"]);
        assert_eq!(packs.detect_globs(&["static".to_owned(), "custom".to_owned()]), None);
        let other = packs.with("custom", &directory.path().join("nodejs")).unwrap();
        assert_ne!(other.hash(), packs.hash());
    }

    fn custom(allow: &[&str], directory: &Path) -> CustomBuildpacks {
        CustomBuildpacks {
            allow: allow.iter().map(|glob| (*glob).to_owned()).collect(),
            protocols: vec!["file".to_owned()],
            directory: directory.to_owned(),
            ca_bundle: None,
        }
    }

    #[test]
    fn only_what_the_operator_allows() {
        let custom = custom(&["https://git.example.com/packs/", "https://other.example.com"], Path::new("/nowhere"));
        assert!(custom.check("https://git.example.com/packs/ruby.git").is_ok());
        assert!(custom.check("https://git.example.com/packs/ruby.git#v2").is_ok());
        for url in [
            "https://other.example.com.evil.net/ruby.git",
            "https://git.example.com/other/ruby.git",
            "https://git.example.com/packs/../ruby",
            "https://evil.example.com/?https://git.example.com/packs/ruby.git",
            "file:///etc",
            "ext::sh -c id://",
        ] {
            assert!(custom.check(url).is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_custom_buildpack_is_fetched_once() {
        let home = tempfile::tempdir().unwrap();
        let origin = crate::build::testing::Fixture::at(home.path().join("origin.git"));
        let commit =
            crate::build::testing::commit(&origin, &[("bin/compile", "#!/bin/sh"), ("bin/detect", "#!/bin/sh")]);
        let repository = git2::Repository::open_bare(&origin).unwrap();
        repository.reference("refs/heads/main", git2::Oid::from_str(&commit).unwrap(), true, "").unwrap();
        repository.set_head("refs/heads/main").unwrap();

        let url = format!("file://{}", origin.display());
        let custom = custom(&["file:///"], &home.path().join("cache"));
        let known = Buildpacks::embedded();
        let asked = ["nodejs".to_owned(), url.clone()];
        let (packs, names) = custom.resolve(&known, &asked).await.unwrap();
        assert_eq!(names, ["nodejs".to_owned(), format!("custom-2-{}", &commit[..12])]);
        assert_ne!(packs.hash(), known.hash());
        std::fs::create_dir(home.path().join("cache/fetching-left")).unwrap();
        custom.clean().unwrap();
        let (again, _) = custom.resolve(&known, &asked).await.unwrap();
        assert_eq!(again.hash(), packs.hash());
        assert_eq!(std::fs::read_dir(home.path().join("cache")).unwrap().count(), 1);
        // A branch whose name ends alike, and an annotated tag.
        let other = crate::build::testing::commit(&origin, &[("bin/compile", "#!/bin/bash"), ("bin/detect", "")]);
        let other = repository.find_object(git2::Oid::from_str(&other).unwrap(), None).unwrap();
        repository.reference("refs/heads/a/main", other.id(), true, "").unwrap();
        let tagger = git2::Signature::now("t", "t@localhost").unwrap();
        repository.tag("v1", &other, &tagger, "version 1", false).unwrap();
        for (reference, commit) in [("main", commit.clone()), ("v1", other.id().to_string())] {
            let (_, names) = custom.resolve(&known, &[format!("{url}#{reference}")]).await.unwrap();
            assert_eq!(names, [format!("custom-1-{}", &commit[..12])], "{reference}");
        }
        let missing = custom.resolve(&known, &[format!("{url}#nothing")]).await.unwrap_err();
        assert!(matches!(missing, BuildpackError::Refused(_)), "{missing}");
    }
}
