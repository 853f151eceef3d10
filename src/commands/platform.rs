//! The platform on one page, for its operators: `status`.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Answer, Caller, CommandError, Commands, answer, builds, now};
use crate::{
    build::BuildsUnderWay,
    disk::human,
    domain::{App, Build, BuildState, Environment, Stage, Tenant, Timestamp},
};

/// How long any part of the platform may take to say how it is.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// `engine`, `registry`, `router` or `disk`.
    pub what: String,
    pub why: String,
    /// What that means, and what to do.
    pub next: String,
}

/// What the platform stands on: everything but what is in the store and in the queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Foundations {
    pub server: ServerStatus,
    /// What of the rest is not as it has to be.
    pub missing: Vec<Missing>,
    pub engine: EngineStatus,
    pub registry: RegistryStatus,
    pub router: RouterStatus,
    pub disk: DiskStatus,
}

/// The control plane itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerStatus {
    pub version: String,
    pub started_at: Timestamp,
}

/// The container engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineStatus {
    /// Name and version, as it told last.
    pub name: String,
    pub answers: bool,
    /// Why it does not.
    pub why: Option<String>,
    /// Replicas' containers that it has, whatever their state.
    pub containers: Option<usize>,
}

/// Where images are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegistryStatus {
    pub address: String,
    /// Whether the server runs it itself.
    pub managed: bool,
    pub answers: bool,
    /// Why it does not.
    pub why: Option<String>,
    /// Of one that the server runs: what it takes on disk, as it was counted last.
    pub bytes: Option<u64>,
}

/// The data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouterStatus {
    pub alive: bool,
    pub pid: Option<u32>,
    /// Generation of the routes that is to be in force, and the one that is.
    pub wanted: Option<u64>,
    pub acknowledged: Option<u64>,
    /// Why something of this is not known.
    pub why: Option<String>,
}

/// Room on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskStatus {
    /// Bytes that have to be free on each file system.
    pub floor: u64,
    pub file_systems: Vec<FileSystem>,
    /// Why they are not known.
    pub why: Option<String>,
}

/// A file system that the server or the engine writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    pub path: PathBuf,
    /// Bytes.
    pub free: u64,
    pub total: u64,
}

/// How many there are.
struct Counts {
    tenants: usize,
    apps: usize,
    environments: usize,
    /// Replicas wanted, and those of them that are healthy; `None` when the deployer does not say.
    replicas: Option<(u64, u64)>,
}

/// Places that are taken, and all that there are.
type Taken = (usize, usize);

impl Commands {
    /// `status`.
    pub(super) async fn platform(&self, caller: &Caller) -> Result<Answer, CommandError> {
        self.need_operator(caller, "see how the platform is")?;
        let (found, counts) = tokio::join!(timeout(DEADLINE * 2, self.platform.look()), self.counts());
        let found = found.map_err(|_| CommandError::TryLater("the server does not answer itself; try again".into()))?;
        let (queue, counts) = (self.builds.queue(), counts?);
        let (one_off, cron) = (self.run_places.taken(), self.cron.under_way());
        let human = text(&found, &queue, (one_off, cron), &counts);
        let mut value = json!(found);
        value["queue"] = queue_value(&queue);
        value["jobs"] = json!({"one_off": places(one_off), "cron": places(cron)});
        value["counts"] = json!({
            "tenants": counts.tenants, "apps": counts.apps, "environments": counts.environments,
            "replicas_wanted": counts.replicas.map(|(wanted, _)| wanted),
            "replicas_healthy": counts.replicas.map(|(_, healthy)| healthy),
        });
        Ok(Answer::new(human, value))
    }

    async fn counts(&self) -> Result<Counts, CommandError> {
        let records = async {
            let tenants = self.store.list::<Tenant>("").await?.len();
            let apps = self.store.list::<App>("").await?.len();
            let environments = self.store.list::<Environment>("").await?.len();
            Ok::<_, CommandError>((tenants, apps, environments))
        };
        let (records, statuses) = tokio::join!(timeout(DEADLINE, records), timeout(DEADLINE, self.deployer.statuses()));
        let late = || CommandError::TryLater(format!("the store has not answered within {} s", DEADLINE.as_secs()));
        let (tenants, apps, environments) = records.map_err(|_| late())??;
        let replicas = statuses.ok().map(|statuses| {
            let processes = statuses.iter().flat_map(|status| &status.processes);
            processes.fold((0, 0), |(wanted, healthy), one| {
                (wanted + u64::from(one.wanted), healthy + u64::from(one.serving()))
            })
        });
        Ok(Counts { tenants, apps, environments, replicas })
    }
}

