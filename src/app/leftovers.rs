//! What a server that was killed leaves on the engine, taken away before this one begins.

use std::collections::BTreeSet;

use anyhow::Context;

use crate::{
    domain::{App, AppRef, Tenant, TenantName},
    runtime::Runtime,
    store::Store,
};

/// Ends jobs that nobody owns any more, and removes networks and build caches of tenants and apps that are not in the store. Before
/// anything runs that could make new ones.
pub(super) async fn clear(runtime: &dyn Runtime, store: &Store) -> anyhow::Result<()> {
    runtime.end_orphaned_jobs().await.context("jobs that an earlier server left behind cannot be ended")?;
    let tenants: BTreeSet<TenantName> =
        store.list::<Tenant>("").await?.into_iter().map(|stored| stored.record.name).collect();
    let apps: BTreeSet<AppRef> = store.list::<App>("").await?.into_iter().map(|stored| stored.record.name).collect();
    match runtime.forget_others(&tenants, &apps).await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed networks and build caches of tenants and apps that are gone"),
        // Nothing stands on it; the next start tries again.
        Err(error) => tracing::warn!(%error, "networks or build caches that are left cannot be removed"),
    }
    Ok(())
}
