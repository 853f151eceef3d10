//! `berth teardown`: everything this server made on the engine goes; its data directory stays.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::{Context, bail};

use super::{cli::Place, data_dir::DataDir, engine};
use crate::{
    domain::{SetId, Tenant},
    runtime::{Runtime, docker::DockerRuntime},
    store::open_store,
};

/// Between SIGTERM and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long removals that go on by themselves may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);

/// Removes containers, networks, caches, images and packet filter rules of this instance.
pub(super) fn run(place: &Place, yes: bool) -> anyhow::Result<ExitCode> {
    let config = place.load()?;
    if !yes {
        bail!(
            "this stops every app and removes what {} made on the engine; if you are sure, add --yes",
            config.data_dir.display()
        );
    }
    if !config.data_dir.join("instance").exists() {
        bail!("{} is not a data directory of Berth", config.data_dir.display());
    }
    // The lock keeps a running server's containers from being pulled from under it.
    let data = DataDir::open(&config.data_dir)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let engine = engine::connect(&config, &data).await?;
        remove_all(&engine, &data).await?;
        engine.teardown().await;
        engine.close(CLOSE_DEADLINE).await;
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn remove_all(engine: &DockerRuntime, data: &DataDir) -> anyhow::Result<()> {
    let replicas = engine.observe().await.context("the engine does not say what runs")?;
    let sets: BTreeSet<SetId> = replicas.into_iter().map(|replica| replica.set).collect();
    let removals = sets.iter().map(|set| engine.remove(set, STOP_GRACE));
    futures::future::try_join_all(removals).await.context("replicas could not be removed")?;
    let jobs = engine.end_orphaned_jobs().await.context("jobs could not be removed")?;
    // Observing began to remove what a server that has ended was still stopping, and a network is not removed while that uses it.
    engine.close(CLOSE_DEADLINE).await;
    let store = open_store(&data.join("store"))?;
    let tenants = store.list::<Tenant>("").await?;
    for tenant in &tenants {
        let forgotten = engine.forget(&tenant.name, None).await;
        forgotten.with_context(|| format!("the network and caches of {} could not be removed", tenant.name))?;
    }
    let images = engine.collect_images(&[]).await.context("images could not be removed")?;
    println!(
        "Removed {} replica sets, {jobs} jobs, the networks of {} tenants, {images} images",
        sets.len(),
        tenants.len()
    );
    Ok(())
}
