//! Deployments: what moved the environment from release to release, and how it went.

use serde_json::{Value, json};

use super::{Answer, Caller, CommandError, Commands, answer, nouns, now};
use crate::{
    deploy::CancelFailure,
    domain::{Deployment, DeploymentState, EnvRef, Environment, ReleaseVersion, Verb, still_serving},
};

fn state(deployment: &Deployment) -> &'static str {
    match deployment.state {
        DeploymentState::Running => "running",
        DeploymentState::Succeeded => "succeeded",
        DeploymentState::Failed { .. } => "failed",
        DeploymentState::Cancelled { .. } => "cancelled",
        DeploymentState::Superseded { .. } => "superseded",
    }
}

fn reason(deployment: &Deployment) -> Option<String> {
    match &deployment.state {
        DeploymentState::Running | DeploymentState::Succeeded => None,
        DeploymentState::Failed { reason } => Some(reason.clone()),
        DeploymentState::Cancelled { by } => Some(format!("by {by}")),
        DeploymentState::Superseded { by } => Some(format!("by {by}")),
    }
}

/// Seconds from start to end, or until now; clocks may leap.
fn seconds(deployment: &Deployment) -> f64 {
    let end = deployment.finished_at.unwrap_or_else(now);
    end.duration_since(deployment.started_at).as_secs_f64().max(0.0)
}

fn value(deployment: &Deployment) -> Value {
    json!({
        "env": deployment.env, "release": deployment.to, "from": deployment.from, "state": state(deployment),
        "reason": reason(deployment), "started_at": deployment.started_at, "finished_at": deployment.finished_at,
    })
}

fn version_or_dash(version: Option<ReleaseVersion>) -> String {
    version.map_or_else(|| "-".to_owned(), |version| version.to_string())
}

impl Commands {
    /// `deployments …`.
    pub(super) async fn deployments(
        &self,
        caller: &Caller,
        command: nouns::Deployments,
    ) -> Result<Answer, CommandError> {
        match command {
            nouns::Deployments::List { env } => self.list_deployments(caller, &env).await,
            nouns::Deployments::Info { env, version } => self.deployment_info(caller, &env, version).await,
            nouns::Deployments::Cancel { env, version } => self.cancel_deployment(caller, &env, version).await,
        }
    }

    async fn list_deployments(&self, caller: &Caller, env: &EnvRef) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let mut deployments = self.store.list::<Deployment>(&format!("{env}/")).await?;
        deployments.sort_by_key(|deployment| std::cmp::Reverse(deployment.to));
        let row = |deployment: &Deployment| {
            let why = reason(deployment).unwrap_or_default();
            vec![
                deployment.to.to_string(),
                version_or_dash(deployment.from),
                state(deployment).to_owned(),
                format!("{:.1}s", seconds(deployment)),
                answer::age(now().duration_since(deployment.started_at).as_secs()),
                why.lines().next().unwrap_or_default().to_owned(),
            ]
        };
        let rows = deployments.iter().map(|deployment| row(deployment)).collect();
        let values = deployments.iter().map(|deployment| value(deployment)).collect();
        let empty = format!("No deployment yet. Make one: git push paas-{} main", env.env);
        Ok(Answer::table(&["release", "from", "state", "time", "age", "why"], rows, values, &empty))
    }

    /// One deployment (the newest, unless named), with what it waits for while it is under way.
    async fn deployment_info(
        &self,
        caller: &Caller,
        env: &EnvRef,
        version: Option<ReleaseVersion>,
    ) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let found = match version {
            Some(version) => self.store.get::<Deployment>(&(env.clone(), version)).await?,
            None => {
                let all = self.store.list::<Deployment>(&format!("{env}/")).await?;
                all.into_iter().max_by_key(|deployment| deployment.to)
            }
        };
        let what = version.map_or_else(|| "no deployment yet".to_owned(), |v| format!("no deployment of {v}"));
        let list = format!("see `deployments list {env}`");
        let deployment = found.ok_or_else(|| CommandError::NotFound(format!("{env} has {what}; {list}")))?.record;
        let mut json = value(&deployment);
        json["last_log_lines"] = json!(deployment.last_log_lines);
        let mut rows = vec![
            ["release".to_owned(), deployment.to.to_string()].to_vec(),
            ["from".to_owned(), version_or_dash(deployment.from)].to_vec(),
            ["state".to_owned(), state(&deployment).to_owned()].to_vec(),
            ["started".to_owned(), format!("{:.0}", deployment.started_at)].to_vec(),
            ["time".to_owned(), format!("{:.1}s", seconds(&deployment))].to_vec(),
        ];
        rows.extend(reason(&deployment).map(|why| vec!["why".to_owned(), why]));
        let mut human = answer::table(&["deployment", ""], &rows);
        if !deployment.last_log_lines.is_empty() {
            human.push_str("The last lines of its log:\n");
            // Plain text from the day they were written on; nobody has to rely on it.
            let lines = deployment.last_log_lines.iter().map(|line| format!("  {}\n", answer::clean(line)));
            human.extend(lines);
        }
        if deployment.state == DeploymentState::Running {
            let status = self.deployer.status(env).await?;
            json["waiting"] = json!(status.waits);
            status.waits.iter().for_each(|wait| human.push_str(&format!("… {}\n", answer::clean(wait))));
        }
        Ok(Answer::new(human, json))
    }

    async fn cancel_deployment(
        &self,
        caller: &Caller,
        env: &EnvRef,
        version: Option<ReleaseVersion>,
    ) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::Operate, env).await?;
        let cancelled = self.deployer.cancel(env, version, &caller.user).await.map_err(|failure| match failure {
            CancelFailure::Idle => {
                CommandError::NotFound(format!("no deployment of {env} is under way; see `deployments list {env}`"))
            }
            CancelFailure::Other(under_way) => CommandError::Conflict(format!(
                "the deployment of {env} under way is that of {under_way}; to end it: deployments cancel {env} {under_way}"
            )),
            CancelFailure::Busy => CommandError::TryLater(failure.to_string()),
            CancelFailure::Store(error) => error.into(),
        })?;
        let serves = self.store.need::<Environment>(env).await?.current;
        let text = format!("Cancelled the deployment of {cancelled} to {env}; {}", still_serving(serves));
        Ok(Answer::new(text, json!({"env": env, "cancelled": cancelled, "serving": serves})))
    }
}
