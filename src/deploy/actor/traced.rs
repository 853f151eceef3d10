//! What a trace says of a deployment: its steps until it serves, and then how the replicas go that it replaces.

use super::{Actor, Rollout, Tracked};
use crate::{
    domain::{Deployment, OpenSpan, Release, ReleaseVersion, Replica, ReplicaId, Timestamp, TraceContext},
    store::StoreError,
    traces::{Measure, Span},
};

/// What is left to be done of a deployment that is over.
pub(super) struct Settling {
    context: TraceContext,
    measure: Measure,
}

impl Actor {
    /// The span of a deployment that an earlier process began, or that begins with its release as the target.
    pub(super) async fn trace_of(
        &self,
        version: ReleaseVersion,
        begun: Option<&Deployment>,
    ) -> Result<Option<OpenSpan>, StoreError> {
        let traces = &self.parts.settings.traces;
        if begun.is_some() || !traces.is_on() {
            return Ok(begun.and_then(|deployment| deployment.trace));
        }
        let known = self.releases.get(&version).map(|release| release.trace);
        let parent = match known {
            Some(parent) => parent,
            // It may have been made just now.
            None => self.parts.store.get::<Release>(&(self.env.clone(), version)).await?.and_then(|it| it.trace),
        };
        Ok(traces.begin(parent.as_ref()))
    }

    /// A deployment is over; replicas that are not wanted any more are still to go.
    pub(super) fn trace_end(&mut self, rollout: &Rollout, outcome: &'static str) {
        let Some(trace) = &rollout.trace else { return };
        let traces = &self.parts.settings.traces;
        let span = Span::of(trace, "deployment", Timestamp::now())
            .env(&self.env)
            .with("berth.release", rollout.version.0)
            .with("berth.outcome", outcome)
            .failed(outcome != "succeeded");
        traces.tell(match rollout.from {
            Some(from) => span.with("berth.release.before", from.0),
            None => span,
        });
        self.settling = Some(Settling { context: trace.context, measure: traces.measure(Some(&trace.context)) });
    }

    /// A deployment has come to nothing.
    pub(super) fn trace_failure(&mut self, rollout: &mut Rollout, outcome: &'static str) {
        let phase = self.releases.get(&rollout.version).is_some_and(|release| !release.release_phase_done);
        rollout.stopped_at(if phase { "release phase" } else { rollout.next_mark() });
        self.trace_end(rollout, outcome);
    }

    /// All is as it should be.
    pub(super) fn trace_settled(&mut self) {
        if let Some(mut settling) = self.settling.take() {
            settling.measure.lap("settle", |span| span);
        }
    }

    /// What is done with replicas now is a part of this.
    pub(super) fn trace_under_way(&self) -> Option<TraceContext> {
        let rollout = self.rollout.as_ref().and_then(|rollout| rollout.trace).map(|trace| trace.context);
        rollout.or(self.settling.as_ref().map(|settling| settling.context))
    }

    /// Keeps since when replicas are not sent requests any more.
    pub(super) fn trace_routes(&mut self, wanted: impl Fn(&ReplicaId) -> bool) {
        if self.trace_under_way().is_none() {
            return;
        }
        for (id, one) in &mut self.replicas {
            match wanted(id) {
                true => one.left_routes = None,
                false if one.was_routed => drop(one.left_routes.get_or_insert_with(Timestamp::now)),
                false => {}
            }
        }
    }

    /// A replica has nothing to answer any more and is stopped now.
    pub(super) fn trace_drained(&self, one: &Tracked) {
        if let (Some(context), Some(left)) = (self.trace_under_way(), one.left_routes) {
            let span = Span::within(&context, "drain", left, Timestamp::now());
            self.parts.settings.traces.tell(of_replica(span, &one.replica));
        }
    }
}

/// With which replica it is about.
pub(super) fn of_replica(span: Span, replica: &Replica) -> Span {
    let name = format!("{}.{}", replica.set.process, replica.index);
    span.with("berth.replica", name.as_str()).with("berth.release", replica.set.release.0)
}
