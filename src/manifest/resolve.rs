//! Declared processes → what a release runs, with the platform's defaults filled in.

use std::{collections::BTreeMap, time::Duration};

use super::{Definition, FILE_NAME, HealthDefinition, Manifest, PROCFILE, Problem, ProcessDefinition};
use crate::domain::{CronJob, EnvName, Health, HealthProbe, JobName, ProcessSpec, ProcessType};

/// The process type name that a Procfile and buildpacks give to the release phase.
const RELEASE: &str = "release";

/// What holds for a process that does not say.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes.
    pub memory: u64,
    pub port: u16,
    pub interval: Duration,
    pub timeout: Duration,
    pub grace: Duration,
    pub failures: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            cpu_millis: 1000,
            memory: 512 << 20,
            port: 8080,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            grace: Duration::from_secs(60),
            failures: 3,
        }
    }
}

/// The processes of a release in `env`: the manifest's, else the Procfile's, else the buildpacks' defaults.
///
/// Fails when none of the three names a process. Whether a `web` process is among them is for the caller to ask.
pub fn resolve(
    manifest: Option<&Manifest>,
    procfile: Option<&[(ProcessType, String)]>,
    buildpack_defaults: &BTreeMap<ProcessType, String>,
    env: &EnvName,
    defaults: &Defaults,
) -> Result<BTreeMap<ProcessType, ProcessSpec>, Vec<Problem>> {
    let definition = manifest.map(|manifest| manifest.for_environment(env)).unwrap_or_default();
    let mut definition = definition.with_procfile(procfile.unwrap_or_default());
    if definition.processes.is_empty() {
        definition.processes = undeclared(buildpack_defaults.iter());
    }
    if definition.processes.is_empty() {
        let found =
            |found: bool, what: &str| if found { format!("{what} names none") } else { format!("there is no {what}") };
        let message = format!(
            "no process to run: {}, {}, and the buildpack has no default",
            found(manifest.is_some(), FILE_NAME),
            found(procfile.is_some(), PROCFILE),
        );
        let advice = "add a Procfile with a line such as `web: node server.js`, or `processes:` to the manifest";
        return Err(vec![Problem::of_file(
            if manifest.is_some() { FILE_NAME } else { PROCFILE },
            message,
            Some(advice),
        )]);
    }
    Ok(definition.processes.iter().map(|(name, process)| (name.clone(), process.to_spec(name, defaults))).collect())
}

/// The command of the release phase: the manifest's, else the Procfile's `release:` line.
pub fn release_command(
    manifest: Option<&Manifest>,
    procfile: Option<&[(ProcessType, String)]>,
    env: &EnvName,
) -> Option<String> {
    let definition = manifest.map(|manifest| manifest.for_environment(env)).unwrap_or_default();
    definition.with_procfile(procfile.unwrap_or_default()).release
}

/// Processes that no manifest declares.
fn undeclared<'c>(
    commands: impl Iterator<Item = (&'c ProcessType, &'c String)>,
) -> BTreeMap<ProcessType, ProcessDefinition> {
    commands
        .filter(|(name, _)| name.as_str() != RELEASE)
        .map(|(name, command)| {
            let process = ProcessDefinition {
                command: command.clone(),
                replicas: None,
                cpu_millis: None,
                memory: None,
                port: None,
                health: None,
                declared: false,
            };
            (name.clone(), process)
        })
        .collect()
}

impl Definition {
    /// The jobs that run by the clock, with everything said.
    pub fn cron_jobs(&self, defaults: &Defaults) -> BTreeMap<JobName, CronJob> {
        self.cron.iter().map(|(name, job)| (name.clone(), job.to_job(defaults))).collect()
    }

    /// With the Procfile's processes if the manifest declares none, and its release phase if the manifest has none.
    pub fn with_procfile(mut self, procfile: &[(ProcessType, String)]) -> Self {
        if self.processes.is_empty() {
            self.processes = undeclared(procfile.iter().map(|(name, command)| (name, command)));
        }
        if self.release.is_none() {
            let release = procfile.iter().find(|(name, _)| name.as_str() == RELEASE);
            self.release = release.map(|(_, command)| command.clone());
        }
        self
    }
}

