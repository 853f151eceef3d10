//! Moving an environment between releases: `releases …`, `rollback`.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use serde_json::json;
use tokio::sync::mpsc;

use super::{Answer, Caller, CommandError, CommandIo, Commands, answer, nouns, now};
use crate::{
    deploy::{DeployFailure, Derive, Progress, SilentProgress},
    domain::{
        BuildState, Deployment, DeploymentState, EnvRef, Environment, Release, ReleaseVersion, Stage, Verb,
        still_serving,
    },
    logs::{OutputLines, render_line},
    store::Stored,
};

/// Lines of progress that may wait for a slow client; more are dropped, the outcome never is.
const PROGRESS_LINES: usize = 256;

/// How long a program waits for its deployment to begin.
const BEGINS: Duration = Duration::from_secs(10);

/// Progress of a deployment, for the person who waits, in the shape of a push's output.
struct Lines {
    sender: mpsc::Sender<String>,
    raw: Mutex<OutputLines>,
}

impl Lines {
    /// The lines with their mark, made harmless to a terminal, after what containers have said.
    fn send(&self, mark: &str, text: &str) {
        self.flush();
        self.print(text.lines().map(|line| format!("{mark}{}\n", render_line(line))).collect());
    }

    fn raw(&self) -> MutexGuard<'_, OutputLines> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stands on a line that has no end.
    fn flush(&self) {
        if let Some(line) = self.raw().rest() {
            self.print(render_line(&line) + "\n");
        }
    }

    fn print(&self, text: String) {
        // Full or closed: nobody reads, and the outcome is told anyway.
        let _ = self.sender.try_send(text);
    }
}

impl Progress for Lines {
    fn step(&self, text: &str) {
        self.send("-----> ", text);
    }
    fn heading(&self, text: &str) {
        self.send("=====> ", text);
    }
    fn detail(&self, text: &str) {
        self.send("       ", text);
    }
    fn error(&self, text: &str) {
        self.send(" !     ", text);
    }
    fn raw(&self, bytes: &[u8]) {
        let mut text = String::new();
        self.raw().take(bytes, |line| text.extend([&render_line(line), "\n"]));
        if !text.is_empty() {
            self.print(text);
        }
    }
}

impl Commands {
    /// A release that must be there.
    pub(super) async fn release(&self, env: &EnvRef, version: ReleaseVersion) -> Result<Stored<Release>, CommandError> {
        let found = self.store.get::<Release>(&(env.clone(), version)).await?;
        found
            .ok_or_else(|| CommandError::NotFound(format!("{env} has no release {version}; see `releases list {env}`")))
    }

    /// Deploys a release, telling progress on standard error, and answers when it serves.
    pub(super) async fn deploy_and_say(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        use tokio::io::AsyncWriteExt;

        if !io.waits {
            return self.begin_deployment(env, version).await;
        }
        let (sender, mut lines) = mpsc::channel(PROGRESS_LINES);
        let progress = Lines { sender, raw: Mutex::default() };
        let deploy = async {
            let done = self.deployer.deploy(env, version, &progress).await;
            progress.flush();
            drop(progress);
            done
        };
        let tell = async {
            while let Some(line) = lines.recv().await {
                // A client that has gone does not stop the deployment.
                let _ = io.stderr.write_all(line.as_bytes()).await;
            }
        };
        match tokio::join!(deploy, tell).0 {
            Ok(deployed) => Ok(Answer::new(
                format!("{env} runs {version} at {}", deployed.url),
                json!({"env": env, "release": version, "url": deployed.url, "changed": true}),
            )),
            Err(DeployFailure::Failed { reason, last_log_lines, .. }) => {
                let lines: String =
                    last_log_lines.iter().map(|line| format!("\n         {}", answer::clean(line))).collect();
                let serves = still_serving(self.store.need::<Environment>(env).await?.current);
                Err(CommandError::Failed(format!(
                    "{version} was not deployed to {env}: {reason}; {serves}{lines}\n\
                     See what it said: logs {env}\nSee how it went: deployments info {env} {version}"
                )))
            }
            Err(DeployFailure::Superseded { by }) => Err(CommandError::Conflict(format!(
                "{by} was deployed to {env} meanwhile and took the place of {version}"
            ))),
            Err(DeployFailure::Store(error)) => Err(error.into()),
        }
    }

    /// Deploys a release, and answers when that is under way and can be followed.
    async fn begin_deployment(&self, env: &EnvRef, version: ReleaseVersion) -> Result<Answer, CommandError> {
        let from = self.store.revision().await?;
        let mut changes = self.store.watch::<Deployment>(&format!("{env}/"), from).await?;
        let (deployer, of) = (self.deployer.clone(), env.clone());
        // Whoever asks does not hold it up; the deployment's record tells how it ended.
        let mut deploys = tokio::spawn(async move { deployer.deploy(&of, version, &SilentProgress).await.map(drop) });
        let begun = async {
            loop {
                if self.store.get::<Deployment>(&(env.clone(), version)).await?.is_some() {
                    return Ok(());
                }
                if changes.next().await.is_none() {
                    return Err(CommandError::TryLater("the server is stopping; the deployment will go on".into()));
                }
            }
        };
        tokio::select! {
            // It may have ended before it was seen.
            _ = &mut deploys => {}
            begun = tokio::time::timeout(BEGINS, begun) => begun.unwrap_or(Ok(()))?,
        }
        let url = self.deployer.url(env);
        let json = json!({"env": env, "release": version, "deployment": version, "url": url, "changed": true});
        Ok(Answer::new(format!("{version} is being deployed to {env}"), json))
    }

