//! The last look at a push that is queued already: its build does not begin before.
//!
//! Between the checks and the queue another push may have ended, have moved the branch or chosen the deploy branch. What is refused here
//! has run nothing; what was lost by it all the same (a build that it superseded) is said.

use std::path::Path;

use super::{
    HookRequest, LivePush, NewPush, Receive, Refusal, RefusalKind, Update,
    judge::{Rejected, failed, not_queued},
    policy::decide,
};
use crate::{
    domain::{Build, BuildNumber, BuildState, EnvRef, Environment, FailPoint, fail_point::reached},
    git::short_branch,
};

impl Receive {
    /// Keeps the objects of what was judged and queues its build, which begins if it `fits` still; what was superseded for it (`replaced`)
    /// is told if it does not.
    pub(super) async fn queue(
        &self,
        new: NewPush,
        quarantine: Option<&Path>,
        replaced: Option<&Build>,
        fits: impl Future<Output = anyhow::Result<()>> + Send,
    ) -> anyhow::Result<Build> {
        if let Some(quarantine) = quarantine {
            self.keep(&new.env, quarantine).await?;
        }
        reached(FailPoint::Receive);
        let build = match self.0.pipeline.enqueue(new).await {
            Ok(build) => build,
            Err(error) => return Err(self.after(not_queued(error), replaced).await),
        };
        reached(FailPoint::Receive);
        if let Err(error) = self.confirm(&build, fits).await {
            let refused = self.withdraw(&build, error).await;
            return Err(self.after(refused, replaced).await);
        }
        Ok(build)
    }

    /// Keeps the commit of a queued build, looks once more whether it fits, and lets it begin.
    async fn confirm(&self, build: &Build, fits: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        // First: while others are waited for, nothing else keeps the commit.
        self.pin(&build.env, build.number, &build.commit).await?;
        fits.await?;
        if self.0.pipeline.let_begin(&build.env, build.number).await? {
            return Ok(());
        }
        let reason = match self.0.pipeline.wait(&build.env, build.number).await?.state {
            BuildState::Cancelled { reason } => format!("was cancelled: {reason}"),
            _ => "has ended before it began".to_owned(),
        };
        Err(Rejected(
            Refusal::new(format!("Push rejected: build {} {reason}", build.number)).of(RefusalKind::Busy).unchanged(),
        )
        .into())
    }

    /// The build that was there a moment ago may have ended just now, and its push has not moved the branch yet.
    pub(super) async fn still_fits(
        &self,
        push: &LivePush,
        request: &HookRequest,
        update: &Update,
    ) -> anyhow::Result<()> {
        let env = &push.env;
        self.others_ended(env).await?.map_err(Rejected)?;
        let environment = self.environment(env).await?;
        // The first push to an environment chooses the branch of those that follow.
        decide(env, environment.deploy_branch.as_deref(), &request.updates).map_err(Rejected)?;
        self.refuse_moved(env, update).await
    }

    /// The environment, which may have been destroyed since access to it was given.
    pub(super) async fn environment(&self, env: &EnvRef) -> anyhow::Result<Environment> {
        match self.0.store.get::<Environment>(env).await? {
            Some(stored) => Ok(stored.record),
            None => {
                let refusal = Refusal::new(format!("{env} was destroyed meanwhile.")).of(RefusalKind::Gone);
                Err(Rejected(refusal).into())
            }
        }
    }

    /// Takes a build back that was not let begin; the answer to its push, which is refused.
    pub(super) async fn withdraw(&self, build: &Build, error: anyhow::Error) -> anyhow::Error {
        let (env, number) = (&build.env, build.number);
        let (refusal, reason) = match error.downcast::<Rejected>() {
            Ok(rejected) => (rejected.0, "another push came first"),
            Err(error) => (failed(env, &error), "its push could not be checked to the end"),
        };
        let refusal = match self.0.pipeline.cancel(env, number, reason).await {
            Ok(()) => refusal,
            Err(error) => {
                tracing::error!(%env, %number, %error, "the build of a refused push could not be withdrawn");
                refusal
                    .but(format!("Build {number}, which was queued for it, could not be withdrawn: {error}."))
                    .detail(format!("See what becomes of it: builds info {env} {number}"))
                    .detail(format!("Cancel it:              builds cancel {env} {number}"))
            }
        };
        Rejected(refusal).into()
    }

    /// The answer to a push that was refused after it may have superseded a build.
    pub(super) async fn after(&self, error: anyhow::Error, replaced: Option<&Build>) -> anyhow::Error {
        let Some(Build { env, number, .. }) = replaced else { return error };
        let refusal = match error.downcast::<Rejected>() {
            Ok(rejected) => rejected.0,
            Err(error) => failed(env, &error),
        };
        let line = match self.0.pipeline.active(env).await {
            Ok(Some(active)) if active.number == *number => None,
            Ok(_) => match self.0.pipeline.wait(env, *number).await.map(|build| build.state) {
                Ok(BuildState::Cancelled { .. }) => {
                    Some(format!("Build {number}, which the push was to replace, was cancelled."))
                }
                Ok(_) => None,
                Err(_) => Some(format!("What became of build {number}: builds info {env} {number}")),
            },
            Err(_) => Some(format!("What became of build {number}: builds info {env} {number}")),
        };
        Rejected(match line {
            Some(line) => refusal.but(line),
            None => refusal,
        })
        .into()
    }

    /// Git compares what the pusher has seen of the branch with where it is only after this hook, when the build would be live.
    pub(super) async fn refuse_moved(&self, env: &EnvRef, update: &Update) -> anyhow::Result<()> {
        let (repositories, owner, branch) = (self.0.repositories.clone(), env.clone(), update.name.clone());
        let now = tokio::task::spawn_blocking(move || repositories.branch_commit(&owner, &branch)).await??;
        let seen = Some(&update.old).filter(|old| old.bytes().any(|digit| digit != b'0'));
        if now.as_ref() == seen {
            return Ok(());
        }
        let now = now.map_or_else(|| "is gone".to_owned(), |commit| format!("is at {} now", &commit[..12]));
        let refusal =
            Refusal::new(format!("Somebody else has pushed meanwhile: {} {now}.", short_branch(&update.name)));
        Err(Rejected(refusal.detail("Fetch it, merge or rebase, and push again.").unchanged()).into())
    }

    async fn keep(&self, env: &EnvRef, quarantine: &Path) -> anyhow::Result<()> {
        let (repositories, env, quarantine) = (self.0.repositories.clone(), env.clone(), quarantine.to_owned());
        Ok(tokio::task::spawn_blocking(move || repositories.keep_objects(&env, &quarantine)).await??)
    }

    pub(super) async fn pin(&self, env: &EnvRef, number: BuildNumber, commit: &str) -> anyhow::Result<()> {
        let (repositories, env, commit) = (self.0.repositories.clone(), env.clone(), commit.to_owned());
        Ok(tokio::task::spawn_blocking(move || repositories.pin(&env, number, &commit)).await??)
    }
}
