//! Moving the branch once a build has succeeded, whoever is left to do it.

use std::time::Duration;

use anyhow::Context;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{LivePush, Receive};
use crate::{
    domain::{Build, BuildState, EnvRef, Environment},
    git::{Moved, short_branch},
    store::StoreError,
};

/// How long a live `receive-pack` may take to move the branch itself once it may.
///
/// Its client may be slow to read the output of the build, which comes first.
const LIVE_GRACE: Duration = Duration::from_secs(120);

impl Receive {
    /// Takes up what a server that stopped left behind: builds that are still to end, and branches that were still to move. Before
    /// anything is served.
    pub async fn recover(&self) -> anyhow::Result<()> {
        let builds: Vec<Build> =
            self.0.store.list::<Build>("").await?.into_iter().map(|stored| stored.record).collect();
        for done in unsettled(&builds) {
            let gone = CancellationToken::new();
            gone.cancel();
            self.settle(done.clone(), gone).await;
        }
        for build in builds {
            if !build.state.is_final() {
                // The last server may have died between the queue and the pin.
                if let Err(error) = self.pin(&build.env, build.number, &build.commit).await {
                    tracing::error!(env = %build.env, number = %build.number, error = format!("{error:#}"), "the commit of a build cannot be pinned");
                }
                let gone = CancellationToken::new();
                gone.cancel();
                self.settle_later(build, gone);
            }
        }
        Ok(())
    }

    /// Settles a queued build in the background.
    pub(super) fn settle_later(&self, build: Build, push_ended: CancellationToken) {
        let receive = self.clone();
        let shutdown = self.0.shutdown.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = receive.settle(build, push_ended) => {}
                // The next start takes it up again.
                () = shutdown.cancelled() => {}
            }
        });
    }

    /// Waits for the build, then for its push to be over, and moves the branch if that push did not.
    async fn settle(&self, build: Build, push_ended: CancellationToken) {
        let (env, number) = (build.env.clone(), build.number);
        let settle = async {
            let done = self.0.pipeline.wait(&env, number).await?;
            let Some(branch) = done.branch.as_deref().filter(|_| done.state == BuildState::Succeeded) else {
                return Ok(());
            };
            self.choose_branch(&env, branch).await?;
            if timeout(LIVE_GRACE, push_ended.cancelled()).await.is_err() {
                tracing::warn!(%env, %number, "receive-pack takes long to move the branch");
            }
            self.move_branch(&done, branch).await?;
            self.confirm_settled(&done).await
        };
        if let Err(error) = settle.await {
            tracing::error!(%env, %number, error = format!("{error:#}"), "a build's branch could not be moved");
        }
    }

    async fn move_branch(&self, build: &Build, branch: &str) -> anyhow::Result<()> {
        let repositories = self.0.repositories.clone();
        let (env, number, commit) = (build.env.clone(), build.number, build.commit.clone());
        let old = build.old_commit.clone().unwrap_or_else(|| "0".repeat(40));
        let branch = branch.to_owned();
        let moved = tokio::task::spawn_blocking(move || {
            let moved = repositories.move_branch(&env, &branch, &old, &commit);
            moved.map(|moved| (env, branch, moved))
        });
        let (env, branch, moved) = moved.await??;
        match moved {
            Moved::Yes => {
                tracing::info!(%env, %number, branch = short_branch(&branch), "moved the branch for a push that is gone")
            }
            Moved::Already => {}
            Moved::Elsewhere(now) => tracing::debug!(%env, %number, ?now, "the branch was moved elsewhere meanwhile"),
        }
        Ok(())
    }

    /// Notes that nothing is left to be done for the branch: it may go back to where it was before this build, and must stay there then.
    async fn confirm_settled(&self, build: &Build) -> anyhow::Result<()> {
        let settled = |record: &mut Build| {
            record.settled = true;
            Ok::<(), StoreError>(())
        };
        match self.0.store.modify(&(build.env.clone(), build.number), settled).await {
            Ok(_) | Err(StoreError::Missing(_)) => Ok(()),
            Err(error) => Err(error).context("that its branch has moved could not be recorded"),
        }
    }

    /// What must hold before a push may be accepted.
    pub(super) async fn settled(&self, push: &LivePush, build: &Build) -> anyhow::Result<()> {
        let branch = build.branch.as_deref().context("a pushed build has a branch")?;
        self.choose_branch(&push.env, branch).await
    }

    /// Makes `branch` (full name) the environment's deploy branch, if it has none yet, and what a clone checks out.
    pub(super) async fn choose_branch(&self, env: &EnvRef, branch: &str) -> anyhow::Result<()> {
        let stored = self.0.store.need::<Environment>(env).await?;
        if stored.deploy_branch.is_none() {
            let short = short_branch(branch).to_owned();
            let choose = |environment: &mut Environment| {
                environment.deploy_branch.get_or_insert_with(|| short.clone());
                Ok::<(), StoreError>(())
            };
            self.0.store.modify::<Environment, StoreError>(env, choose).await?;
        }
        let (repositories, env, branch) = (self.0.repositories.clone(), env.clone(), branch.to_owned());
        Ok(tokio::task::spawn_blocking(move || repositories.set_head(&env, &branch)).await??)
    }
}

