//! A [`Runtime`] whose engine may come later than the server: until then everything it is asked for is refused as passing, at once and
//! with the reason, so that whoever can wait does, and everything else goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::watch;

use super::{Capabilities, Executed, Job, JobSpec, Listener, LogLine, Runtime, RuntimeError, RuntimeEvent, Usage};
use crate::domain::{AppRef, ImageRef, Replica, ReplicaId, ReplicaSet, SetId, TenantName, Timestamp};

/// An engine that is there, or not yet. Clones share it.
pub struct LateRuntime<R> {
    engine: Arc<OnceLock<R>>,
    /// Why it is not there; `None` once it is.
    away: watch::Sender<Option<String>>,
}

impl<R> Clone for LateRuntime<R> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), away: self.away.clone() }
    }
}

impl<R: Runtime> LateRuntime<R> {
    /// Not there yet, for this reason.
    pub fn new(why: impl Into<String>) -> Self {
        Self { engine: Arc::default(), away: watch::Sender::new(Some(why.into())) }
    }

    /// Still not there; says why from now on.
    pub fn still_away(&self, why: String) {
        // Nothing can take an engine away again that has come: what it says itself counts from then on.
        self.away.send_if_modified(|away| away.as_mut().map(|before| *before = why).is_some());
    }

    /// It is there, from now on. A second one is not taken.
    pub fn arrived(&self, engine: R) {
        // Taken already: then it is there.
        let _ = self.engine.set(engine);
        self.away.send_replace(None);
    }

    /// Returns when it is there.
    pub async fn until_there(&self) {
        // The sender is ours, so that the channel does not close.
        let _ = self.away.subscribe().wait_for(Option::is_none).await;
    }

    /// The engine itself.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] with the reason, as long as it is not there.
    pub fn engine(&self) -> Result<&R, RuntimeError> {
        self.engine.get().ok_or_else(|| {
            let why = self.away.borrow().clone().unwrap_or_else(|| "it is just coming".to_owned());
            RuntimeError::Unavailable(why)
        })
    }
}

#[async_trait]
impl<R: Runtime> Runtime for LateRuntime<R> {
    fn capabilities(&self) -> Capabilities {
        let none = || Capabilities {
            engine: "none yet".to_owned(),
            cpu_limits: false,
            memory_limits: false,
            host_isolation: false,
        };
        self.engine().map_or_else(|_| none(), R::capabilities)
    }

    async fn until_there(&self) {
        Self::until_there(self).await;
    }

    async fn prepare_tenant(&self, tenant: &TenantName) -> Result<(), RuntimeError> {
        self.engine()?.prepare_tenant(tenant).await
    }

    async fn forget(&self, tenant: &TenantName, app: Option<&AppRef>) -> Result<(), RuntimeError> {
        self.engine()?.forget(tenant, app).await
    }

    async fn forget_others(
        &self,
        tenants: &BTreeSet<TenantName>,
        apps: &BTreeSet<AppRef>,
    ) -> Result<usize, RuntimeError> {
        self.engine()?.forget_others(tenants, apps).await
    }

    async fn prepare_image(&self, image: &ImageRef) -> Result<(), RuntimeError> {
        self.engine()?.prepare_image(image).await
    }

    async fn apply(&self, set: &ReplicaSet) -> Result<(), RuntimeError> {
        self.engine()?.apply(set).await
    }

    async fn observe(&self) -> Result<Vec<Replica>, RuntimeError> {
        self.engine()?.observe().await
    }

    async fn remove(&self, set: &SetId, grace: Duration) -> Result<(), RuntimeError> {
        self.engine()?.remove(set, grace).await
    }

    async fn stop_replica(&self, replica: &ReplicaId, grace: Duration) -> Result<(), RuntimeError> {
        self.engine()?.stop_replica(replica, grace).await
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>, RuntimeError> {
        self.engine()?.events().await
    }

    async fn logs(
        &self,
        replica: &ReplicaId,
        since: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        self.engine()?.logs(replica, since).await
    }

    async fn listeners(&self, replica: &ReplicaId) -> Result<Vec<Listener>, RuntimeError> {
        self.engine()?.listeners(replica).await
    }

    async fn usage(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, Usage>, RuntimeError> {
        self.engine()?.usage(replicas).await
    }

    async fn refused_processes(&self, replica: &ReplicaId) -> Result<BoxStream<'static, u64>, RuntimeError> {
        self.engine()?.refused_processes(replica).await
    }

    async fn hold(&self, replica: &ReplicaId, cpu_millis: Option<u32>) -> Result<(), RuntimeError> {
        self.engine()?.hold(replica, cpu_millis).await
    }

    async fn exec(&self, replica: &ReplicaId, command: &str, limit: Duration) -> Result<Executed, RuntimeError> {
        self.engine()?.exec(replica, command, limit).await
    }

    async fn job(&self, spec: &JobSpec) -> Result<Box<dyn Job>, RuntimeError> {
        self.engine()?.job(spec).await
    }

    async fn end_orphaned_jobs(&self) -> Result<usize, RuntimeError> {
        self.engine()?.end_orphaned_jobs().await
    }

    async fn purge_cache(&self, app: &AppRef) -> Result<(), RuntimeError> {
        self.engine()?.purge_cache(app).await
    }

    async fn collect_images(&self, keep: &[ImageRef]) -> Result<usize, RuntimeError> {
        self.engine()?.collect_images(keep).await
    }

    async fn surplus_images(&self, keep: &[ImageRef]) -> Result<Vec<(String, u64)>, RuntimeError> {
        self.engine()?.surplus_images(keep).await
    }

    async fn caches(&self) -> Result<Vec<(AppRef, u64)>, RuntimeError> {
        self.engine()?.caches().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::{Behaviour, FakeRuntime};

    #[tokio::test]
    async fn it_refuses_with_the_reason_until_the_engine_is_there() {
        let late = LateRuntime::new("nobody has looked yet");
        late.still_away("no such socket".to_owned());
        let error = late.observe().await.unwrap_err();
        assert!(error.is_passing() && error.to_string().contains("no such socket"), "{error}");
        assert!(late.events().await.is_err());
        let waits = tokio::spawn({
            let late: LateRuntime<FakeRuntime> = late.clone();
            async move { late.until_there().await }
        });
        late.arrived(FakeRuntime::new(Behaviour::default()));
        waits.await.unwrap();
        assert!(late.observe().await.unwrap().is_empty());
        // It does not go back.
        late.still_away("late news".to_owned());
        assert!(late.observe().await.is_ok());
    }
}
