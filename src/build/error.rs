//! How a build fails.

use super::{
    buildpacks::BuildpackError,
    slug::{PublishError, SplitError, human_size},
    source::SourceError,
};
use crate::{runtime::RuntimeError, store::StoreError};

/// Why there is no new release.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What was pushed cannot be built or does not run: its author can do something about it. `lines` are shown below the reason.
    #[error("{reason}")]
    Rejected { reason: String, lines: Vec<String> },
    /// The platform failed: the operator can do something about it.
    #[error("{0:#}")]
    Platform(anyhow::Error),
}

impl BuildError {
    /// A rejection without further lines.
    pub fn rejected(reason: impl Into<String>) -> Self {
        Self::Rejected { reason: reason.into(), lines: Vec::new() }
    }

    /// `what` (the source, the slug) has more bytes than are allowed; `largest`: what makes it so.
    pub fn too_large(what: &str, size: u64, limit: u64, largest: Vec<String>) -> Self {
        let reason = format!("the {what} has {}; at most {} are allowed", human_size(size), human_size(limit));
        let mut lines = vec!["The largest in it:".to_owned()];
        lines.extend(largest);
        lines.push("Leave out what does not run with .slugignore, or remove it at the end of the build.".to_owned());
        Self::Rejected { reason, lines }
    }
}

impl From<anyhow::Error> for BuildError {
    fn from(error: anyhow::Error) -> Self {
        Self::Platform(error)
    }
}

impl From<StoreError> for BuildError {
    fn from(error: StoreError) -> Self {
        Self::Platform(error.into())
    }
}

impl From<RuntimeError> for BuildError {
    fn from(error: RuntimeError) -> Self {
        Self::Platform(error.into())
    }
}

impl From<PublishError> for BuildError {
    fn from(error: PublishError) -> Self {
        Self::Platform(error.into())
    }
}

impl From<std::io::Error> for BuildError {
    fn from(error: std::io::Error) -> Self {
        Self::Platform(error.into())
    }
}

impl From<BuildpackError> for BuildError {
    fn from(error: BuildpackError) -> Self {
        match error {
            BuildpackError::Refused(reason) => Self::rejected(reason),
            BuildpackError::Io(error) => Self::Platform(error.into()),
        }
    }
}

impl From<SplitError> for BuildError {
    fn from(error: SplitError) -> Self {
        let reason = error.to_string();
        match error {
            SplitError::Io(error) => Self::Platform(error.into()),
            SplitError::Refused { .. } | SplitError::TooMany => Self::rejected(reason),
            SplitError::TooLarge { size, limit, largest } => Self::too_large("slug", size, limit, largest),
        }
    }
}

impl From<SourceError> for BuildError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Git(_) | SourceError::Output(_) => Self::Platform(error.into()),
            _ => Self::rejected(error.to_string()),
        }
    }
}
