//! Debian's `docker-registry` (the reference implementation of the distribution spec) as a supervised child process.

use std::{
    ffi::OsStr,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

pub use super::room::Keeper;
use super::{
    process::Process,
    room::{self, CollectRequest},
};

/// Where the registry keeps its repositories, below its directory.
const REPOSITORIES: &str = "data/docker/registry/v2/repositories";

/// How long the registry may take to answer after its start.
const READY_DEADLINE: Duration = Duration::from_secs(15);
/// How long the port of a registry whose server was killed may take to become free.
const PORT_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two looks at something that has no event.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Pauses before a restart; one that ran for a minute begins anew.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(60);
/// An upload that was begun so long ago is over, one way or the other. Longer than the largest slug takes.
const UPLOAD_AGE: &str = "2h";

/// How the managed registry is to run.
#[derive(Debug, Clone)]
pub struct ManagedSettings {
    /// `DATA/registry`: its configuration and blobs.
    pub directory: PathBuf,
    /// Port on 127.0.0.1.
    pub port: u16,
    /// The program, normally `docker-registry`.
    pub program: PathBuf,
}

impl ManagedSettings {
    /// Debian's program, with its files below `directory`.
    pub fn new(directory: impl Into<PathBuf>, port: u16) -> Self {
        Self { directory: directory.into(), port, program: PathBuf::from("docker-registry") }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn config(&self, secret: &str, read_only: bool) -> String {
        // JSON is YAML, and needs no thought about quoting.
        let config = serde_json::json!({
            "version": 0.1,
            "log": {"level": "warn", "formatter": "text", "accesslog": {"disabled": true}},
            "storage": {
                "filesystem": {"rootdirectory": self.directory.join("data"), "maxthreads": 100},
                "cache": {"blobdescriptor": "inmemory"},
                "delete": {"enabled": true},
                "maintenance": {
                    "uploadpurging": {"enabled": !read_only, "age": UPLOAD_AGE, "interval": "30m", "dryrun": false},
                    "readonly": {"enabled": read_only},
                },
            },
            "http": {"addr": self.address(), "secret": secret, "headers": {"X-Content-Type-Options": ["nosniff"]}},
        });
        format!("{config:#}\n")
    }
}

/// A running registry. Dropping it kills the process; [`ManagedRegistry::run`] keeps it running.
pub struct ManagedRegistry {
    settings: ManagedSettings,
    process: Process,
    keeper: Keeper,
    requests: mpsc::Receiver<CollectRequest>,
}

impl ManagedRegistry {
    /// Starts the registry and returns when it answers. Fails when something else has the port.
    pub async fn start(settings: ManagedSettings) -> anyhow::Result<Self> {
        write_configs(&settings)?;
        let process = launch(&settings, Mode::Normal).await?;
        // One collection at a time is asked for.
        let (asks, requests) = mpsc::channel(1);
        let keeper = Keeper::new(&settings, asks);
        Ok(Self { settings, process, keeper, requests })
    }

    /// Where it listens, `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.settings.address()
    }

    /// What looks after its room; works while [`Self::run`] does.
    pub fn keeper(&self) -> Keeper {
        self.keeper.clone()
    }

    /// Starts it anew whenever it ends, until `shutdown`; then stops it in order.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(done) = self.requests.recv() => {
                    let collected = tokio::select! {
                        () = shutdown.cancelled() => break,
                        collected = self.collect() => collected,
                    };
                    // Whoever asked may be gone.
                    let _ = done.send(collected);
                    continue;
                }
                status = self.process.ended() => tracing::error!(%status, "the registry has ended; starting it again"),
            }
            if started.elapsed() > STEADY {
                pause = FIRST_PAUSE;
            }
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                match launch(&self.settings, Mode::Normal).await {
                    Ok(process) => break self.process = process,
                    Err(error) => tracing::error!("the registry cannot be started: {error:#}"),
                }
            }
        }
        self.process.stop().await;
    }

    /// Serves read-only while the collector works, as its authors want it: an upload beside it could lose its blobs. Whatever happens,
    /// it is started for writing again, by the loop if not here. Nothing is written for that: the disk may be full.
    async fn collect(&mut self) -> anyhow::Result<u64> {
        self.process.stop().await;
        let collected = match launch(&self.settings, Mode::ReadOnly).await {
            Ok(process) => {
                self.process = process;
                let collected = room::collect(&self.settings).await;
                self.process.stop().await;
                collected
            }
            Err(error) => Err(error),
        };
        self.process = launch(&self.settings, Mode::Normal).await?;
        collected
    }
}