fn places((taken, all): Taken) -> Value {
    json!({"running": taken, "places": all})
}

/// Since when it is as it is.
fn since(build: &Build) -> Timestamp {
    match build.state {
        BuildState::Queued => build.queued_at,
        _ => build.started_at.unwrap_or(build.queued_at),
    }
}

/// Builds that take a place.
fn building(queue: &BuildsUnderWay) -> usize {
    queue.running.iter().filter(|build| build.state == BuildState::Running { stage: Stage::Build }).count()
}

fn queue_value(queue: &BuildsUnderWay) -> Value {
    let values = |builds: &[Build]| -> Vec<Value> {
        let value = |build: &Build| json!({"env": build.env, "number": build.number, "state": builds::state(build), "since": since(build)});
        builds.iter().map(value).collect()
    };
    json!({
        "running": values(&queue.running), "waiting": values(&queue.waiting), "building": building(queue), "places": queue.places,
        "waiting_places": queue.waiting_places,
    })
}

/// The page for people.
fn text(found: &Foundations, queue: &BuildsUnderWay, (one_off, cron): (Taken, Taken), counts: &Counts) -> String {
    let up = answer::age(now().duration_since(found.server.started_at).as_secs());
    let mut text = format!("Berth {}, up for {up}", found.server.version);
    text.push_str(if found.missing.is_empty() { "; nothing is missing\n" } else { ", but:\n" });
    for Missing { what, why, next } in &found.missing {
        let (why, next) = (answer::clean(why), answer::clean(next));
        text.push_str(&format!(" !     {what}: {why}\n       → {next}\n"));
    }
    text.push('\n');
    let replicas = counts.replicas.map_or_else(
        || "replicas not known: the deployer has not answered in time".to_owned(),
        |(wanted, healthy)| format!("{healthy} of {wanted} replicas healthy"),
    );
    let mut line = |name: &str, what: String| text.push_str(&format!("{name:<10}{}\n", answer::clean(&what)));
    line(
        "platform",
        format!("{} tenants, {} apps, {} environments, {replicas}", counts.tenants, counts.apps, counts.environments),
    );
    line("engine", engine_text(&found.engine));
    line("registry", registry_text(&found.registry));
    line("router", router_text(&found.router));
    for place in &found.disk.file_systems {
        let (free, total, floor) = (human(place.free), human(place.total), human(found.disk.floor));
        line("disk", format!("{free} of {total} free at {}; {floor} have to be", place.path.display()));
    }
    found.disk.why.iter().for_each(|why| line("disk", why.clone()));
    let (building, waiting) = (building(queue), queue.waiting.len());
    line("builds", format!("{building} of {} running, {waiting} of {} waiting", queue.places, queue.waiting_places));
    line("jobs", format!("{} of {} one-off commands, {} of {} cron runs", one_off.0, one_off.1, cron.0, cron.1));
    if !(queue.running.is_empty() && queue.waiting.is_empty()) {
        let row = |build: &Build| {
            let age = answer::age(now().duration_since(since(build)).as_secs());
            vec![build.env.to_string(), build.number.to_string(), builds::state(build).to_owned(), age]
        };
        let rows: Vec<Vec<String>> = queue.running.iter().chain(&queue.waiting).map(row).collect();
        text.push_str(&format!("\n{}", answer::table(&["env", "build", "state", "for"], &rows)));
    }
    text
}

/// Whether it answers; if not, why.
fn answers(answers: bool, why: Option<&String>) -> String {
    match (answers, why) {
        (true, _) => "answers".to_owned(),
        (false, Some(why)) => format!("does not answer: {why}"),
        (false, None) => "does not answer".to_owned(),
    }
}

fn engine_text(engine: &EngineStatus) -> String {
    let containers = engine.containers.map(|count| format!(", {count} containers of replicas")).unwrap_or_default();
    format!("{}: {}{containers}", engine.name, answers(engine.answers, engine.why.as_ref()))
}

fn registry_text(registry: &RegistryStatus) -> String {
    let managed = if registry.managed { " (managed)" } else { "" };
    let bytes = registry.bytes.map(|bytes| format!(", {} on disk", human(bytes))).unwrap_or_default();
    format!("{}{managed}: {}{bytes}", registry.address, answers(registry.answers, registry.why.as_ref()))
}

fn router_text(router: &RouterStatus) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
    let state = match (router.alive, router.pid) {
        (true, Some(pid)) => format!("runs (process {pid})"),
        _ => "does not run".to_owned(),
    };
    let why = router.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    format!("{state}; routes {} of {} in force{why}", number(router.acknowledged), number(router.wanted))
}
