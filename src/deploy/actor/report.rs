//! Telling people: the environment's status, and lines for those who wait for a deployment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Actor, Tracked};
use crate::{
    deploy::api::{EnvStatus, ProcessStatus, ReplicaHealth, ReplicaStatus},
    domain::{DeploymentState, ProcessType},
    plan::{Goal, Phase, Plan, Why},
};

/// Those who wait hear something at least this often.
const SPEAK_EVERY: Duration = Duration::from_secs(5);

impl Actor {
    /// Makes the status and, if something is to be said, says it.
    pub(super) fn report(&mut self, goal: &Goal, plan: Option<&Plan>) {
        if let Some(plan) = plan.filter(|_| self.rolls_out_now()) {
            self.mark_stages(plan, goal);
        }
        let waits = self.waits(plan);
        let deployment = self.rollout.as_ref().map(|rollout| rollout.record(&self.env, DeploymentState::Running, None));
        let settled = plan.is_some_and(|plan| plan.settled) && self.rollout.is_none();
        let status = EnvStatus {
            env: self.env.clone(),
            target: self.record.as_ref().and_then(|record| record.target),
            current: self.record.as_ref().and_then(|record| record.current),
            processes: self.processes(goal),
            deployment,
            waits,
            settled,
        };
        self.speak(&status);
        self.status.send_if_modified(|before| {
            let changed = **before != status;
            if changed {
                *before = Arc::new(status);
            }
            changed
        });
    }

    fn waits(&self, plan: Option<&Plan>) -> Vec<String> {
        let mut waits: Vec<String> = self.trouble.iter().cloned().collect();
        let picture = self.pictures.borrow();
        waits.extend(picture.error.clone());
        let view = self.views.borrow();
        if view.silent {
            waits.push("the router does not answer; routes take effect once it runs".to_owned());
        }
        waits.extend(view.error.iter().map(|error| format!("the routes cannot be published: {error}")));
        waits.extend(view.conflicts.get(&self.env).cloned().unwrap_or_default());
        waits.extend(self.domains.iter().flat_map(|(_, asked)| asked.conflicts.clone()));
        let unready = self.rollout.as_ref().and_then(|rollout| self.releases.get(&rollout.version));
        if unready.is_some_and(|release| !release.release_phase_done) {
            waits.push("the release phase is running".to_owned());
        }
        for wait in plan.into_iter().flat_map(|plan| &plan.waits) {
            let mut text = wait.to_string();
            if let Some(reason) = self.reason(&wait.process, &wait.why) {
                text.push_str(": ");
                text.push_str(&reason);
            }
            waits.push(text);
        }
        waits
    }

    /// What a watcher or the past of the set adds to a wait.
    fn reason(&self, process: &ProcessType, why: &Why) -> Option<String> {
        let version = self.goal_version()?;
        let of = |one: &&Tracked| one.replica.set.process == *process && one.replica.set.release == version;
        match why {
            Why::Ready(_) => self
                .replicas
                .values()
                .filter(of)
                .filter(|one| one.phase != Phase::Ready)
                .find_map(|one| one.reason.clone()),
            Why::Backoff(_) => {
                let mut sets = self.sets.iter().filter(|(set, _)| set.process == *process && set.release == version);
                sets.find_map(|(_, state)| state.trouble.clone())
            }
            _ => None,
        }
    }

    fn processes(&self, goal: &Goal) -> Vec<ProcessStatus> {
        let mut processes: BTreeMap<ProcessType, ProcessStatus> = BTreeMap::new();
        let empty = |process: &ProcessType, wanted| ProcessStatus {
            process: process.clone(),
            wanted,
            ready: 0,
            replicas: Vec::new(),
        };
        for (process, goal) in &goal.processes {
            processes.insert(process.clone(), empty(process, goal.count));
        }
        for one in self.replicas.values() {
            let set = &one.replica.set;
            let status = processes.entry(set.process.clone()).or_insert_with(|| empty(&set.process, 0));
            let wanted = goal.processes.get(&set.process).is_some_and(|goal| goal.set == *set);
            status.ready += u32::from(wanted && one.phase == Phase::Ready && !one.stopping);
            status.replicas.push(ReplicaStatus {
                index: one.replica.index,
                release: set.release,
                state: one.replica.state.clone(),
                health: health(one),
                started_at: one.replica.started_at,
                reason: one.reason.clone().filter(|_| one.phase != Phase::Ready),
            });
        }
        let mut processes: Vec<ProcessStatus> = processes.into_values().collect();
        for status in &mut processes {
            status.replicas.sort_by_key(|replica| (replica.release, replica.index));
        }
        processes
    }

    /// Says how far it is when that changed, and every few seconds in any case.
    fn speak(&mut self, status: &EnvStatus) {
        let Some(rollout) = &mut self.rollout else { return };
        if self.phase == Some(rollout.version) {
            // A release phase speaks for itself.
            return;
        }
        let counts = counts(status.processes.iter().map(|process| (&process.process, process.ready, process.wanted)));
        let due = rollout.said.1 + SPEAK_EVERY;
        let news = rollout.said.0 != counts;
        if news || Instant::now() >= due {
            if news {
                rollout.audience.detail(counts.clone());
            } else if status.waits.is_empty() {
                rollout.audience.detail(format!("{counts} (waiting)"));
            } else {
                status.waits.iter().for_each(|wait| rollout.audience.detail(wait));
            }
            rollout.said = (counts, Instant::now());
        }
        let due = rollout.said.1 + SPEAK_EVERY;
        self.wake_by(due.max(Instant::now() + Duration::from_millis(10)));
    }
}

/// `web: 1/2 ready, worker: 1/1 ready`, of (type, ready, wanted).
pub(super) fn counts<'a>(processes: impl Iterator<Item = (&'a ProcessType, u32, u32)>) -> String {
    let wanted = processes.filter(|(_, _, wanted)| *wanted > 0);
    wanted.map(|(process, ready, wanted)| format!("{process}: {ready}/{wanted} ready")).collect::<Vec<_>>().join(", ")
}

fn health(one: &Tracked) -> ReplicaHealth {
    match one.phase {
        Phase::Exited => ReplicaHealth::Exited,
        _ if one.stopping => ReplicaHealth::Stopping,
        Phase::Starting => ReplicaHealth::Starting,
        Phase::Ready => ReplicaHealth::Ready,
        Phase::Unhealthy => ReplicaHealth::Unhealthy,
    }
}
