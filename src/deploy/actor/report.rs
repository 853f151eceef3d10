//! Telling people: the environment's status, and lines for those who wait for a deployment.

use std::{collections::BTreeMap, mem::Discriminant, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Actor, Tracked};
use crate::{
    deploy::api::{EnvStatus, ProcessStatus, ReplicaHealth, ReplicaStatus, WaitStatus},
    domain::{DeploymentState, ProcessType, ReplicaId, ReplicaState, Timestamp},
    plan::{Goal, Phase, Plan, Why},
};

/// Those who wait hear something at least this often.
const SPEAK_EVERY: Duration = Duration::from_secs(5);

/// What a process type waits for.
pub(super) struct Waited {
    kind: Discriminant<Why>,
    since: Timestamp,
    /// On the monotonic clock, and what the time of day was to be then.
    until: Option<(Instant, Timestamp)>,
}

/// Whether both are the same moment but for the time it takes to work it out.
fn close(one: Option<Instant>, other: Option<Instant>) -> bool {
    const APART: Duration = Duration::from_millis(100);
    match (one, other) {
        (Some(one), Some(other)) => one.max(other).duration_since(one.min(other)) < APART,
        (one, other) => one == other,
    }
}

impl Actor {
    /// Makes the status and, if something is to be said, says it.
    pub(super) fn report(&mut self, goal: &Goal, plan: Option<&Plan>) {
        if let Some(plan) = plan.filter(|_| self.rolls_out_now()) {
            self.mark_stages(plan, goal);
        }
        self.note_health();
        self.tell_health();
        self.tell_step(plan);
        let waits = self.waits(plan);
        let why = self.why(plan);
        let deployment = self.rollout.as_ref().map(|rollout| rollout.record(&self.env, DeploymentState::Running, None));
        let settled = plan.is_some_and(|plan| plan.settled) && self.rollout.is_none();
        if settled {
            self.trace_settled();
        }
        let status = EnvStatus {
            env: self.env.clone(),
            target: self.record.as_ref().and_then(|record| record.target),
            current: self.record.as_ref().and_then(|record| record.current),
            processes: self.processes(goal),
            deployment,
            why,
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

    /// What the process types wait for, and since when.
    fn why(&mut self, plan: Option<&Plan>) -> Vec<WaitStatus> {
        let Some(plan) = plan else { return Vec::new() };
        let now = self.parts.clock.now();
        let given_up = self.rollout.as_ref().and_then(|rollout| {
            let policy = &self.releases.get(&rollout.version)?.upgrade;
            Some(rollout.progress_at + rollout.allowance(policy.progress_deadline))
        });
        let mut waiting = BTreeMap::new();
        let mut whys = Vec::new();
        for wait in &plan.waits {
            let until = match wait.why {
                Why::Backoff(until) => Some(self.parts.steady.instant(until)),
                _ => given_up,
            };
            let kind = std::mem::discriminant(&wait.why);
            let before = self.waiting.get(&wait.process).filter(|before| before.kind == kind);
            let since = before.map_or(now, |before| before.since);
            // The same moment is not told anew each time, a little different.
            let same = before.filter(|before| close(before.until.map(|(moment, _)| moment), until));
            let until = match same {
                Some(before) => before.until,
                None => until.map(|moment| (moment, now + moment.saturating_duration_since(Instant::now()))),
            };
            waiting.insert(wait.process.clone(), Waited { kind, since, until });
            let mut text = wait.why_text();
            if let Some(reason) = self.reason(&wait.process, &wait.why) {
                text = format!("{text}: {reason}");
            }
            let (process, until) = (wait.process.clone(), until.map(|(_, time)| time));
            whys.push(WaitStatus { process, ready: wait.ready, wanted: wait.wanted, why: text, since, until });
        }
        self.waiting = waiting;
        whys
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
                sets.find_map(|(_, state)| {
                    let looping = state.backoff.is_crash_looping();
                    let loops =
                        looping.then(|| format!("crash-looping, {} failures in a row: ", state.backoff.failures()));
                    // What died tells it already.
                    let trouble = state.trouble.clone()?;
                    Some(loops.filter(|_| !trouble.contains("crash-looping")).unwrap_or_default() + &trouble)
                })
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
            crash_looping: false,
            replicas: Vec::new(),
        };
        for (process, goal) in &goal.processes {
            let crash_looping = self.sets.get(&goal.set).is_some_and(|state| state.backoff.is_crash_looping());
            processes.insert(process.clone(), ProcessStatus { crash_looping, ..empty(process, goal.count) });
        }
        for one in self.replicas.values() {
            let set = &one.replica.set;
            let status = processes.entry(set.process.clone()).or_insert_with(|| empty(&set.process, 0));
            let wanted = goal.processes.get(&set.process).is_some_and(|goal| goal.set == *set);
            status.ready += u32::from(wanted && one.phase == Phase::Ready && !one.stopping);
            let (health, since) = one.shown.unwrap_or_else(|| (self.health(one), self.parts.clock.now()));
            status.replicas.push(ReplicaStatus {
                index: one.replica.index,
                release: set.release,
                state: one.replica.state.clone(),
                health,
                since,
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

    /// Keeps since when each replica has been what it is.
    fn note_health(&mut self) {
        let now = self.parts.clock.now();
        let changed = |(id, one): (&ReplicaId, &Tracked)| {
            let health = self.health(one);
            let known = one.shown.is_some_and(|(before, _)| before == health);
            (!known).then(|| (id.clone(), (health, since(health, one, now))))
        };
        let changed: Vec<_> = self.replicas.iter().filter_map(changed).collect();
        for (id, shown) in changed {
            if let Some(one) = self.replicas.get_mut(&id) {
                one.shown = Some(shown);
            }
        }
    }

    fn health(&self, one: &Tracked) -> ReplicaHealth {
        let looping = || self.sets.get(&one.replica.set).is_some_and(|state| state.backoff.is_crash_looping());
        match (one.phase, &one.replica.state) {
            (Phase::Exited, ReplicaState::Exited { out_of_memory: true, .. }) => ReplicaHealth::OomKilled,
            (Phase::Exited, _) if looping() => ReplicaHealth::CrashLooping,
            (Phase::Exited, _) => ReplicaHealth::Exited,
            _ if one.stopping => ReplicaHealth::Stopping,
            (Phase::Starting, _) => ReplicaHealth::Starting,
            (Phase::Ready, _) => ReplicaHealth::Ready,
            (Phase::Unhealthy, _) => ReplicaHealth::Unhealthy,
        }
    }

    /// Says how far it is when that changed, and every few seconds in any case.
    fn speak(&mut self, status: &EnvStatus) {
        // What a start that is tried again and goes on for long has failed with, before.
        let trouble = self.rollout.as_ref().map(|rollout| self.last_trouble(rollout.version).0).unwrap_or_default();
        let Some(rollout) = &mut self.rollout else { return };
        if self.phase == Some(rollout.version) {
            // A release phase speaks for itself.
            return;
        }
        let counts = counts(status.processes.iter().map(|process| (&process.process, process.ready, process.wanted)));
        let (due, news) = (rollout.said.1 + SPEAK_EVERY, rollout.said.0 != counts);
        if news || Instant::now() >= due {
            if news {
                rollout.audience.detail(counts.clone());
            } else if status.waits.is_empty() {
                rollout.audience.detail(format!("{counts} (waiting{trouble})"));
            } else {
                status.waits.iter().for_each(|wait| rollout.audience.detail(wait));
            }
            rollout.said = (counts, Instant::now());
        }
        let due = rollout.said.1 + SPEAK_EVERY;
        self.wake_by(due.max(Instant::now() + Duration::from_millis(10)));
    }
}

/// Since when a replica has been what it has just been found to be. What it was before this server came is in its record: when it was
/// started, when it ended, and (of one that was adopted) since when it has been ready.
fn since(health: ReplicaHealth, one: &Tracked, now: Timestamp) -> Timestamp {
    let moment = match health {
        ReplicaHealth::Exited | ReplicaHealth::OomKilled | ReplicaHealth::CrashLooping => one.replica.finished_at,
        ReplicaHealth::Starting => one.replica.started_at,
        ReplicaHealth::Ready if one.shown.is_none() => one.ready_since,
        ReplicaHealth::Ready | ReplicaHealth::Unhealthy | ReplicaHealth::Stopping => None,
    };
    moment.map_or(now, |moment| moment.min(now))
}

/// `web: 1/2 ready, worker: 1/1 ready`, of (type, ready, wanted).
pub(super) fn counts<'a>(processes: impl Iterator<Item = (&'a ProcessType, u32, u32)>) -> String {
    let wanted = processes.filter(|(_, _, wanted)| *wanted > 0);
    wanted.map(|(process, ready, wanted)| format!("{process}: {ready}/{wanted} ready")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ReleaseVersion, Replica, SetId};

    #[test]
    fn since_is_the_time_in_the_present_state() {
        let at = |second: i64| Timestamp::from_second(1_000_000 + second).unwrap();
        let set = SetId {
            env: "acme/shop/dev".parse().unwrap(),
            process: "web".parse().unwrap(),
            release: ReleaseVersion(1),
            restarts: 0,
        };
        let replica = Replica {
            id: ReplicaId("c1".to_owned()),
            set,
            index: 1,
            state: ReplicaState::Running,
            address: None,
            started_at: Some(at(10)),
            finished_at: Some(at(50)),
        };
        let mut one = Tracked {
            replica,
            phase: Phase::Ready,
            reason: None,
            ready_since: Some(at(20)),
            since: at(10),
            was_routed: false,
            left_routes: None,
            stopping: false,
            stop_again: false,
            told_healthy: None,
            shown: None,
            watcher: None,
        };
        let now = at(60);
        for health in [ReplicaHealth::Exited, ReplicaHealth::OomKilled, ReplicaHealth::CrashLooping] {
            assert_eq!(since(health, &one, now), at(50), "{health:?}: when it ended, not when it was started");
        }
        assert_eq!(since(ReplicaHealth::Starting, &one, now), at(10));
        assert_eq!(since(ReplicaHealth::Ready, &one, now), at(20), "found ready");
        assert_eq!(since(ReplicaHealth::Unhealthy, &one, now), now);
        one.shown = Some((ReplicaHealth::Unhealthy, at(40)));
        assert_eq!(since(ReplicaHealth::Ready, &one, now), now, "ready again, not for the first time");
        assert_eq!(since(ReplicaHealth::Exited, &one, at(0)), at(0), "the engine's clock is ahead");
    }
}
