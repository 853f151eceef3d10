//! What receiving needs of builds, logs, manifests and tokens.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::watch;

use crate::{
    build::{Builds, EnqueueError, NewBuild, check_push},
    domain::{AppRef, Build, BuildNumber, EnvRef, QueuePlace},
    logs::{Logs, until_ended},
    manifest::{self, render_problems},
    receive::{Description, NewPush, Pipeline, PushedTree, QueueError},
    store::StoreError,
    token::{self, TokenKey},
};

/// The pipeline behind receiving.
pub(super) struct BuildPipeline {
    pub(super) builds: Builds,
    pub(super) logs: Logs,
    pub(super) tokens: Arc<TokenKey>,
}

#[async_trait]
impl Pipeline for BuildPipeline {
    async fn describe(&self, tree: PushedTree) -> Result<Description, String> {
        let limit = self.builds.slug_limit();
        let checked = tokio::task::spawn_blocking(move || {
            let (objects, known_good) = (tree.objects.as_deref(), tree.known_good.as_deref());
            check_push(&tree.repository, objects, &tree.commit, known_good, &tree.env, limit)
        });
        let checked = checked.await.map_err(|error| format!("the tree could not be read: {error}"))?;
        let description = checked.map_err(|problems| render_problems(&problems))?;
        let definition = &description.definition;
        Ok(Description {
            has_manifest: description.manifest.is_some(),
            app: definition.app.clone(),
            auth: definition.auth.clone(),
        })
    }

    fn token_app(&self, text: &str) -> Result<AppRef, String> {
        token::verify(self.tokens.public_key(), text).map_err(|error| error.to_string())
    }

    fn manifest_template(&self, app: &AppRef) -> String {
        manifest::template(app, &token::issue(&self.tokens, app))
    }

    async fn active(&self, env: &EnvRef) -> Result<Option<Build>, StoreError> {
        self.builds.active(env).await
    }

    async fn enqueue(&self, push: NewPush) -> Result<Build, QueueError> {
        let new = NewBuild {
            env: push.env,
            commit: push.commit,
            branch: push.branch,
            old_commit: push.old_commit,
            pushed_by: push.pushed_by,
            no_cache: push.options.no_cache,
            detached: push.options.detach,
            supersede: push.options.supersede,
            held: true,
            timings: push.timings,
            trace: push.trace,
        };
        self.builds.enqueue(new).await.map_err(|error| match error {
            EnqueueError::Busy(build) => QueueError::Busy(build),
            EnqueueError::Full { limit } => QueueError::Full { limit },
            EnqueueError::TenantFull { tenant, limit } => QueueError::TenantFull { tenant, limit },
            EnqueueError::NoRoom(no_room) => QueueError::NoRoom(no_room),
            EnqueueError::Store(error) => QueueError::Store(error),
        })
    }

    async fn cancel(&self, env: &EnvRef, number: BuildNumber, reason: &str) -> Result<(), StoreError> {
        self.builds.cancel(env, number, reason).await.map(drop)
    }

    async fn let_begin(&self, env: &EnvRef, number: BuildNumber) -> Result<bool, StoreError> {
        self.builds.let_begin(env, number).await
    }

    fn place(&self, env: &EnvRef, number: BuildNumber) -> Option<watch::Receiver<Option<QueuePlace>>> {
        self.builds.place(env, number)
    }

    async fn follow(&self, env: &EnvRef, number: BuildNumber) -> BoxStream<'static, Bytes> {
        let (env, builds) = (env.clone(), self.builds.clone());
        let of = env.clone();
        let ended = async move { drop(builds.wait(&of, number).await) };
        let output = until_ended(self.logs.follow_build(&env, number), ended).filter_map(move |chunk| {
            let chunk = chunk.map_err(|error| tracing::warn!(%env, %number, %error, "a build's log cannot be read"));
            std::future::ready(chunk.ok())
        });
        output.boxed()
    }

    async fn wait(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, StoreError> {
        self.builds.wait(env, number).await
    }
}
