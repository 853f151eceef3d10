//! The life of a deployment: begun, superseded, or watched until it is over (`ending` ends it). The actor is the only one who moves an
//! environment's `current`, and its `target` too, but for releases that are derived from others: those are made as the target.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Actor, STORE_AGAIN,
    deployment::{Outcome, Rollout},
};
use crate::{
    deploy::{api::Deployed, progress::Note},
    domain::{Deployment, DeploymentState, Environment, FailPoint, Release, ReleaseVersion, fail_point::reached},
    plan::{Goal, Phase, Plan, RouteState},
    store::StoreError,
};

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
            Err(error) => return drop(reply.send(Outcome::Store(error))),
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
        let traces = &self.parts.settings.traces;
        let trace = traces.begin(release.trace.as_ref());
        self.releases.insert(version, release);
        let now = self.parts.clock.now();
        let rollout = Rollout::new(version, record.current, now, trace, traces);
        let mut deployments = vec![rollout.record(&self.env, DeploymentState::Running, None)];
        let superseded = DeploymentState::Superseded { by: version };
        deployments.extend(self.rollout.as_ref().map(|old| old.record(&self.env, superseded, Some(now))));
        // A newer one may have been made the target since the record was read.
        let newest = self.change_unless(&deployments, |environment| match environment.target > Some(version) {
            true => environment.target,
            false => {
                environment.target = Some(version);
                None
            }
        });
        if let Some(by) = newest.await? {
            return Ok(Some(Outcome::Superseded { by }));
        }
        reached(FailPoint::Start);
        self.tell_start(version, record.current);
        if let Some(old) = self.rollout.replace(rollout) {
            self.trace_end(&old, "superseded");
            self.tell_superseded(old.version, version);
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
                let last_log_lines = deployment.last_log_lines.clone();
                Some(Outcome::Failed { release: deployment.to, reason: reason.clone(), last_log_lines })
            }
            DeploymentState::Cancelled { by } => Some(Outcome::Failed {
                release: deployment.to,
                reason: format!("cancelled by {by}"),
                last_log_lines: Vec::new(),
            }),
            DeploymentState::Superseded { by } => Some(Outcome::Superseded { by: *by }),
        }
    }

    /// Goes on with what an earlier process began.
    pub(super) async fn adopt_rollout(&mut self) -> Result<(), StoreError> {
        let Some(record) = self.record.as_ref().filter(|_| self.retiring.is_none()) else { return Ok(()) };
        let Some(target) = record.target.filter(|target| Some(*target) != record.current) else { return Ok(()) };
        if self.rollout.as_ref().is_some_and(|rollout| rollout.version == target) {
            return Ok(());
        }
        let current = record.current;
        let deployment = self.parts.store.get::<Deployment>(&(self.env.clone(), target)).await?;
        let now = self.parts.clock.now();
        let started_at = deployment.as_ref().map_or(now, |stored| stored.record.started_at);
        let trace = self.trace_of(target, deployment.as_deref()).await?;
        let mut rollout = Rollout::new(target, current, started_at, trace, &self.parts.settings.traces);
        let mut changed = Vec::new();
        match &deployment {
            Some(stored) => rollout.adopt(&stored.record, now),
            None => changed.push(rollout.record(&self.env, DeploymentState::Running, None)),
        }
        let superseded = DeploymentState::Superseded { by: target };
        changed.extend(self.rollout.as_ref().map(|old| old.record(&self.env, superseded, Some(now))));
        if !changed.is_empty() {
            self.change(&changed, |_| {}).await?;
        }
        if deployment.is_none() {
            self.tell_start(target, current);
        }
        if let Some(old) = self.rollout.replace(rollout) {
            self.trace_end(&old, "superseded");
            self.tell_superseded(old.version, target);
            old.end(&Outcome::Superseded { by: target });
        }
        Ok(())
    }

    /// Changes the environment together with deployments, whatever others change in it meanwhile.
    pub(super) async fn change(
        &mut self,
        deployments: &[Deployment],
        change: impl Fn(&mut Environment),
    ) -> Result<(), StoreError> {
        let change = |environment: &mut Environment| {
            change(environment);
            None::<()>
        };
        self.change_unless(deployments, change).await.map(drop)
    }

    /// The same; nothing is changed when `change` says why not.
    async fn change_unless<T>(
        &mut self,
        deployments: &[Deployment],
        change: impl Fn(&mut Environment) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        loop {
            let stored = self.parts.store.need::<Environment>(&self.env).await?;
            let mut record = stored.record.clone();
            if let Some(why_not) = change(&mut record) {
                return Ok(Some(why_not));
            }
            let transaction = self.parts.store.transaction().update(&stored, &record);
            let transaction = deployments.iter().fold(transaction, |transaction, one| transaction.put(one));
            match transaction.commit().await {
                // Somebody else was faster; each round means that another's write succeeded.
                Err(StoreError::Conflict(_)) => continue,
                Err(error) => return Err(error),
                Ok(_) => {
                    self.record = Some(record);
                    return Ok(None);
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
            self.trace_end(&rollout, "environment destroyed");
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
        let deadline = rollout.progress_at + rollout.allowance(release.upgrade.progress_deadline);
        self.save_progress().await;
        if Instant::now() < deadline {
            return self.wake_by(deadline);
        }
        let said = self.rollout.as_mut().is_none_or(|rollout| std::mem::replace(&mut rollout.last_words, true));
        if !said {
            self.read_last_words(version);
        }
        // Their end wakes this actor, and comes soon in any case.
        if self.sets.iter().any(|(set, state)| set.release == version && !state.tails.is_empty()) {
            return;
        }
        let (trouble, lines) = self.last_trouble(version);
        let reason = format!("no progress for {}{trouble}", span(release.upgrade.progress_deadline));
        self.fail(reason, lines).await;
    }

    /// Writes down how far the rollout is, for the next server. That it cannot costs a stuck one some time.
    async fn save_progress(&mut self) {
        let now = self.parts.clock.now();
        let Some(rollout) = &mut self.rollout else { return };
        let Some(progress) = rollout.take_unsaved(now) else { return };
        let id = (self.env.clone(), rollout.version);
        let written = self.parts.store.modify::<Deployment, StoreError>(&id, |deployment| {
            deployment.progress = Some(progress.clone());
            Ok(())
        });
        match written.await {
            Ok(_) => rollout.unsaved = false,
            Err(error) => {
                tracing::warn!(env = %self.env, %error, "the progress of a deployment cannot be written down")
            }
        }
    }

    /// Begins to read what a replica said that runs and does not become ready, unless what one said is known already.
    fn read_last_words(&mut self, version: ReleaseVersion) {
        let mut known = self.sets.iter().filter(|(set, _)| set.release == version);
        let unready = |one: &&super::Tracked| {
            one.replica.set.release == version && matches!(one.phase, Phase::Starting | Phase::Unhealthy)
        };
        let silent = self.replicas.values().find(unready).map(|one| one.replica.id.clone());
        if let Some(id) = silent.filter(|_| known.all(|(_, state)| state.tail.is_empty())) {
            self.read_tail(&id);
        }
    }

    /// Ends what has failed, and lets the progress deadline pass, though nothing can be done about replicas.
    pub(super) async fn check_deadline(&mut self) {
        if let Some((reason, lines)) = self.rollout.as_mut().and_then(|rollout| rollout.phase_failure.take()) {
            return self.fail(reason, lines).await;
        }
        let version = self.rollout.as_ref().map(|rollout| rollout.version).filter(|_| self.phase.is_none());
        if let Some(release) = version.and_then(|version| self.releases.get(&version)).cloned() {
            self.watch_progress(&release).await;
        }
    }

    /// What its replicas or the engine said last, as `: reason` or nothing, and the last lines of one.
    pub(super) fn last_trouble(&self, version: ReleaseVersion) -> (String, Vec<String>) {
        let states = || self.sets.iter().filter(|(set, _)| set.release == version).map(|(_, state)| state);
        let lines = states().map(|state| &state.tail).find(|tail| !tail.is_empty()).cloned().unwrap_or_default();
        let away = self.pictures.borrow().error.clone();
        let found = states().find_map(|state| state.trouble.clone());
        let of = self.replicas.values().filter(|one| one.replica.set.release == version);
        let reason = of.filter_map(|one| one.reason.clone()).next();
        let trouble = away.or(found).or(reason).map(|reason| format!(": {reason}"));
        (trouble.unwrap_or_default(), lines)
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
}

fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 120 && seconds % 60 == 0 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}
