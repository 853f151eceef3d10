//! Lines of a log, and which of them someone wants.

use std::{convert::Infallible, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::domain::Timestamp;

/// Longest text of a record, in bytes; what is longer is cut.
pub const MAX_TEXT: usize = 16 * 1024;

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// The app's own output.
    App,
    /// The router, one line per request.
    Router,
    /// The platform, about the app: releases, scaling, crashes.
    Berth,
}

impl LogSource {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Router => "router",
            Self::Berth => "berth",
        }
    }
}

/// Which stream of a process a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    #[default]
    Stdout,
    Stderr,
}

impl LogStream {
    fn is_stdout(&self) -> bool {
        *self == Self::Stdout
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    pub at: Timestamp,
    pub source: LogSource,
    /// The process and index, as in `web.2`; for other sources than the app what they speak of, as in `router`.
    pub process: String,
    #[serde(default, skip_serializing_if = "LogStream::is_stdout")]
    pub stream: LogStream,
    /// As it was written, control characters included, without the line end; not more than [`MAX_TEXT`] bytes.
    pub text: String,
    /// The runtime's name of the replica, which tells two replicas called `web.2` apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
}

impl LogRecord {
    /// A line of the platform about `process`.
    pub fn berth(at: Timestamp, process: &str, text: impl Into<String>) -> Self {
        let (process, text) = (process.to_owned(), text.into());
        Self { at, source: LogSource::Berth, process, stream: LogStream::Stdout, text, replica: None }
    }

    /// Cuts the text to the limit, at a character boundary.
    pub(super) fn cut(&mut self) {
        if self.text.len() > MAX_TEXT {
            self.text.truncate(self.text.floor_char_boundary(MAX_TEXT));
        }
    }
}

/// Which lines someone wants: all, those of a process type (`web`), or those of one replica (`web.2`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogFilter {
    process: Option<String>,
}

impl LogFilter {
    /// Every line.
    pub fn all() -> Self {
        Self::default()
    }

    /// Lines of a process type or of one replica.
    pub fn process(name: impl Into<String>) -> Self {
        Self { process: Some(name.into()) }
    }

    /// Whether the line is wanted.
    pub fn matches(&self, record: &LogRecord) -> bool {
        let Some(wanted) = &self.process else { return true };
        match record.process.strip_prefix(wanted.as_str()) {
            Some(rest) => rest.is_empty() || (rest.starts_with('.') && !wanted.contains('.')),
            None => false,
        }
    }
}

impl FromStr for LogFilter {
    type Err = Infallible;

    /// An empty text wants every line.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text.is_empty() { Self::all() } else { Self::process(text) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for (filter, process, wanted) in [
            ("", "web.1", true),
            ("web", "web.1", true),
            ("web", "web.12", true),
            ("web.1", "web.1", true),
            ("web.1", "web.12", false),
            ("web", "webhook.1", false),
            ("web", "router", false),
            ("router", "router", true),
        ] {
            let record = LogRecord::berth(Timestamp::UNIX_EPOCH, process, "x");
            let filter: LogFilter = filter.parse().unwrap_or_default();
            assert_eq!(filter.matches(&record), wanted, "{filter:?} {process}");
        }
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let mut record = LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", "ä".repeat(MAX_TEXT));
        record.text.insert(0, 'x');
        record.cut();
        assert_eq!(record.text.len(), MAX_TEXT - 1);
    }
}
