//! Lines of a log, and which of them someone wants.

use std::{ops::Deref, str::FromStr, sync::OnceLock};

use serde::{Deserialize, Serialize};

use super::{LogCursor, safe_json};
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

/// A word that names no source, or no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no {0}; there are {1}")]
pub struct NotOne(&'static str, &'static str);

impl FromStr for LogSource {
    type Err = NotOne;

    fn from_str(word: &str) -> Result<Self, NotOne> {
        let mut all = [Self::App, Self::Router, Self::Berth].into_iter();
        all.find(|source| source.as_str() == word).ok_or(NotOne("such source", "app, router and berth"))
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

impl FromStr for LogStream {
    type Err = NotOne;

    fn from_str(word: &str) -> Result<Self, NotOne> {
        match word {
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            _ => Err(NotOne("such stream", "stdout and stderr")),
        }
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

/// A record as it is read, with its place in the log. All who follow share it.
#[derive(Debug, Serialize)]
pub struct LogEntry {
    #[serde(flatten)]
    record: LogRecord,
    /// Where to go on after it; `None` when it could not be written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<LogCursor>,
    #[serde(skip)]
    json: OnceLock<Box<str>>,
}

impl LogEntry {
    pub(super) fn new(record: LogRecord, cursor: Option<LogCursor>) -> Self {
        Self { record, cursor, json: OnceLock::new() }
    }

    /// What a reader goes on after, to have the next line and all that follow; `None` when the line could not be written down.
    pub fn cursor(&self) -> Option<LogCursor> {
        self.cursor
    }

    /// The record and its `cursor` as JSON in one line, exact and harmless to a terminal ([`safe_json`]). Made once for all who follow.
    pub fn json(&self) -> &str {
        self.json.get_or_init(|| safe_json(self).into_boxed_str())
    }
}

impl PartialEq for LogEntry {
    fn eq(&self, other: &Self) -> bool {
        (&self.record, self.cursor) == (&other.record, other.cursor)
    }
}

impl Eq for LogEntry {}

impl Deref for LogEntry {
    type Target = LogRecord;

    fn deref(&self) -> &LogRecord {
        &self.record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_at_a_character() {
        let mut record = LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", "ä".repeat(MAX_TEXT));
        record.text.insert(0, 'x');
        record.cut();
        assert_eq!(record.text.len(), MAX_TEXT - 1);
    }

    #[test]
    fn an_entry_is_one_harmless_line_of_json_that_says_all() {
        let text = "\u{1b}]52;c;eA==\u{7}\u{9b}2J\u{202e}\u{200b}\u{e0041}\r\n<script>\u{7f}";
        let record = LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", text);
        let entry = LogEntry::new(record.clone(), Some("1-2f-c".parse().unwrap()));
        let json = entry.json();
        assert!(json.chars().all(|c| !super::super::is_unsafe(c)), "{json:?}");
        let read: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!((&read["text"], &read["cursor"]), (&text.into(), &"1-2f-0000000c".into()));
        assert_eq!(serde_json::from_str::<LogRecord>(json).unwrap(), record);
    }
}
