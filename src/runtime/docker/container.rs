//! What a container is made from: replica sets and jobs as the engine's words. Pure.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use super::{
    hold::NANO,
    names::{self, Names},
    settings::DockerSettings,
};
use crate::domain::{ImageRef, Limits, ReplicaSet};
use crate::runtime::JobSpec;

/// Starts a command line in the run stack.
pub(super) const LAUNCHER: &str = "/usr/local/bin/berth-launch";
/// Where a job sees the app's build cache.
const CACHE_PATH: &str = "/cache";
/// The engine refuses less (6 MiB).
const LEAST_MEMORY: u64 = 6 << 20;
/// The engine's own weight of a container that names none.
const SHARES_PER_CORE: i64 = 1024;
/// The kernel takes no less.
const LEAST_SHARES: i64 = 2;
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
        // Of the drivers whose logs outlive the engine and can be read by it, the one that takes the least of a core: a third less than
        // `json-file` for 100 MB/s. Compressing what is kept for a moment only would cost more than the room is worth.
        host.log_config = Some(HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), self.settings.log_file_size.to_string()),
                ("max-file".to_owned(), self.settings.log_files.to_string()),
                ("compress".to_owned(), "false".to_owned()),
            ])),
        });
        let mut labels = self.names.replica_labels(set, index);
        labels.insert(names::CPU.to_owned(), host.nano_cpus.unwrap_or_default().to_string());
        ContainerCreateBody {
            hostname: Some(format!("{}-{index}", set.id.process.as_str().replace('_', "-"))),
            cmd: Some(vec![LAUNCHER.to_owned(), set.command.clone()]),
            env: Some(environment),
            labels: Some(labels),
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
            nano_cpus: Some(i64::from(cpu_millis) * NANO),
            // When the cores are all in use, they are divided as they were asked for.
            cpu_shares: Some((i64::from(cpu_millis) * SHARES_PER_CORE / 1000).max(LEAST_SHARES)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Digest, ReleaseVersion, SetId};

    #[test]
    fn a_replica_has_what_its_set_says() {
        let settings = DockerSettings::new("127.0.0.1:5000".to_owned(), "test".to_owned());
        let names = Names::new("berth", "test", "boot".to_owned());
        let recipe = Recipe { settings, names, cores: 2, open_files: 1024 };
        let made = |cpu_millis| {
            let set = ReplicaSet {
                id: SetId {
                    env: "acme/shop/dev".parse().unwrap(),
                    process: "web".parse().unwrap(),
                    release: ReleaseVersion(1),
                    restarts: 0,
                },
                image: ImageRef { repository: "berth/acme/shop".to_owned(), digest: Digest::from_sha256([0; 32]) },
                command: "run".to_owned(),
                environment: [].into(),
                count: 1,
                limits: Limits { cpu_millis, memory: 64 << 20, pids: 10 },
                stop_grace: std::time::Duration::from_secs(1),
            };
            let body = recipe.replica(&set, 1);
            let label = body.labels.unwrap()[names::CPU].parse().ok();
            let host = body.host_config.unwrap();
            assert_eq!(host.nano_cpus, label, "whoever lets go of it must know");
            let log = host.log_config.unwrap();
            assert_eq!(log.typ.as_deref(), Some("local"));
            assert_eq!(log.config.unwrap()["compress"], "false");
            (label, host.cpu_shares)
        };
        assert_eq!(made(500), (Some(500 * NANO), Some(512)));
        assert_eq!(made(1), (Some(10 * NANO), Some(10)), "the engine refuses less");
        assert_eq!(made(64_000), (Some(2000 * NANO), Some(2048)), "and more than there is");
    }
}
