//! From records to what the planner and the runtime are asked for. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    domain::{Environment, Limits, ProcessSpec, ProcessType, Release, ReplicaSet, SetId},
    jobs::variables,
    plan::{Goal, ProcessGoal},
};

/// A number in 0..1 that is the same each time for the same thing: spreads what would else happen to many at once.
pub(super) fn share(of: &impl std::fmt::Display) -> f64 {
    let text = of.to_string();
    // FNV-1a
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    f64::from(hash) / f64::from(u32::MAX)
}

/// Replicas wanted of a process type: what `scale` says, else the release.
pub(super) fn count(environment: &Environment, process: &ProcessType, spec: &ProcessSpec) -> u32 {
    environment.scale.get(process).copied().unwrap_or(spec.replicas)
}

/// What the environment should come to when `release` is the one to run.
pub(super) fn goal(environment: &Environment, release: &Release, fallback: BTreeMap<ProcessType, SetId>) -> Goal {
    let processes = release.processes.iter().map(|(process, spec)| {
        let set = SetId {
            env: environment.name.clone(),
            process: process.clone(),
            release: release.version,
            restarts: environment.restarts,
        };
        (process.clone(), ProcessGoal { set, count: count(environment, process, spec) })
    });
    Goal { processes: processes.collect(), policy: release.upgrade.clone(), fallback }
}

/// What the runtime is asked to keep; `None` when the release has no such process type.
pub(super) fn replica_set(
    release: &Release,
    id: &SetId,
    count: u32,
    pids: u32,
    stop_grace: Duration,
) -> Option<ReplicaSet> {
    let spec = release.processes.get(&id.process)?;
    Some(ReplicaSet {
        id: id.clone(),
        image: release.image.clone(),
        command: spec.command.clone(),
        environment: variables(release, id.process.as_str(), Some(spec.port)),
        count,
        limits: limits(spec, pids),
        stop_grace,
    })
}

fn limits(spec: &ProcessSpec, pids: u32) -> Limits {
    Limits { cpu_millis: spec.cpu_millis, memory: spec.memory, pids }
}

#[cfg(test)]
mod tests {
    use super::super::tests::support;
    use super::*;

    #[test]
    fn platform_variables_win_over_the_configuration() {
        let mut release = support::release(7, &[("web", 1)]);
        release.config = [("PORT", "1"), ("BERTH_APP", "x"), ("A", " b\n=ü")].map(|(k, v)| (k.into(), v.into())).into();
        let id = support::set("web", 7, 0);
        let set = replica_set(&release, &id, 2, 64, Duration::from_secs(1)).unwrap();
        let value = |key: &str| set.environment[key].as_str();
        assert_eq!((value("PORT"), value("BERTH_APP"), value("A")), ("5000", "shop", " b\n=ü"));
        assert_eq!((value("BERTH_RELEASE"), value("BERTH_PROCESS")), ("v7", "web"));
    }
}
