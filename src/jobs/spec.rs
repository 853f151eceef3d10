//! From a release to what the runtime is asked to run. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    domain::{Limits, Release},
    runtime::{JobKind, JobSpec},
};

/// The image's launcher: sets the environment up as the buildpack wants it, then runs the command. One word is a shell command line;
/// several are run as they are.
const LAUNCHER: &str = "/usr/local/bin/berth-launch";
/// The least that a command gets whose release says nothing of it: it often loads the whole app.
const LEAST_CPU_MILLIS: u32 = 500;
const LEAST_MEMORY: u64 = 512 << 20;

/// What a process sees: the configuration byte for byte, and then the platform's own variables, which win.
pub fn variables(release: &Release, process: &str, port: Option<u16>) -> BTreeMap<String, String> {
    let mut variables = release.config.clone();
    let own = [
        ("BERTH_TENANT", release.env.tenant.to_string()),
        ("BERTH_APP", release.env.app.to_string()),
        ("BERTH_ENV", release.env.env.to_string()),
        ("BERTH_RELEASE", release.version.to_string()),
        ("BERTH_PROCESS", process.to_owned()),
        ("SOURCE_VERSION", release.commit.clone()),
    ];
    variables.extend(own.map(|(key, value)| (key.to_owned(), value)));
    variables.extend(port.map(|port| ("PORT".to_owned(), port.to_string())));
    variables
}

/// The widest limits of the release's processes.
pub fn widest(release: &Release, pids: u32) -> Limits {
    let cpu_millis = release.processes.values().map(|process| process.cpu_millis).max().unwrap_or(0);
    let memory = release.processes.values().map(|process| process.memory).max().unwrap_or(0);
    Limits { cpu_millis: cpu_millis.max(LEAST_CPU_MILLIS), memory: memory.max(LEAST_MEMORY), pids }
}

/// A command to be run in a release.
#[derive(Debug, Clone)]
pub struct ReleaseJob<'a> {
    pub release: &'a Release,
    pub kind: JobKind,
    /// Unique among running jobs; also `BERTH_REPLICA`.
    pub name: String,
    /// `BERTH_PROCESS`.
    pub process: &'a str,
    /// One word: a shell command line.
    pub words: &'a [String],
    pub limits: Limits,
    /// Between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
}

impl ReleaseJob<'_> {
    /// What the runtime is asked for: without a terminal and without standard input.
    pub fn spec(self) -> JobSpec {
        let web = self.release.processes.iter().find(|(process, _)| process.is_web());
        let mut environment = variables(self.release, self.process, web.map(|(_, spec)| spec.port));
        environment.insert("BERTH_REPLICA".to_owned(), self.name.clone());
        JobSpec {
            kind: self.kind,
            env: self.release.env.clone(),
            name: self.name,
            image: self.release.image.clone(),
            argv: std::iter::once(LAUNCHER.to_owned()).chain(self.words.iter().cloned()).collect(),
            environment,
            limits: self.limits,
            cache: false,
            read_only_mounts: Vec::new(),
            tty: None,
            stdin: false,
            stop_grace: self.stop_grace,
        }
    }
}
