//! The life of a deployment: begun, superseded, succeeded or failed. The actor is the only one who moves an environment's `current`,
//! and its `target` too, but for releases that are derived from others: those are made as the target.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Actor, STORE_AGAIN, report::counts};
use crate::{
    deploy::{
        api::{DeployFailure, Deployed},
        progress::{Audience, Note},
    },
    domain::{
        Deployment, DeploymentState, Environment, EventKind, FailPoint, Release, ReleaseVersion, Timestamp,
        fail_point::reached,
    },
    plan::{Goal, Phase, Plan, RouteState},
    store::StoreError,
};

/// How a deployment ended, for all who wait for it.
#[derive(Debug, Clone)]
pub(in crate::deploy) enum Outcome {
    Deployed(Deployed),
    Failed { release: ReleaseVersion, reason: String, last_log_lines: Vec<String> },
    Superseded { by: ReleaseVersion },
    Store(String),
}

impl Outcome {
    pub(in crate::deploy) fn into_result(self) -> Result<Deployed, DeployFailure> {
        match self {
            Self::Deployed(deployed) => Ok(deployed),
            Self::Failed { release, reason, last_log_lines } => {
                Err(DeployFailure::Failed { release, reason, last_log_lines })
            }
            Self::Superseded { by } => Err(DeployFailure::Superseded { by }),
            Self::Store(reason) => Err(DeployFailure::Store(StoreError::Failed(reason))),
        }
    }
}

/// A deployment under way.
pub(super) struct Rollout {
    pub(super) version: ReleaseVersion,
    pub(super) from: Option<ReleaseVersion>,
    pub(super) started_at: Timestamp,
    began: Instant,
    /// When it last came closer to its end, and how close that was.
    progress_at: Instant,
    closest: u32,
    pub(super) audience: Audience,
    waiting: Vec<oneshot::Sender<Outcome>>,
    /// Milliseconds since it began at which something was reached.
    marks: Vec<(&'static str, u64)>,
    /// What was said last, and when.
    pub(super) said: (String, Instant),
    /// Why it has failed and with what last lines, when that could not be acted on where it was found.
    pub(super) phase_failure: Option<(String, Vec<String>)>,
}

impl Rollout {
    fn new(version: ReleaseVersion, from: Option<ReleaseVersion>, started_at: Timestamp) -> Self {
        let now = Instant::now();
        Self {
            version,
            from,
            started_at,
            began: now,
            progress_at: now,
            closest: 0,
            audience: Audience::default(),
            waiting: Vec::new(),
            marks: Vec::new(),
            said: (String::new(), now),
            phase_failure: None,
        }
    }

    pub(super) fn mark(&mut self, name: &'static str) {
        if self.marks.iter().all(|(other, _)| *other != name) {
            let time = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.marks.push((name, time));
        }
    }

    /// Restarts the clock of the progress deadline.
    pub(super) fn progressed(&mut self) {
        self.progress_at = Instant::now();
    }

    fn timings(&self) -> Vec<(String, u64)> {
        let mut before = 0;
        let stage = |(name, at): &(&'static str, u64)| {
            let time = at.saturating_sub(before);
            before = before.max(*at);
            ((*name).to_owned(), time)
        };
        self.marks.iter().map(stage).collect()
    }

    pub(super) fn record(
        &self,
        env: &crate::domain::EnvRef,
        state: DeploymentState,
        end: Option<Timestamp>,
    ) -> Deployment {
        let (to, from, started_at) = (self.version, self.from, self.started_at);
        Deployment { env: env.clone(), to, from, state, started_at, finished_at: end }
    }

    fn end(self, outcome: &Outcome) {
        self.waiting.into_iter().for_each(|reply| drop(reply.send(outcome.clone())));
    }
}

impl Actor {
    /// Begins (or joins) the deployment of a release.
    pub(super) async fn begin(
        &mut self,
        version: ReleaseVersion,
        notes: mpsc::Sender<Note>,
        reply: oneshot::Sender<Outcome>,
    ) {
        match self.prepare_rollout(version).await {
            Ok(None) if self.retiring.is_some() => return self.deferred.push(reply),
            Ok(None) => {}
            Ok(Some(outcome)) => return drop(reply.send(outcome)),
            Err(error) => return drop(reply.send(Outcome::Store(error.to_string()))),
        }
        if let Some(rollout) = &mut self.rollout {
            rollout.audience.join(notes);
            rollout.waiting.push(reply);
        }
    }

