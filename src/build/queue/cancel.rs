//! Letting builds begin, and cancelling them.
//!
//! That a build is to be cancelled is written before anything is done about it, and one that is still being looked at says so in its
//! record: whatever happens next, no server builds or deploys what was cancelled or refused.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Builds, Shared, unbroken};
use crate::{
    domain::{Build, BuildNumber, BuildState, EnvRef, EventKind, ReleaseVersion, Stage},
    store::StoreError,
};

/// How long a cancelled build may take to end.
const CANCEL_DEADLINE: Duration = Duration::from_secs(30);

/// Pause before the deployer is asked again.
const GIVE_UP_AGAIN: Duration = Duration::from_millis(500);

/// Why a record was not changed.
enum Refused {
    /// It has ended, or is too far.
    TooLate,
    Store(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What cancelling finds.
enum Found {
    Nothing,
    /// It ends or has ended already; to be waited for.
    Ending(watch::Receiver<Option<Build>>),
    Cancels(watch::Receiver<Option<Build>>),
}

impl Builds {
    /// Cancels a build that is queued or being built, and returns when it has ended. `false`: it has ended before, or is being deployed,
    /// which `rollback` undoes.
    ///
    /// # Errors
    /// When the store does not take that it is to be cancelled (nothing has been done then), or when it does not end.
    pub async fn cancel(&self, env: &EnvRef, number: BuildNumber, reason: &str) -> Result<bool, StoreError> {
        let (builds, env, reason) = (self.clone(), env.clone(), reason.to_owned());
        unbroken(async move { builds.cancel_and_wait(&env, number, &reason, false).await }).await?
    }

    pub(super) async fn cancel_and_wait(
        &self,
        env: &EnvRef,
        number: BuildNumber,
        reason: &str,
        even_deploying: bool,
    ) -> Result<bool, StoreError> {
        let (mut done, cancels) = match self.shared.begin_cancelling(env, number, reason, even_deploying).await? {
            Found::Nothing => return Ok(false),
            Found::Ending(done) => (done, false),
            Found::Cancels(done) => (done, true),
        };
        let ended = match timeout(CANCEL_DEADLINE, done.wait_for(Option::is_some)).await {
            Ok(Ok(build)) => build.clone(),
            // The queue is gone, and the build with it.
            Ok(Err(_)) => None,
            Err(_) => return Err(self.shared.does_not_end(env, number)),
        };
        // It may have been faster.
        Ok(cancels && ended.is_none_or(|build| matches!(build.state, BuildState::Cancelled { .. })))
    }

    /// Lets a build begin that was queued as [`super::NewBuild::held`], durably, once it has its turn. `false`: it has ended already,
    /// since it was cancelled, held too long, or the server is stopping.
    ///
    /// # Errors
    /// When the store does not take it; the build is still held then.
    pub async fn let_begin(&self, env: &EnvRef, number: BuildNumber) -> Result<bool, StoreError> {
        let (shared, env) = (self.shared.clone(), env.clone());
        // In a task of its own: what the record says must become true here.
        unbroken(async move { shared.let_begin(&env, number).await }).await?
    }
}

impl Shared {
    async fn let_begin(&self, env: &EnvRef, number: BuildNumber) -> Result<bool, StoreError> {
        let Some(deciding) = self.deciding(env, number) else { return Ok(false) };
        let _turn = deciding.lock().await;
        if !self.is_held(env, number) {
            return Ok(false);
        }
        let free = |record: &mut Build| match record.state.is_final() || record.cancelling.is_some() {
            true => Err(Refused::TooLate),
            false => {
                record.held = false;
                Ok(())
            }
        };
        match self.store.modify(&(env.clone(), number), free).await {
            Ok(_) => {}
            Err(Refused::TooLate | Refused::Store(StoreError::Missing(_))) => return Ok(false),
            Err(Refused::Store(error)) => return Err(error),
        }
        let mut queue = self.queue();
        let active = queue.active.get_mut(env).filter(|active| active.build.number == number);
        // It may have been held too long just now.
        let Some(active) = active.filter(|active| active.reason.is_none()) else { return Ok(false) };
        active.build.held = false;
        self.tell(EventKind::BuildQueued, &active.build);
        active.held.send_replace(false);
        Ok(true)
    }

    /// Writes that the build is to be cancelled, then does it.
    async fn begin_cancelling(
        self: &Arc<Self>,
        env: &EnvRef,
        number: BuildNumber,
        reason: &str,
        even_deploying: bool,
    ) -> Result<Found, StoreError> {
        let Some(deciding) = self.deciding(env, number) else { return Ok(Found::Nothing) };
        let _turn = deciding.lock().await;
        let too_far = |state: &BuildState| !even_deploying && *state == (BuildState::Running { stage: Stage::Deploy });
        match self.active(env).filter(|build| build.number == number) {
            None => return Ok(Found::Nothing),
            Some(build) if too_far(&build.state) => return Ok(Found::Nothing),
            Some(_) => {}
        }
        let intend = |record: &mut Build| match record.state.is_final() || too_far(&record.state) {
            true => Err(Refused::TooLate),
            false => {
                record.cancelling.get_or_insert_with(|| reason.to_owned());
                Ok(())
            }
        };
        let ended = |shared: &Self| shared.active(env).is_none_or(|build| build.state.is_final());
        let intended = match ended(self) {
            true => Err(Refused::TooLate),
            false => self.store.modify(&(env.clone(), number), intend).await.map(drop),
        };
        match intended {
            Ok(()) | Err(Refused::Store(StoreError::Missing(_))) => {}
            // Its record says already that it is not to begin.
            Err(Refused::Store(_)) if self.is_held(env, number) => {}
            Err(Refused::Store(error)) => return Err(error),
            Err(Refused::TooLate) => {
                let queue = self.queue();
                let active = queue.active.get(env).filter(|active| active.build.number == number);
                let ends = active.filter(|active| active.build.state.is_final());
                return Ok(ends.map_or(Found::Nothing, |active| Found::Ending(active.done.subscribe())));
            }
        }
        Ok(self.give_up(env, number, reason).await)
    }

    async fn give_up(self: &Arc<Self>, env: &EnvRef, number: BuildNumber, reason: &str) -> Found {
        let (done, waited) = {
            let mut queue = self.queue();
            let active = queue.active.get_mut(env).filter(|active| active.build.number == number);
            let Some(active) = active else { return Found::Nothing };
            let done = active.done.subscribe();
            if active.build.state.is_final() {
                return Found::Ending(done);
            }
            active.reason.get_or_insert_with(|| reason.to_owned());
            active.cancel.cancel();
            let waited = queue.line.leave(env);
            queue.tell_places();
            (done, waited)
        };
        if waited {
            self.end_cancelled(env).await;
        }
        Found::Cancels(done)
    }

    /// Has the deployer give a release up, and asks until it has: only then may its build be said to be cancelled. `false`: the server stops
    /// before, and the next one does.
    pub(super) async fn give_up_deployment(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        reason: &str,
        stop: &CancellationToken,
    ) -> bool {
        let given_up = async {
            while let Err(error) = self.pipeline.parts.delivery.abandon(env, version, reason).await {
                tracing::warn!(%env, %version, %error, "a deployment is not given up yet; trying again");
                sleep(GIVE_UP_AGAIN).await;
            }
        };
        stop.run_until_cancelled(given_up).await.is_some()
    }

    fn deciding(&self, env: &EnvRef, number: BuildNumber) -> Option<Arc<tokio::sync::Mutex<()>>> {
        let queue = self.queue();
        queue.active.get(env).filter(|active| active.build.number == number).map(|active| active.deciding.clone())
    }

    fn is_held(&self, env: &EnvRef, number: BuildNumber) -> bool {
        let queue = self.queue();
        let active = queue.active.get(env).filter(|active| active.build.number == number);
        active.is_some_and(|active| active.reason.is_none() && *active.held.borrow())
    }

    fn does_not_end(&self, env: &EnvRef, number: BuildNumber) -> StoreError {
        let ended = self.active(env).is_some_and(|build| build.number == number && build.state.is_final());
        match ended {
            true => StoreError::Failed(format!(
                "build #{number} of {env} has ended, but that could not be recorded yet; it is tried again"
            )),
            false => StoreError::Conflict(format!("build #{number} of {env} (it does not end)")),
        }
    }
}
