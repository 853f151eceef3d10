//! Reading a log on from a place in it: for what must not miss a line, restarts of the server included.

use anyhow::Context;
use tokio::sync::watch;

use super::{
    LogRecord, Logs, blocking,
    ring::{cursor_at, read_forward},
    service::{Command, env_directory},
};
use crate::domain::{DrainCursor, EnvRef};

/// Some lines in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    /// The place that was asked for or, if that is not there any more, the next one.
    pub start: DrainCursor,
    /// Each with the place after it.
    pub records: Vec<(DrainCursor, LogRecord)>,
    /// Where to go on; where it was begun when there is nothing new.
    pub next: DrainCursor,
    /// Lines before `start` that are not kept any more, as they were written long before they were read.
    pub lost: u64,
    /// There is more, or was when this was read.
    pub more: bool,
}

/// Tells that an environment has new lines.
#[derive(Debug)]
pub struct LogChanges(watch::Receiver<()>);

impl LogChanges {
    /// What there is from now on counts as seen; to be called before reading.
    pub fn seen(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits for lines that were written since. `false`: the log was removed, or the server ends.
    pub async fn wait(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl Logs {
    /// Where the log ends now, after every line added before.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn end(&self, env: &EnvRef) -> anyhow::Result<DrainCursor> {
        let position = self.ask(|reply| Command::Mark(env.clone(), reply)).await?;
        let directory = env_directory(&self.0.root, env);
        blocking(move || cursor_at(&directory, position)).await
    }

    /// The lines from a place on, about as many as lie in `bytes` on disk; see [`LogPage`].
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn read_from(&self, env: &EnvRef, from: DrainCursor, bytes: u64) -> anyhow::Result<LogPage> {
        let directory = env_directory(&self.0.root, env);
        blocking(move || read_forward(&directory, from, bytes)).await
    }

    /// Tells when there are new lines, from now on.
    ///
    /// # Errors
    /// When the log writer has ended.
    pub async fn changes(&self, env: &EnvRef) -> anyhow::Result<LogChanges> {
        let changes = self.ask(|reply| Command::Changes(env.clone(), reply)).await;
        changes.map(LogChanges).context("new lines of the log are not heard of")
    }
}
