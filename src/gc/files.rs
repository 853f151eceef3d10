//! The last step: pins, build logs, repositories and logs that no record names, and packing repositories anew.

use std::collections::BTreeSet;

use super::{GcService, Kind, Report, records::Plan};
use crate::{
    domain::{Build, BuildNumber, EnvRef, Environment, Release},
    store::StoreError,
};

impl GcService {
    pub(super) async fn files(&self, plan: &Plan, report: &mut Report) {
        let repositories = self.parts.repositories.clone();
        let all = tokio::task::spawn_blocking(move || repositories.all()).await;
        match all {
            Ok(Ok(all)) => {
                for env in all {
                    if let Err(error) = self.repository(plan, &env, report).await {
                        report.fail(&format!("the repository of {env}"), error);
                    }
                }
            }
            Ok(Err(error)) => report.fail("the repositories", error),
            Err(error) => report.fail("the repositories", error),
        }
        if let Err(error) = self.logs(plan, report).await {
            report.fail("the logs", error);
        }
    }

    /// The builds of the environment whose records are there; with `dry_run`, which would be left. `None`: there is no such environment.
    async fn builds_left(
        &self,
        plan: &Plan,
        env: &EnvRef,
        dry_run: bool,
    ) -> Result<Option<BTreeSet<BuildNumber>>, StoreError> {
        let store = &self.parts.store;
        if store.get::<Environment>(env).await?.is_none() {
            return Ok(None);
        }
        if dry_run {
            return Ok(Some(plan.kept.get(env).map(|kept| kept.builds.clone()).unwrap_or_default()));
        }
        let builds = store.list::<Build>(&format!("{env}/")).await?;
        Ok(Some(builds.into_iter().map(|build| build.number).collect()))
    }

    /// The commits of the environment's builds and releases whose records are there; with `dry_run`, which would be left.
    async fn commits_left(&self, plan: &Plan, env: &EnvRef, dry_run: bool) -> Result<BTreeSet<String>, StoreError> {
        let (store, prefix) = (&self.parts.store, format!("{env}/"));
        let kept = plan.kept.get(env).filter(|_| dry_run);
        // Builds first: a release is made before its build ends.
        let builds = store.list::<Build>(&prefix).await?;
        let builds = builds.iter().filter(|build| kept.is_none_or(|kept| kept.builds.contains(&build.number)));
        let mut commits: BTreeSet<String> = builds.map(|build| build.commit.clone()).collect();
        let releases = store.list::<Release>(&prefix).await?;
        let releases =
            releases.iter().filter(|release| kept.is_none_or(|kept| kept.releases.contains(&release.version)));
        commits.extend(releases.map(|release| release.commit.clone()));
        Ok(commits)
    }

    async fn repository(&self, plan: &Plan, env: &EnvRef, report: &mut Report) -> anyhow::Result<()> {
        // Whoever pushes keeps it; it is looked at again the next time.
        let Some(owned) = self.parts.repositories.try_own(env) else { return Ok(()) };
        let (repositories, name) = (self.parts.repositories.clone(), env.clone());
        // The pins first: a pin is made after its build's record.
        let (pins, promoted, size) = tokio::task::spawn_blocking(move || {
            (repositories.pins(&name), repositories.promoted(&name), repositories.size(&name))
        })
        .await?;
        let Some(left) = self.builds_left(plan, env, report.dry_run).await? else {
            if !report.dry_run {
                let (repositories, name) = (self.parts.repositories.clone(), env.clone());
                tokio::task::spawn_blocking(move || repositories.remove(&name)).await??;
            }
            report.add(Kind::Repository, env.to_string(), size);
            return Ok(());
        };
        let surplus: BTreeSet<BuildNumber> = pins?.difference(&left).copied().collect();
        surplus.iter().for_each(|number| report.add(Kind::Pin, format!("{env} #{number}"), 0));
        // Whoever promotes is at the repository until the build is queued.
        let commits = self.commits_left(plan, env, report.dry_run).await?;
        let unwanted: BTreeSet<String> = promoted?.difference(&commits).cloned().collect();
        unwanted.iter().for_each(|commit| report.add(Kind::Promoted, format!("{env} {commit}"), 0));
        // It needs as much room again for a while.
        let roomy = !self.parts.disk.is_low();
        let packs = roomy && self.parts.repositories.wants_packing(env) && !self.is_building(env).await?;
        if report.dry_run {
            if packs {
                report.add(Kind::Repack, env.to_string(), 0);
            }
            return Ok(());
        }
        let (repositories, name) = (self.parts.repositories.clone(), env.clone());
        tokio::task::spawn_blocking(move || {
            repositories.unpin(&name, &surplus).and_then(|()| repositories.unpromote(&name, &unwanted))
        })
        .await??;
        if packs {
            self.parts.repositories.repack(&self.parts.git, env, &owned).await?;
            let (repositories, name) = (self.parts.repositories.clone(), env.clone());
            let now = tokio::task::spawn_blocking(move || repositories.size(&name)).await?;
            report.add(Kind::Repack, env.to_string(), size.saturating_sub(now));
        }
        Ok(())
    }

    /// A build may be reading packs that packing anew would remove.
    async fn is_building(&self, env: &EnvRef) -> Result<bool, StoreError> {
        let builds = self.parts.store.list::<Build>(&format!("{env}/")).await?;
        Ok(builds.iter().any(|build| !build.state.is_final()))
    }

    async fn logs(&self, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
        let logs = &self.parts.logs;
        for env in logs.environments().await? {
            // Before the records, as with the pins: a log that is finished afterwards is not looked at.
            let finished = logs.build_logs(&env).await?;
            let Some(left) = self.builds_left(plan, &env, report.dry_run).await? else {
                if !report.dry_run {
                    logs.remove(&env).await?;
                }
                report.add(Kind::Log, env.to_string(), 0);
                continue;
            };
            for (number, bytes) in finished {
                if !left.contains(&number) {
                    if !report.dry_run {
                        logs.remove_build(&env, number).await?;
                    }
                    report.add(Kind::BuildLog, format!("{env} #{number}"), bytes);
                }
            }
        }
        Ok(())
    }
}
