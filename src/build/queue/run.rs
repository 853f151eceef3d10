//! Running builds: one task for each, from where its build stands to its end.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Active, BuildService, Shared};
use crate::{
    build::{
        container::ENGINE_PATIENCE,
        output::BuildOutput,
        work::{Ended, Watch, work, write},
    },
    deploy::Progress,
    domain::{Build, BuildState, EnvRef, EventKind, Stage},
    runtime::{Patience, RuntimeError},
};

/// Why a build ends that was still held back.
pub(super) const STOPPED: &str = "the server was stopped before the push was checked to its end; push again";
/// How long a build waits for word that it may begin; longer than any check of a push takes.
const HELD_DEADLINE: Duration = Duration::from_secs(120);
/// How long the last events may take to be written at shutdown.
const LAST_EVENTS: Duration = Duration::from_secs(5);
/// Pause before what could not be written is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

impl Shared {
    /// Takes the next build that may run.
    fn next(&self) -> Option<(Build, CancellationToken)> {
        let mut queue = self.queue();
        let env = queue.line.next(&self.limits())?;
        let found = queue.active.get(&env).map(|active| (active.build.clone(), active.cancel.clone()));
        if found.is_none() {
            queue.line.ended(&env);
        }
        if let Some(active) = queue.active.get(&env) {
            active.set_place(None);
        }
        queue.tell_places();
        found
    }

    /// One build from where it stands to its end, or until `shutdown`, which leaves its record for the next server.
    async fn run_build(self: Arc<Self>, mut build: Build, cancel: CancellationToken, shutdown: CancellationToken) {
        let output = self.output(&build);
        if let Err(reason) = self.may_begin(&build.env, &cancel, &shutdown).await {
            return self.end(Ended { build, state: BuildState::Cancelled { reason } }, &output).await;
        }
        build.held = false;
        let resumed = self.queue().active.get(&build.env).is_some_and(|active| active.resumed);
        if resumed {
            output.step(match build.state {
                BuildState::Running { stage: Stage::Deploy } => "Going on after a restart of the server",
                _ => "The server was restarted; trying again",
            });
        }
        tokio::select! {
            biased;
            // Seen to below.
            () = shutdown.cancelled() => {}
            () = cancel.cancelled() => {}
            () = self.begin(&mut build) => {}
        }
        if build.no_cache && build.state == (BuildState::Running { stage: Stage::Build }) {
            tokio::select! {
                biased;
                // Seen to below.
                () = shutdown.cancelled() => {}
                () = cancel.cancelled() => {}
                () = output.with_signs_of_life(self.purge_before(&build, &output)) => {}
            }
        }
        let env = build.env.clone();
        let queued = build.clone();
        let worked = async {
            if !resumed {
                self.tell(EventKind::BuildStarted, &queued);
            }
            let worked = AssertUnwindSafe(work(&self.pipeline, build, &output, &*self)).catch_unwind();
            worked.await.unwrap_or_else(|_| {
                // The panic is in the log already; what it left behind is dropped with the future.
                output.error("The platform failed, not your app: an internal error.");
                let reason = "an internal error of the platform".to_owned();
                Ended {
                    build: self.active(&env).unwrap_or_else(|| queued.clone()),
                    state: BuildState::Failed { reason },
                }
            })
        };
        let ended = tokio::select! {
            biased;
            () = shutdown.cancelled() => return self.put_back(&env).await,
            () = cancel.cancelled() => {
                let build = self.active(&env).unwrap_or(queued.clone());
                if let Some(version) = build.release
                    && !self.give_up_deployment(&env, version, &self.reason(&env), &shutdown).await
                {
                    return self.put_back(&env).await;
                }
                Ended { build, state: BuildState::Cancelled { reason: self.reason(&env) } }
            }
            ended = worked => ended,
        };
        self.end(ended, &output).await;
    }

    /// Removes the cache for a build that is to do without; the engine is waited for, since the build needs it next.
    async fn purge_before(&self, build: &Build, output: &BuildOutput) {
        let mut patience = Patience::new(&*self.pipeline.parts.runtime, ENGINE_PATIENCE);
        loop {
            output.doing("removing the build cache");
            let Err(error) = self.purge_cache(&build.env.app_ref()).await else { return };
            let error = match error.downcast::<RuntimeError>() {
                Ok(error) => match patience.again(error, |error| output.detail(&error.waiting())).await {
                    Ok(()) => continue,
                    Err(error) => error.into(),
                },
                Err(error) => error,
            };
            return output.detail(&format!("the build cache could not be removed: {error:#}"));
        }
    }

