//! What a container is made from: replica sets and jobs as the engine's words. Pure.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use super::{names::Names, settings::DockerSettings};
use crate::domain::{ImageRef, Limits, ReplicaSet};
use crate::runtime::JobSpec;

/// Starts a command line in the run stack.
pub(super) const LAUNCHER: &str = "/usr/local/bin/berth-launch";
/// Where a job sees the app's build cache.
const CACHE_PATH: &str = "/cache";
/// The engine refuses less (6 MiB).
const LEAST_MEMORY: u64 = 6 << 20;
/// When the host itself runs out of memory, tenants' processes go before Berth's and the engine's.
const OOM_SCORE: i64 = 500;

/// What all containers are made with.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub settings: DockerSettings,
    pub names: Names,
    /// Cores of the host: the engine refuses to limit a container to more.
    pub cores: u32,
    /// Open files per process: see [`super::limits::open_files`].
    pub open_files: i64,
}

impl Recipe {
    /// The image as the engine pulls and names it.
    pub fn image(&self, image: &ImageRef) -> String {
        format!("{}/{image}", self.settings.registry)
    }

    /// The container of one replica.
    pub fn replica(&self, set: &ReplicaSet, index: u32) -> ContainerCreateBody {
        let mut environment = variables(&set.environment);
        environment.push(format!("BERTH_REPLICA={index}"));
        let mut host = self.host_config(&set.limits, self.names.network(&set.id.env.tenant));
        host.log_config = Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), self.settings.log_file_size.to_string()),
                ("max-file".to_owned(), self.settings.log_files.to_string()),
            ])),
        });
        ContainerCreateBody {
            hostname: Some(format!("{}-{index}", set.id.process.as_str().replace('_', "-"))),
            cmd: Some(vec![LAUNCHER.to_owned(), set.command.clone()]),
            env: Some(environment),
            labels: Some(self.names.replica_labels(set, index)),
            stop_timeout: Some(set.stop_grace.as_secs().try_into().unwrap_or(i64::MAX)),
            ..self.body(self.image(&set.image), host)
        }
    }

    /// The container of a job.
    pub fn job(&self, spec: &JobSpec) -> ContainerCreateBody {
        let mut host = self.host_config(&spec.limits, self.names.network(&spec.env.tenant));
        // Whoever runs a job reads its output as it comes; nothing reads the engine's copy.
        host.log_config = Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None });
        let mut mounts: Vec<Mount> = spec.read_only_mounts.iter().map(|(from, to)| bind(from, to)).collect();
        if spec.cache {
            mounts.push(self.cache_mount(spec));
        }
        host.mounts = Some(mounts);
        ContainerCreateBody {
            hostname: Some(
                spec.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect(),
            ),
            cmd: Some(spec.argv.clone()),
            env: Some(variables(&spec.environment)),
            labels: Some(self.names.job_labels(spec)),
            tty: Some(spec.tty.is_some()),
            open_stdin: Some(spec.stdin),
            stdin_once: Some(spec.stdin),
            attach_stdin: Some(spec.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            stop_timeout: Some(spec.stop_grace.as_secs().try_into().unwrap_or(i64::MAX)),
            ..self.body(self.image(&spec.image), host)
        }
    }

    fn body(&self, image: String, host: HostConfig) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(image),
            user: Some(format!("{0}:{0}", self.settings.uid)),
            // The command is the whole command: an image cannot put a program of its own before it.
            entrypoint: Some(Vec::new()),
            host_config: Some(host),
            ..Default::default()
        }
    }

    fn cache_mount(&self, spec: &JobSpec) -> Mount {
        let app = spec.env.app_ref();
        let labels = self.names.owner_labels(&app.tenant, Some(&app));
        Mount {
            target: Some(CACHE_PATH.to_owned()),
            source: Some(self.names.cache(&app)),
            typ: Some(MountType::VOLUME),
            volume_options: Some(MountVolumeOptions { labels: Some(labels), ..Default::default() }),
            ..Default::default()
        }
    }

    fn host_config(&self, limits: &Limits, network: String) -> HostConfig {
        let memory = i64::try_from(limits.memory.max(LEAST_MEMORY)).unwrap_or(i64::MAX);
        let cpu_millis = limits.cpu_millis.clamp(10, self.cores.max(1).saturating_mul(1000));
        HostConfig {
            // An init as PID 1 reaps what the app leaves behind and passes signals on.
            init: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            pids_limit: Some(i64::from(limits.pids.max(1))),
            memory: Some(memory),
            memory_swap: Some(memory),
            nano_cpus: Some(i64::from(cpu_millis) * 1_000_000),
            oom_score_adj: Some(OOM_SCORE),
            ulimits: Some(vec![ulimit("nofile", self.open_files), ulimit("core", 0)]),
            shm_size: i64::try_from(self.settings.shm_size).ok(),
            network_mode: Some(network),
            // Whether and when a replica is replaced is the deployer's decision: it knows about backoff, and whether the release that
            // crashes is still wanted. An engine that restarts by itself would also bring retired replicas back after a reboot.
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            ..Default::default()
        }
    }
}

fn variables(environment: &BTreeMap<String, String>) -> Vec<String> {
    environment.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn bind(from: &str, to: &str) -> Mount {
    Mount {
        target: Some(to.to_owned()),
        source: Some(from.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        ..Default::default()
    }
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}