/// The newest build of each environment whose branch may still have to move. `builds` come by environment, oldest first.
///
/// None where a later push to the branch was accepted without waiting for its build: whatever became of that, the branch is where it
/// put it, be it where it was before.
fn unsettled(builds: &[Build]) -> Vec<&Build> {
    let of_env = builds.chunk_by(|one, next| one.env == next.env);
    of_env
        .filter_map(|builds| {
            let newest =
                builds.iter().rposition(|build| build.state == BuildState::Succeeded && build.branch.is_some())?;
            let build = &builds[newest];
            let accepted = |later: &Build| later.detached && !later.held && later.branch == build.branch;
            (!build.settled && !builds[newest + 1..].iter().any(accepted)).then_some(build)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::BuildNumber;

    const DONE: BuildState = BuildState::Succeeded;

    fn failed() -> BuildState {
        BuildState::Failed { reason: "it failed".to_owned() }
    }

    fn build(env: &str, number: u64, state: BuildState, detached: bool) -> Build {
        Build {
            env: env.parse().unwrap(),
            number: BuildNumber(number),
            commit: number.to_string().repeat(40),
            branch: Some("refs/heads/main".to_owned()),
            old_commit: None,
            state,
            queued_at: jiff::Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            pushed_by: "alice".parse().unwrap(),
            no_cache: false,
            detached,
            image: None,
            release: None,
            timings: Vec::new(),
            interruptions: 0,
            cancelling: None,
            held: false,
            settled: false,
            trace: None,
        }
    }

    #[test]
    fn a_branch_only_moves_for_the_newest_push_that_was_accepted() {
        let (a, b) = ("acme/shop/dev", "acme/shop/prod");
        let refused = Build { held: true, ..build(a, 3, failed(), true) };
        let elsewhere = Build { branch: None, ..build(a, 3, failed(), true) };
        let settled = Build { settled: true, ..build(a, 2, DONE, false) };
        let rows: [(&[Build], &[u64]); 7] = [
            (&[build(a, 1, DONE, false), build(a, 2, DONE, false), build(b, 9, DONE, true)], &[2, 9]),
            (&[build(a, 2, DONE, false), build(a, 3, failed(), false)], &[2]),
            (&[build(a, 2, DONE, false), build(a, 3, failed(), true)], &[]),
            (&[build(a, 2, DONE, false), build(a, 3, BuildState::Queued, true)], &[]),
            (&[build(a, 2, DONE, false), refused], &[2]),
            (&[build(a, 2, DONE, false), elsewhere], &[2]),
            (&[build(a, 1, DONE, false), settled], &[]),
        ];
        for (builds, numbers) in rows {
            let found: Vec<u64> = unsettled(builds).iter().map(|build| build.number.0).collect();
            assert_eq!(found, numbers, "{builds:?}");
        }
    }
}
