//! Apps: `apps …`.

use serde_json::{Value, json};

use super::{Answer, Caller, CommandError, Commands, error::keep_trying, nouns, now};
use crate::{
    domain::{App, AppRef, EnvName, EnvRef, Environment, EventKind, TenantName, Verb},
    manifest,
    store::{NewEvent, StoreError, Stored},
    token,
};

/// Environments that every new app has.
const FIRST_ENVIRONMENTS: [&str; 2] = ["dev", EnvName::PROD];

/// Most apps of one tenant.
const MAX_APPS: usize = 200;

/// An environment as it is when new.
pub(super) fn new_environment(name: EnvRef) -> Environment {
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

/// Refuses to destroy something whose name was not typed twice.
pub(super) fn need_confirmation(name: &str, confirm: Option<&str>) -> Result<(), CommandError> {
    let text = match confirm {
        Some(confirm) if confirm == name => return Ok(()),
        Some(_) => format!("--confirm does not say {name}; nothing was destroyed"),
        None => format!("this destroys {name} and its history for good; if you are sure, add --confirm {name}"),
    };
    Err(CommandError::Usage(text))
}

impl Commands {
    /// `apps …`.
    pub(super) async fn apps(&self, caller: &Caller, command: nouns::Apps) -> Result<Answer, CommandError> {
        match command {
            nouns::Apps::Create { app } => self.create_app(caller, app).await,
            nouns::Apps::List { tenant } => self.list_apps(caller, tenant).await,
            nouns::Apps::Info { app } => self.app_info(caller, &app).await,
            nouns::Apps::Destroy { app, confirm } => self.destroy_app(caller, &app, confirm.as_deref()).await,
        }
    }

    async fn create_app(&self, caller: &Caller, name: AppRef) -> Result<Answer, CommandError> {
        let environments = keep_trying(|| self.try_create_app(caller, &name)).await?;
        for env in &environments {
            self.begin(env).await?;
        }
        let event = NewEvent::new(EventKind::AppCreated, now(), format!("app {name} created"));
        self.store.record(event.app(&name).by(&caller.user)).await?;
        Ok(self.created_app(&name, &environments))
    }

    async fn try_create_app(&self, caller: &Caller, name: &AppRef) -> Result<Vec<EnvRef>, CommandError> {
        let tenant = self.tenant_for(caller, Verb::Create, &name.tenant).await?;
        let apps = self.store.list::<App>(&format!("{}/", name.tenant)).await?;
        if apps.iter().any(|app| app.name == *name) {
            return Err(CommandError::Conflict(format!("there is an app {name} already; see `apps info {name}`")));
        }
        if apps.len() >= MAX_APPS {
            return Err(CommandError::Conflict(format!("{} has {MAX_APPS} apps, which is the most", name.tenant)));
        }
        let app = App { name: name.clone(), created_at: now(), created_by: caller.user.clone(), destroying: false };
        let mut transaction = self.store.transaction().expect(&tenant).create(&app);
        let mut environments = Vec::new();
        for env in FIRST_ENVIRONMENTS {
            let env = new_environment(name.env(env.parse()?));
            transaction = transaction.create(&env);
            environments.push(env.name);
        }
        transaction.commit().await?;
        Ok(environments)
    }

    /// What `apps create` says: the remote, the command that adds it, and the manifest to commit.
    fn created_app(&self, name: &AppRef, environments: &[EnvRef]) -> Answer {
        let manifest = self.manifest(name);
        let mut human = format!("Created app {name}\n\nAdd a remote for each environment you want to push to:\n");
        for env in environments {
            human.push_str(&format!("  git remote add paas-{} {}\n", env.env, self.remote(env)));
        }
        human.push_str("\nThen deploy with: git push paas-dev main\n");
        human.push_str(&format!("\nCommit this as {} (optional, recommended):\n\n{manifest}", manifest::FILE_NAME));
        let remotes: serde_json::Map<String, Value> =
            environments.iter().map(|env| (env.env.to_string(), json!(self.remote(env)))).collect();
        Answer::new(human, json!({"name": name, "remotes": remotes, "manifest": manifest}))
    }

    /// The manifest of an app, with its token, ready to be committed.
    fn manifest(&self, name: &AppRef) -> String {
        manifest::template(name, &token::issue(&self.tokens, name))
    }

    /// The URL to push to.
    pub(super) fn remote(&self, env: &EnvRef) -> String {
        let port = if self.settings.ssh_port == 22 { String::new() } else { format!(":{}", self.settings.ssh_port) };
        format!("ssh://berth@{}{port}/{env}", self.settings.ssh_host)
    }

    async fn list_apps(&self, caller: &Caller, tenant: Option<TenantName>) -> Result<Answer, CommandError> {
        let prefix = match &tenant {
            Some(name) => {
                self.tenant_for(caller, Verb::Read, name).await?;
                format!("{name}/")
            }
            None => String::new(),
        };
        let tenants = self.visible_tenants(caller).await?;
        let environments = self.store.list::<Environment>(&prefix).await?;
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for app in self.store.list::<App>(&prefix).await? {
            if !tenants.contains(&app.name.tenant) {
                continue;
            }
            let of_app = environments.iter().filter(|env| env.name.app_ref() == app.name);
            let names: Vec<String> = of_app.map(|env| env.name.env.to_string()).collect();
            rows.push(vec![app.name.to_string(), names.join(", ")]);
            values.push(json!({"name": app.name, "environments": names, "created_at": app.created_at}));
        }
        Ok(Answer::table(&["app", "environments"], rows, values, "No apps. Make one: apps create TENANT/APP"))
    }

    async fn app_info(&self, caller: &Caller, name: &AppRef) -> Result<Answer, CommandError> {
        let app = self.app_for(caller, Verb::Read, name).await?;
        let mut human = format!("{name}, created by {} at {:.0}\n", app.created_by, app.created_at);
        let mut values = Vec::new();
        for env in self.store.list::<Environment>(&format!("{name}/")).await? {
            let release = env.current.map_or_else(|| "nothing deployed".to_owned(), |version| version.to_string());
            let (url, remote) = (self.deployer.url(&env.name), self.remote(&env.name));
            let add = format!("git remote add paas-{} {remote}", env.name.env);
            human.push_str(&format!("\n{}: {release}\n  {url}\n  {add}\n", env.name));
            values.push(json!({"name": env.name, "release": env.current, "url": url, "remote": remote}));
        }
        let manifest = self.manifest(name);
        human.push_str(&format!("\nIts {}, if the repository has none yet:\n\n{manifest}", manifest::FILE_NAME));
        let json = json!({
            "name": name, "created_at": app.created_at, "created_by": app.created_by, "environments": values,
            "manifest": manifest,
        });
        Ok(Answer::new(human, json))
    }

    async fn destroy_app(&self, caller: &Caller, name: &AppRef, confirm: Option<&str>) -> Result<Answer, CommandError> {
        self.app_for(caller, Verb::Destroy, name).await?;
        need_confirmation(&name.to_string(), confirm)?;
        // First: when the server dies in the middle, the next one goes on.
        self.store
            .modify::<App, StoreError>(name, |app| {
                app.destroying = true;
                Ok(())
            })
            .await?;
        for env in self.store.list::<Environment>(&format!("{name}/")).await? {
            self.destroy_environment(&env.name).await?;
        }
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(app = %name, %error, "the build cache of a destroyed app could not be removed");
            CommandError::Failed(format!("the build cache of {name} could not be removed; run the command again"))
        };
        self.builds.purge_cache(name).await.map_err(|error| failed(&format!("{error:#}")))?;
        self.runtime.forget(&name.tenant, Some(name)).await.map_err(|error| failed(&error))?;
        // Last: as long as it is there, the command can be repeated.
        let app = self.store.need::<App>(name).await?;
        self.store.transaction().delete(&app).commit().await?;
        let event = NewEvent::new(EventKind::AppDestroyed, now(), format!("app {name} destroyed"));
        self.store.record(event.app(name).by(&caller.user)).await?;
        Ok(Answer::new(format!("Destroyed {name}"), json!({"destroyed": name})))
    }

    /// Goes on with destroying an app that the last server was in the middle of: without records, what runs of it is stopped by the deployer,
    /// its files go with those of other environments that are gone, and its cache when the engine is cleared at the next start.
    pub(super) async fn finish_destroying_app(&self, app: &Stored<App>) -> Result<(), CommandError> {
        let name = &app.name;
        tracing::info!(app = %name, "going on with destroying an app");
        for env in self.store.list::<Environment>(&format!("{name}/")).await? {
            self.end_build(&env.name).await?;
            keep_trying(|| self.delete_records(&env.name)).await?;
        }
        self.store.transaction().delete(app).commit().await?;
        let event = NewEvent::new(
            EventKind::AppDestroyed,
            now(),
            format!("app {name} destroyed, after a restart of the server"),
        );
        self.store.record(event.app(name)).await?;
        if let Err(error) = self.runtime.forget(&name.tenant, Some(name)).await {
            tracing::info!(app = %name, %error, "the build cache of a destroyed app stays until the next start");
        }
        Ok(())
    }
}
