//! What a trace says of a build as a whole: its wait, and the push that it is.

use std::time::Duration;

use super::Shared;
use crate::{
    domain::{Build, BuildState, Stage, Timestamp},
    traces::{Span, before},
};

impl Shared {
    /// A build that has `waited` begins. One whose release is being deployed has begun long ago.
    pub(super) fn trace_begin(&self, build: &Build, waited: Duration) {
        let deploying = build.state == BuildState::Running { stage: Stage::Deploy };
        let Some(trace) = build.trace.as_ref().filter(|_| !deploying) else { return };
        let now = Timestamp::now();
        let span = Span::within(&trace.context, "queue", before(now, waited), now);
        self.pipeline.settings.traces.tell(span.with("berth.attempt", build.interruptions + 1));
    }

    /// A build has ended, whichever server began it.
    pub(super) fn trace_end(&self, build: &Build) {
        // One that was held to its end was refused: receiving tells of that.
        let Some(trace) = build.trace.as_ref().filter(|_| !build.held) else { return };
        let (end, outcome) = (build.finished_at.unwrap_or(build.queued_at), outcome(&build.state));
        // What came without receiving anything was asked for by a command.
        let received = build.timings.first().is_some_and(|(stage, _)| stage == "receive");
        let name = if received { "push" } else { "build" };
        let span = Span::of(trace, name, end)
            .env(&build.env)
            .with("berth.user", build.pushed_by.as_str())
            .with("berth.commit", build.commit.as_str())
            .with("berth.build", build.number.0)
            .with("berth.outcome", outcome)
            .failed(build.state != BuildState::Succeeded);
        self.pipeline.settings.traces.tell(match build.release {
            Some(release) => span.with("berth.release", release.0),
            None => span,
        });
    }
}

/// Without the reason, which may quote what an app or a person has said.
fn outcome(state: &BuildState) -> &'static str {
    match state {
        BuildState::Queued | BuildState::Running { .. } => "under way",
        BuildState::Succeeded => "succeeded",
        BuildState::Failed { .. } => "failed",
        BuildState::Cancelled { .. } => "cancelled",
    }
}