impl ProcessDefinition {
    /// The process of type `name` with everything said.
    pub fn to_spec(&self, name: &ProcessType, defaults: &Defaults) -> ProcessSpec {
        let health = self.health.clone().unwrap_or_default();
        ProcessSpec {
            command: self.command.clone(),
            replicas: self.replicas.unwrap_or(u32::from(self.declared || name.is_web())),
            cpu_millis: self.cpu_millis.unwrap_or(defaults.cpu_millis),
            memory: self.memory.unwrap_or(defaults.memory),
            port: self.port.unwrap_or(defaults.port),
            health: health.to_spec(name, defaults),
        }
    }
}

impl HealthDefinition {
    fn to_spec(&self, name: &ProcessType, defaults: &Defaults) -> Health {
        let probe = match (&self.command, &self.path) {
            (Some(command), _) => HealthProbe::Command { command: command.clone() },
            _ if !name.is_web() => HealthProbe::Running,
            (None, Some(path)) => HealthProbe::Http { path: path.clone() },
            (None, None) => HealthProbe::Tcp,
        };
        Health {
            probe,
            interval: self.interval.unwrap_or(defaults.interval),
            timeout: self.timeout.unwrap_or(defaults.timeout),
            grace: self.grace.unwrap_or(defaults.grace),
            failures: self.failures.unwrap_or(defaults.failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn name(text: &str) -> ProcessType {
        text.parse().unwrap()
    }

    fn commands(pairs: &[(&str, &str)]) -> Vec<(ProcessType, String)> {
        pairs.iter().map(|(key, command)| (name(key), (*command).to_owned())).collect()
    }

    #[test]
    fn the_first_source_that_names_processes_wins() {
        let manifest = parse("processes: {web: m, worker: m}", FILE_NAME).unwrap();
        let bare = parse("app: acme/shop", FILE_NAME).unwrap();
        let procfile = commands(&[("web", "p"), ("worker", "p"), ("release", "migrate")]);
        let only_release = commands(&[("release", "migrate")]);
        let buildpack: BTreeMap<_, _> = commands(&[("web", "b"), ("console", "b")]).into_iter().collect();
        let env = "dev".parse().unwrap();
        let counts = |manifest, procfile| {
            let found = resolve(manifest, procfile, &buildpack, &env, &Defaults::default()).unwrap();
            found
                .into_iter()
                .map(|(name, spec)| format!("{name}={}x{}", spec.command, spec.replicas))
                .collect::<Vec<_>>()
        };
        assert_eq!(counts(Some(&manifest), Some(&*procfile)), ["web=mx1", "worker=mx1"]);
        assert_eq!(counts(Some(&bare), Some(&*procfile)), ["web=px1", "worker=px0"]);
        assert_eq!(counts(None, Some(&*procfile)), ["web=px1", "worker=px0"]);
        assert_eq!(counts(None, Some(&*only_release)), ["console=bx0", "web=bx1"]);
        assert_eq!(counts(None, None), ["console=bx0", "web=bx1"]);
        assert_eq!(release_command(Some(&manifest), Some(&procfile), &env).as_deref(), Some("migrate"));
        assert_eq!(release_command(None, None, &env), None);

        let problems = resolve(Some(&bare), None, &BTreeMap::new(), &env, &Defaults::default()).unwrap_err();
        let message =
            "no process to run: berth.yaml names none, there is no Procfile, and the buildpack has no default";
        assert_eq!(problems[0].message, message);
    }

    #[test]
    fn what_is_not_said_is_filled_in() {
        let text = "processes: {web: {command: w, health: {path: /up}}, api: {command: a, cpu: 0.5, memory: 1Gi, port: 9, replicas: 0}, queue: {command: q, health: {command: bin/check}}}";
        let manifest = parse(text, FILE_NAME).unwrap();
        let defaults = Defaults::default();
        let found = resolve(Some(&manifest), None, &BTreeMap::new(), &"dev".parse().unwrap(), &defaults).unwrap();
        let web = &found[&name("web")];
        assert_eq!(web.health.probe, HealthProbe::Http { path: "/up".into() });
        assert_eq!((web.port, web.cpu_millis, web.memory), (defaults.port, defaults.cpu_millis, defaults.memory));
        assert_eq!((web.health.interval, web.health.failures), (defaults.interval, defaults.failures));
        let api = &found[&name("api")];
        assert_eq!(api.health.probe, HealthProbe::Running);
        let queue = &found[&name("queue")];
        assert_eq!(queue.health.probe, HealthProbe::Command { command: "bin/check".into() });
        assert_eq!((api.port, api.cpu_millis, api.memory, api.replicas), (9, 500, 1 << 30, 0));
    }
}
