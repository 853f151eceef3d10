//! Caches: the least recently used go when there is too much of them. Losing one costs the next build time, nothing else.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{GcService, Kind, Report};
use crate::{
    disk::size_of,
    domain::{App, AppRef, Build, Timestamp},
    plan::retention::{Cache, evicted},
};

/// A fetched buildpack that no build has used for so long goes.
const BUILDPACK_AGE: Duration = Duration::from_secs(30 * 86_400);

impl GcService {
    pub(super) async fn caches(&self, report: &mut Report) {
        if let Err(error) = self.build_caches(report).await {
            report.fail("the build caches", error);
        }
        let (directory, dry_run) = (self.settings.buildpacks.clone(), report.dry_run);
        let _closed = match dry_run {
            true => None,
            // A build reads a buildpack while it looks for what can be reused.
            false => match self.parts.publishing.close(Duration::from_secs(30)).await {
                None => return,
                closed => closed,
            },
        };
        match tokio::task::spawn_blocking(move || old_buildpacks(&directory, dry_run)).await {
            Ok(Ok(gone)) => gone.into_iter().for_each(|(name, bytes)| report.add(Kind::Buildpack, name, bytes)),
            Ok(Err(error)) => report.fail("the fetched buildpacks", error),
            Err(error) => report.fail("the fetched buildpacks", error),
        }
    }

    async fn build_caches(&self, report: &mut Report) -> anyhow::Result<()> {
        let (store, runtime) = (&self.parts.store, &self.parts.runtime);
        let mut used: BTreeMap<AppRef, Timestamp> = BTreeMap::new();
        let mut busy: Vec<AppRef> = Vec::new();
        for build in store.list::<Build>("").await? {
            let app = build.env.app_ref();
            if !build.state.is_final() {
                busy.push(app.clone());
            }
            let last = used.entry(app).or_insert(build.queued_at);
            *last = (*last).max(build.queued_at);
        }
        let mut caches = Vec::new();
        for (app, bytes) in runtime.caches().await? {
            let there = store.get::<App>(&app).await?.is_some();
            let last_used = used.get(&app).copied().filter(|_| there);
            caches.push(Cache { in_use: busy.contains(&app), app, bytes, last_used });
        }
        for cache in evicted(&caches, self.settings.cache_per_app, self.settings.cache_total) {
            if !report.dry_run
                && let Err(error) = runtime.purge_cache(&cache.app).await
            {
                report.fail(&format!("the build cache of {}", cache.app), error);
                continue;
            }
            report.add(Kind::BuildCache, cache.app.to_string(), cache.bytes);
        }
        Ok(())
    }
}

fn old_buildpacks(directory: &Path, dry_run: bool) -> io::Result<Vec<(String, u64)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut gone = Vec::new();
    for entry in entries {
        let entry = entry?;
        let used = entry.metadata()?.modified()?;
        let old = SystemTime::now().duration_since(used).is_ok_and(|age| age > BUILDPACK_AGE);
        if old && entry.file_type()?.is_dir() {
            let bytes = size_of(&entry.path())?;
            if !dry_run {
                fs::remove_dir_all(entry.path())?;
            }
            gone.push((entry.file_name().to_string_lossy().into_owned(), bytes));
        }
    }
    Ok(gone)
}
