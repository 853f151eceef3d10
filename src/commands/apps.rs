//! Apps: `apps …`.

use serde_json::{Value, json};

use super::{Answer, Caller, CommandError, Commands, now, parse};
use crate::{
    domain::{App, AppRef, Build, Deployment, EnvName, EnvRef, Environment, EventKind, Release, TenantName, Verb},
    manifest,
    store::{NewEvent, Record, Store, StoreError, Stored, Transaction},
};

/// Environments that every new app has.
const FIRST_ENVIRONMENTS: [&str; 2] = ["dev", EnvName::PROD];

/// Most apps of one tenant, and environments of one app.
const MAX_APPS: usize = 200;
const MAX_ENVIRONMENTS: usize = 20;

/// An environment as it is when new.
fn new_environment(name: EnvRef) -> Environment {
    Environment {
        name,
        created_at: now(),
        deploy_branch: None,
        config: Default::default(),
        scale: Default::default(),
        domains: Vec::new(),
        target: None,
        current: None,
        last_release: 0,
        last_build: 0,
        restarts: 0,
    }
}

/// Adds the deletion of all records of kind `R` of an environment to a transaction.
async fn delete_all<R: Record>(store: &Store, mut transaction: Transaction, env: &EnvRef) -> Result<Transaction, StoreError> {
    for stored in store.list::<R>(&format!("{env}/")).await? {
        transaction = transaction.delete(&stored);
    }
    Ok(transaction)
}

/// Refuses to destroy something whose name was not typed twice.
fn need_confirmation(name: &str, confirm: Option<&str>) -> Result<(), CommandError> {
    match confirm {
        Some(confirm) if confirm == name => Ok(()),
        Some(confirm) => Err(CommandError::Usage(format!("--confirm says {confirm}, not {name}; nothing was destroyed"))),
        None => Err(CommandError::Usage(format!("this destroys {name} and its history for good; if you are sure, add --confirm {name}"))),
    }
}

impl Commands {
    /// `apps …`.
    pub(super) async fn apps(&self, caller: &Caller, command: parse::Apps) -> Result<Answer, CommandError> {
        match command {
            parse::Apps::Create { app } => self.create_app(caller, app).await,
            parse::Apps::List { tenant } => self.list_apps(caller, tenant).await,
            parse::Apps::Info { app } => self.app_info(caller, &app).await,
            parse::Apps::Destroy { app, confirm } => self.destroy_app(caller, &app, confirm.as_deref()).await,
        }
    }

    async fn create_app(&self, caller: &Caller, name: AppRef) -> Result<Answer, CommandError> {
        let tenant = self.tenant_for(caller, Verb::Create, &name.tenant).await?;
        let apps = self.store.list::<App>(&format!("{}/", name.tenant)).await?;
        if apps.iter().any(|app| app.name == name) {
            return Err(CommandError::Conflict(format!("there is an app {name} already; see `apps info {name}`")));
        }
        if apps.len() >= MAX_APPS {
            return Err(CommandError::Conflict(format!("{} has {MAX_APPS} apps, which is the most", name.tenant)));
        }
        let app = App { name: name.clone(), created_at: now(), created_by: caller.user.clone() };
        let mut transaction = self.store.transaction().expect(&tenant).create(&app);
        let mut environments = Vec::new();
        for env in FIRST_ENVIRONMENTS {
            let env = new_environment(name.env(env.parse()?));
            transaction = transaction.create(&env);
            environments.push(env.name);
        }
        transaction.commit().await?;
        let event = NewEvent::new(EventKind::AppCreated, now(), format!("app {name} created"));
        self.store.record(event.app(&name).by(&caller.user)).await?;
        Ok(self.created_app(&name, &environments))
    }

    /// What `apps create` says: the remote, the command that adds it, and the manifest to commit.
    fn created_app(&self, name: &AppRef, environments: &[EnvRef]) -> Answer {
        let template = manifest::template(name, &self.tokens.issue(name));
        let mut human = format!("Created app {name}\n\nAdd a remote for each environment you want to push to:\n");
        for env in environments {
            human.push_str(&format!("  git remote add paas-{} {}\n", env.env, self.remote(env)));
        }
        human.push_str(&format!("\nThen deploy with: git push paas-{} main\n", environments[0].env));
        human.push_str(&format!("\nCommit this as {} (optional, recommended):\n\n{template}", manifest::FILE_NAME));
        let remotes: serde_json::Map<String, Value> =
            environments.iter().map(|env| (env.env.to_string(), json!(self.remote(env)))).collect();
        Answer::new(human, json!({"name": name, "remotes": remotes, "manifest": template}))
    }

