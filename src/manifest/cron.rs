//! `cron:`, jobs that run by the clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    Defaults, Manifest, checks,
    read::{CORES, MEMORY, ManifestReader, within},
    reader::{Fields, join},
    source::{Place, quote},
    suggest,
    tree::{Entry, Node, Value},
    units::{self, Refusal},
};
use crate::{
    domain::{CronJob, EnvName, JobName, Overlap},
    plan::schedule::Schedule,
};

/// Most jobs of one environment.
pub const MAX_CRON_JOBS: usize = 20;
/// What a run may take unless the manifest says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

pub(super) const CRON_KEYS: &[&str] = &["schedule", "command", "overlap", "timeout", "cpu", "memory", "timezone"];
pub(super) const SCHEDULE_PATTERN: &str =
    r"^\s*(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|\S+(\s+\S+){4})\s*$";
pub(super) const TIMEZONE_PATTERN: &str = "^[A-Za-z][A-Za-z0-9_+/-]{0,63}$";

/// One job as declared; what is not said is filled in by [`super::Definition::cron_jobs`].
#[derive(Debug, Clone, PartialEq)]
pub struct CronDefinition {
    pub schedule: String,
    pub command: String,
    pub overlap: Overlap,
    pub timeout: Duration,
    pub cpu_millis: Option<u32>,
    pub memory: Option<u64>,
    pub timezone: String,
}

impl CronDefinition {
    pub(super) fn to_job(&self, defaults: &Defaults) -> CronJob {
        CronJob {
            schedule: self.schedule.clone(),
            timezone: self.timezone.clone(),
            command: self.command.clone(),
            overlap: self.overlap,
            timeout: self.timeout,
            cpu_millis: self.cpu_millis.unwrap_or(defaults.cpu_millis),
            memory: self.memory.unwrap_or(defaults.memory),
        }
    }
}

/// What the top level or an environment says of a job.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct CronLayer {
    pub schedule: Option<String>,
    pub command: Option<String>,
    pub overlap: Option<Overlap>,
    pub timeout: Option<Duration>,
    pub cpu_millis: Option<u32>,
    pub memory: Option<u64>,
    pub timezone: Option<String>,
}

impl CronLayer {
    /// Both together, key by key; where both say something, `over` wins.
    pub fn merged(base: &BTreeMap<JobName, Self>, over: &BTreeMap<JobName, Self>) -> BTreeMap<JobName, Self> {
        let mut jobs = base.clone();
        for (name, job) in over {
            let merged = jobs.get(name).map_or_else(|| job.clone(), |base| base.overridden_by(job));
            jobs.insert(name.clone(), merged);
        }
        jobs
    }

    fn overridden_by(&self, over: &Self) -> Self {
        Self {
            schedule: over.schedule.clone().or_else(|| self.schedule.clone()),
            command: over.command.clone().or_else(|| self.command.clone()),
            overlap: over.overlap.or(self.overlap),
            timeout: over.timeout.or(self.timeout),
            cpu_millis: over.cpu_millis.or(self.cpu_millis),
            memory: over.memory.or(self.memory),
            timezone: over.timezone.clone().or_else(|| self.timezone.clone()),
        }
    }

    /// `None` without a schedule or a command, which parsing has ruled out for every environment.
    pub fn into_definition(self) -> Option<CronDefinition> {
        Some(CronDefinition {
            schedule: self.schedule?,
            command: self.command?,
            overlap: self.overlap.unwrap_or_default(),
            timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT),
            cpu_millis: self.cpu_millis,
            memory: self.memory,
            timezone: self.timezone.unwrap_or_else(|| Schedule::UTC.to_owned()),
        })
    }
}

fn overlap(text: &str) -> Result<Overlap, Refusal> {
    match text {
        "skip" => Ok(Overlap::Skip),
        "replace" => Ok(Overlap::Replace),
        "allow" => Ok(Overlap::Allow),
        other => {
            let advice = match (other.to_lowercase().as_str(), suggest::nearest(other, Overlap::NAMES)) {
                ("forbid", _) => "it is called `skip` here".to_owned(),
                (_, Some(near)) => format!("did you mean {}?", quote(near)),
                (_, None) => "write skip, replace or allow".to_owned(),
            };
            Err(Refusal::new("is not a way to deal with overlapping runs", advice))
        }
    }
}

fn schedule(text: &str) -> Result<String, Refusal> {
    match Schedule::parse(text, Schedule::UTC) {
        Ok(_) => Ok(text.split_whitespace().collect::<Vec<_>>().join(" ")),
        Err(error) => Err(Refusal::new(error.message, error.advice)),
    }
}

fn timezone(text: &str) -> Result<String, Refusal> {
    match Schedule::zone(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Refusal::new(error.message, error.advice)),
    }
}