    /// Waits while it is still being checked whether the build may begin. The error: why it is not to begin any more.
    async fn may_begin(
        &self,
        env: &EnvRef,
        cancel: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<(), String> {
        let held = self.queue().active.get(env).map(|active| active.held.subscribe());
        let Some(mut held) = held.filter(|held| *held.borrow()) else { return Ok(()) };
        let reason = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(self.reason(env)),
            Ok(_) = held.wait_for(|held| !held) => return Ok(()),
            () = shutdown.cancelled() => STOPPED,
            () = tokio::time::sleep(HELD_DEADLINE) => "it took too long to check whether it may begin; push again",
        };
        // Decided where `let_begin` looks: one of both comes first.
        let mut queue = self.queue();
        let Some(active) = queue.active.get_mut(env) else { return Err(reason.to_owned()) };
        match *active.held.borrow() {
            true => Err(active.reason.get_or_insert_with(|| reason.to_owned()).clone()),
            false => Ok(()),
        }
    }

    /// Ends the builds that were still held back when the server was stopped: nobody has been told that they are accepted.
    async fn end_held(self: &Arc<Self>) {
        let held: Vec<EnvRef> = {
            let mut queue = self.queue();
            let is_held = |active: &Active| *active.held.borrow() && !active.build.state.is_final();
            let held = queue.active.iter_mut().filter(|(_, active)| is_held(active));
            held.map(|(env, active)| {
                active.reason.get_or_insert_with(|| STOPPED.to_owned());
                env.clone()
            })
            .collect()
        };
        for env in held {
            self.queue().line.leave(&env);
            self.end_cancelled(&env).await;
        }
    }

    /// Leaves a build for the next server. One that is stopped in order has not been interrupted: it waits again.
    async fn put_back(&self, env: &EnvRef) {
        let building = BuildState::Running { stage: Stage::Build };
        if let Some(mut build) = self.active(env).filter(|build| build.state == building) {
            build.state = BuildState::Queued;
            if let Err(error) = write(&self.store, &build).await {
                tracing::warn!(%error, %env, "a build could not be put back into the queue");
            }
        }
        self.release_slot(env);
    }

    /// Notes that a build that waited has begun.
    async fn begin(&self, build: &mut Build) {
        let waited = self.queue().active.get(&build.env).map_or(Duration::ZERO, |active| active.since.elapsed());
        build.timings.push(("queued".to_owned(), u64::try_from(waited.as_millis()).unwrap_or(0)));
        self.trace_begin(build, waited);
        self.changed(build);
        if build.state == BuildState::Queued {
            build.state = BuildState::Running { stage: Stage::Build };
            build.started_at = Some(jiff::Timestamp::now());
            self.changed(build);
            while let Err(error) = write(&self.store, build).await {
                tracing::warn!(%error, "a build's beginning could not be written");
                // One that was interrupted must not be forgotten to have been: it may be what takes the server down.
                if build.interruptions == 0 {
                    break;
                }
                sleep(WRITE_AGAIN).await;
            }
        }
    }
}

impl Watch for Shared {
    fn changed(&self, build: &Build) {
        if let Some(active) = self.queue().active.get_mut(&build.env) {
            active.build = build.clone();
        }
        // Who only waits for replicas must not keep others from building.
        if build.state == (BuildState::Running { stage: Stage::Deploy }) {
            self.release_slot(&build.env);
        }
    }
}

impl BuildService {
    /// Runs builds until `shutdown`. Builds under way are then dropped with their containers, and go on with the next server.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared: queue, writer } = self;
        // Until the last build has ended and told so.
        let told = CancellationToken::new();
        let writing = tokio::spawn(writer.run(told.clone()));
        let mut builds = JoinSet::new();
        let shared = queue.clone();
        let prepare_until = shutdown.clone();
        builds.spawn(async move {
            tokio::select! {
                () = prepare_until.cancelled() => {}
                () = prepare(&shared) => {}
            }
        });
        loop {
            while let Some((build, cancel)) = queue.next() {
                builds.spawn(queue.clone().run_build(build, cancel, shutdown.clone()));
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = queue.wake.notified() => {}
                Some(ended) = builds.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a build's task has failed");
                    }
                }
            }
        }
        while builds.join_next().await.is_some() {}
        queue.end_held().await;
        queue.pipeline.containers_gone().await;
        queue.stopping.cancel();
        queue.unwritten.close();
        queue.unwritten.wait().await;
        told.cancel();
        if timeout(LAST_EVENTS, writing).await.is_err() {
            tracing::warn!("the last events could not be recorded in time");
        }
    }
}

/// Brings the stacks to where they are needed, so that the first build does not wait for it.
async fn prepare(shared: &Shared) {
    if let Err(no_room) = shared.pipeline.settings.disk.check() {
        // The first build that there is room for brings them.
        return tracing::warn!(%no_room, "the stacks are not brought to the registry yet");
    }
    match shared.pipeline.stacks().await {
        Ok(stacks) => {
            for stack in [&stacks.build, &stacks.run] {
                if let Err(error) = shared.pipeline.parts.runtime.prepare_image(&stack.image).await {
                    tracing::warn!(%error, "a stack could not be brought to the engine");
                }
            }
        }
        Err(error) => tracing::warn!("no builds yet: {error:#}"),
    }
}