    /// Makes `version` the rollout under way, unless how it ended is known already.
    async fn prepare_rollout(&mut self, version: ReleaseVersion) -> Result<Option<Outcome>, StoreError> {
        let store = self.parts.store.clone();
        let record = store.need::<Environment>(&self.env).await?.record;
        if self.retiring.is_some() {
            return Ok(None);
        }
        self.record = Some(record.clone());
        self.adopt_rollout().await?;
        if self.rollout.as_ref().is_some_and(|rollout| rollout.version == version) {
            return Ok(None);
        }
        if let Some(deployment) = store.get::<Deployment>(&(self.env.clone(), version)).await? {
            let known = self.known_end(&deployment.record);
            if known.is_some() {
                return Ok(known);
            }
        }
        if let Some(by) = record.target.max(record.current).filter(|newest| *newest > version) {
            return Ok(Some(Outcome::Superseded { by }));
        }
        let release = store.need::<Release>(&(self.env.clone(), version)).await?.record;
        self.releases.insert(version, release);
        let now = self.parts.clock.now();
        let rollout = Rollout::new(version, record.current, now);
        let mut deployments = vec![rollout.record(&self.env, DeploymentState::Running, None)];
        let superseded = DeploymentState::Superseded { by: version };
        deployments.extend(self.rollout.as_ref().map(|old| old.record(&self.env, superseded, Some(now))));
        self.change(&deployments, |environment| environment.target = Some(version)).await?;
        reached(FailPoint::Start);
        if let Some(old) = self.rollout.replace(rollout) {
            old.end(&Outcome::Superseded { by: version });
        }
        Ok(None)
    }

    fn known_end(&self, deployment: &Deployment) -> Option<Outcome> {
        match &deployment.state {
            DeploymentState::Running => None,
            DeploymentState::Succeeded => Some(Outcome::Deployed(Deployed {
                release: deployment.to,
                url: self.parts.url(&self.env),
                healthy: Vec::new(),
                timings: Vec::new(),
            })),
            DeploymentState::Failed { reason } => {
                Some(Outcome::Failed { release: deployment.to, reason: reason.clone(), last_log_lines: Vec::new() })
            }
            DeploymentState::Superseded { by } => Some(Outcome::Superseded { by: *by }),
        }
    }

    /// Goes on with what an earlier process began.
    async fn adopt_rollout(&mut self) -> Result<(), StoreError> {
        let Some(record) = self.record.as_ref().filter(|_| self.retiring.is_none()) else { return Ok(()) };
        let Some(target) = record.target.filter(|target| Some(*target) != record.current) else { return Ok(()) };
        if self.rollout.as_ref().is_some_and(|rollout| rollout.version == target) {
            return Ok(());
        }
        let current = record.current;
        let deployment = self.parts.store.get::<Deployment>(&(self.env.clone(), target)).await?;
        let now = self.parts.clock.now();
        let started_at = deployment.as_ref().map_or(now, |stored| stored.record.started_at);
        let rollout = Rollout::new(target, current, started_at);
        if deployment.is_none() {
            let mut deployments = vec![rollout.record(&self.env, DeploymentState::Running, None)];
            let superseded = DeploymentState::Superseded { by: target };
            deployments.extend(self.rollout.as_ref().map(|old| old.record(&self.env, superseded, Some(now))));
            self.change(&deployments, |_| {}).await?;
        }
        if let Some(old) = self.rollout.replace(rollout) {
            old.end(&Outcome::Superseded { by: target });
        }
        Ok(())
    }

    /// Changes the environment together with deployments, whatever others change in it meanwhile.
    async fn change(
        &mut self,
        deployments: &[Deployment],
        change: impl Fn(&mut Environment),
    ) -> Result<(), StoreError> {
        loop {
            let stored = self.parts.store.need::<Environment>(&self.env).await?;
            let mut record = stored.record.clone();
            change(&mut record);
            let transaction = self.parts.store.transaction().update(&stored, &record);
            let transaction = deployments.iter().fold(transaction, |transaction, one| transaction.put(one));
            match transaction.commit().await {
                // Somebody else was faster; each round means that another's write succeeded.
                Err(StoreError::Conflict(_)) => continue,
                Err(error) => return Err(error),
                Ok(_) => {
                    self.record = Some(record);
                    return Ok(());
                }
            }
        }
    }

    /// Begins what has to be begun and ends what has failed.
    pub(super) async fn care_for_rollout(&mut self) {
        if self.retiring.is_some() {
            return self.abandon();
        }
        if let Err(error) = self.adopt_rollout().await {
            tracing::error!(env = %self.env, %error, "a deployment cannot be read");
            return self.wake_by(Instant::now() + STORE_AGAIN);
        }
        let Some(rollout) = &mut self.rollout else { return };
        let Some(release) = self.releases.get(&rollout.version).cloned() else {
            let reason = format!("{} does not exist", rollout.version);
            return self.fail(reason, Vec::new()).await;
        };
        if let Some((reason, lines)) = rollout.phase_failure.take() {
            return self.fail(reason, lines).await;
        }
        if !release.release_phase_done {
            return self.run_phase(&release);
        }
        if let Some((reason, lines)) = self.verdict_on(&release) {
            return self.fail(reason, lines).await;
        }
        self.watch_progress(&release).await;
    }

