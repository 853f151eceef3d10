//! One push to an environment after another.
//!
//! A push is compared with where the branch is before its build is queued, and git moves the branch only after the hook has accepted, or
//! refuses to when it has moved meanwhile. In between, nobody else may be judged by where the branch was: of two pushes, the second would
//! be built and deployed although git refuses it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use super::{LivePush, Receive, Refusal, RefusalKind};
use crate::{domain::EnvRef, places::Place};

/// More environments than could have pushes at once.
pub(super) const ALL: usize = 1 << 20;
/// How long a push waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

impl Receive {
    /// Waits until no other push to the environment is being judged, and until those that were accepted have moved the branch.
    pub(super) async fn turn(&self, env: &EnvRef) -> anyhow::Result<Result<Place, Refusal>> {
        let Ok(turn) = self.0.turns.take(env, PATIENCE).await else { return Ok(Err(too_many(env))) };
        Ok(self.others_ended(env).await?.map(|()| turn))
    }

    /// Waits until pushes to the environment that were accepted have moved the branch.
    pub(super) async fn others_ended(&self, env: &EnvRef) -> anyhow::Result<Result<(), Refusal>> {
        let deadline = Instant::now() + PATIENCE;
        for other in self.ending(env).await? {
            if timeout_at(deadline, other.ended.cancelled()).await.is_err() {
                return Ok(Err(too_many(env)));
            }
        }
        Ok(Ok(()))
    }

    /// Pushes to the same environment that have their verdict, or will have it at once.
    async fn ending(&self, env: &EnvRef) -> anyhow::Result<Vec<Arc<LivePush>>> {
        let active = self.0.pipeline.active(env).await?.map(|build| build.number);
        let is_ending = |other: &LivePush| {
            other.queued.get().is_some_and(|(number, detached)| *detached || active != Some(*number))
        };
        let live = self.0.live.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(live.values().filter(|other| other.env == *env && is_ending(other)).cloned().collect())
    }
}

fn too_many(env: &EnvRef) -> Refusal {
    Refusal::new(format!("Another push to {env} is just being completed; try again in a moment."))
        .of(RefusalKind::Later)
        .unchanged()
}
