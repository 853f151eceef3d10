//! A manifest as written: a base and, per environment, what it changes.

use std::{collections::BTreeMap, time::Duration};

use super::{BuildDefinition, Definition, HealthDefinition, ProcessDefinition, cron::CronLayer};
use crate::domain::{AppRef, EnvName, JobName, ProcessType, UpgradePolicy};

/// A whole valid `berth.yaml`, for all environments. Made by [`super::parse`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Manifest {
    pub(super) app: Option<AppRef>,
    pub(super) auth: Option<String>,
    pub(super) base: Layer,
    pub(super) environments: BTreeMap<EnvName, Layer>,
}

/// What may be said at the top level and again for an environment. `None` and absent keys say nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Layer {
    pub root: Option<String>,
    pub buildpacks: Option<Vec<String>>,
    pub build_env: BTreeMap<String, String>,
    pub processes: BTreeMap<ProcessType, ProcessLayer>,
    pub release: Option<String>,
    pub upgrade: UpgradeLayer,
    /// Only for an environment: two environments cannot answer at one host name.
    pub domains: Vec<String>,
    pub cron: BTreeMap<JobName, CronLayer>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ProcessLayer {
    pub command: Option<String>,
    pub replicas: Option<u32>,
    pub cpu_millis: Option<u32>,
    pub memory: Option<u64>,
    pub port: Option<u16>,
    pub health: Option<HealthDefinition>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct UpgradeLayer {
    pub min_healthy: Option<u32>,
    pub max_over: Option<u32>,
    pub progress_deadline: Option<Duration>,
}

impl Manifest {
    /// What the manifest says for `env`: the base, overridden by that environment's section if there is one.
    ///
    /// Every combination was checked when the manifest was parsed, so this cannot fail.
    pub fn for_environment(&self, env: &EnvName) -> Definition {
        let layer = match self.environments.get(env) {
            Some(overrides) => self.base.overridden_by(overrides),
            None => self.base.clone(),
        };
        layer.into_definition(self.app.clone(), self.auth.clone())
    }

    /// What the manifest says for an environment that has no section of its own.
    pub fn for_others(&self) -> Definition {
        self.base.clone().into_definition(self.app.clone(), self.auth.clone())
    }

    /// The environments that have a section of their own.
    pub fn environments(&self) -> impl Iterator<Item = &EnvName> {
        self.environments.keys()
    }

    /// `app:`.
    pub fn app(&self) -> Option<&AppRef> {
        self.app.as_ref()
    }
}

impl Layer {
    /// Both together; where both say something, `over` wins. Mappings are merged key by key, lists replaced.
    pub fn overridden_by(&self, over: &Self) -> Self {
        let mut processes = self.processes.clone();
        for (name, process) in &over.processes {
            let merged = processes.get(name).map_or_else(|| process.clone(), |base| base.overridden_by(process));
            processes.insert(name.clone(), merged);
        }
        let mut build_env = self.build_env.clone();
        build_env.extend(over.build_env.clone());
        Self {
            root: over.root.clone().or_else(|| self.root.clone()),
            buildpacks: over.buildpacks.clone().or_else(|| self.buildpacks.clone()),
            build_env,
            processes,
            release: over.release.clone().or_else(|| self.release.clone()),
            upgrade: UpgradeLayer {
                min_healthy: over.upgrade.min_healthy.or(self.upgrade.min_healthy),
                max_over: over.upgrade.max_over.or(self.upgrade.max_over),
                progress_deadline: over.upgrade.progress_deadline.or(self.upgrade.progress_deadline),
            },
            domains: if over.domains.is_empty() { self.domains.clone() } else { over.domains.clone() },
            cron: CronLayer::merged(&self.cron, &over.cron),
        }
    }

    fn into_definition(self, app: Option<AppRef>, auth: Option<String>) -> Definition {
        let standard = UpgradePolicy::default();
        let processes =
            self.processes.into_iter().filter_map(|(name, process)| Some((name, process.into_definition()?)));
        Definition {
            app,
            auth,
            build: BuildDefinition {
                root: self.root.unwrap_or_default(),
                buildpacks: self.buildpacks.unwrap_or_default(),
                env: self.build_env,
            },
            processes: processes.collect(),
            release: self.release,
            upgrade: UpgradePolicy {
                min_healthy: self.upgrade.min_healthy.unwrap_or(standard.min_healthy),
                max_over: self.upgrade.max_over.unwrap_or(standard.max_over),
                progress_deadline: self.upgrade.progress_deadline.unwrap_or(standard.progress_deadline),
            },
            domains: self.domains,
            cron: self.cron.into_iter().filter_map(|(name, job)| Some((name, job.into_definition()?))).collect(),
        }
    }
}

impl ProcessLayer {
    fn overridden_by(&self, over: &Self) -> Self {
        let health = match (&self.health, &over.health) {
            (Some(base), Some(over)) => Some(HealthDefinition {
                // The one kind of check takes the place of the other.
                path: over.path.clone().or_else(|| base.path.clone().filter(|_| over.command.is_none())),
                command: over.command.clone().or_else(|| base.command.clone().filter(|_| over.path.is_none())),
                interval: over.interval.or(base.interval),
                timeout: over.timeout.or(base.timeout),
                grace: over.grace.or(base.grace),
                failures: over.failures.or(base.failures),
            }),
            (base, over) => over.clone().or_else(|| base.clone()),
        };
        Self {
            command: over.command.clone().or_else(|| self.command.clone()),
            replicas: over.replicas.or(self.replicas),
            cpu_millis: over.cpu_millis.or(self.cpu_millis),
            memory: over.memory.or(self.memory),
            port: over.port.or(self.port),
            health,
        }
    }

    /// `None` without a command, which parsing has ruled out for every environment.
    fn into_definition(self) -> Option<ProcessDefinition> {
        Some(ProcessDefinition {
            command: self.command?,
            replicas: self.replicas,
            cpu_millis: self.cpu_millis,
            memory: self.memory,
            port: self.port,
            health: self.health,
            declared: true,
        })
    }
}
