//! How a deployment ends: it serves, or what served before goes on serving.

use tokio::time::Instant;

use super::{Actor, STORE_AGAIN, deployment::Outcome, report::counts, tell};
use crate::{
    deploy::{
        api::{CancelFailure, Deployed},
        progress::Note,
    },
    domain::{
        DeploymentState, Environment, EventKind, FailPoint, LAST_LOG_LINES, ReleaseVersion, UserName,
        fail_point::reached,
    },
    plan::Goal,
    store::StoreError,
};

impl Actor {
    /// The new release serves.
    pub(super) async fn succeed(&mut self, goal: &Goal) {
        let Some(mut rollout) = self.rollout.take() else { return };
        let version = rollout.version;
        for name in ["start", "ready", "route"] {
            rollout.mark(name);
        }
        let deployment = rollout.record(&self.env, DeploymentState::Succeeded, Some(self.parts.clock.now()));
        reached(FailPoint::Switch);
        if let Err(error) = self.change(&[deployment], |environment| environment.current = Some(version)).await {
            tracing::error!(env = %self.env, %error, "a success cannot be written down; trying again");
            self.rollout = Some(rollout);
            return self.wake_by(Instant::now() + STORE_AGAIN);
        }
        let event = self.event(EventKind::DeploymentFinished, format!("{version} is deployed"));
        let event = event.data("release", version.0).data("outcome", "succeeded");
        self.parts.event(event.data("timings", tell::timings(&rollout.timings())));
        let all = goal.processes.iter().map(|(process, goal)| (process, goal.count, goal.count));
        let counts = counts(all);
        if rollout.said.0 != counts {
            rollout.audience.detail(counts);
        }
        if self.views.borrow().silent {
            rollout.audience.tell(Note::Error(
                "the router does not answer; the routes are published and take effect once it runs (see `berth doctor`)"
                    .to_owned(),
            ));
        }
        let healthy = goal.processes.iter().map(|(process, goal)| (process.clone(), goal.count)).collect();
        let outcome = Outcome::Deployed(Deployed {
            release: version,
            url: self.parts.url(&self.env),
            healthy,
            timings: rollout.timings(),
        });
        self.trace_end(&rollout, "succeeded");
        rollout.end(&outcome);
    }

    /// Knows the deployment that the records say is under way, though nothing of what runs may have been seen yet.
    async fn know_rollout(&mut self) -> Result<(), StoreError> {
        let picture = self.pictures.borrow().clone();
        self.reload(&picture).await?;
        self.adopt_rollout().await
    }

    /// Ends the deployment of `version`, if it is under way; afterwards no server deploys it.
    pub(super) async fn give_up(&mut self, version: ReleaseVersion, reason: String) -> Result<(), StoreError> {
        self.know_rollout().await?;
        let is_it = |actor: &Self| actor.rollout.as_ref().is_some_and(|rollout| rollout.version == version);
        if is_it(self) {
            self.fail(reason, Vec::new()).await;
        }
        if is_it(self) { Err(unwritten()) } else { Ok(()) }
    }

    /// Ends the deployment under way because `by` wants it.
    pub(super) async fn cancel(
        &mut self,
        version: Option<ReleaseVersion>,
        by: UserName,
    ) -> Result<ReleaseVersion, CancelFailure> {
        self.know_rollout().await.map_err(CancelFailure::Store)?;
        let under_way = self.rollout.as_ref().map(|rollout| rollout.version).ok_or(CancelFailure::Idle)?;
        if version.is_some_and(|version| version != under_way) {
            return Err(CancelFailure::Other(under_way));
        }
        let reason = format!("cancelled by {by}");
        self.go_back(DeploymentState::Cancelled { by }, reason, Vec::new()).await;
        match &self.rollout {
            None => Ok(under_way),
            Some(_) => Err(CancelFailure::Store(unwritten())),
        }
    }

    /// The new release does not serve: back to the one that does.
    pub(super) async fn fail(&mut self, reason: String, last_log_lines: Vec<String>) {
        self.go_back(DeploymentState::Failed { reason: reason.clone() }, reason, last_log_lines).await;
    }

    async fn go_back(&mut self, state: DeploymentState, reason: String, last_log_lines: Vec<String>) {
        let Some(mut rollout) = self.rollout.take() else { return };
        let version = rollout.version;
        let by = match &state {
            DeploymentState::Cancelled { by } => Some(by.clone()),
            _ => None,
        };
        let mut deployment = rollout.record(&self.env, state, Some(self.parts.clock.now()));
        let older = last_log_lines.len().saturating_sub(LAST_LOG_LINES);
        deployment.last_log_lines = last_log_lines[older..].to_vec();
        let config = |version| self.releases.get(&version).map(|release| release.config.clone());
        let (failed, serving) = (config(version), self.record.as_ref().and_then(|record| config(record.current?)));
        let back = |environment: &mut Environment| {
            if environment.target == Some(version) {
                environment.target = environment.current;
            }
            // Else the next release would bring the failed configuration again. A newer change stays.
            if let (Some(failed), Some(serving)) = (&failed, &serving)
                && environment.config == *failed
            {
                environment.config = serving.clone();
            }
        };
        if let Err(error) = self.change(&[deployment], back).await {
            tracing::error!(env = %self.env, %error, "a failure cannot be written down; trying again");
            rollout.phase_failure = Some((reason, last_log_lines));
            self.rollout = Some(rollout);
            return self.wake_by(Instant::now() + STORE_AGAIN);
        }
        // Without the reason, which may quote what an app has said.
        tracing::warn!(env = %self.env, %version, "a deployment failed");
        self.trace_failure(&mut rollout, if by.is_some() { "cancelled" } else { "failed" });
        self.tell_failure(version, &reason, by);
        rollout.end(&Outcome::Failed { release: version, reason, last_log_lines });
    }
}

fn unwritten() -> StoreError {
    StoreError::Failed("the end could not be written down".to_owned())
}