    fn abandon(&mut self) {
        if let Some(rollout) = self.rollout.take() {
            let release = rollout.version;
            let reason = "the environment was destroyed".to_owned();
            rollout.end(&Outcome::Failed { release, reason, last_log_lines: Vec::new() });
        }
    }

    /// Why the release has failed, if its replicas say so.
    fn verdict_on(&self, release: &Release) -> Option<(String, Vec<String>)> {
        let crashes = self.parts.settings.crashes;
        let goal = self.goal();
        for process in goal.processes.values().filter(|process| process.count > 0) {
            let Some(state) = self.sets.get(&process.set) else { continue };
            let limit = if state.ever_ready { crashes.saturating_add(2 * process.count) } else { crashes };
            let given_up = state.crashes >= limit || state.refusals >= crashes || state.grace_over && !state.ever_ready;
            if process.set.release == release.version && given_up && state.tails.is_empty() {
                let trouble = state.trouble.clone().unwrap_or_else(|| "its replicas fail".to_owned());
                return Some((trouble, state.tail.clone()));
            }
        }
        None
    }

    /// Fails the deployment when it has not come closer to its end for too long.
    async fn watch_progress(&mut self, release: &Release) {
        let version = release.version;
        let view = self.views.borrow().clone();
        let reached = |one: &super::Tracked| match (one.phase, self.upstream(one)) {
            (Phase::Ready, Some(upstream)) => 2 + u32::from(view.state(&self.env, &upstream, true) == RouteState::In),
            (Phase::Ready, None) => 3,
            (Phase::Starting, _) => 1,
            _ => 0,
        };
        let new = self.replicas.values().filter(|one| one.replica.set.release == version);
        // Replicas that come up only to die again do not count more than once.
        let close: u32 = new.map(reached).filter(|points| *points > 1).sum();
        let Some(rollout) = &mut self.rollout else { return };
        if close > rollout.closest {
            rollout.closest = close;
            rollout.progressed();
        }
        let deadline = rollout.progress_at + release.upgrade.progress_deadline;
        if Instant::now() >= deadline {
            let minutes = release.upgrade.progress_deadline;
            let (trouble, lines) = self.last_trouble(version);
            let reason = format!("no progress for {}{trouble}", span(minutes));
            return self.fail(reason, lines).await;
        }
        self.wake_by(deadline);
    }

    /// Lets the progress deadline pass though nothing can be done.
    pub(super) async fn check_deadline(&mut self) {
        let version = self.rollout.as_ref().map(|rollout| rollout.version).filter(|_| self.phase.is_none());
        if let Some(release) = version.and_then(|version| self.releases.get(&version)).cloned() {
            self.watch_progress(&release).await;
        }
    }

    fn last_trouble(&self, version: ReleaseVersion) -> (String, Vec<String>) {
        let states = self.sets.iter().filter(|(set, _)| set.release == version).map(|(_, state)| state);
        let found =
            states.filter_map(|state| Some((format!(": {}", state.trouble.as_ref()?), state.tail.clone()))).next();
        let reasons = self.replicas.values().filter(|one| one.replica.set.release == version);
        let reason =
            reasons.filter_map(|one| one.reason.as_ref()).map(|reason| (format!(": {reason}"), Vec::new())).next();
        let away = self.pictures.borrow().error.as_ref().map(|error| (format!(": {error}"), Vec::new()));
        away.or(found).or(reason).unwrap_or_default()
    }

    /// Notes how far the new replicas are, for the timings.
    pub(super) fn mark_stages(&mut self, plan: &Plan, goal: &Goal) {
        let all = |test: &dyn Fn(&super::Tracked) -> bool| {
            goal.processes.values().all(|process| {
                let of = self.replicas.values().filter(|one| one.replica.set == process.set && test(one));
                u32::try_from(of.count()).unwrap_or(u32::MAX) >= process.count
            })
        };
        let (started, ready) = (all(&|one| one.phase != Phase::Exited), all(&|one| one.phase == Phase::Ready));
        let Some(rollout) = self.rollout.as_mut() else { return };
        for (reached, name) in [(started, "start"), (ready, "ready"), (plan.deployed, "route")] {
            if reached {
                rollout.mark(name);
            }
        }
    }

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
        self.note(EventKind::DeploymentFinished, format!("{version} is deployed"));
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
        rollout.end(&outcome);
    }

    /// The new release does not serve: back to the one that does.
    pub(super) async fn fail(&mut self, reason: String, last_log_lines: Vec<String>) {
        let Some(mut rollout) = self.rollout.take() else { return };
        let version = rollout.version;
        let state = DeploymentState::Failed { reason: reason.clone() };
        let deployment = rollout.record(&self.env, state, Some(self.parts.clock.now()));
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
        tracing::warn!(env = %self.env, %version, reason, "a deployment failed");
        self.note(EventKind::DeploymentFinished, format!("{version} was not deployed: {reason}"));
        rollout.end(&Outcome::Failed { release: version, reason, last_log_lines });
    }
}

fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 120 && seconds % 60 == 0 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}