/// What the registry lets be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Normal,
    ReadOnly,
}

pub(super) fn config_path(settings: &ManagedSettings, mode: Mode) -> PathBuf {
    settings.directory.join(match mode {
        Mode::Normal => "config.yml",
        Mode::ReadOnly => "config-read-only.yml",
    })
}

fn write_configs(settings: &ManagedSettings) -> anyhow::Result<()> {
    let cannot = || format!("cannot prepare the registry's directory {}", settings.directory.display());
    std::fs::create_dir_all(settings.directory.join("data")).with_context(cannot)?;
    let secret = hex::encode(rand::random::<[u8; 32]>());
    for mode in [Mode::Normal, Mode::ReadOnly] {
        let path = config_path(settings, mode);
        match write_whole(&path, &settings.config(&secret, mode == Mode::ReadOnly)) {
            Ok(()) => {}
            // What the last start wrote does: only the port could be another one.
            Err(error) if is_full(&error) && listens_at(&path, settings) => {
                tracing::warn!(%error, "the registry's configuration stays as the last start wrote it: the disk is full");
            }
            Err(error) => return Err(error).with_context(cannot),
        }
    }
    Ok(())
}

/// Replaces a file, or leaves it as it was.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether there is a configuration that is for the same place.
fn listens_at(path: &Path, settings: &ManagedSettings) -> bool {
    let Ok(bytes) = std::fs::read(path) else { return false };
    let found: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let data = settings.directory.join("data");
    found["http"]["addr"] == settings.address()
        && found["storage"]["filesystem"]["rootdirectory"].as_str().map(Path::new) == Some(&data)
}

/// Waits until the port is free, or says who is to go.
async fn await_port(settings: &ManagedSettings) -> anyhow::Result<()> {
    let deadline = Instant::now() + PORT_DEADLINE;
    loop {
        match std::net::TcpListener::bind(("127.0.0.1", settings.port)) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(LOOK_AGAIN * 10).await;
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
                "something else already listens on {} (see: ss -ltnp sport = :{}): stop it, set registry.port to a free port, \
                 or set registry.managed to false and registry.address to use it",
                settings.address(),
                settings.port
            ),
            Err(error) => return Err(error).context(format!("cannot listen on {}", settings.address())),
        }
    }
}

