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
    /// Takes up what a server that stopped left behind: builds that are still to end, and the branch of the newest one that
    /// succeeded. Before anything is served.
    pub async fn recover(&self) -> anyhow::Result<()> {
        let mut newest: Option<Build> = None;
        for build in self.0.store.list::<Build>("").await? {
            let build = build.record;
            if newest.as_ref().is_some_and(|newest| newest.env != build.env)
                && let Some(done) = newest.take()
            {
                self.recover_branch(done).await;
            }
            if !build.state.is_final() {
                // The last server may have died between the queue and the pin.
                if let Err(error) = self.pin(&build.env, build.number, &build.commit).await {
                    tracing::error!(env = %build.env, number = %build.number, error = format!("{error:#}"), "the commit of a build cannot be pinned");
                }
                let gone = CancellationToken::new();
                gone.cancel();
                self.settle_later(build, gone);
            } else if build.state == BuildState::Succeeded && build.branch.is_some() {
                newest = Some(build);
            }
        }
        if let Some(done) = newest {
            self.recover_branch(done).await;
        }
        Ok(())
    }

    async fn recover_branch(&self, build: Build) {
        let gone = CancellationToken::new();
        gone.cancel();
        self.settle(build, gone).await;
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
            self.move_branch(&done, branch).await
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
