//! What events say of an environment: of its deployments step by step, and of the health of its replicas. Bounded, whatever flaps.

use std::{mem::Discriminant, time::Duration};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Actor;
use crate::{
    deploy::api::ReplicaHealth,
    domain::{EventKind, ProcessType, ReleaseVersion, SetId, UserName},
    events::Pace,
    plan::{Plan, Why},
    store::NewEvent,
};

/// Of one replica's health, so many changes are told at once, and then one every so often.
const HEALTH: (u32, Duration) = (6, Duration::from_secs(60));
/// Steps that are told of one deployment, and the least time between two.
const MAX_STEPS: u32 = 50;
const STEP_EVERY: Duration = Duration::from_secs(1);

/// What events have said of a deployment.
#[derive(Default)]
pub(super) struct Steps {
    /// What it waited for: by process type, how many are ready and why there are no more.
    last: Vec<(ProcessType, u32, Discriminant<Why>)>,
    phase: bool,
    at: Option<Instant>,
    told: u32,
}

pub(super) fn health_pace() -> Pace<(ProcessType, u32)> {
    Pace::new(HEALTH.0, HEALTH.1)
}

/// Which replica an event is about.
pub(super) fn of_replica(event: NewEvent, set: &SetId, index: u32) -> NewEvent {
    event
        .data("replica", format!("{}.{index}", set.process))
        .data("process", set.process.as_str())
        .data("index", index)
        .data("release", set.release.0)
}

/// Milliseconds by stage.
pub(super) fn timings(timings: &[(String, u64)]) -> Value {
    Value::Object(timings.iter().map(|(stage, millis)| (stage.clone(), json!(millis))).collect::<Map<_, _>>())
}

impl Actor {
    pub(super) fn tell_start(&self, version: ReleaseVersion, from: Option<ReleaseVersion>) {
        let event = self.event(EventKind::DeploymentStarted, format!("{version} is being deployed"));
        let event = event.data("release", version.0).data("from", from.map(|from| from.0));
        self.parts.event(match self.releases.get(&version) {
            Some(release) => event.data("reason", release.reason.as_str()).by(&release.created_by),
            None => event,
        });
    }

    pub(super) fn tell_superseded(&self, version: ReleaseVersion, by: ReleaseVersion) {
        let event = self.event(EventKind::DeploymentFinished, format!("{version} was not deployed: {by} came first"));
        self.parts.event(event.data("release", version.0).data("outcome", "superseded").data("by", by.0));
    }

    /// A deployment has come to nothing: it failed, or `by` cancelled it.
    pub(super) fn tell_failure(&self, version: ReleaseVersion, reason: &str, by: Option<UserName>) {
        let message = format!("{version} was not deployed: {reason}");
        let serving = self.record.as_ref().and_then(|record| record.current).map(|serving| serving.0);
        let fields = |event: NewEvent| event.data("release", version.0).data("serving", serving);
        if let Some(by) = by {
            return self.parts.event(fields(self.event(EventKind::DeploymentCancelled, message).by(&by)));
        }
        let event = fields(self.event(EventKind::DeploymentFinished, message));
        self.parts.event(event.data("outcome", "failed").data("reason", reason));
        if let Some(serving) = serving.map(ReleaseVersion) {
            let message = format!("{version} was rolled back: {serving} goes on serving");
            self.parts.event(fields(self.event(EventKind::DeploymentRolledBack, message)));
        }
    }

    /// Tells what the deployment under way waits for, when that has changed.
    pub(super) fn tell_step(&mut self, plan: Option<&Plan>) {
        let Some(rollout) = &mut self.rollout else { return };
        let (version, steps) = (rollout.version, &mut rollout.steps);
        let phase = self.phase == Some(version);
        let waits = plan.map_or(&[][..], |plan| &plan.waits);
        let now: Vec<_> =
            waits.iter().map(|wait| (wait.process.clone(), wait.ready, std::mem::discriminant(&wait.why))).collect();
        let news = phase != steps.phase || !phase && now != steps.last;
        let early = steps.at.is_some_and(|at| at.elapsed() < STEP_EVERY);
        if !news || early || steps.told >= MAX_STEPS || !phase && now.is_empty() {
            return;
        }
        *steps = Steps { last: now, phase, at: Some(Instant::now()), told: steps.told + 1 };
        let text = match phase {
            true => "the release phase is running".to_owned(),
            false => waits.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        };
        let fields: Vec<Value> = waits
            .iter()
            .map(|wait| {
                json!({"process": wait.process, "ready": wait.ready, "wanted": wait.wanted, "why": wait.why_text()})
            })
            .collect();
        let event = self.event(EventKind::DeploymentStep, format!("{version}: {text}"));
        let event = event.data("release", version.0).data("step", if phase { "release" } else { "rollout" });
        self.parts.event(event.data("waits", fields));
    }

    /// Tells of replicas that have become healthy, or are not any more. What is not told because it changes too often is told later, if it
    /// is still so.
    pub(super) fn tell_health(&mut self) {
        let mut news = Vec::new();
        for one in self.replicas.values_mut() {
            let healthy = match one.shown {
                Some((ReplicaHealth::Ready, _)) => true,
                Some((ReplicaHealth::Unhealthy, _)) => false,
                _ => continue,
            };
            let set = &one.replica.set;
            if one.told_healthy == Some(healthy) {
                continue;
            }
            let Some(suppressed) = self.health_pace.take(&(set.process.clone(), one.replica.index), Instant::now())
            else {
                continue;
            };
            one.told_healthy = Some(healthy);
            news.push((set.clone(), one.replica.index, healthy, one.reason.clone(), suppressed));
        }
        for (set, index, healthy, reason, suppressed) in news {
            let name = format!("{}.{index} of {}", set.process, set.release);
            let event = match (healthy, reason) {
                (true, _) => self.event(EventKind::ReplicaHealthy, format!("{name} is healthy")),
                (false, reason) => {
                    let reason = reason.unwrap_or_else(|| "its probes fail".to_owned());
                    let event = self.event(EventKind::ReplicaUnhealthy, format!("{name} is not healthy: {reason}"));
                    event.data("reason", reason)
                }
            };
            self.parts.event(of_replica(event, &set, index).data("suppressed", suppressed));
        }
    }
}
