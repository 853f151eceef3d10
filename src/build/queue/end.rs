//! The end of a build, whatever it came to.
//!
//! A build has ended for others once that is written. While the store takes nothing, the environment stays busy with it, though its slot
//! is free, and the write is tried again.

use std::{sync::Arc, time::Duration};

use super::Shared;
use crate::{
    build::{
        output::BuildOutput,
        work::{Ended, write},
    },
    deploy::Progress,
    domain::{Build, BuildState, EnvRef, EventKind},
    store::NewEvent,
};

/// Pauses between tries to write an end: the first, which doubles, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

impl Shared {
    /// A build that was cancelled before it began.
    pub(super) async fn end_cancelled(self: &Arc<Self>, env: &EnvRef) {
        let found = self.queue().active.get(env).map(|active| (active.build.clone(), active.reason.clone()));
        let Some((build, reason)) = found else { return };
        let output = self.output(&build);
        let state = BuildState::Cancelled { reason: reason.unwrap_or_default() };
        self.end(Ended { build, state }, &output).await;
    }

    pub(super) fn output(&self, build: &Build) -> BuildOutput {
        BuildOutput::new(self.pipeline.parts.logs.open(&build.env, build.number))
    }

    /// Writes the final record, now or as soon as the store takes it, and then lets go of the build.
    pub(super) async fn end(self: &Arc<Self>, ended: Ended, output: &BuildOutput) {
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
        build.cancelling = None;
        build.finished_at = Some(jiff::Timestamp::now());
        output.finish();
        self.trace_end(&build);
        self.has_ended(&build);
        match write(&self.store, &build).await {
            Ok(()) => self.let_go(&build).await,
            Err(error) => {
                tracing::error!(%error, env = %build.env, build = %build.number, "a build's end cannot be written; trying again");
                self.unwritten.spawn(self.clone().write_end(build));
            }
        }
    }

    /// Tries until it is written. When the server stops before, the next one finds a build that was interrupted, or one that is to be
    /// cancelled.
    async fn write_end(self: Arc<Self>, build: Build) {
        let mut pause = FIRST_PAUSE;
        loop {
            let stopping = tokio::select! {
                () = self.stopping.cancelled() => true,
                () = tokio::time::sleep(pause) => false,
            };
            match write(&self.store, &build).await {
                Ok(()) => {
                    tracing::info!(env = %build.env, build = %build.number, "a build's end is written now");
                    return self.let_go(&build).await;
                }
                Err(error) if stopping => {
                    return tracing::error!(%error, env = %build.env, build = %build.number, "a build's end could not be written");
                }
                Err(error) => {
                    tracing::warn!(%error, env = %build.env, build = %build.number, "a build's end cannot be written yet");
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Gives the slot of a build back that has ended; until that is written, its environment has no other.
    fn has_ended(&self, build: &Build) {
        let mut queue = self.queue();
        let Some(active) = queue.active.get_mut(&build.env).filter(|active| active.build.number == build.number) else {
            return;
        };
        active.build = build.clone();
        queue.line.ended(&build.env);
        queue.tell_places();
        drop(queue);
        self.wake.notify_one();
    }

    /// Forgets a build whose end is written, and tells who waits for it.
    async fn let_go(&self, build: &Build) {
        let active = {
            let mut queue = self.queue();
            let is_it = queue.active.get(&build.env).is_some_and(|active| active.build.number == build.number);
            if is_it { queue.active.remove(&build.env) } else { None }
        };
        if let Some(active) = active {
            active.done.send_replace(Some(build.clone()));
        }
        let cancelled = matches!(build.state, BuildState::Cancelled { .. });
        self.tell(if cancelled { EventKind::BuildCancelled } else { EventKind::BuildFinished }, build);
    }

    /// Has an event recorded about how far a build is.
    pub(super) fn tell(&self, kind: EventKind, build: &Build) {
        let (message, outcome, reason) = match &build.state {
            // It may have been begun by the time that is told.
            _ if kind == EventKind::BuildQueued => ("queued".to_owned(), None, None),
            BuildState::Queued => ("queued".to_owned(), None, None),
            BuildState::Running { .. } => ("started".to_owned(), None, None),
            BuildState::Succeeded => ("succeeded".to_owned(), Some("succeeded"), None),
            BuildState::Failed { reason } => (format!("failed: {reason}"), Some("failed"), Some(reason)),
            BuildState::Cancelled { reason } => (format!("was cancelled: {reason}"), Some("cancelled"), Some(reason)),
        };
        let at = if kind == EventKind::BuildQueued { build.queued_at } else { jiff::Timestamp::now() };
        let mut event = NewEvent::new(kind, at, format!("build #{} {message}", build.number))
            .env(&build.env)
            .data("build", build.number.0)
            .data("commit", build.commit.as_str())
            .data("branch", build.branch.as_deref());
        if outcome.is_none() {
            event = event.by(&build.pushed_by);
        }
        if let Some(outcome) = outcome {
            let millis: serde_json::Map<_, _> =
                build.timings.iter().map(|(stage, millis)| (stage.clone(), (*millis).into())).collect();
            let release = build.release.map(|release| release.0);
            event = event.data("outcome", outcome).data("release", release).data("timings", millis);
        }
        if let Some(reason) = reason {
            event = event.data("reason", reason.as_str());
        }
        self.events.send(event);
    }
}
