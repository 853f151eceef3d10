//! The tree of a manifest → a checked [`Manifest`].

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    HealthDefinition, Manifest, Problem, checks,
    layer::{Layer, ProcessLayer, UpgradeLayer},
    reader::{Fields, Reader, join},
    source::{Place, Problems, Source, quote},
    suggest,
    tree::{self, Kind, Node, Value},
    units::{self, Refusal},
};
use crate::domain::{EnvName, JobName, NameError, ProcessType};

/// Most process types of one environment.
pub const MAX_PROCESS_TYPES: usize = 20;
/// Most replicas of one process type.
pub const MAX_REPLICAS: u32 = 100;
const MAX_ENVIRONMENTS: usize = 20;
const MAX_VARIABLES: usize = 256;
pub(super) const MAX_BUILDPACKS: usize = 10;
pub(super) const MAX_DOMAINS: usize = 50;
/// Cores; less than a hundredth cannot be set on a container.
pub(super) const CORES: RangeInclusive<f64> = 0.01..=64.0;
pub(super) const FAILURES: RangeInclusive<u32> = 1..=100;
pub(super) const MEMORY: RangeInclusive<u64> = (16 << 20)..=(1 << 40);
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
const GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
const DEADLINE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

pub(super) const TOP_KEYS: &[&str] =
    &["app", "auth", "build", "processes", "release", "cron", "upgrade", "environments"];
pub(super) const ENVIRONMENT_KEYS: &[&str] = &["build", "processes", "release", "cron", "upgrade", "domains"];
pub(super) const BUILD_KEYS: &[&str] = &["root", "buildpacks", "env"];
pub(super) const PROCESS_KEYS: &[&str] = &["command", "replicas", "cpu", "memory", "port", "health"];
pub(super) const HEALTH_KEYS: &[&str] = &["path", "command", "interval", "timeout", "grace", "failures"];
pub(super) const UPGRADE_KEYS: &[&str] = &["min_healthy", "max_over", "progress_deadline"];

/// Reads the manifest in `source`, or says all that is wrong with it.
pub(super) fn manifest(source: &Source<'_>) -> Result<Manifest, Vec<Problem>> {
    let mut problems = Problems::new(source);
    let root = match tree::read(source, &mut problems) {
        Ok(root) => root,
        Err(problem) => {
            let mut found = problems.into_vec();
            found.push(*problem);
            return Err(found);
        }
    };
    let read = Reader { problems: &mut problems };
    let manifest =
        ManifestReader { read, cron_places: BTreeMap::new(), places: BTreeMap::new(), domains: BTreeSet::new() }
            .manifest(&root);
    if problems.is_empty() { Ok(manifest) } else { Err(problems.into_vec()) }
}

pub(super) struct ManifestReader<'p, 's, 't> {
    pub(super) read: Reader<'p, 's, 't>,
    /// Where each `environments.NAME.cron.JOB` stands.
    pub(super) cron_places: BTreeMap<(EnvName, JobName), Place>,
    /// Where each `environments.NAME.processes.TYPE` stands.
    places: BTreeMap<(EnvName, ProcessType), Place>,
    /// Of all environments so far.
    domains: BTreeSet<String>,
}

