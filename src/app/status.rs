//! How a server that runs is, and what it still lacks: what `berth status` asks it, and what [`PlatformStatus`] is to operators.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::time::timeout;

use super::cli::Place;
use crate::{
    commands::{
        DiskStatus, EngineStatus, FileSystem, Foundations, Missing, PlatformStatus, RegistryStatus, RouterStatus,
        STATUS_DEADLINE as DEADLINE, ServerStatus,
    },
    control::client,
    disk::{DiskFloor, size_of},
    domain::{Digest, Timestamp},
    registry::Registry,
    router::table::{self, ACK_FILE, Ack},
    runtime::Runtime,
};

/// A repository that need not exist: that the registry answers is enough.
const ANY_REPOSITORY: &str = "berth/status";
/// What the managed registry takes on disk is counted anew after so long; there may be a hundred thousand files.
const COUNT_EVERY: Duration = Duration::from_secs(300);

/// Asks the server that runs; fails when none does. That something is missing is no failure: the server does what it can without.
pub(super) fn run(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let answer = client::status(&place.load()?.control_socket())?;
    let missing: Vec<Missing> = serde_json::from_slice(&answer)?;
    if json {
        println!("{}", serde_json::to_string(&missing)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", if missing.is_empty() { "running; nothing is missing" } else { "running, but:" });
    for Missing { what, why, next } in missing {
        println!(" !     {what}: {why}\n       → {next}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is looked at.
pub(super) struct Status {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) registry: Arc<dyn Registry>,
    /// Of a registry that the server runs itself.
    pub(super) registry_files: Option<RegistrySize>,
    /// Where the router says that it runs: `DATA/router`.
    pub(super) router: PathBuf,
    pub(super) disk: DiskFloor,
    pub(super) started_at: Timestamp,
}

impl Status {
    /// What is missing now; answers within seconds, whatever does not.
    pub(super) async fn missing(&self) -> Vec<Missing> {
        let (engine, registry, (_, router), disk) =
            tokio::join!(self.engine(), self.registry(), self.router(), self.disk_room());
        missing_of(engine.err(), registry.err(), router.err(), disk.err())
    }

    /// What the router has acknowledged last, and why it does not run if it does not.
    async fn router(&self) -> (Option<Ack>, Result<(), String>) {
        let directory = self.router.clone();
        in_time(move || {
            let ack = acknowledged(&directory);
            let runs = runs(ack.as_ref());
            (ack, runs)
        })
        .await
        .unwrap_or_else(|why| (None, Err(format!("what it has acknowledged cannot be read: {why}"))))
    }

    /// Why there is no room.
    async fn disk_room(&self) -> Result<(), String> {
        let disk = self.disk.clone();
        in_time(move || disk.check()).await?.map_err(|no_room| no_room.to_string())
    }

    /// How many replicas the engine has, or why it does not say.
    async fn engine(&self) -> Result<usize, String> {
        match timeout(DEADLINE, self.runtime.observe()).await {
            Ok(Ok(replicas)) => Ok(replicas.len()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(late()),
        }
    }

    /// Why the registry does not answer.
    async fn registry(&self) -> Result<(), String> {
        match timeout(DEADLINE, self.registry.has(ANY_REPOSITORY, &Digest::from_sha256([0; 32]))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(late()),
        }
    }

    async fn registry_bytes(&self) -> Option<u64> {
        match &self.registry_files {
            Some(files) => files.count().await,
            None => None,
        }
    }

    /// How the router is, and why it does not run if it does not.
    async fn router_status(&self) -> (RouterStatus, Result<(), String>) {
        let directory = self.router.clone();
        let (table, (ack, runs)) = tokio::join!(in_time(move || table::load(&directory)), self.router());
        let (wanted, why) = match table {
            Ok(Ok(table)) => (table.map(|table| table.generation), None),
            Ok(Err(error)) => (None, Some(format!("{error:#}"))),
            Err(late) => (None, Some(late)),
        };
        let status = RouterStatus {
            alive: runs.is_ok(),
            pid: ack.as_ref().map(|ack| ack.pid),
            wanted,
            acknowledged: ack.map(|ack| ack.generation),
            why,
        };
        (status, runs)
    }

    async fn disk_status(&self) -> DiskStatus {
        let disk = self.disk.clone();
        let looked = in_time(move || disk.look()).await;
        let (places, why) = looked.map_or_else(|late| (Vec::new(), Some(late)), |places| (places, None));
        let file_systems =
            places.into_iter().map(|place| FileSystem { path: place.path, free: place.free, total: place.total });
        DiskStatus { floor: self.disk.min_free(), file_systems: file_systems.collect(), why }
    }
}

#[async_trait]
impl PlatformStatus for Status {
    async fn look(&self) -> Foundations {
        let (engine, registry, bytes, (router, runs), disk, room) = tokio::join!(
            self.engine(),
            self.registry(),
            self.registry_bytes(),
            self.router_status(),
            self.disk_status(),
            self.disk_room()
        );
        let missing = missing_of(engine.clone().err(), registry.clone().err(), runs.err(), room.err());
        Foundations {
            server: ServerStatus { version: env!("CARGO_PKG_VERSION").to_owned(), started_at: self.started_at },
            missing,
            engine: EngineStatus {
                name: self.runtime.capabilities().engine,
                answers: engine.is_ok(),
                containers: engine.as_ref().ok().copied(),
                why: engine.err(),
            },
            registry: RegistryStatus {
                address: self.registry.address().to_owned(),
                managed: self.registry_files.is_some(),
                answers: registry.is_ok(),
                why: registry.err(),
                bytes,
            },
            router,
            disk,
        }
    }
}

/// What the router has acknowledged last.
fn acknowledged(router: &Path) -> Option<Ack> {
    fs::read(router.join(ACK_FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

/// Why the router does not run, by the process that has acknowledged the routes last; it does so when it begins.
fn runs(acknowledged: Option<&Ack>) -> Result<(), String> {
    match acknowledged {
        None => Err("no `berth router` has run with this data directory yet".to_owned()),
        Some(Ack { pid, .. }) if !Path::new("/proc").join(pid.to_string()).exists() => {
            Err(format!("`berth router` (process {pid}) has ended"))
        }
        Some(_) => Ok(()),
    }
}

/// What lacks, by why each does not answer.
fn missing_of(
    engine: Option<String>,
    registry: Option<String>,
    router: Option<String>,
    disk: Option<String>,
) -> Vec<Missing> {
    let missing = |what: &str, why: Option<String>, next: &str| {
        why.map(|why| Missing { what: what.into(), why, next: next.into() })
    };
    let engine_next =
        "what runs goes on, nothing is started or stopped until it answers: see `systemctl status docker`";
    let registry_next = "what runs goes on, builds wait until it answers: see the server's log";
    let router_next = "nobody reaches any app: start `berth router`, or see `systemctl status berth-router`";
    let disk_next = "what runs goes on, pushes are refused: run `berth gc`, or make room";
    let all = [
        missing("engine", engine, engine_next),
        missing("registry", registry, registry_next),
        missing("router", router, router_next),
        missing("disk", disk, disk_next),
    ];
    all.into_iter().flatten().collect()
}

/// Does work that waits for the disk, no longer than the deadline; then it goes on for nobody.
async fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    match timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(late()),
    }
}

fn late() -> String {
    format!("it has not answered within {} s", DEADLINE.as_secs())
}

/// What the files of the managed registry take, counted now and then.
pub(super) struct RegistrySize {
    directory: PathBuf,
    counted: Arc<Mutex<Counted>>,
}

#[derive(Default)]
struct Counted {
    bytes: Option<u64>,
    at: Option<Instant>,
    /// One at a time.
    under_way: bool,
}

impl RegistrySize {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, counted: Arc::default() }
    }

    /// The bytes, as they were counted not long ago, or last when counting takes longer than the deadline.
    async fn count(&self) -> Option<u64> {
        let is_fresh = |at: Instant| at.elapsed() < COUNT_EVERY;
        let begins = {
            let mut counted = lock(&self.counted);
            let begins = !counted.under_way && !counted.at.is_some_and(is_fresh);
            counted.under_way |= begins;
            begins
        };
        if begins {
            let (directory, counted) = (self.directory.clone(), self.counted.clone());
            // Whoever waits no longer sees it the next time.
            let _ = in_time(move || {
                let bytes = size_of(&directory).ok();
                let mut counted = lock(&counted);
                *counted = Counted { bytes: bytes.or(counted.bytes), at: Some(Instant::now()), under_way: false };
            })
            .await;
        }
        lock(&self.counted).bytes
    }
}

fn lock(counted: &Mutex<Counted>) -> std::sync::MutexGuard<'_, Counted> {
    // Nothing panics while it is held.
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::{
        registry::{FakeRegistry, OciRegistry},
        runtime::{
            LateRuntime,
            fake::{Behaviour, FakeRuntime},
        },
    };

    #[tokio::test]
    async fn it_names_what_is_missing_until_it_is_there() {
        let late = LateRuntime::new("no such socket");
        let disk = DiskFloor::new(vec!["/".into()], u64::MAX);
        let registry = Arc::new(FakeRegistry::new());
        let router = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        let ack = |pid: u32| {
            let ack = serde_json::to_vec(&Ack { pid, ..Ack::default() }).unwrap();
            fs::write(router.path().join(ACK_FILE), ack).unwrap();
        };
        ack(pid);
        let (runtime, place) = (Arc::new(late.clone()), router.path().to_owned());
        let (registry_files, started_at) = (None, Timestamp::now());
        let status = Status { runtime, registry: registry.clone(), registry_files, router: place, disk, started_at };
        let missing = status.missing().await;
        assert_eq!(missing.iter().map(|one| one.what.as_str()).collect::<Vec<_>>(), ["engine", "disk"], "{missing:?}");
        assert!(missing[0].why.contains("no such socket"), "{missing:?}");
        late.arrived(FakeRuntime::new(Behaviour::default()));
        let status = Status { disk: DiskFloor::none(), ..status };
        assert_eq!(status.missing().await, []);
        // No process has such an id.
        ack(u32::MAX);
        let missing = status.missing().await;
        assert!(
            missing.len() == 1 && missing[0].what == "router" && missing[0].why.contains("has ended"),
            "{missing:?}"
        );
        fs::remove_file(router.path().join(ACK_FILE)).unwrap();
        assert!(status.missing().await[0].why.contains("has run"));
    }

    #[tokio::test]
    async fn the_page_says_how_each_part_is() {
        let late = LateRuntime::new("no such socket");
        let data = tempfile::tempdir().unwrap();
        let router = data.path().join("router");
        table::publish(&router, &table::RoutesTable { generation: 8, ..Default::default() }).unwrap();
        let ack = Ack { pid: std::process::id(), generation: 7, ..Ack::default() };
        fs::write(router.join(ACK_FILE), serde_json::to_vec(&ack).unwrap()).unwrap();
        fs::create_dir(data.path().join("registry")).unwrap();
        fs::write(data.path().join("registry/blob"), "12345").unwrap();
        let status = Status {
            runtime: Arc::new(late.clone()),
            registry: Arc::new(FakeRegistry::new()),
            registry_files: Some(RegistrySize::new(data.path().join("registry"))),
            router,
            disk: DiskFloor::new(vec![data.path().to_owned()], 1),
            started_at: Timestamp::now(),
        };
        let page = status.look().await;
        assert_eq!(page.missing.iter().map(|one| one.what.as_str()).collect::<Vec<_>>(), ["engine"]);
        assert!(!page.engine.answers && page.engine.why.as_ref().unwrap().contains("no such socket"), "{page:?}");
        assert!(page.registry.managed && page.registry.answers && page.registry.bytes == Some(5), "{page:?}");
        let router = &page.router;
        assert_eq!((router.alive, router.wanted, router.acknowledged), (true, Some(8), Some(7)));
        assert!(page.disk.file_systems.len() == 1 && page.disk.floor == 1 && page.disk.why.is_none(), "{page:?}");
        late.arrived(FakeRuntime::new(Behaviour::default()));
        // Not counted again so soon.
        fs::write(data.path().join("registry/other"), "12345").unwrap();
        let page = status.look().await;
        assert!(page.missing.is_empty() && page.engine.answers && page.engine.containers == Some(0), "{page:?}");
        assert_eq!(page.registry.bytes, Some(5));
    }

    #[tokio::test]
    async fn what_does_not_answer_is_said_and_holds_nobody_up() {
        // Connections come about, and nobody reads them.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let status = Status {
            runtime: Arc::new(FakeRuntime::new(Behaviour::default())),
            registry: Arc::new(OciRegistry::new(&address, None).unwrap()),
            registry_files: None,
            router: "/nonexistent".into(),
            disk: DiskFloor::none(),
            started_at: Timestamp::now(),
        };
        let page = status.look().await;
        assert_eq!((page.engine.answers, page.registry.answers), (true, false));
        assert_eq!(page.registry.why.as_deref(), Some("it has not answered within 5 s"));
        let missing: Vec<_> = page.missing.iter().map(|one| one.what.as_str()).collect();
        assert_eq!(missing, ["registry", "router"]);
    }

    /// A file that nobody answers for, as on a network disk that hangs: reading it waits until `release`.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_disk_that_hangs_holds_nobody_up() {
        let router = tempfile::tempdir().unwrap();
        let ack = router.path().join(ACK_FILE);
        nix::unistd::mkfifo(&ack, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let status = Status {
            runtime: Arc::new(FakeRuntime::new(Behaviour::default())),
            registry: Arc::new(FakeRegistry::new()),
            registry_files: None,
            router: router.path().to_owned(),
            disk: DiskFloor::none(),
            started_at: Timestamp::now(),
        };
        let looking = tokio::spawn(async move { status.look().await });
        let looked = timeout(Duration::from_secs(60), looking).await;
        // Whoever waits for it reads its end.
        while fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&ack).is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let missing = looked.expect("it answers within its deadline").unwrap().missing;
        assert!(missing.len() == 1 && missing[0].what == "router" && missing[0].why.contains("5 s"), "{missing:?}");
    }
}
