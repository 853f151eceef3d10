//! What pages take of the API's answers.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::domain::Timestamp;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Whoami {
    pub(super) user: String,
    pub(super) operator: bool,
    #[serde(default)]
    pub(super) tenants: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) token: Option<TokenRights>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct TokenRights {
    pub(super) id: String,
    pub(super) scope: String,
    pub(super) tenant: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TenantRow {
    pub(super) name: String,
    pub(super) role: Option<String>,
    pub(super) members: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Member {
    pub(super) user: String,
    pub(super) role: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct AppRow {
    pub(super) name: String,
    pub(super) environments: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct App {
    pub(super) created_at: Timestamp,
    pub(super) created_by: String,
    pub(super) environments: Vec<AppEnvironment>,
    pub(super) manifest: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct AppEnvironment {
    pub(super) name: String,
    pub(super) release: Option<u64>,
    pub(super) url: String,
    pub(super) remote: String,
}

/// What runs, in a few words.
#[derive(Debug, Deserialize)]
pub(super) struct Running {
    pub(super) env: String,
    pub(super) release: Option<u64>,
    pub(super) settled: bool,
    #[serde(default)]
    pub(super) processes: Vec<Counted>,
    pub(super) waiting: Vec<String>,
}

impl Running {
    /// What its dot shows.
    pub(super) fn mood(&self) -> &'static str {
        mood(self.release.is_some(), self.settled, self.processes.iter().map(|p| (p.ready, p.wanted)))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Counted {
    pub(super) process: String,
    pub(super) ready: u32,
    pub(super) wanted: u32,
}

/// One word for how it is: `idle`, `good`, `busy` or `bad`.
fn mood(released: bool, settled: bool, counts: impl Iterator<Item = (u32, u32)>) -> &'static str {
    let lacking = counts.into_iter().any(|(ready, wanted)| ready < wanted);
    match (released, settled, lacking) {
        (false, true, _) => "idle",
        (_, false, _) => "busy",
        (true, true, true) => "bad",
        (true, true, false) => "good",
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Environment {
    pub(super) release: Option<u64>,
    pub(super) url: String,
    pub(super) settled: bool,
    pub(super) waiting: Vec<String>,
    pub(super) why: Vec<Wait>,
    pub(super) processes: BTreeMap<String, Process>,
    pub(super) replicas: Vec<Replica>,
}

impl Environment {
    pub(super) fn mood(&self) -> &'static str {
        mood(self.release.is_some(), self.settled, self.processes.values().map(|p| (p.ready, p.wanted)))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Wait {
    pub(super) process: String,
    pub(super) ready: u32,
    pub(super) wanted: u32,
    pub(super) why: String,
    pub(super) since: Timestamp,
    pub(super) until: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Process {
    pub(super) wanted: u32,
    pub(super) ready: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct Replica {
    pub(super) process: String,
    pub(super) index: u32,
    pub(super) state: String,
    pub(super) release: u64,
    pub(super) since: Timestamp,
    pub(super) reason: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Build {
    pub(super) number: u64,
    pub(super) commit: String,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) pushed_by: String,
    pub(super) queued_at: Timestamp,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) release: Option<u64>,
    pub(super) image: Option<String>,
    pub(super) timings_ms: Vec<(String, u64)>,
}

impl Build {
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.state.as_str(), "queued" | "building" | "deploying")
    }

    pub(super) fn short_commit(&self) -> &str {
        short(&self.commit)
    }
}

/// The first characters of a commit.
pub(super) fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

#[derive(Debug, Deserialize)]
pub(super) struct ReleaseRow {
    pub(super) version: u64,
    pub(super) state: String,
    pub(super) reason: String,
    pub(super) commit: String,
    pub(super) created_by: String,
    pub(super) created_at: Timestamp,
}

impl ReleaseRow {
    pub(super) fn short_commit(&self) -> &str {
        short(&self.commit)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Release {
    pub(super) version: u64,
    pub(super) reason: String,
    pub(super) created_by: String,
    pub(super) created_at: Timestamp,
    pub(super) commit: String,
    pub(super) image: String,
    pub(super) build: Option<u64>,
    pub(super) release_command: Option<String>,
    pub(super) processes: Value,
    pub(super) config_names: Vec<String>,
    pub(super) domains: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Deployment {
    pub(super) release: u64,
    pub(super) from: Option<u64>,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) started_at: Timestamp,
    pub(super) finished_at: Option<Timestamp>,
    #[serde(default)]
    pub(super) last_log_lines: Vec<String>,
    #[serde(default)]
    pub(super) waiting: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Domain {
    pub(super) domain: String,
    pub(super) from: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Events {
    pub(super) items: Vec<Event>,
}

/// A CloudEvent.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) r#type: String,
    pub(super) time: Timestamp,
    pub(super) data: EventData,
}

impl Event {
    /// Its kind without what all have in front.
    pub(super) fn kind(&self) -> &str {
        self.r#type.strip_prefix("dev.berth.").unwrap_or(&self.r#type)
    }

    /// What stands before it in a list of steps: `done`, `failed` or `told`.
    pub(super) fn mark(&self) -> &'static str {
        let failed = self.data.details["outcome"] == "failed";
        match self.kind() {
            "replica.died" | "replica.unhealthy" | "deployment.rolled_back" | "deployment.cancelled" => "failed",
            "deployment.finished" if failed => "failed",
            "deployment.started" | "deployment.step" => "told",
            _ => "done",
        }
    }

    /// The environment that it is about.
    pub(super) fn place(&self) -> Option<String> {
        let data = &self.data;
        Some(format!("{}/{}/{}", data.tenant.as_ref()?, data.app.as_ref()?, data.env.as_ref()?))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct EventData {
    pub(super) message: String,
    pub(super) actor: Option<String>,
    pub(super) tenant: Option<String>,
    pub(super) app: Option<String>,
    pub(super) env: Option<String>,
    #[serde(default)]
    pub(super) details: Value,
}

/// A line of a log.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogLine {
    pub(super) at: Option<Timestamp>,
    pub(super) source: String,
    pub(super) process: String,
    pub(super) stream: String,
    pub(super) text: String,
    pub(super) cursor: Option<String>,
    /// Lines that were left out before the next one.
    pub(super) missed: Option<u64>,
}

/// A line of a build.
#[derive(Debug, Deserialize)]
pub(super) struct BuildLine {
    pub(super) line: String,
    pub(super) offset: u64,
}