impl ManifestReader<'_, '_, '_> {
    fn manifest(&mut self, root: &Node) -> Manifest {
        let Some(fields) = self.read.fields(root, "", TOP_KEYS, "`app: TENANT/APP` and more such keys") else {
            return Manifest::default();
        };
        let app = fields.get("app").and_then(|(node, path)| {
            self.read.text(node, &path, |text| {
                text.parse().map_err(|error: NameError| Refusal::new("is not the name of an app", error.to_string()))
            })
        });
        let auth = fields.get("auth").and_then(|(node, path)| self.read.text(node, &path, checks::auth));
        let base = self.layer(&fields, None);
        let environments = self.environments(&fields);
        let manifest = Manifest { app, auth, base, environments };
        self.check_overrides(&manifest);
        self.check_cron(&manifest);
        manifest
    }

    fn environments(&mut self, fields: &Fields<'_>) -> BTreeMap<EnvName, Layer> {
        let mut out = BTreeMap::new();
        let Some((node, path)) = fields.get("environments") else { return out };
        let example = "`environments: {prod: {processes: {web: {replicas: 2}}}}`";
        for entry in self.read.entries(node, &path, example).unwrap_or_default() {
            let name = match entry.key.parse::<EnvName>() {
                Ok(name) => name,
                Err(error) => {
                    self.read.problems.add(entry.place, error.to_string(), suggest::for_name::<EnvName>(&entry.key));
                    continue;
                }
            };
            if out.len() == MAX_ENVIRONMENTS {
                let message = format!("more than {MAX_ENVIRONMENTS} environments");
                self.read.problems.add(entry.place, message, None);
                break;
            }
            let path = join(&path, &entry.key);
            let example = "what is different in this environment, as in `{processes: {web: {replicas: 2}}}`";
            if let Some(fields) = self.read.fields(&entry.value, &path, ENVIRONMENT_KEYS, example) {
                let layer = self.layer(&fields, Some(&name));
                out.insert(name, layer);
            }
        }
        out
    }

    fn layer(&mut self, fields: &Fields<'_>, env: Option<&EnvName>) -> Layer {
        let mut layer = Layer::default();
        self.build(fields, &mut layer);
        layer.processes = self.processes(fields, env);
        layer.release = fields.get("release").and_then(|(node, path)| self.read.text(node, &path, checks::command));
        layer.cron = self.cron(fields, env);
        layer.upgrade = self.upgrade(fields);
        if let (Some((node, path)), Some(_)) = (fields.get("domains"), env) {
            let domains = self.read.list(node, &path, "`[shop.example.com]`", MAX_DOMAINS, checks::domain);
            layer.domains = domains.unwrap_or_default();
            for domain in &layer.domains {
                if !self.domains.insert(domain.clone()) {
                    let message = format!("`{domain}` is a domain of two environments");
                    self.read.problems.add(node.place, message, Some("a host name leads to one of them".into()));
                }
            }
        }
        layer
    }

    fn build(&mut self, fields: &Fields<'_>, layer: &mut Layer) {
        let Some((node, path)) = fields.get("build") else { return };
        let Some(fields) = self.read.fields(node, &path, BUILD_KEYS, "`build: {buildpacks: [nodejs]}`") else { return };
        layer.root = fields.get("root").and_then(|(node, path)| self.read.text(node, &path, checks::root));
        layer.buildpacks = fields
            .get("buildpacks")
            .and_then(|(node, path)| self.read.list(node, &path, "`[nodejs]`", MAX_BUILDPACKS, checks::buildpack));
        let Some((node, path)) = fields.get("env") else { return };
        let entries = self.read.entries(node, &path, "`{NODE_ENV: production}`").unwrap_or_default();
        if entries.len() > MAX_VARIABLES {
            self.read.problems.add(node.place, format!("`{path}` has more than {MAX_VARIABLES} variables"), None);
        }
        for entry in entries {
            let named = checks::variable_name(&entry.key);
            if let Err(refusal) = named {
                let message = format!("{} {}", quote(&entry.key), refusal.message);
                self.read.problems.add(entry.place, message, Some(refusal.advice));
                continue;
            }
            let path = join(&path, &entry.key);
            if let Some(value) = self.read.scalar(&entry.value, &path, checks::variable_value) {
                layer.build_env.insert(entry.key.clone(), value);
            }
        }
    }

    fn processes(&mut self, fields: &Fields<'_>, env: Option<&EnvName>) -> BTreeMap<ProcessType, ProcessLayer> {
        let mut out = BTreeMap::new();
        let Some((node, path)) = fields.get("processes") else { return out };
        let entries = self.read.entries(node, &path, "`processes: {web: node server.js}`").unwrap_or_default();
        for entry in entries {
            let name = match entry.key.parse::<ProcessType>() {
                Ok(name) if name.as_str() != "release" => name,
                Ok(_) => {
                    let advice = "write it as `release: COMMAND` at the top level";
                    let message = "`release` is not a process type but the release phase";
                    self.read.problems.add(entry.place, message, Some(advice.into()));
                    continue;
                }
                Err(error) => {
                    self.read.problems.add(
                        entry.place,
                        error.to_string(),
                        suggest::for_name::<ProcessType>(&entry.key),
                    );
                    continue;
                }
            };
            let path = join(&path, &entry.key);
            let Some(process) = self.process(&entry.value, &path, &name) else { continue };
            match env {
                Some(env) => _ = self.places.insert((env.clone(), name.clone()), entry.place),
                None => self.require_command(&entry.value, entry.place, &path),
            }
            out.insert(name, process);
        }
        if out.len() > MAX_PROCESS_TYPES {
            let message = format!("`{path}` names {} process types; at most {MAX_PROCESS_TYPES} are taken", out.len());
            self.read.problems.add(node.place, message, None);
        }
        out
    }

    /// A process without a `command` key; a key with a bad value has been reported already.
    fn require_command(&mut self, node: &Node, place: Place, path: &str) {
        let Value::Map(entries) = &node.value else { return };
        // A misspelt key is the likelier cause, and has been reported with the right one.
        let misspelt = |key: &str| suggest::for_key(path, key, PROCESS_KEYS).contains("`command`");
        if entries.iter().all(|entry| entry.key != "command" && !misspelt(&entry.key)) {
            let advice = "add `command: …`, what to run, as in `command: node server.js`";
            self.read.problems.add(place, format!("{} has no command", quote(path)), Some(advice.into()));
        }
    }

    fn process(&mut self, node: &Node, path: &str, name: &ProcessType) -> Option<ProcessLayer> {
        if let Value::Scalar(kind, _) = &node.value
            && *kind != Kind::Null
        {
            let command = self.read.text(node, path, checks::command);
            return Some(ProcessLayer { command, ..ProcessLayer::default() });
        }
        let example = "a command or a mapping, as in `{command: node server.js, replicas: 2}`";
        let fields = self.read.fields(node, path, PROCESS_KEYS, example)?;
        let read = &mut self.read;
        let command = fields.get("command").and_then(|(node, path)| read.text(node, &path, checks::command));
        let replicas = fields.get("replicas").and_then(|(node, path)| read.integer(node, &path, 0..=MAX_REPLICAS));
        let cores = fields.get("cpu").and_then(|(node, path)| read.number(node, &path, CORES, "cores"));
        let memory = fields.get("memory").and_then(|(node, path)| {
            read.text(node, &path, |text| within(units::memory(text)?, &MEMORY, units::format_memory))
        });
        let port = fields.get("port").and_then(|(node, path)| read.integer(node, &path, 1..=u32::from(u16::MAX)));
        let health = fields.get("health").and_then(|(node, path)| self.health(node, &path, name));
        Some(ProcessLayer {
            command,
            replicas,
            // In range, so a few ten thousand at most.
            cpu_millis: cores.map(|cores| (cores * 1000.0).round() as u32),
            memory,
            port: port.and_then(|port| u16::try_from(port).ok()),
            health,
        })
    }

    fn health(&mut self, node: &Node, path: &str, name: &ProcessType) -> Option<HealthDefinition> {
        let fields = self.read.fields(node, path, HEALTH_KEYS, "`health: {path: /healthz}`")?;
        let read = &mut self.read;
        if let Some((node, path)) = fields.get("path")
            && !name.is_web()
        {
            let message =
                format!("`{path}`: only `web` is asked over HTTP; other process types are healthy while they run");
            read.problems.add(node.place, message, Some("remove it, or write a `command` that says how it is".into()));
        }
        if let (Some((node, path)), Some(_)) = (fields.get("command"), fields.get("path")) {
            let message = format!("`{path}`: a replica is asked over HTTP (`path`) or by a command, not both");
            read.problems.add(node.place, message, Some("remove one of them".into()));
        }
        let failures = fields.get("failures").and_then(|(node, path)| read.integer(node, &path, FAILURES));
        Some(HealthDefinition {
            command: fields.get("command").and_then(|(node, path)| read.text(node, &path, checks::command)),
            path: fields.get("path").and_then(|(node, path)| read.text(node, &path, checks::health_path)),
            interval: self.duration(&fields, "interval", INTERVAL),
            timeout: self.duration(&fields, "timeout", INTERVAL),
            grace: self.duration(&fields, "grace", GRACE),
            failures,
        })
    }

    fn upgrade(&mut self, fields: &Fields<'_>) -> UpgradeLayer {
        let Some((node, path)) = fields.get("upgrade") else { return UpgradeLayer::default() };
        let example = "`upgrade: {min_healthy: 100%, max_over: 100%}`";
        let Some(fields) = self.read.fields(node, &path, UPGRADE_KEYS, example) else { return UpgradeLayer::default() };
        let mut percent = |key| fields.get(key).and_then(|(node, path)| self.read.text(node, &path, units::percent));
        UpgradeLayer {
            min_healthy: percent("min_healthy"),
            max_over: percent("max_over"),
            progress_deadline: self.duration(&fields, "progress_deadline", DEADLINE),
        }
    }

    pub(super) fn duration(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let (node, path) = fields.get(key)?;
        self.read.text(node, &path, |text| within(units::duration(text)?, &range, units::format_duration))
    }

    /// What is only wrong once an environment is merged with the base.
    fn check_overrides(&mut self, manifest: &Manifest) {
        let base = &manifest.base.processes;
        for (env, layer) in &manifest.environments {
            for (name, process) in &layer.processes {
                let place = self.places.get(&(env.clone(), name.clone())).copied().unwrap_or(Place::START);
                if process.command.is_none() && !base.contains_key(name) {
                    let path = format!("environments.{env}.processes.{name}");
                    let message = format!("`{path}` changes a process that `processes` does not declare");
                    let advice = match suggest::nearest(name.as_str(), base.keys().map(ProcessType::as_str)) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => "declare it under `processes` at the top level, or give it a `command` here".into(),
                    };
                    self.read.problems.add(place, message, Some(advice));
                }
            }
            let merged = base.keys().chain(layer.processes.keys()).collect::<BTreeSet<_>>().len();
            if merged > MAX_PROCESS_TYPES && base.len() <= MAX_PROCESS_TYPES {
                let place =
                    self.places.iter().find(|((name, _), _)| name == env).map_or(Place::START, |(_, place)| *place);
                let message =
                    format!("`{env}` has {merged} process types in all; at most {MAX_PROCESS_TYPES} are taken");
                self.read.problems.add(place, message, None);
            }
        }
    }
}

/// `value`, if it is in `range`.
pub(super) fn within<T: PartialOrd + Copy>(
    value: T,
    range: &RangeInclusive<T>,
    format: impl Fn(T) -> String,
) -> Result<T, Refusal> {
    if range.contains(&value) {
        return Ok(value);
    }
    let advice = format!("write a value from {} to {}", format(*range.start()), format(*range.end()));
    Err(Refusal::new("is out of range", advice))
}