impl ManifestReader<'_, '_, '_> {
    pub(super) fn cron(&mut self, fields: &Fields<'_>, env: Option<&EnvName>) -> BTreeMap<JobName, CronLayer> {
        let mut out = BTreeMap::new();
        let Some((node, path)) = fields.get("cron") else { return out };
        let example = "`cron: {nightly: {schedule: \"@daily\", command: node cleanup.js}}`";
        for entry in self.read.entries(node, &path, example).unwrap_or_default() {
            let name = match entry.key.parse::<JobName>() {
                Ok(name) => name,
                Err(error) => {
                    let advice = suggest::for_name::<JobName>(&entry.key);
                    self.read.problems.add(entry.place, error.to_string(), advice);
                    continue;
                }
            };
            let path = join(&path, &entry.key);
            let Some(job) = self.cron_job(&entry.value, &path) else { continue };
            match env {
                Some(env) => _ = self.cron_places.insert((env.clone(), name.clone()), entry.place),
                None => self.require_cron_keys(entry, &path),
            }
            out.insert(name, job);
        }
        if out.len() > MAX_CRON_JOBS {
            let message = format!("`{path}` names {} jobs; at most {MAX_CRON_JOBS} are taken", out.len());
            self.read.problems.add(node.place, message, None);
        }
        out
    }

    fn cron_job(&mut self, node: &Node, path: &str) -> Option<CronLayer> {
        let example = "`{schedule: \"@daily\", command: node cleanup.js}`";
        let fields = self.read.fields(node, path, CRON_KEYS, example)?;
        let timeout = self.duration(&fields, "timeout", TIMEOUT);
        let read = &mut self.read;
        let cores = fields.get("cpu").and_then(|(node, path)| read.number(node, &path, CORES, "cores"));
        Some(CronLayer {
            schedule: fields.get("schedule").and_then(|(node, path)| read.text(node, &path, schedule)),
            command: fields.get("command").and_then(|(node, path)| read.text(node, &path, checks::command)),
            overlap: fields.get("overlap").and_then(|(node, path)| read.text(node, &path, overlap)),
            timeout,
            // In range, so a few ten thousand at most.
            cpu_millis: cores.map(|cores| (cores * 1000.0).round() as u32),
            memory: fields.get("memory").and_then(|(node, path)| {
                read.text(node, &path, |text| within(units::memory(text)?, &MEMORY, units::format_memory))
            }),
            timezone: fields.get("timezone").and_then(|(node, path)| read.text(node, &path, timezone)),
        })
    }

    /// A job without a key that it needs; a key with a bad value has been reported already, and so has a misspelt one.
    fn require_cron_keys(&mut self, entry: &Entry, path: &str) {
        let Value::Map(entries) = &entry.value.value else { return };
        for (key, example) in [("schedule", "`schedule: \"@daily\"`"), ("command", "`command: node cleanup.js`")] {
            let meant = |other: &str| {
                let unknown = !CRON_KEYS.contains(&other);
                unknown && suggest::for_key(path, other, CRON_KEYS).contains(&format!("`{key}`"))
            };
            if entries.iter().all(|entry| entry.key != key && !meant(&entry.key)) {
                let message = format!("{} has no {key}", quote(path));
                self.read.problems.add(entry.place, message, Some(format!("add one, as in {example}")));
            }
        }
    }

    /// What is only wrong once an environment is merged with the base.
    pub(super) fn check_cron(&mut self, manifest: &Manifest) {
        let base = &manifest.base.cron;
        for (env, layer) in &manifest.environments {
            for (name, job) in layer.cron.iter().filter(|(name, _)| !base.contains_key(name)) {
                if job.schedule.is_some() && job.command.is_some() {
                    continue;
                }
                let place = self.cron_places.get(&(env.clone(), name.clone())).copied().unwrap_or(Place::START);
                let message = format!("`environments.{env}.cron.{name}` changes a job that `cron` does not declare");
                let advice = match suggest::nearest(name.as_str(), base.keys().map(JobName::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "declare it under `cron` at the top level, or give it a schedule and a command here".into(),
                };
                self.read.problems.add(place, message, Some(advice));
            }
            let merged = base.keys().chain(layer.cron.keys()).collect::<BTreeSet<_>>().len();
            if merged > MAX_CRON_JOBS && base.len() <= MAX_CRON_JOBS {
                let place = self.cron_places.iter().find(|((name, _), _)| name == env);
                let place = place.map_or(Place::START, |(_, place)| *place);
                let message = format!("`{env}` has {merged} cron jobs in all; at most {MAX_CRON_JOBS} are taken");
                self.read.problems.add(place, message, None);
            }
        }
    }
}
