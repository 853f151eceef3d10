//! The end of a build, whatever it came to.

use super::{Active, Shared};
use crate::{
    build::{
        output::BuildOutput,
        work::{Ended, write},
    },
    deploy::Progress,
    domain::{Build, BuildState, EnvRef, EventKind, UserName},
    store::{NewEvent, StoreError},
};

impl Shared {
    /// A build that was cancelled before it began.
    pub(super) async fn end_cancelled(&self, env: &EnvRef) -> Result<(), StoreError> {
        let found = self.queue().active.get(env).map(|active| (active.build.clone(), active.reason.clone()));
        let Some((build, reason)) = found else { return Ok(()) };
        let output = self.output(&build);
        let state = BuildState::Cancelled { reason: reason.unwrap_or_default() };
        self.end(Ended { build, state }, &output).await;
        Ok(())
    }

    pub(super) fn output(&self, build: &Build) -> BuildOutput {
        BuildOutput::new(self.pipeline.parts.logs.open(&build.env, build.number))
    }

    /// Writes the final record, and lets go of the build.
    pub(super) async fn end(&self, ended: Ended, output: &BuildOutput) {
        let Ended { mut build, state } = ended;
        // Who hears that the build has ended may use the app's cache, or build again.
        if state != BuildState::Succeeded {
            output.doing("removing the build's containers");
            output.with_signs_of_life(self.pipeline.containers_gone()).await;
        }
        if let BuildState::Cancelled { reason } = &state {
            output.error(&format!("Build #{} was cancelled: {reason}", build.number));
        }
        build.state = state;
        build.finished_at = Some(jiff::Timestamp::now());
        // A store that fails now leaves a record that says "running": the next server runs the build again, which is right.
        if let Err(error) = write(&self.store, &build).await {
            tracing::error!(%error, env = %build.env, build = %build.number, "a build's end could not be written");
        }
        output.finish();
        if let Some(active) = self.let_go(&build.env) {
            active.done.send_replace(Some(build.clone()));
        }
        self.record(EventKind::BuildFinished, &build, None).await;
    }

    /// Forgets a build together with its slot, which a newer one of the environment may hold as soon as this one is gone.
    fn let_go(&self, env: &EnvRef) -> Option<Active> {
        let mut queue = self.queue();
        queue.line.ended(env);
        let active = queue.active.remove(env);
        queue.tell_places();
        self.wake.notify_one();
        active
    }

    pub(super) async fn record(&self, kind: EventKind, build: &Build, by: Option<&UserName>) {
        let (at, message) = match &build.state {
            BuildState::Queued | BuildState::Running { .. } => (build.queued_at, "queued".to_owned()),
            BuildState::Succeeded => (jiff::Timestamp::now(), "succeeded".to_owned()),
            BuildState::Failed { reason } => (jiff::Timestamp::now(), format!("failed: {reason}")),
            BuildState::Cancelled { reason } => (jiff::Timestamp::now(), format!("was cancelled: {reason}")),
        };
        let mut event = NewEvent::new(kind, at, format!("build #{} {message}", build.number)).env(&build.env);
        if let Some(user) = by {
            event = event.by(user);
        }
        if let Err(error) = self.store.record(event).await {
            tracing::warn!(%error, "an event could not be recorded");
        }
    }
}
