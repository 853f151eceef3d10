//! Commits that go through the pipeline without a push: `redeploy`, `promote`.

use super::{
    Answer, Caller, CommandError, CommandIo, Commands,
    builds::Form,
    error::{blocking, logged},
    releases::no_release,
};
use crate::{
    build::{EnqueueError, NewBuild},
    domain::{Build, BuildState, EnvRef, Environment, Verb, still_serving},
    store::Stored,
};

impl Commands {
    /// `redeploy`: the pipeline once more for the commit last pushed or promoted. What is unchanged is not built again.
    pub(super) async fn redeploy(
        &self,
        caller: &Caller,
        env: &EnvRef,
        no_cache: bool,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        let stored = self.env_for(caller, Verb::Operate, env).await?;
        let commit = match self.last_accepted(env).await? {
            Some(commit) => commit,
            None => self.branch_commit(env, stored.deploy_branch.as_deref()).await?.ok_or_else(|| no_release(env))?,
        };
        self.build_commit(caller, env, commit, no_cache, json, io).await
    }

    /// The commit of the newest build that was not rejected: pushed, promoted, or taken in before it was built.
    async fn last_accepted(&self, env: &EnvRef) -> Result<Option<String>, CommandError> {
        let builds = self.store.list::<Build>(&format!("{env}/")).await?;
        let accepted = |build: &&Stored<Build>| build.state == BuildState::Succeeded || build.detached && !build.held;
        Ok(builds.iter().rev().find(accepted).map(|build| build.commit.clone()))
    }

    /// Where the deploy branch points.
    async fn branch_commit(&self, env: &EnvRef, branch: Option<&str>) -> Result<Option<String>, CommandError> {
        let Some(branch) = branch else { return Ok(None) };
        let (repositories, name, branch) = (self.repositories.clone(), env.clone(), format!("refs/heads/{branch}"));
        let commit = blocking(move || repositories.branch_commit(&name, &branch)).await;
        commit.map_err(|error| logged(error, format!("the repository of {env} cannot be read")))
    }

    /// Takes a commit that is in the environment's repository through the pipeline, relaying the output.
    async fn build_commit(
        &self,
        caller: &Caller,
        env: &EnvRef,
        commit: String,
        no_cache: bool,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        let new = NewBuild {
            env: env.clone(),
            commit,
            branch: None,
            old_commit: None,
            pushed_by: caller.user.clone(),
            no_cache,
            detached: false,
            supersede: false,
            held: false,
            timings: Vec::new(),
            trace: self.settings.traces.begin(caller.trace.as_ref()),
        };
        let build = match self.builds.enqueue(new).await {
            Ok(build) => build,
            Err(EnqueueError::Busy(build)) => {
                let text = format!(
                    "build {} of {} is under way in {env}; see `builds info {env}`",
                    build.number, build.pushed_by
                );
                return Err(CommandError::Conflict(text));
            }
            Err(full @ (EnqueueError::Full { .. } | EnqueueError::TenantFull { .. } | EnqueueError::NoRoom(_))) => {
                return Err(CommandError::TryLater(full.to_string()));
            }
            Err(EnqueueError::Store(error)) => return Err(error.into()),
        };
        if !io.waits {
            return Ok(Answer::new(
                format!("Build {} of {env} is queued", build.number),
                serde_json::json!({"env": env, "build": build.number, "commit": build.commit}),
            ));
        }
        self.relay_to_end(caller, env, &build, json, io).await
    }

    /// Relays the output of a build to its end, and answers what it came to.
    pub(super) async fn relay_to_end(
        &self,
        caller: &Caller,
        env: &EnvRef,
        build: &Build,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        let form = if json { Form::Aside } else { Form::Text };
        self.relay_build(caller, env, Some(build.number), form, io).await?;
        let build = self.builds.wait(env, build.number).await?;
        match (&build.state, build.release) {
            (BuildState::Succeeded, _) => Ok(Answer {
                human: String::new(),
                json: serde_json::json!({"env": env, "build": build.number, "release": build.release}),
            }),
            (BuildState::Failed { reason }, Some(version)) => {
                let serves = still_serving(self.store.need::<Environment>(env).await?.current);
                Err(CommandError::Failed(format!(
                    "build {} succeeded, but {reason}; {serves}\nSee what it said: logs {env}\n\
                     See how it went: deployments info {env} {version}",
                    build.number
                )))
            }
            (BuildState::Failed { reason } | BuildState::Cancelled { reason }, _) => {
                Err(CommandError::Failed(format!("build {} did not succeed: {reason}", build.number)))
            }
            (BuildState::Queued | BuildState::Running { .. }, _) => {
                Err(CommandError::TryLater("the server is stopping; the build will go on".into()))
            }
        }
    }

    /// `promote`: the commit that runs in one environment goes through the pipeline of another of the same app, which finds the slug
    /// built already.
    pub(super) async fn promote(
        &self,
        caller: &Caller,
        from: &EnvRef,
        to: &EnvRef,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        if from.app_ref() != to.app_ref() || from == to {
            return Err(CommandError::Usage("promote goes between two environments of one app".into()));
        }
        let source = self.env_for(caller, Verb::Read, from).await?;
        self.env_for(caller, Verb::Operate, to).await?;
        self.refuse_while_building(to).await?;
        let version = source.current.ok_or_else(|| no_release(from))?;
        let release = self.release(from, version).await?;
        let (repositories, names) = (self.repositories.clone(), (from.clone(), to.clone()));
        let _used = (repositories.use_of(from).await, repositories.use_of(to).await);
        let commit = release.commit.clone();
        let shared = blocking(move || repositories.share_commit(&names.0, &names.1, &commit)).await;
        shared.map_err(|error| logged(error, format!("the commit could not be brought from {from} to {to}")))?;
        self.build_commit(caller, to, release.commit.clone(), false, json, io).await
    }
}
