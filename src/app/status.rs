//! What a server that runs still lacks: what `berth status` asks it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::cli::Place;
use crate::{
    control::client,
    disk::DiskFloor,
    domain::Digest,
    registry::Registry,
    router::table::{ACK_FILE, Ack},
    runtime::Runtime,
};

/// How long the engine or the registry may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// A repository that need not exist: that the registry answers is enough.
const ANY_REPOSITORY: &str = "berth/status";

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Missing {
    /// `engine`, `registry`, `router` or `disk`.
    pub(super) what: String,
    pub(super) why: String,
    /// What that means, and what to do.
    pub(super) next: String,
}

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
    /// Where the router says that it runs: `DATA/router`.
    pub(super) router: PathBuf,
    pub(super) disk: DiskFloor,
}

impl Status {
    /// What is missing now; answers within seconds, whatever does not.
    pub(super) async fn missing(&self) -> Vec<Missing> {
        let (engine, registry) = tokio::join!(self.engine(), self.registry());
        let disk = self.disk.check().err().map(|no_room| Missing {
            what: "disk".to_owned(),
            why: no_room.to_string(),
            next: "what runs goes on, pushes are refused: run `berth gc`, or make room".to_owned(),
        });
        [engine, registry, self.router(), disk].into_iter().flatten().collect()
    }

    /// By the process that has acknowledged the routes last; it does so when it begins.
    fn router(&self) -> Option<Missing> {
        let ack: Option<Ack> =
            fs::read(self.router.join(ACK_FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let why = match ack {
            None => "no `berth router` has run with this data directory yet".to_owned(),
            Some(Ack { pid, .. }) if !Path::new("/proc").join(pid.to_string()).exists() => {
                format!("`berth router` (process {pid}) has ended")
            }
            Some(_) => return None,
        };
        let next = "nobody reaches any app: start `berth router`, or see `systemctl status berth-router`";
        Some(Missing { what: "router".to_owned(), why, next: next.to_owned() })
    }

    async fn engine(&self) -> Option<Missing> {
        let why = match timeout(DEADLINE, self.runtime.observe()).await {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => late(),
        };
        let next = "what runs goes on, nothing is started or stopped until it answers: see `systemctl status docker`";
        Some(Missing { what: "engine".to_owned(), why, next: next.to_owned() })
    }

    async fn registry(&self) -> Option<Missing> {
        let why = match timeout(DEADLINE, self.registry.has(ANY_REPOSITORY, &Digest::from_sha256([0; 32]))).await {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => late(),
        };
        let next = "what runs goes on, builds wait until it answers: see the server's log";
        Some(Missing { what: "registry".to_owned(), why, next: next.to_owned() })
    }
}

fn late() -> String {
    format!("it has not answered within {} s", DEADLINE.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        registry::FakeRegistry,
        runtime::{
            LateRuntime,
            fake::{Behaviour, FakeRuntime},
        },
    };

    #[tokio::test(start_paused = true)]
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
        let status = Status { runtime, registry: registry.clone(), router: place, disk };
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
}
