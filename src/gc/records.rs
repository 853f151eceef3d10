//! The first step: records of releases, deployments and builds, and what would be left of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;

use super::{GcService, Kind, Report};
use crate::{
    domain::{Build, Deployment, EnvRef, Environment, ImageRef, Release, ReleaseVersion},
    plan::retention::{History, Kept, kept},
    store::{Record, Store, StoreError, Stored},
};

/// Records deleted in one transaction at most.
const CHUNK: usize = 100;

/// What the records keep when this step is done: of the environments there are.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) kept: BTreeMap<EnvRef, Kept>,
}

/// The records of one environment, as they were read together.
struct Environs {
    environment: Stored<Environment>,
    releases: Vec<Stored<Release>>,
    deployments: Vec<Stored<Deployment>>,
    builds: Vec<Stored<Build>>,
}

impl Environs {
    async fn read(store: &Store, env: &EnvRef) -> Result<Option<Self>, StoreError> {
        // First: whoever adds to the others changes it, and the deletion then fails.
        let Some(environment) = store.get::<Environment>(env).await? else { return Ok(None) };
        let prefix = format!("{env}/");
        Ok(Some(Self {
            environment,
            builds: store.list(&prefix).await?,
            deployments: store.list(&prefix).await?,
            releases: store.list(&prefix).await?,
        }))
    }

    fn kept(&self, running: &BTreeSet<ReleaseVersion>, settings: &super::GcSettings) -> Kept {
        let mut in_use = running.clone();
        in_use.extend([self.environment.current, self.environment.target].into_iter().flatten());
        let releases: Vec<Release> = self.releases.iter().map(|stored| stored.record.clone()).collect();
        let deployments: Vec<Deployment> = self.deployments.iter().map(|stored| stored.record.clone()).collect();
        let builds: Vec<Build> = self.builds.iter().map(|stored| stored.record.clone()).collect();
        let history = History { in_use: &in_use, releases: &releases, deployments: &deployments, builds: &builds };
        kept(history, settings.retention)
    }
}

impl GcService {
    /// Deletes the records that are not kept; what the rest keeps.
    pub(super) async fn records(&self, report: &mut Report) -> anyhow::Result<Plan> {
        let observed = self.parts.runtime.observe().await.context("the engine does not say what runs")?;
        let mut running: BTreeMap<EnvRef, BTreeSet<ReleaseVersion>> = BTreeMap::new();
        for replica in observed {
            running.entry(replica.set.env).or_default().insert(replica.set.release);
        }
        let store = &self.parts.store;
        let mut plan = Plan::default();
        for environment in store.list::<Environment>("").await? {
            let env = environment.record.name;
            let Some(environs) = Environs::read(store, &env).await? else { continue };
            let kept = environs.kept(running.get(&env).unwrap_or(&BTreeSet::new()), &self.settings);
            if let Err(error) = self.delete(&environs, &kept, report).await {
                report.fail(&format!("the history of {env} stays as it is"), error);
            }
            plan.kept.insert(env, kept);
        }
        Ok(plan)
    }

    /// A release goes with its deployment. Everything else that changes the environment meanwhile makes this fail, to be decided anew.
    async fn delete(&self, environs: &Environs, kept: &Kept, report: &mut Report) -> Result<(), StoreError> {
        let env = &environs.environment.name;
        let releases = environs.releases.iter().filter(|release| !kept.releases.contains(&release.version));
        let releases: Vec<_> = releases.collect();
        let builds: Vec<_> = environs.builds.iter().filter(|build| !kept.builds.contains(&build.number)).collect();
        let deployments = environs.deployments.iter().filter(|deployment| !kept.releases.contains(&deployment.to));
        if !report.dry_run {
            self.delete_chunks(&environs.environment, deployments).await?;
            self.delete_chunks(&environs.environment, releases.iter().copied()).await?;
            self.delete_chunks(&environs.environment, builds.iter().copied()).await?;
        }
        releases.iter().for_each(|release| report.add(Kind::Release, format!("{env} {}", release.version), 0));
        builds.iter().for_each(|build| report.add(Kind::Build, format!("{env} #{}", build.number), 0));
        Ok(())
    }

    async fn delete_chunks<'r, R: Record>(
        &self,
        environment: &Stored<Environment>,
        records: impl Iterator<Item = &'r Stored<R>>,
    ) -> Result<(), StoreError> {
        let records: Vec<&Stored<R>> = records.collect();
        for chunk in records.chunks(CHUNK) {
            let mut transaction = self.parts.store.transaction().expect(environment);
            for record in chunk {
                transaction = transaction.delete(record);
            }
            transaction.commit().await?;
        }
        Ok(())
    }

    /// The images that records name which are there: none of them may go, whatever retention says. With `dry_run`, as if the records
    /// that would go were gone.
    pub(super) async fn named_images(&self, plan: &Plan, dry_run: bool) -> Result<Vec<ImageRef>, StoreError> {
        if dry_run {
            return Ok(plan.kept.values().flat_map(Kept::image_refs).collect());
        }
        let store = &self.parts.store;
        let releases = store.list::<Release>("").await?.into_iter().map(|release| release.record.image);
        let mut images: Vec<ImageRef> = releases.collect();
        let builds = store.list::<Build>("").await?.into_iter().filter(|build| !build.state.is_final());
        images.extend(builds.filter_map(|build| build.record.image));
        Ok(images)
    }
}
