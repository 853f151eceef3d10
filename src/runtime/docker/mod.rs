//! [`Runtime`] over the Docker Engine API, version 1.41 and later (Docker 20.10; cgroup v1 and v2).
//!
//! What keeps tenants apart and the host safe is in `container` (what a container is made with), `network` (a bridge per tenant) and
//! `firewall` (what those bridges may reach). Everything made here carries `berth.instance`, and nothing without it is touched.

mod attach;
mod caches;
mod container;
mod control_group;
mod crowding;
mod engine;
mod events;
mod exec;
mod firewall;
mod hold;
mod images;
mod job;
mod leftovers;
mod limits;
mod listeners;
mod locks;
mod logs;
mod memory;
mod names;
mod network;
mod replicas;
mod settings;
mod stops;
#[cfg(test)]
mod testing;
mod usage;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use async_trait::async_trait;
use bollard::{
    API_DEFAULT_VERSION, Docker,
    query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptions},
};
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

pub use settings::{DockerSettings, METADATA_NETWORKS};

use self::{engine::Engine, firewall::Firewall, locks::KeyedLocks, names::Names, network::Networks, stops::Stops};
use super::{Capabilities, Executed, Job, JobSpec, Listener, LogLine, Runtime, RuntimeError, RuntimeEvent, Usage};
use crate::domain::{AppRef, ImageRef, Replica, ReplicaId, ReplicaSet, SetId, TenantName, Timestamp};

/// Seconds that each of the first calls may take: an engine that is late by half a minute is no reason not to start.
const CONNECT_SECONDS: u64 = 45;
/// How often the packet filter rules are looked after when nothing else is done.
const GUARD_EVERY: Duration = Duration::from_secs(60);

/// Four characters that stand for an instance where room is short: bridges are called `bth-TAG-…`, packet filter chains `BERTH-TAG-…` (in
/// upper case). For whoever looks at the host.
pub fn instance_tag(instance: &str) -> String {
    names::tag(instance)
}

/// A Docker engine. Clones share the connection.
#[derive(Clone)]
pub struct DockerRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<Engine>,
    networks: Networks,
    firewall: Firewall,
    /// Whether the packet filter rules were in place when last looked after.
    isolated: AtomicBool,
    /// When looking after them last began; many who want that at once share one look.
    guarded_at: Mutex<Option<Instant>>,
    stops: Stops,
    /// Apps whose build caches this process has given to jobs.
    used_caches: std::sync::Mutex<HashSet<AppRef>>,
    sets: KeyedLocks<SetId>,
    memory: memory::Memory,
    capabilities: Capabilities,
}

