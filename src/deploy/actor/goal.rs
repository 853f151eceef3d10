//! What the environment should be: the goal that the planner works towards.

use std::collections::BTreeMap;

use super::Actor;
use crate::{
    deploy::spec,
    domain::{Environment, ProcessType, Release, ReleaseVersion, SetId},
    plan::Goal,
};

impl Actor {
    /// The release to work towards: the newest whose release phase is over.
    pub(super) fn goal_version(&self) -> Option<ReleaseVersion> {
        let record = self.record.as_ref().filter(|_| self.retiring.is_none())?;
        let target = record.target.filter(|version| {
            Some(*version) == record.current || self.releases.get(version).is_some_and(|r| r.release_phase_done)
        });
        target.or(record.current)
    }

    pub(super) fn goal(&self) -> Goal {
        let release = self.goal_version().and_then(|version| self.releases.get(&version));
        match (&self.record, release) {
            (Some(record), Some(release)) => spec::goal(record, release, self.fallback(record, release)),
            _ => Goal::default(),
        }
    }

    /// The sets that served before: those of the current release, or of this one before it was restarted.
    fn fallback(&self, record: &Environment, release: &Release) -> BTreeMap<ProcessType, SetId> {
        let current = record.current.filter(|version| self.releases.contains_key(version));
        let Some(current) = current else { return BTreeMap::new() };
        let mut fallback = BTreeMap::new();
        for process in self.releases[&current].processes.keys() {
            let sets = self.replicas.values().map(|one| &one.replica.set);
            let of_current = sets.filter(|set| set.process == *process && set.release == current);
            let newest = of_current.filter(|set| current != release.version || set.restarts < record.restarts);
            let restarts = newest.map(|set| set.restarts).max();
            let restarts = restarts.or((current != release.version).then_some(record.restarts));
            let set = |restarts| SetId { env: self.env.clone(), process: process.clone(), release: current, restarts };
            fallback.extend(restarts.map(|restarts| (process.clone(), set(restarts))));
        }
        fallback
    }

    pub(super) fn rolls_out_now(&self) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| self.goal_version() == Some(rollout.version))
    }
}
