//! Taking up what the last server left, whether it was stopped or killed.
//!
//! Builds that wait go on waiting, releases that were being deployed go on being deployed. A build that was interrupted is tried once
//! more; interrupted again, it has failed: it may be what kills the server.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Active, BuildService, Builds, Queue, Shared, run::STOPPED};
use crate::{
    build::{
        BuildParts, BuildSettings,
        pipeline::Pipeline,
        work::{Ended, write},
    },
    deploy::Progress,
    domain::{Build, BuildNumber, BuildState, EnvRef, Stage},
    events::EventSink,
};

/// How often a build may be interrupted by the end of a server and be tried again.
const MAX_INTERRUPTIONS: u32 = 1;

/// What becomes of a build that is not final when the server starts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// It goes on from where its record says it stands.
    GoesOn,
    /// It was interrupted, and begins again.
    Again,
    /// It has ended.
    Ended(BuildState),
}

/// Pure. `is_newest`: the environment has no build after it.
fn fate(build: &Build, is_newest: bool) -> Fate {
    if !is_newest {
        // Its end could not be written, and the environment has moved on.
        return Fate::Ended(BuildState::Cancelled { reason: "a newer build took its place".to_owned() });
    }
    if let Some(reason) = &build.cancelling {
        return Fate::Ended(BuildState::Cancelled { reason: reason.clone() });
    }
    if build.held {
        return Fate::Ended(BuildState::Cancelled { reason: STOPPED.to_owned() });
    }
    match build.state {
        BuildState::Running { stage: Stage::Build } if build.interruptions < MAX_INTERRUPTIONS => Fate::Again,
        BuildState::Running { stage: Stage::Build } => {
            let reason = "the server went down twice while it was being built; push again, or ask the operator why";
            Fate::Ended(BuildState::Failed { reason: reason.to_owned() })
        }
        _ => Fate::GoesOn,
    }
}

impl Builds {
    /// Takes up what the records say: queued builds wait in their order, builds that had begun go first.
    pub async fn start(parts: BuildParts, settings: BuildSettings) -> anyhow::Result<(Self, BuildService)> {
        let store = parts.store.clone();
        let (events, writer) = EventSink::new(store.clone());
        let shared = Arc::new(Shared {
            pipeline: Pipeline::new(parts, settings)?,
            store: store.clone(),
            events,
            queue: Mutex::new(Queue::default()),
            enqueueing: tokio::sync::Mutex::new(()),
            wake: Notify::new(),
            unwritten: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        let mut left: Vec<Build> = store.list::<Build>("").await?.into_iter().map(|stored| stored.record).collect();
        let newest: HashMap<EnvRef, BuildNumber> = left.iter().map(|build| (build.env.clone(), build.number)).collect();
        left.retain(|build| !build.state.is_final());
        left.sort_by_key(|build| (build.started_at.is_none(), build.queued_at));
        for build in left {
            let is_newest = newest.get(&build.env).is_none_or(|newest| *newest <= build.number);
            shared.take_up(build, is_newest).await;
        }
        shared.queue().tell_places();
        Ok((Self { shared: shared.clone() }, BuildService { shared, writer }))
    }
}

impl Shared {
    async fn take_up(self: &Arc<Self>, mut build: Build, is_newest: bool) {
        tracing::info!(env = %build.env, build = %build.number, "taking up a build that the last server left");
        match fate(&build, is_newest) {
            Fate::GoesOn => {}
            Fate::Again => {
                // Before it begins: should it take this server down too, the next one must know.
                build.interruptions += 1;
                if let Err(error) = write(&self.store, &build).await {
                    tracing::error!(%error, env = %build.env, "an interrupted build waits until that can be written down");
                    // It is, before it begins: see `begin`.
                    build.state = BuildState::Queued;
                }
            }
            Fate::Ended(state) => {
                if is_newest {
                    // It is under way until its end is written.
                    let active = Active::new(build.clone(), false, false);
                    self.queue().active.insert(build.env.clone(), active);
                }
                // In a task of its own: the deployer may take a while to know what it is to give up.
                self.unwritten.spawn(self.clone().end_left(Ended { build, state }));
                return;
            }
        }
        let begun = build.started_at.is_some();
        let mut queue = self.queue();
        queue.line.join(build.env.clone());
        queue.active.insert(build.env.clone(), Active::new(build, begun, false));
    }
}

impl Shared {
    /// Ends a build that the last server left.
    async fn end_left(self: Arc<Self>, ended: Ended) {
        let Ended { build, state } = &ended;
        if let (Some(version), BuildState::Cancelled { reason }) = (build.release, state)
            && !self.give_up_deployment(&build.env, version, reason, &self.stopping).await
        {
            return;
        }
        let output = self.output(build);
        if let BuildState::Failed { reason } = state {
            output.error(&format!("Build #{} failed: {reason}", build.number));
        }
        self.end(ended, &output).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(state: BuildState, interruptions: u32) -> Build {
        Build {
            env: "acme/shop/dev".parse().unwrap(),
            number: BuildNumber(3),
            commit: "0".repeat(40),
            branch: None,
            old_commit: None,
            state,
            queued_at: jiff::Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            pushed_by: "alice".parse().unwrap(),
            no_cache: false,
            detached: false,
            image: None,
            release: None,
            timings: Vec::new(),
            interruptions,
            cancelling: None,
            held: false,
            settled: false,
            trace: None,
        }
    }

    #[test]
    fn an_interrupted_build_is_tried_once_more() {
        let (building, deploying) =
            (BuildState::Running { stage: Stage::Build }, BuildState::Running { stage: Stage::Deploy });
        for (state, interruptions, fits) in [
            (BuildState::Queued, 0, Fate::GoesOn),
            (BuildState::Queued, 1, Fate::GoesOn),
            (building.clone(), 0, Fate::Again),
            (deploying.clone(), 0, Fate::GoesOn),
            (deploying, 1, Fate::GoesOn),
        ] {
            assert_eq!(fate(&build(state.clone(), interruptions), true), fits, "{state:?} {interruptions}");
        }
        for interruptions in [1, 2] {
            let failed = fate(&build(building.clone(), interruptions), true);
            assert!(matches!(failed, Fate::Ended(BuildState::Failed { .. })), "{failed:?}");
        }
        let unwanted = Build { cancelling: Some("not needed".to_owned()), ..build(building.clone(), 0) };
        let cancelled = BuildState::Cancelled { reason: "not needed".to_owned() };
        assert_eq!(fate(&unwanted, true), Fate::Ended(cancelled));
        let held = fate(&Build { held: true, ..build(BuildState::Queued, 0) }, true);
        assert!(matches!(held, Fate::Ended(BuildState::Cancelled { .. })), "{held:?}");
        let old = fate(&build(building, 0), false);
        assert!(matches!(old, Fate::Ended(BuildState::Cancelled { .. })), "{old:?}");
    }
}