impl DockerRuntime {
    /// Where the engine keeps images and containers, on its host.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn root_directory(&self) -> Result<Option<std::path::PathBuf>, RuntimeError> {
        let info = self.inner.engine.docker.info().await;
        let info = info.map_err(|error| engine::failed("asking the engine about itself", &error))?;
        Ok(info.docker_root_dir.map(Into::into))
    }

    /// What [`Self::connect`] would say of the settings, though no engine may be there.
    ///
    /// # Errors
    /// When they are not valid.
    pub fn check(settings: &DockerSettings) -> anyhow::Result<()> {
        network::parse_pool(&settings.network_pool).map_err(anyhow::Error::msg)?;
        firewall::check_networks(&settings.denied_networks)
    }

    /// Connects to the engine, and puts the packet filter rules in place. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The engine does not answer, or the settings are not valid. Packet filter rules that cannot be set are no error: see
    /// [`Capabilities::host_isolation`].
    pub async fn connect(settings: DockerSettings) -> anyhow::Result<Self> {
        Self::check(&settings)?;
        let pool = network::parse_pool(&settings.network_pool).map_err(anyhow::Error::msg)?;
        let socket = settings.socket.display().to_string();
        let docker = Docker::connect_with_unix(&socket, CONNECT_SECONDS, API_DEFAULT_VERSION)
            .with_context(|| format!("no Docker engine at {socket}; is dockerd running?"))?
            .negotiate_version()
            .await
            .with_context(|| format!("the Docker engine at {socket} does not answer"))?;
        let info = docker.info().await.context("the Docker engine does not say what it can do")?;
        let capabilities = Capabilities {
            engine: format!("Docker {}", info.server_version.as_deref().unwrap_or("of unknown version")),
            cpu_limits: info.cpu_cfs_quota.unwrap_or(false),
            memory_limits: info.memory_limit.unwrap_or(false),
            host_isolation: false,
        };
        let names = Names::new(&settings.name_prefix, &settings.instance, format!("{:032x}", rand::random::<u128>()));
        let firewall = Firewall::new(&names, &settings.host_ports, &settings.denied_networks);
        let cores = info.ncpu.and_then(|cores| u32::try_from(cores).ok()).unwrap_or(1);
        let open_files = limits::open_files(&settings.socket).await;
        let inner = Inner {
            engine: Arc::new(Engine::new(docker, container::Recipe { settings, names, cores, open_files })),
            networks: Networks::new(pool),
            firewall,
            isolated: AtomicBool::new(true),
            guarded_at: Mutex::new(None),
            stops: Stops::new(),
            used_caches: std::sync::Mutex::default(),
            sets: KeyedLocks::default(),
            memory: memory::Memory::default(),
            capabilities,
        };
        inner.guard_host().await;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Lets stops and removals that are under way come to their end, but not longer than `deadline`. What is left is taken up by the next
    /// process.
    pub async fn close(&self, deadline: Duration) {
        if !self.inner.stops.drain(deadline).await {
            tracing::info!("containers are still being stopped; the next start takes that up");
        }
    }

    /// Keeps the packet filter rules in place until `stop`: a firewall of the host that is loaded anew takes everybody's rules away.
    pub async fn keep_guard(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(GUARD_EVERY) => self.inner.guard_host().await,
            }
        }
    }

    /// Takes this instance's packet filter rules away; for uninstalling, when no container of it is left.
    pub async fn teardown(&self) {
        self.inner.firewall.remove().await;
    }
}

impl Inner {
    /// Puts the packet filter rules in place, and says it once when that fails and once when it works again.
    async fn guard_host(&self) {
        let asked = Instant::now();
        let mut guarded_at = self.guarded_at.lock().await;
        if guarded_at.is_some_and(|at| at >= asked) {
            return;
        }
        *guarded_at = Some(Instant::now());
        let result = self.firewall.ensure().await;
        let before = self.isolated.swap(result.is_ok(), Ordering::Relaxed);
        match result {
            Err(error) if before => tracing::warn!(
                error = format!("{error:#}"),
                "tenants' containers can reach ports of this host: the packet filter rules could not be set; install iptables and run Berth as root"
            ),
            Ok(()) if !before => tracing::info!("the packet filter rules are in place again"),
            _ => {}
        }
    }

    async fn prepare_tenant(&self, tenant: &TenantName) -> Result<(), RuntimeError> {
        let ((), result) = tokio::join!(self.guard_host(), self.networks.ensure(&self.engine, tenant));
        result
    }

    /// The process of a running replica, as the host numbers it.
    async fn process(&self, replica: &ReplicaId) -> Result<i64, RuntimeError> {
        let found = self.own_replica(replica).await?.and_then(|found| found.state?.pid);
        found.filter(|pid| *pid > 0).ok_or_else(|| gone(replica))
    }

    async fn remove_caches(&self, tenant: &TenantName, app: Option<&AppRef>) -> Result<(), RuntimeError> {
        let filters = HashMap::from([("label", self.engine.recipe.names.owner_filter(tenant, app))]);
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let docker = &self.engine.docker;
        let found = docker.list_volumes(Some(options)).await;
        let found = found.map_err(|error| engine::failed("listing build caches", &error))?;
        for volume in found.volumes.unwrap_or_default() {
            match docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await {
                Ok(()) => {}
                Err(error) if engine::status(&error) == Some(404) => {}
                Err(error) if engine::status(&error) == Some(409) => {
                    return Err(RuntimeError::Refused(
                        "the build cache is in use by a build; wait until it ends, or cancel it".to_owned(),
                    ));
                }
                Err(error) => return Err(engine::failed("removing a build cache", &error)),
            }
        }
        Ok(())
    }
}

