//! Why a command did not do as asked, and the exit status that says so.

use crate::{domain::NameError, store::StoreError};

/// How often a change that collides with another one is tried anew.
const TRIES: usize = 32;

/// Each kind is one exit status of the contract.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Exit status 1. What failed, why, what to do next.
    #[error("{0}")]
    Failed(String),
    /// Exit status 1: the server is at fault; its log says why.
    #[error("{0}")]
    Broken(String),
    /// Exit status 1: what was sent cannot be taken as it is. What is wrong with it, and where.
    #[error("{0}")]
    Unfit(String),
    /// Exit status 2: the words are off.
    #[error("{0}")]
    Usage(String),
    /// Exit status 3.
    #[error("{0}")]
    Denied(String),
    /// Exit status 4: it does not exist, or the caller may not know that it does.
    #[error("{0}")]
    NotFound(String),
    /// Exit status 5: it exists already, is in use, or somebody else is at it.
    #[error("{0}")]
    Conflict(String),
    /// Exit status 5: what the caller has seen, and wanted to change as long as it is so, has changed.
    #[error("{0}")]
    Stale(String),
    /// Exit status 75: nothing is wrong with the request; later it may go through.
    #[error("{0}")]
    TryLater(String),
}

impl CommandError {
    /// The exit status of the contract.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Broken(_) | Self::Unfit(_) => 1,
            Self::Usage(_) => 2,
            Self::Denied(_) => 3,
            Self::NotFound(_) => 4,
            Self::Conflict(_) | Self::Stale(_) => 5,
            Self::TryLater(_) => 75,
        }
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(_) => Self::TryLater(error.to_string()),
            StoreError::Missing(_) => Self::NotFound(error.to_string()),
            StoreError::Unknown(_) => {
                tracing::error!(%error, "a command failed in the store, and it is not known with what result");
                Self::Broken(
                    "the server could not write this down, nor take back what it may have written: it is not in force now, and may or may not \
                     come into force when the server starts next. Tell the operator (the server's log says what failed), and look at \
                     what is there before you do it again"
                        .into(),
                )
            }
            StoreError::Failed(_) | StoreError::Unreadable { .. } => {
                tracing::error!(%error, "a command failed in the store");
                Self::Broken("the server could not read or write its records; its log says why".into())
            }
        }
    }
}

impl From<NameError> for CommandError {
    fn from(error: NameError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Tries again what lost against somebody else's change.
pub(super) async fn keep_trying<T, F>(mut attempt: impl FnMut() -> F + Send) -> Result<T, CommandError>
where
    F: Future<Output = Result<T, CommandError>> + Send,
{
    for _ in 1..TRIES {
        match attempt().await {
            Err(CommandError::TryLater(_)) => {}
            done => return done,
        }
    }
    attempt().await
}

/// Logs what the operator must see, and makes of it what the caller is told.
pub(super) fn logged(error: anyhow::Error, text: String) -> CommandError {
    tracing::error!(error = %format!("{error:#}"), "a command failed: {text}");
    CommandError::Broken(format!("{text} (the server's log says why)"))
}

/// Does work that waits for the disk off the runtime's threads.
pub(super) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> anyhow::Result<T>
where
    T: Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    Ok(tokio::task::spawn_blocking(work).await??)
}
