//! Environments: `envs …`.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::{
    Answer, Caller, CommandError, Commands, Part,
    apps::{need_confirmation, new_environment},
    error::{keep_trying, logged},
    nouns, now,
};
use crate::{
    domain::{
        App, AppRef, Build, CrashLoops, CronMark, CronRun, Deployment, Drain, DrainMark, EnvRef, Environment,
        EventKind, FailPoint, Release, Tombstone, Verb, fail_point::reached,
    },
    store::{NewEvent, Record, Store, StoreError, Transaction},
};

/// Most environments of one app.
const MAX_ENVIRONMENTS: usize = 20;
/// How long a build may take to notice that its deployment was ended.
const BUILD_END: Duration = Duration::from_secs(30);
/// How long cron jobs may take to end: their grace time and a little.
const JOBS_END: Duration = Duration::from_secs(120);

/// Adds the deletion of all records of kind `R` of an environment to a transaction.
async fn delete_all<R: Record>(
    store: &Store,
    mut transaction: Transaction,
    env: &EnvRef,
) -> Result<Transaction, StoreError> {
    for stored in store.list::<R>(&format!("{env}/")).await? {
        transaction = transaction.delete(&stored);
    }
    Ok(transaction)
}

impl Commands {
    /// `envs …`.
    pub(super) async fn envs(&self, caller: &Caller, command: nouns::Envs) -> Result<Answer, CommandError> {
        match command {
            nouns::Envs::Create { env } => self.create_env(caller, &env).await,
            nouns::Envs::List { app, part } => self.list_envs(caller, app, &part).await,
            nouns::Envs::Destroy { env, confirm } => {
                self.env_for(caller, Verb::Destroy, &env).await?;
                need_confirmation(&env.to_string(), confirm.as_deref())?;
                self.destroy_environment(&env).await?;
                let event = NewEvent::new(EventKind::EnvDestroyed, now(), format!("environment {env} destroyed"));
                self.store.record(event.env(&env).by(&caller.user)).await?;
                Ok(Answer::new(format!("Destroyed {env}"), json!({"destroyed": env})))
            }
        }
    }

    async fn create_env(&self, caller: &Caller, name: &EnvRef) -> Result<Answer, CommandError> {
        keep_trying(|| self.try_create_env(caller, name)).await?;
        self.begin(name).await?;
        let event = NewEvent::new(EventKind::EnvCreated, now(), format!("environment {name} created"));
        self.store.record(event.env(name).by(&caller.user)).await?;
        let remote = self.remote(name);
        let human = format!("Created environment {name}\n  git remote add paas-{} {remote}", name.env);
        Ok(Answer::new(human, json!({"name": name, "remote": remote, "url": self.deployer.url(name)})))
    }

    async fn try_create_env(&self, caller: &Caller, name: &EnvRef) -> Result<(), CommandError> {
        let app = self.app_for(caller, Verb::Create, &name.app_ref()).await?;
        if app.destroying {
            return Err(CommandError::Conflict(format!("{} is being destroyed", name.app_ref())));
        }
        let existing = self.store.list::<Environment>(&format!("{}/", name.app_ref())).await?;
        if existing.iter().any(|env| env.name == *name) {
            return Err(CommandError::Conflict(format!("there is an environment {name} already")));
        }
        if existing.len() >= MAX_ENVIRONMENTS {
            let text = format!("{} has {MAX_ENVIRONMENTS} environments, which is the most", name.app_ref());
            return Err(CommandError::Conflict(text));
        }
        self.store.transaction().expect(&app).create(&new_environment(name.clone())).commit().await?;
        Ok(())
    }

    async fn list_envs(&self, caller: &Caller, app: Option<AppRef>, part: &Part) -> Result<Answer, CommandError> {
        let prefix = match &app {
            Some(name) => {
                self.app_for(caller, Verb::Read, name).await?;
                format!("{name}/")
            }
            None => String::new(),
        };
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for env in self.visible_environments(caller, &prefix, part).await? {
            let release = env.current.map_or_else(|| "-".to_owned(), |version| version.to_string());
            let url = self.deployer.url(&env.name);
            let branch = env.deploy_branch.as_deref().map(|branch| crate::git::short_branch(branch).to_owned());
            rows.push(vec![env.name.to_string(), release, branch.clone().unwrap_or_else(|| "-".into()), url.clone()]);
            values.push(json!({"name": env.name, "release": env.current, "deploy_branch": branch, "url": url}));
        }
        Ok(Answer::table(&["environment", "release", "branch", "url"], rows, values, "No environments."))
    }

