//! What the parts of the server are told, from the configuration.

use std::time::Duration;

use anyhow::Context;

use super::{
    config::{self, Config},
    data_dir::DataDir,
    layer::STOP_DEADLINE,
};
use crate::{
    api::ApiSettings,
    build::{BuildSettings, CustomBuildpacks},
    commands::CommandSettings,
    cron::CronSettings,
    deploy::DeploySettings,
    disk::DiskFloor,
    domain::Limits,
    drains::DrainSettings,
    manifest::Defaults,
    metrics::{HistoryLimits, MetricsSettings},
    outbound::{ALLOWED_NETWORKS_KEY, OutboundSettings},
    receive::ReceiveSettings,
    ssh::{ConnectionLimits, SshSettings},
    traces::Traces,
    webhooks::WebhookSettings,
};

/// git processes that serve clients at once, in all and of one user.
const GIT_SESSIONS: usize = 64;
const GIT_SESSIONS_PER_USER: usize = 8;
/// How long a client waits for one of them.
const GIT_PATIENCE: Duration = Duration::from_secs(60);
/// A git session in which nothing moves for so long is ended.
const GIT_IDLE: Duration = Duration::from_secs(600);
/// What is left of a layer's time to stop once a release phase has been killed: to remove its container, and for the others.
const AFTER_PHASE: Duration = Duration::from_secs(3);

pub(super) fn logs(config: &config::Logs) -> crate::logs::LogLimits {
    let limits = crate::logs::LogLimits::default();
    let segments = u64::try_from(limits.segments).unwrap_or(4);
    crate::logs::LogLimits {
        segment_bytes: config.per_environment.0 / segments,
        build_bytes: config.per_build.0,
        builds_kept: config.builds,
        replica_rate: config.replica_rate.0,
        ..limits
    }
}

pub(super) fn metrics(config: &Config, data: &DataDir) -> MetricsSettings {
    let environments = config.metrics.environments;
    let memory = usize::try_from(config.metrics.memory.0).unwrap_or(usize::MAX);
    MetricsSettings {
        limits: HistoryLimits { environments, memory },
        named: environments,
        ..MetricsSettings::new(data.join("metrics"))
    }
}

pub(super) fn deploy(config: &Config, data: &DataDir, traces: &Traces) -> DeploySettings {
    let listened = config.router.listen.first().map_or(8080, std::net::SocketAddr::port);
    DeploySettings {
        base_domain: config.base_domain.clone(),
        own_hosts: config.own_hosts(),
        router_port: config.router.public_port.unwrap_or(listened),
        public_scheme: config.router.public_scheme.as_str(),
        router_dir: data.join("router"),
        drain_timeout: config.deploy.drain_timeout,
        stop_grace: config.deploy.stop_grace,
        shutdown_grace: STOP_DEADLINE - AFTER_PHASE,
        pids: config.runtime.pids,
        traces: traces.clone(),
        ..DeploySettings::default()
    }
}

/// Where tenants may have the server connect to.
pub(super) fn outbound(config: &Config) -> anyhow::Result<OutboundSettings> {
    let parse = |network: &String| {
        let why = || format!("{ALLOWED_NETWORKS_KEY}: {network:?} is not a network, as in 10.20.0.0/16");
        network.parse().with_context(why)
    };
    let allowed_networks = config.outbound.allowed_networks.iter().map(parse).collect::<anyhow::Result<_>>()?;
    let connect_timeout = config.outbound.connect_timeout;
    Ok(OutboundSettings { allowed_networks, connect_timeout, ..OutboundSettings::default() })
}

pub(super) fn webhooks(config: &Config) -> WebhookSettings {
    let webhooks = &config.webhooks;
    WebhookSettings {
        allow_http: webhooks.allow_http,
        per_tenant: webhooks.per_tenant,
        concurrency: webhooks.concurrency,
        concurrency_per_tenant: webhooks.concurrency_per_tenant,
        timeout: webhooks.timeout,
        give_up_after: webhooks.give_up_after,
        disable_after: webhooks.disable_after,
        source_base: config.api_url(),
        ..WebhookSettings::default()
    }
}

