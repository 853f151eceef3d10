//! Debian's `docker-registry` (the reference implementation of the distribution spec) as a supervised child process.

use std::{
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use super::room::Keeper;
use super::room::{self, CollectRequest};

/// Where the registry keeps its repositories, below its directory.
const REPOSITORIES: &str = "data/docker/registry/v2/repositories";

/// How long the registry may take to answer after its start, and to end after SIGTERM.
const READY_DEADLINE: Duration = Duration::from_secs(15);
const STOP_GRACE: Duration = Duration::from_secs(10);
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
/// The longest line of its log that is passed on, bytes.
const LONGEST_LINE: u64 = 2000;

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
        std::fs::write(path, settings.config(&secret, mode == Mode::ReadOnly)).with_context(cannot)?;
    }
    Ok(())
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
    // With the registry that took them, uploads are over; whoever made one begins anew.
    match remove_uploads(&settings.directory.join(REPOSITORIES)) {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed uploads to the registry that were broken off"),
        Err(error) => tracing::warn!(%error, "uploads to the registry that were broken off cannot be removed"),
    }
    let mut process = Process::spawn(&settings.program, &config_path(settings, mode)).await?;
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

/// The child process, looked after by a thread of its own: the kernel sends the parent-death signal when the thread that made the child
/// ends, so that must be one which lives as long as the child.
struct Process {
    pid: Pid,
    ended: oneshot::Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

impl Process {
    async fn spawn(program: &Path, config: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.arg("serve").arg(config).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Debian's package puts it in /usr/bin; nothing else of the environment concerns it, and OTEL or REGISTRY_* would.
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").process_group(0);
        // SAFETY: prctl is async-signal-safe, and nothing is allocated between fork and exec.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from));
        }
        let (started, pid) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            let child = command.spawn();
            match child {
                Ok(mut child) => {
                    // A receiver that is gone changes nothing: the child is waited for all the same.
                    let _ = started.send(Ok(Pid::from_raw(child.id().cast_signed())));
                    relay_log(&mut child);
                    if let Ok(status) = child.wait() {
                        let _ = end.send(status);
                    }
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        let pid = pid.await?.with_context(|| {
            format!("cannot start {} (install it with: apt-get install docker-registry)", program.display())
        })?;
        Ok(Self { pid, ended, status: None })
    }

    /// Waits for the end; may be asked again.
    async fn ended(&mut self) -> String {
        if self.status.is_none() {
            self.status = (&mut self.ended).await.ok();
        }
        self.status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string())
    }

    async fn stop(&mut self) {
        for (signal, grace) in [(Signal::SIGTERM, STOP_GRACE), (Signal::SIGKILL, STOP_GRACE)] {
            if self.status.is_some() || kill(self.pid, signal).is_err() {
                return;
            }
            if tokio::time::timeout(grace, self.ended()).await.is_ok() {
                return;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only a child that has not been waited for: the number may be another's by now.
        if self.status.is_none() && matches!(self.ended.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            // It may have ended this very moment.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

/// Passes the registry's messages on to Berth's own log, until it closes its standard error.
fn relay_log(child: &mut Child) {
    let Some(stderr) = child.stderr.take() else { return };
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(length) if length > 0) {
        tracing::warn!(target: "berth::registry", "{}", String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

#[cfg(test)]
mod tests {
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

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = ManagedSettings::new(directory.path(), free_port());
        settings.program = PathBuf::from("/nonexistent/docker-registry");
        let error = ManagedRegistry::start(settings).await.err().unwrap().to_string();
        assert!(error.contains("apt-get install docker-registry"), "{error}");
    }
}
