//! Making releases: number and configuration snapshot in one transaction.

use std::collections::BTreeMap;

use super::{Deployer, Derive, NewRelease, domains};
use crate::domain::{
    Build, BuildNumber, BuildState, EnvRef, Environment, FailPoint, Release, ReleaseVersion, Stage, UserName,
    fail_point::reached,
};
use crate::store::{StoreError, Stored};

/// How often a release is tried to be made while others change the environment.
const TRIES: usize = 32;

impl Deployer {
    /// Makes the next release of the environment, durably. It is not deployed thereby. The image is brought to the engine meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Missing`] without the environment; else the store's own.
    pub async fn create_release(&self, new: NewRelease) -> Result<Release, StoreError> {
        self.create(new, false).await
    }

    /// As [`Self::create_release`], and makes it the environment's target in the same transaction: a server that dies now goes on with it.
    ///
    /// # Errors
    /// As [`Self::create_release`].
    pub async fn create_target(&self, new: NewRelease) -> Result<Release, StoreError> {
        self.create(new, true).await
    }

    async fn create(&self, new: NewRelease, is_target: bool) -> Result<Release, StoreError> {
        self.prepare(&new.env, &new.image);
        let now = self.parts.clock.now();
        let release = self
            .make(&new.env.clone(), new.build, None, |environment| {
                let no_phase = new.release_command.is_none() || !new.run_release_phase;
                if is_target {
                    environment.target = Some(ReleaseVersion(environment.last_release));
                }
                Release {
                    env: new.env.clone(),
                    version: ReleaseVersion(environment.last_release),
                    image: new.image.clone(),
                    commit: new.commit.clone(),
                    build: new.build,
                    config: environment.config.clone(),
                    processes: new.processes.clone(),
                    release_command: new.release_command.clone(),
                    upgrade: new.upgrade.clone(),
                    domains: new.domains.clone(),
                    cron: new.cron.clone(),
                    created_at: now,
                    created_by: new.created_by.clone(),
                    reason: new.reason.clone(),
                    release_phase_done: no_phase,
                    release_phase_attempts: 0,
                    trace: new.trace,
                }
            })
            .await?;
        self.created(&release);
        Ok(release)
    }

    /// Makes a new release alike `from`; see [`Derive`]. Its release phase does not run.
    ///
    /// # Errors
    /// [`StoreError::Missing`] without the environment or the release; else the store's own.
    pub async fn derive_release(
        &self,
        env: &EnvRef,
        from: ReleaseVersion,
        change: Derive,
        by: &UserName,
        reason: &str,
    ) -> Result<Release, StoreError> {
        let stored = self.parts.store.need::<Release>(&(env.clone(), from)).await?;
        let old = stored.record.clone();
        self.prepare(env, &old.image);
        let now = self.parts.clock.now();
        let release = self
            .make(env, None, Some(&stored), |environment| {
                match &change {
                    Derive::Config(changes) => apply(changes, &mut environment.config),
                    Derive::Everything => environment.config = old.config.clone(),
                }
                // With the release, so that a server which dies now goes on with it: the configuration must not say what nothing runs with.
                environment.target = Some(ReleaseVersion(environment.last_release));
                Release {
                    version: ReleaseVersion(environment.last_release),
                    config: environment.config.clone(),
                    created_at: now,
                    created_by: by.clone(),
                    reason: reason.to_owned(),
                    release_phase_done: true,
                    trace: None,
                    ..old.clone()
                }
            })
            .await?;
        self.created(&release);
        Ok(release)
    }

    /// The release, what it asks for that nobody has, and the record of the build that made it, in one transaction: a server that dies
    /// right then goes on with the deployment and builds nothing twice. The release that it is made `from` must still be there: with its
    /// record goes its image.
    async fn make(
        &self,
        env: &EnvRef,
        build: Option<BuildNumber>,
        from: Option<&Stored<Release>>,
        mut release: impl FnMut(&mut Environment) -> Release,
    ) -> Result<Release, StoreError> {
        let (store, given) = (&self.parts.store, &self.parts.settings.given());
        for _ in 0..TRIES {
            let stored = store.need::<Environment>(env).await?;
            let mut environment = stored.record.clone();
            environment.last_release += 1;
            let release = release(&mut environment);
            let mut transaction = store.transaction().update(&stored, &environment).create(&release);
            if let Some(from) = from {
                let id = (env.clone(), from.version);
                transaction = transaction.expect(&store.need::<Release>(&id).await?);
            }
            if let Some(number) = build
                && let Some(build) = store.get::<Build>(&(env.clone(), number)).await?
            {
                transaction = transaction.update(&build, &deploying(&build.record, &release));
            }
            reached(FailPoint::RecordRelease);
            match domains::claim(store, given, &release, transaction).await?.commit().await {
                Ok(_) => {
                    reached(FailPoint::RecordRelease);
                    return Ok(release);
                }
                Err(StoreError::Conflict(_)) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict(env.to_string()))
    }
}

/// The record of a build once it has made its release. One that has ended meanwhile stays as it is.
fn deploying(build: &Build, release: &Release) -> Build {
    let mut build = build.clone();
    if !build.state.is_final() {
        build.image = Some(release.image.clone());
        build.release = Some(release.version);
        build.state = BuildState::Running { stage: Stage::Deploy };
    }
    build
}

fn apply(changes: &BTreeMap<String, Option<String>>, config: &mut BTreeMap<String, String>) {
    for (name, value) in changes {
        match value {
            Some(value) => drop(config.insert(name.clone(), value.clone())),
            None => drop(config.remove(name)),
        }
    }
}