    /// The URL to push to.
    fn remote(&self, env: &EnvRef) -> String {
        let port = if self.settings.ssh_port == 22 { String::new() } else { format!(":{}", self.settings.ssh_port) };
        format!("ssh://berth@{}{port}/{env}", self.settings.ssh_host)
    }

    async fn visible_environments(&self, caller: &Caller, prefix: &str) -> Result<Vec<Stored<Environment>>, CommandError> {
        let tenants = self.store.list::<crate::domain::Tenant>("").await?;
        let visible = |env: &Stored<Environment>| tenants.iter().any(|t| t.name == env.name.tenant && caller.sees(t));
        Ok(self.store.list::<Environment>(prefix).await?.into_iter().filter(visible).collect())
    }

    async fn list_apps(&self, caller: &Caller, tenant: Option<TenantName>) -> Result<Answer, CommandError> {
        let prefix = match &tenant {
            Some(name) => {
                self.tenant_for(caller, Verb::Read, name).await?;
                format!("{name}/")
            }
            None => String::new(),
        };
        let environments = self.visible_environments(caller, &prefix).await?;
        let tenants = self.store.list::<crate::domain::Tenant>("").await?;
        let apps = self.store.list::<App>(&prefix).await?;
        let visible = apps.iter().filter(|app| tenants.iter().any(|t| t.name == app.name.tenant && caller.sees(t)));
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for app in visible {
            let of_app: Vec<_> = environments.iter().filter(|env| env.name.app_ref() == app.name).collect();
            let names: Vec<String> = of_app.iter().map(|env| env.name.env.to_string()).collect();
            rows.push(vec![app.name.to_string(), names.join(", ")]);
            values.push(json!({"name": app.name, "environments": names, "created_at": app.created_at}));
        }
        Ok(Answer::table(&["app", "environments"], rows, values, "No apps. Make one: apps create TENANT/APP"))
    }

    async fn app_info(&self, caller: &Caller, name: &AppRef) -> Result<Answer, CommandError> {
        let app = self.app_for(caller, Verb::Read, name).await?;
        let environments = self.visible_environments(caller, &format!("{name}/")).await?;
        let mut human = format!("{name}, created by {} at {}\n", app.created_by, app.created_at);
        let mut values = Vec::new();
        for env in &environments {
            let release = env.current.map_or_else(|| "nothing deployed".to_owned(), |version| version.to_string());
            let url = self.deployer.url(&env.name);
            let remote = self.remote(&env.name);
            human.push_str(&format!("\n{}: {release}\n  {url}\n  git remote add paas-{} {remote}\n", env.name, env.name.env));
            values.push(json!({"name": env.name, "release": env.current, "url": url, "remote": remote}));
        }
        Ok(Answer::new(human, json!({"name": name, "created_at": app.created_at, "created_by": app.created_by, "environments": values})))
    }

    async fn destroy_app(&self, caller: &Caller, name: &AppRef, confirm: Option<&str>) -> Result<Answer, CommandError> {
        let app = self.app_for(caller, Verb::Destroy, name).await?;
        need_confirmation(&name.to_string(), confirm)?;
        for env in self.store.list::<Environment>(&format!("{name}/")).await? {
            self.destroy_environment(&env).await?;
        }
        self.store.transaction().delete(&app).commit().await?;
        self.runtime.forget(&name.tenant, Some(name)).await.map_err(|error| {
            CommandError::Failed(format!("the app is gone, but its build cache could not be removed: {error}"))
        })?;
        let event = NewEvent::new(EventKind::AppDestroyed, now(), format!("app {name} destroyed"));
        self.store.record(event.app(name).by(&caller.user)).await?;
        Ok(Answer::new(format!("Destroyed {name}"), json!({"destroyed": name})))
    }

