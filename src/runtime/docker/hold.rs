//! Holding a replica up: giving it less of the processor than its set says, and that again later.
//!
//! A label says what it may have, so that a server which finds a replica held by one that is gone can let go of it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::models::{ContainerInspectResponse, ContainerUpdateBody};

use super::{
    Inner,
    engine::{Engine, failed, whole},
    names,
};
use crate::{domain::ReplicaId, runtime::RuntimeError};

/// Of the processor, as the engine counts: so many for a thousandth of a core.
pub(super) const NANO: i64 = 1_000_000;
/// The engine refuses less (a hundredth of a core).
const LEAST: i64 = 10 * NANO;
/// How long letting go of one that is told to stop may take.
const SHORTLY: Duration = Duration::from_secs(3);

/// The containers that this process holds, and what each may have once it is let go.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<HashMap<String, i64>>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a container that is gone.
    pub(super) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }
}

/// What a container may have of the processor, by its label, and what it has.
fn shares(found: &ContainerInspectResponse) -> Option<(i64, i64)> {
    let full = found.config.as_ref()?.labels.as_ref()?.get(names::CPU)?.parse().ok()?;
    Some((full, found.host_config.as_ref()?.nano_cpus?))
}

fn runs(found: &ContainerInspectResponse) -> bool {
    found.state.as_ref().is_some_and(|state| state.running == Some(true))
}

/// Whether it has been told to stop, by any process.
fn is_retired(found: &ContainerInspectResponse) -> bool {
    found.name.as_deref().is_some_and(|name| names::is_retired(name.trim_start_matches('/')))
}

impl Engine {
    /// Lets go of a container that is told to stop: with next to nothing of the processor it would not come to its end. That it is told so
    /// does not wait for long for this.
    pub(super) async fn let_go(&self, id: &str) {
        let full = self.holds.lock().get(id).copied();
        let Some(full) = full else { return };
        match tokio::time::timeout(SHORTLY, self.set_processor(id, full)).await {
            Ok(Ok(())) => self.holds.forget(id),
            Ok(Err(error)) => tracing::debug!(container = id, %error, "it is stopped though it is held"),
            Err(_) => tracing::debug!(container = id, "it is stopped though it may be held"),
        }
    }

    async fn set_processor(&self, id: &str, nano_cpus: i64) -> Result<(), RuntimeError> {
        let change = ContainerUpdateBody { nano_cpus: Some(nano_cpus), ..Default::default() };
        let answer = whole(self.docker.update_container(id, change)).await;
        answer.map_err(|error| failed(&format!("changing what container {id} may have of the processor"), &error))
    }
}

impl Inner {
    /// See [`crate::runtime::Runtime::hold`].
    pub(super) async fn hold(&self, replica: &ReplicaId, cpu_millis: Option<u32>) -> Result<(), RuntimeError> {
        let (id, engine) = (&replica.0, &self.engine);
        let found = self.own_replica(replica).await?.filter(|found| runs(found) && !is_retired(found));
        let found = found.filter(|_| !self.stops.is_under_way(id));
        let found = found.ok_or_else(|| RuntimeError::Gone(format!("replica {id}")))?;
        let (full, _) = shares(&found).ok_or_else(|| {
            RuntimeError::Refused(format!(
                "replica {id} was made by a Berth that did not write down what it may have of the processor; restart it to have it held"
            ))
        })?;
        let Some(millis) = cpu_millis else {
            engine.set_processor(id, full).await?;
            engine.holds.forget(id);
            return Ok(());
        };
        // Before it is: whoever stops it meanwhile must know.
        engine.holds.lock().insert(id.clone(), full);
        let result = engine.set_processor(id, (i64::from(millis) * NANO).clamp(LEAST, full.max(LEAST))).await;
        if self.stops.is_under_way(id) {
            engine.let_go(id).await;
        }
        result
    }

    /// Lets go of a running container that a process held which is gone; whether it need not be looked at again.
    pub(super) async fn let_go_of_left(&self, id: &str, found: &ContainerInspectResponse) -> bool {
        let Some((full, has)) = shares(found) else { return true };
        if has >= full || !runs(found) || self.engine.holds.lock().contains_key(id) {
            return true;
        }
        match self.engine.set_processor(id, full).await {
            Ok(()) => tracing::info!(container = id, "let go of a replica that the last server held"),
            Err(error) => {
                tracing::warn!(container = id, %error, "a replica that the last server held is held still");
                return false;
            }
        }
        true
    }
}