/// Removes what is in the `_uploads` of all repositories below `directory`; returns how many uploads that were.
fn remove_uploads(directory: &Path) -> io::Result<usize> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if !entry.file_type()?.is_dir() || name == "_layers" || name == "_manifests" {
            continue;
        }
        if name != "_uploads" {
            removed += remove_uploads(&entry.path())?;
            continue;
        }
        for upload in std::fs::read_dir(entry.path())? {
            std::fs::remove_dir_all(upload?.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

async fn launch(settings: &ManagedSettings, mode: Mode) -> anyhow::Result<Process> {
    await_port(settings).await?;
    // A collector has a list of what is in use that uploads from now on are not in.
    drop(room::collector_lock(settings).await?);
    // With the registry that took them, uploads are over; whoever made one begins anew.
    match remove_uploads(&settings.directory.join(REPOSITORIES)) {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed uploads to the registry that were broken off"),
        Err(error) => tracing::warn!(%error, "uploads to the registry that were broken off cannot be removed"),
    }
    let mut process = {
        let config = config_path(settings, mode);
        Process::spawn(&settings.program, [OsStr::new("serve"), config.as_os_str()], Signal::SIGTERM, Stdio::null())
            .await?
    };
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        if tokio::net::TcpStream::connect(("127.0.0.1", settings.port)).await.is_ok() {
            return Ok(process);
        }
        tokio::select! {
            status = process.ended() => bail!("the registry ended at once ({status}); its messages are in Berth's log"),
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
        if Instant::now() > deadline {
            process.stop().await;
            bail!("the registry does not answer on {} after {} s", settings.address(), READY_DEADLINE.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use nix::sys::signal::kill;

    use sha2::Digest as _;

    use super::*;
    use crate::registry::{OciRegistry, Registry, contract};

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_real_registry_keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        let managed = ManagedRegistry::start(ManagedSettings::new(directory.path(), free_port())).await.unwrap();
        let registry = OciRegistry::new(&managed.address(), None).unwrap();
        contract::check(&registry).await;
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let port = managed.settings.port;
        managed.run(shutdown).await;
        assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok(), "it still listens");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_is_started_again_when_it_dies() {
        let directory = tempfile::tempdir().unwrap();
        let managed = ManagedRegistry::start(ManagedSettings::new(directory.path(), free_port())).await.unwrap();
        let registry = OciRegistry::new(&managed.address(), None).unwrap();
        let digest = crate::domain::Digest::from_sha256([0; 32]);
        let pid = managed.process.pid;
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(managed.run(shutdown.clone()));
        kill(pid, Signal::SIGKILL).unwrap();
        // The adapter tries again while it is away.
        assert!(!registry.has("a/b", &digest).await.unwrap());
        shutdown.cancel();
        running.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn uploads_that_were_broken_off_are_removed_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let managed = ManagedRegistry::start(ManagedSettings::new(directory.path(), free_port())).await.unwrap();
        let registry = OciRegistry::new(&managed.address(), None).unwrap();
        let bytes = b"whole".to_vec();
        let digest = crate::domain::Digest::from_sha256(sha2::Sha256::digest(&bytes));
        registry.push_bytes("berth/acme/shop", &digest, bytes).await.unwrap();
        let url = format!("http://{}/v2/berth/acme/shop/blobs/uploads/", managed.address());
        let begun = reqwest::Client::new().post(url).send().await.unwrap();
        assert_eq!(begun.status(), 202);
        let settings = managed.settings.clone();
        let uploads = settings.directory.join(REPOSITORIES).join("berth/acme/shop/_uploads");
        assert_eq!(std::fs::read_dir(&uploads).unwrap().count(), 1);
        drop(managed);
        let managed = ManagedRegistry::start(settings).await.unwrap();
        assert_eq!(std::fs::read_dir(&uploads).unwrap().count(), 0);
        let registry = OciRegistry::new(&managed.address(), None).unwrap();
        assert!(registry.has("berth/acme/shop", &digest).await.unwrap());
    }

    #[tokio::test]
    async fn a_foreign_process_on_the_port_is_named() {
        let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let settings = ManagedSettings::new(directory.path(), foreign.local_addr().unwrap().port());
        let error = ManagedRegistry::start(settings).await.err().unwrap().to_string();
        assert!(error.contains("already listens on 127.0.0.1:"), "{error}");
    }

    #[test]
    fn a_configuration_is_replaced_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let settings = ManagedSettings::new(directory.path(), 5000);
        let path = config_path(&settings, Mode::Normal);
        assert!(!listens_at(&path, &settings), "there is none");
        write_configs(&settings).unwrap();
        assert!(listens_at(&path, &settings));
        assert!(!listens_at(&path, &ManagedSettings::new(directory.path(), 5001)), "another port");
        let before = std::fs::metadata(&path).unwrap().ino();
        write_configs(&settings).unwrap();
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), before, "it was written over");
        std::fs::write(&path, "").unwrap();
        assert!(!listens_at(&path, &settings), "a cut off one is of no use");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = ManagedSettings::new(directory.path(), free_port());
        settings.program = PathBuf::from("/nonexistent/docker-registry");
        let error = ManagedRegistry::start(settings).await.err().unwrap().to_string();
        assert!(error.contains("apt-get install docker-registry"), "{error}");
    }
}
