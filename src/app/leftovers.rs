//! What a server that was killed leaves on the engine, taken away before this one begins.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use tokio::time::sleep;

use crate::{
    domain::{App, AppRef, Tenant, TenantName},
    runtime::Runtime,
    store::Store,
};

/// First and longest pause before what could not be cleared is tried again: an engine that refuses has no event for when it no longer does.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Ends jobs that nobody owns any more, and removes networks and build caches of tenants and apps that are not in the store. It may run
/// beside what makes new ones: jobs are told apart by who made them, and the runtime keeps what this process has used.
pub(super) async fn clear(runtime: &dyn Runtime, store: &Store) -> anyhow::Result<()> {
    runtime.end_orphaned_jobs().await.context("jobs that an earlier server left behind cannot be ended")?;
    let tenants: BTreeSet<TenantName> =
        store.list::<Tenant>("").await?.into_iter().map(|stored| stored.record.name).collect();
    let apps: BTreeSet<AppRef> = store.list::<App>("").await?.into_iter().map(|stored| stored.record.name).collect();
    let removed = runtime.forget_others(&tenants, &apps).await;
    match removed.context("networks or build caches that an earlier server left behind cannot be removed")? {
        0 => {}
        count => tracing::info!(count, "removed networks and build caches of tenants and apps that are gone"),
    }
    Ok(())
}

/// Clears again and again, until that has succeeded.
pub(super) async fn clear_on(runtime: &dyn Runtime, store: &Store) {
    let mut pause = PAUSES.0;
    loop {
        sleep(pause).await;
        match clear(runtime, store).await {
            Ok(()) => return tracing::info!("what an earlier server left on the engine is cleared away"),
            Err(error) => tracing::warn!("what an earlier server left on the engine is still there: {error:#}"),
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        runtime::fake::{Behaviour, FakeRuntime},
        store::MemoryKv,
    };

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_is_away_is_cleared_when_it_is_back() {
        let (runtime, store) = (FakeRuntime::new(Behaviour::default()), Store::new(Arc::new(MemoryKv::new())));
        runtime.set_dead(true);
        let mut clearing = std::pin::pin!(clear_on(&runtime, &store));
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, &mut clearing).await.is_err(), "it was given up");
        runtime.set_dead(false);
        assert!(tokio::time::timeout(hour, clearing).await.is_ok(), "it goes on for ever");
    }
}