    /// `envs …`.
    pub(super) async fn envs(&self, caller: &Caller, command: parse::Envs) -> Result<Answer, CommandError> {
        match command {
            parse::Envs::Create { env } => self.create_env(caller, env).await,
            parse::Envs::List { app } => self.list_envs(caller, app).await,
            parse::Envs::Destroy { env, confirm } => {
                let stored = self.env_for(caller, Verb::Destroy, &env).await?;
                need_confirmation(&env.to_string(), confirm.as_deref())?;
                self.destroy_environment(&stored).await?;
                let event = NewEvent::new(EventKind::EnvDestroyed, now(), format!("environment {env} destroyed"));
                self.store.record(event.env(&env).by(&caller.user)).await?;
                Ok(Answer::new(format!("Destroyed {env}"), json!({"destroyed": env})))
            }
        }
    }

    async fn create_env(&self, caller: &Caller, name: EnvRef) -> Result<Answer, CommandError> {
        self.tenant_for(caller, Verb::Create, &name.tenant).await?;
        let app = self.app_for(caller, Verb::Create, &name.app_ref()).await?;
        let existing = self.store.list::<Environment>(&format!("{}/", name.app_ref())).await?;
        if existing.iter().any(|env| env.name == name) {
            return Err(CommandError::Conflict(format!("there is an environment {name} already")));
        }
        if existing.len() >= MAX_ENVIRONMENTS {
            let text = format!("{} has {MAX_ENVIRONMENTS} environments, which is the most", name.app_ref());
            return Err(CommandError::Conflict(text));
        }
        let env = new_environment(name.clone());
        self.store.transaction().expect(&app).create(&env).commit().await?;
        let event = NewEvent::new(EventKind::EnvCreated, now(), format!("environment {name} created"));
        self.store.record(event.env(&name).by(&caller.user)).await?;
        let remote = self.remote(&name);
        let human = format!("Created environment {name}\n  git remote add paas-{} {remote}", name.env);
        Ok(Answer::new(human, json!({"name": name, "remote": remote, "url": self.deployer.url(&name)})))
    }

    async fn list_envs(&self, caller: &Caller, app: Option<AppRef>) -> Result<Answer, CommandError> {
        let prefix = match &app {
            Some(name) => {
                self.app_for(caller, Verb::Read, name).await?;
                format!("{name}/")
            }
            None => String::new(),
        };
        let environments = self.visible_environments(caller, &prefix).await?;
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for env in &environments {
            let release = env.current.map_or_else(|| "-".to_owned(), |version| version.to_string());
            let url = self.deployer.url(&env.name);
            let branch = env.deploy_branch.clone();
            rows.push(vec![env.name.to_string(), release, branch.clone().unwrap_or_else(|| "-".into()), url.clone()]);
            values.push(json!({"name": env.name, "release": env.current, "deploy_branch": branch, "url": url}));
        }
        Ok(Answer::table(&["environment", "release", "branch", "url"], rows, values, "No environments."))
    }

    /// Stops everything of an environment and deletes its records, repository and logs.
    async fn destroy_environment(&self, env: &Stored<Environment>) -> Result<(), CommandError> {
        let name = &env.name;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            tracing::error!(env = %name, %error, "destroying: {what}");
            CommandError::Failed(format!("{what} of {name} could not be removed: {error}; run the command again"))
        };
        if let Some(build) = self.builds.active(name).await? {
            self.builds.cancel(name, build.number, "the environment is being destroyed").await?;
            self.builds.wait(name, build.number).await?;
        }
        self.deployer.retire(name).await.map_err(|error| failed("what runs", &error))?;
        self.repositories.remove(name).map_err(|error| failed("the repository", &error))?;
        self.logs.remove(name).await.map_err(|error| failed("the logs", &error))?;
        // The record goes last: as long as it is there, the command can be repeated.
        let Some(latest) = self.store.get::<Environment>(name).await? else { return Ok(()) };
        let mut transaction = self.store.transaction().delete(&latest);
        transaction = delete_all::<Build>(&self.store, transaction, name).await?;
        transaction = delete_all::<Release>(&self.store, transaction, name).await?;
        transaction = delete_all::<Deployment>(&self.store, transaction, name).await?;
        transaction.commit().await?;
        Ok(())
    }
}