fn gone(replica: &ReplicaId) -> RuntimeError {
    RuntimeError::Gone(format!("replica {}", replica.0))
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn capabilities(&self) -> Capabilities {
        let host_isolation = self.inner.isolated.load(Ordering::Relaxed);
        Capabilities { host_isolation, ..self.inner.capabilities.clone() }
    }

    async fn prepare_tenant(&self, tenant: &TenantName) -> Result<(), RuntimeError> {
        self.inner.prepare_tenant(tenant).await
    }

    async fn forget(&self, tenant: &TenantName, app: Option<&AppRef>) -> Result<(), RuntimeError> {
        self.inner.remove_caches(tenant, app).await?;
        if app.is_none() {
            self.inner.networks.forget(&self.inner.engine, tenant).await?;
        }
        Ok(())
    }

    async fn forget_others(
        &self,
        tenants: &BTreeSet<TenantName>,
        apps: &BTreeSet<AppRef>,
    ) -> Result<usize, RuntimeError> {
        self.inner.forget_others(tenants, apps).await
    }

    async fn prepare_image(&self, image: &ImageRef) -> Result<(), RuntimeError> {
        images::pull(&self.inner.engine, image).await
    }

    async fn apply(&self, set: &ReplicaSet) -> Result<(), RuntimeError> {
        self.inner.apply(set).await
    }

    async fn observe(&self) -> Result<Vec<Replica>, RuntimeError> {
        self.inner.observe().await
    }

    async fn remove(&self, set: &SetId, grace: Duration) -> Result<(), RuntimeError> {
        self.inner.remove_set(set, grace).await
    }

    async fn stop_replica(&self, replica: &ReplicaId, grace: Duration) -> Result<(), RuntimeError> {
        self.inner.stop_replica(replica, grace).await
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>, RuntimeError> {
        Ok(events::follow(self.inner.engine.clone()).boxed())
    }

    async fn logs(
        &self,
        replica: &ReplicaId,
        since: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        if !self.inner.memory.knows(replica) && self.inner.own_replica(replica).await?.is_none() {
            return Err(gone(replica));
        }
        Ok(logs::follow(self.inner.engine.clone(), replica, since).boxed())
    }

    async fn listeners(&self, replica: &ReplicaId) -> Result<Vec<Listener>, RuntimeError> {
        let pid = self.inner.process(replica).await?;
        listeners::of_process(pid).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => gone(replica),
            _ => RuntimeError::Refused(format!("the sockets of replica {} cannot be read: {error}", replica.0)),
        })
    }

    async fn usage(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, Usage>, RuntimeError> {
        self.inner.usage(replicas).await
    }

    async fn refused_processes(&self, replica: &ReplicaId) -> Result<BoxStream<'static, u64>, RuntimeError> {
        let refused = crowding::refused(self.inner.process(replica).await?).await;
        let refused = refused.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => gone(replica),
            _ => RuntimeError::Refused(format!("what replica {} is refused cannot be read: {error}", replica.0)),
        })?;
        Ok(refused.boxed())
    }

    async fn hold(&self, replica: &ReplicaId, cpu_millis: Option<u32>) -> Result<(), RuntimeError> {
        self.inner.hold(replica, cpu_millis).await
    }

    async fn exec(&self, replica: &ReplicaId, command: &str, limit: Duration) -> Result<Executed, RuntimeError> {
        self.inner.own_replica(replica).await?.ok_or_else(|| gone(replica))?;
        exec::run(&self.inner.engine, replica, command, limit).await
    }

    async fn job(&self, spec: &JobSpec) -> Result<Box<dyn Job>, RuntimeError> {
        Ok(Box::new(self.inner.make_job(spec).await?))
    }

    async fn end_orphaned_jobs(&self) -> Result<usize, RuntimeError> {
        self.inner.end_orphaned_jobs().await
    }

    async fn purge_cache(&self, app: &AppRef) -> Result<(), RuntimeError> {
        self.inner.remove_caches(&app.tenant, Some(app)).await
    }

    async fn collect_images(&self, keep: &[ImageRef]) -> Result<usize, RuntimeError> {
        images::collect(&self.inner.engine, keep).await
    }

    async fn surplus_images(&self, keep: &[ImageRef]) -> Result<Vec<(String, u64)>, RuntimeError> {
        images::surplus(&self.inner.engine, keep).await
    }

    async fn caches(&self) -> Result<Vec<(AppRef, u64)>, RuntimeError> {
        caches::sizes(&self.inner.engine).await
    }
}