    /// Stops everything of an environment and deletes its records, repository and logs.
    pub(super) async fn destroy_environment(&self, name: &EnvRef) -> Result<(), CommandError> {
        let failed = |what: &'static str| {
            move |error| logged(error, format!("{what} of {name} could not be removed; it goes on"))
        };
        self.end_build(name).await?;
        self.build_ended(name).await?;
        // The records go first, so that nothing brings back what is taken away next. What a failure leaves behind then belongs to no
        // environment: the deployer goes on stopping it, and the next server takes repository and logs away, or a new environment of
        // the name before it begins.
        keep_trying(|| self.delete_records(name)).await?;
        reached(FailPoint::Retire);
        self.deployer.retire(name).await.map_err(failed("what runs"))?;
        let jobs = timeout(JOBS_END, self.cron.retire(name)).await.map_err(anyhow::Error::from);
        jobs.map_err(failed("a cron job"))?;
        // A build that was queued in between finds no environment to deploy to.
        self.end_build(name).await?;
        self.build_ended(name).await?;
        reached(FailPoint::Retire);
        self.remove_files(name).await
    }

    /// Goes on with removing apps, and what is left of environments, that were being destroyed when the last server ended. Before anything is
    /// served. What cannot be removed now is left to the next start.
    ///
    /// # Errors
    /// The store's own.
    pub async fn finish_destroying(&self) -> Result<(), StoreError> {
        for app in self.store.list::<App>("").await?.iter().filter(|app| app.destroying) {
            if let Err(error) = self.finish_destroying_app(app).await {
                tracing::warn!(app = %app.name, %error, "an app that was being destroyed is there still; `apps destroy` goes on");
            }
        }
        for stone in self.store.list::<Tombstone>("").await? {
            let env = &stone.env;
            // Made anew since, and not begun: then nothing in its repository is its own.
            let in_use = self.store.get::<Environment>(env).await?.is_some_and(|new| new.last_build > 0);
            tracing::info!(%env, "removing what is left of a destroyed environment");
            if in_use {
                self.store.transaction().delete(&stone).commit().await?;
            } else if let Err(error) = self.remove_files(env).await {
                tracing::warn!(%env, %error, "what is left of a destroyed environment cannot be removed");
            }
        }
        Ok(())
    }

    /// Lets a new environment begin with nothing of an earlier one of its name, and has the router know of it.
    pub(super) async fn begin(&self, name: &EnvRef) -> Result<(), CommandError> {
        self.remove_files(name).await?;
        self.deployer.nudge(name);
        Ok(())
    }

    /// Removes repository and logs that belong to no environment; refuses when there is one of the name.
    ///
    /// # Errors
    /// [`CommandError::Conflict`] for an environment that exists; else the disk's.
    pub async fn remove_leftovers(&self, name: &EnvRef) -> Result<(), CommandError> {
        if self.store.get::<Environment>(name).await?.is_some() {
            return Err(CommandError::Conflict(format!("{name} exists")));
        }
        self.remove_files(name).await
    }

    /// Removes the repository and the logs, and notes that nothing is left.
    async fn remove_files(&self, name: &EnvRef) -> Result<(), CommandError> {
        let failed = |what: &'static str| move |error| logged(error, format!("{what} of {name} could not be removed"));
        let (repositories, env) = (self.repositories.clone(), name.clone());
        super::error::blocking(move || repositories.remove(&env)).await.map_err(failed("the repository"))?;
        self.logs.remove(name).await.map_err(failed("the logs"))?;
        self.metrics.forget(name).await;
        if let Some(stone) = self.store.get::<Tombstone>(name).await? {
            match self.store.transaction().delete(&stone).commit().await {
                // Somebody else did.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Cancels the environment's build, unless it is being deployed.
    pub(super) async fn end_build(&self, name: &EnvRef) -> Result<(), CommandError> {
        let Some(build) = self.builds.active(name).await? else { return Ok(()) };
        self.builds.cancel(name, build.number, "the environment is being destroyed").await?;
        Ok(())
    }

    /// Waits until no build will write its record any more.
    async fn build_ended(&self, name: &EnvRef) -> Result<(), CommandError> {
        let Some(build) = self.builds.active(name).await? else { return Ok(()) };
        let Ok(ended) = timeout(BUILD_END, self.builds.wait(name, build.number)).await else {
            let text = format!("build {} of {name} does not end; run the command again in a minute", build.number);
            return Err(CommandError::TryLater(text));
        };
        match ended {
            // Its record is gone already.
            Ok(_) | Err(StoreError::Missing(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn delete_records(&self, name: &EnvRef) -> Result<(), CommandError> {
        let mut transaction = self.store.transaction().put(&Tombstone { env: name.clone(), destroyed_at: Some(now()) });
        if let Some(latest) = self.store.get::<Environment>(name).await? {
            transaction = transaction.delete(&latest);
        }
        transaction = delete_all::<Build>(&self.store, transaction, name).await?;
        transaction = delete_all::<Release>(&self.store, transaction, name).await?;
        transaction = delete_all::<Deployment>(&self.store, transaction, name).await?;
        transaction = delete_all::<CronRun>(&self.store, transaction, name).await?;
        transaction = delete_all::<CronMark>(&self.store, transaction, name).await?;
        transaction = delete_all::<Drain>(&self.store, transaction, name).await?;
        transaction = delete_all::<DrainMark>(&self.store, transaction, name).await?;
        transaction = delete_all::<CrashLoops>(&self.store, transaction, name).await?;
        for claim in self.claims(name).await? {
            transaction = transaction.delete(&claim);
        }
        transaction.commit().await?;
        Ok(())
    }
}
