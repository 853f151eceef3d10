//! Builds of sources that come without git: `builds create`.

use serde_json::json;
use tokio::io::AsyncRead;

use super::{Answer, Caller, CommandError, CommandIo, Commands};
use crate::{
    domain::{Build, EnvRef, Verb},
    receive::{NewSource, Refusal, RefusalKind},
};

/// What the commit says unless told otherwise.
const MESSAGE: &str = "source upload";
/// Longest message, bytes.
const MAX_MESSAGE: usize = 16 << 10;

/// How a source is to be built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceOptions {
    /// What the commit says.
    pub message: Option<String>,
    pub no_cache: bool,
}

impl Commands {
    /// Makes a commit of an archive (tar, or tar in gzip) that is read as it comes, and queues its build. No branch moves. Dropping the
    /// future does not take back what has come in.
    ///
    /// # Errors
    /// As for a push: [`CommandError::Unfit`] when the archive or what its files say cannot be taken, [`CommandError::Conflict`] while
    /// another build is under way, [`CommandError::TryLater`] when there is no room.
    pub async fn build_from_tarball(
        &self,
        caller: &Caller,
        env: &EnvRef,
        source: impl AsyncRead + Send + Unpin + 'static,
        options: SourceOptions,
    ) -> Result<Build, CommandError> {
        self.env_for(caller, Verb::Push, env).await?;
        let SourceOptions { message, no_cache } = options;
        let message = message.as_deref().map(str::trim).filter(|message| !message.is_empty()).unwrap_or(MESSAGE);
        if message.len() > MAX_MESSAGE || message.contains('\0') {
            return Err(CommandError::Usage("the message is longer than 16 KiB, or has a NUL byte in it".into()));
        }
        let (env, user, message) = (env.clone(), caller.user.clone(), message.to_owned());
        let source = NewSource { env, user, message, no_cache, content: Box::new(source), trace: caller.trace };
        self.sources.upload(source).await.map_err(refused)
    }

    /// `builds create`: the source is on standard input.
    pub(super) async fn create_build(
        &self,
        caller: &Caller,
        env: &EnvRef,
        options: SourceOptions,
        detach: bool,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        let source = std::mem::replace(&mut io.stdin, Box::new(tokio::io::empty()));
        let build = self.build_from_tarball(caller, env, source, options).await?;
        if detach {
            let number = build.number;
            let human = format!("Queued as build {number}; follow it with: builds logs {env} {number} -f");
            return Ok(Answer::new(human, json!({"env": env, "build": number, "commit": build.commit})));
        }
        self.relay_to_end(caller, env, &build, json, io).await
    }
}

fn refused(refusal: Refusal) -> CommandError {
    let text = refusal.text();
    match refusal.kind {
        RefusalKind::Policy | RefusalKind::Commit | RefusalKind::Manifest => CommandError::Unfit(text),
        RefusalKind::Busy => CommandError::Conflict(text),
        RefusalKind::QueueFull | RefusalKind::Disk | RefusalKind::Later => CommandError::TryLater(text),
        RefusalKind::Gone => CommandError::NotFound(text),
        RefusalKind::Internal => CommandError::Broken(text),
    }
}