pub(super) fn cron(config: &Config) -> CronSettings {
    CronSettings {
        starting_deadline: config.cron.starting_deadline,
        concurrency: config.cron.concurrency,
        per_tenant: config.cron.per_tenant,
        history: config.cron.history,
        pids: config.runtime.pids,
        stop_grace: config.deploy.stop_grace,
    }
}

pub(super) fn drains(config: &config::Drains) -> DrainSettings {
    DrainSettings {
        allow_plain: config.allow_plain,
        ca_file: Some(config.ca_file.clone()).filter(|path| !path.as_os_str().is_empty()),
        most: config.most,
        ..DrainSettings::default()
    }
}

/// Cores as thousandths of one.
fn millis(cores: f64) -> u32 {
    // Out of range is clamped by the conversion.
    (cores * 1000.0).round() as u32
}

pub(super) fn builds(config: &Config, data: &DataDir, disk: &DiskFloor, traces: &Traces) -> BuildSettings {
    let builds = &config.builds;
    let ca_bundle = Some(builds.ca_bundle.clone()).filter(|path| path.is_file());
    BuildSettings {
        concurrency: builds.concurrency,
        queue_limit: builds.queue,
        queue_limit_per_tenant: builds.queue_per_tenant,
        time_limit: builds.time_limit,
        limits: Limits { cpu_millis: millis(builds.cpu), memory: builds.memory.0, pids: builds.pids },
        slug_limit: builds.slug_limit.0,
        custom_buildpacks: CustomBuildpacks {
            allow: builds.allowed_buildpacks.clone(),
            protocols: vec!["https".to_owned()],
            directory: data.join("buildpacks"),
            ca_bundle: ca_bundle.clone(),
        },
        ca_bundle,
        operator_env: builds.env.clone(),
        largest_process: largest_process(config),
        process_defaults: process_defaults(config),
        disk: disk.clone(),
        traces: traces.clone(),
        ..BuildSettings::new(&data.join(""))
    }
}

pub(super) fn receive(config: &Config, disk: DiskFloor, traces: &Traces) -> anyhow::Result<ReceiveSettings> {
    Ok(ReceiveSettings {
        berth: std::env::current_exe().context("the path of this program is not known")?,
        control_socket: config.control_socket(),
        sessions: GIT_SESSIONS,
        sessions_per_user: GIT_SESSIONS_PER_USER,
        patience: GIT_PATIENCE,
        idle: GIT_IDLE,
        require_manifest: config.git.require_manifest,
        disk,
        traces: traces.clone(),
    })
}

pub(super) fn commands(config: &Config, traces: &Traces) -> CommandSettings {
    CommandSettings {
        ssh_host: config.ssh.host.clone(),
        ssh_port: config.ssh.listen.first().map_or(2222, std::net::SocketAddr::port),
        api_url: config.api_url(),
        base_domain: config.base_domain.clone(),
        own_hosts: config.own_hosts(),
        run_pids: config.runtime.pids,
        process_defaults: process_defaults(config),
        largest_process: largest_process(config),
        traces: traces.clone(),
    }
}

pub(super) fn api(config: &Config) -> ApiSettings {
    ApiSettings { max_connections: config.api.max_connections, rate_per_user: config.api.rate_per_user }
}

/// What holds for a process that does not say.
fn process_defaults(config: &Config) -> Defaults {
    Defaults { cpu_millis: millis(config.deploy.cpu), memory: config.deploy.memory.0, ..Defaults::default() }
}

fn largest_process(config: &Config) -> (u32, u64) {
    (millis(config.deploy.max_cpu), config.deploy.max_memory.0)
}

pub(super) fn ssh(config: &Config) -> SshSettings {
    SshSettings {
        limits: ConnectionLimits {
            total: config.ssh.max_connections,
            per_user: config.ssh.max_connections_per_user,
            unauthenticated: config.ssh.max_unauthenticated,
            unauthenticated_per_address: config.ssh.max_unauthenticated_per_address,
            ..ConnectionLimits::default()
        },
        login_grace: config.ssh.login_grace,
        keepalive: config.ssh.keepalive,
        ..SshSettings::default()
    }
}