    /// `releases …`.
    pub(super) async fn releases(&self, caller: &Caller, command: nouns::Releases) -> Result<Answer, CommandError> {
        match command {
            nouns::Releases::List { env } => self.list_releases(caller, &env).await,
            nouns::Releases::Info { env, version } => {
                let stored = self.env_for(caller, Verb::Read, &env).await?;
                let version = version.or(stored.current).ok_or_else(|| no_release(&env))?;
                let release = self.release(&env, version).await?;
                Ok(release_info(&release))
            }
        }
    }

    async fn list_releases(&self, caller: &Caller, env: &EnvRef) -> Result<Answer, CommandError> {
        let stored = self.env_for(caller, Verb::Read, env).await?;
        let deployments = self.store.list::<Deployment>(&format!("{env}/")).await?;
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for release in self.store.list::<Release>(&format!("{env}/")).await?.iter().rev() {
            let state = match deployments
                .iter()
                .find(|deployment| deployment.to == release.version)
                .map(|found| &found.state)
            {
                _ if stored.current == Some(release.version) => "current",
                Some(DeploymentState::Running) => "deploying",
                Some(DeploymentState::Succeeded) => "replaced",
                Some(DeploymentState::Failed { .. }) => "failed",
                Some(DeploymentState::Superseded { .. }) => "superseded",
                Some(DeploymentState::Cancelled { .. }) => "cancelled",
                None => "-",
            };
            let age = answer::age(now().duration_since(release.created_at).as_secs());
            let row = [
                release.version.to_string(),
                state.into(),
                release.reason.clone(),
                release.created_by.to_string(),
                age,
            ];
            rows.push(row.to_vec());
            values.push(json!({
                "version": release.version, "state": state, "reason": release.reason, "commit": release.commit,
                "created_by": release.created_by, "created_at": release.created_at, "image": release.image.to_string(),
            }));
        }
        let empty = format!("No release yet. Make one: git push paas-{} main", env.env);
        Ok(Answer::table(&["release", "state", "why", "by", "age"], rows, values, &empty))
    }

    /// `rollback`: a new release alike an old one.
    pub(super) async fn rollback(
        &self,
        caller: &Caller,
        env: &EnvRef,
        to: Option<ReleaseVersion>,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        let stored = self.env_for(caller, Verb::Operate, env).await?;
        self.refuse_while_building(env).await?;
        // With a deployment under way, what serves is what one goes back to.
        let under_way = stored.target.is_some() && stored.target != stored.current;
        let version = match (to, stored.current.filter(|_| under_way)) {
            (Some(version), _) | (None, Some(version)) => version,
            (None, None) => self.release_before(&stored).await?,
        };
        self.release(env, version).await?;
        if stored.current == Some(version) && !under_way {
            return Err(CommandError::Conflict(format!("{env} runs {version} already")));
        }
        let why = format!("rollback to {version}");
        let release = self.deployer.derive_release(env, version, Derive::Everything, &caller.user, &why).await?;
        self.deploy_and_say(env, release.version, io).await
    }

    /// The newest release older than the current one that was deployed with success.
    async fn release_before(&self, env: &Environment) -> Result<ReleaseVersion, CommandError> {
        let current = env.current.ok_or_else(|| no_release(&env.name))?;
        let deployments = self.store.list::<Deployment>(&format!("{}/", env.name)).await?;
        let good = |found: &&Stored<Deployment>| found.to < current && found.state == DeploymentState::Succeeded;
        let before = deployments.iter().rev().find(good).map(|found| found.to);
        before.ok_or_else(|| {
            CommandError::NotFound(format!("{} has no release before {current} to go back to", env.name))
        })
    }

    /// Refuses while a build is queued or being built: its release would come on top. One that is being deployed is superseded.
    pub(super) async fn refuse_while_building(&self, env: &EnvRef) -> Result<(), CommandError> {
        match self.builds.active(env).await? {
            None => Ok(()),
            Some(build) if build.state == (BuildState::Running { stage: Stage::Deploy }) => Ok(()),
            Some(build) => Err(CommandError::Conflict(format!(
                "build {} of {} is under way in {env}; wait for it, or: builds cancel {env}",
                build.number, build.pushed_by
            ))),
        }
    }
}

pub(super) fn no_release(env: &EnvRef) -> CommandError {
    CommandError::NotFound(format!("{env} has no release yet; make one: git push paas-{} main", env.env))
}

fn release_info(release: &Release) -> Answer {
    let mut human = format!(
        "{} of {}\nwhy:     {}\nby:      {} at {}\ncommit:  {}\nimage:   {}\n",
        release.version,
        release.env,
        answer::clean(&release.reason),
        release.created_by,
        release.created_at,
        release.commit,
        release.image
    );
    if let Some(command) = &release.release_command {
        human.push_str(&format!("release: {}\n", answer::clean(command)));
    }
    for (name, process) in &release.processes {
        human.push_str(&format!("{name}: {} × {}\n", process.replicas, answer::clean(&process.command)));
    }
    let names: Vec<&String> = release.config.keys().collect();
    human.push_str(&format!("config:  {}\n", names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")));
    let json = json!({
        "env": release.env, "version": release.version, "reason": release.reason, "created_by": release.created_by,
        "created_at": release.created_at, "commit": release.commit, "image": release.image.to_string(), "build": release.build,
        "release_command": release.release_command, "processes": release.processes, "config_names": names, "domains": release.domains,
    });
    Answer::new(human, json)
}
