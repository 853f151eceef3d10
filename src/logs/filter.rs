//! Which lines of a log someone wants.

use super::{LogLevel, LogRecord, LogSource, LogStream};
use crate::domain::Timestamp;

/// Longest text that is searched for, in bytes.
pub const MAX_SEARCH: usize = 256;

/// Which lines someone wants: those for which everything that is given holds; the default wants all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogFilter {
    /// A process type (`web`), one replica of it (`web.2`), or what else is in its place (`router`, `release`, `cron.report`).
    pub process: Option<String>,
    /// The runtime's name of a replica.
    pub replica: Option<String>,
    pub source: Option<LogSource>,
    pub stream: Option<LogStream>,
    /// From this moment on.
    pub since: Option<Timestamp>,
    /// Before this moment.
    pub until: Option<Timestamp>,
    pub search: Option<Search>,
    /// At least as grave, as far as the line says ([`LogLevel::of`]); a line that says nothing about it is not wanted then.
    pub level: Option<LogLevel>,
}

/// A text that is searched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    text: String,
    any_case: bool,
}

/// A text that cannot be searched for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSearch {
    #[error("an empty text cannot be searched for")]
    Empty,
    #[error("a text of more than {MAX_SEARCH} bytes cannot be searched for")]
    Long,
}

impl Search {
    /// Lines that have `text` in them; with `any_case` in capitals and small letters alike.
    ///
    /// # Errors
    /// When the text is empty or longer than [`MAX_SEARCH`].
    pub fn new(text: &str, any_case: bool) -> Result<Self, BadSearch> {
        match text.len() {
            0 => Err(BadSearch::Empty),
            1..=MAX_SEARCH => {
                let text = if any_case { text.to_lowercase() } else { text.to_owned() };
                Ok(Self { text, any_case })
            }
            _ => Err(BadSearch::Long),
        }
    }

    fn is_in(&self, line: &str) -> bool {
        if self.any_case { line.to_lowercase().contains(&self.text) } else { line.contains(&self.text) }
    }
}

impl LogFilter {
    /// Every line.
    pub fn all() -> Self {
        Self::default()
    }

    /// Lines of a process type or of one replica.
    pub fn process(name: impl Into<String>) -> Self {
        Self { process: Some(name.into()), ..Self::default() }
    }

    /// Whether the line is wanted.
    pub fn matches(&self, record: &LogRecord) -> bool {
        self.matches_origin(record) && self.matches_text(record)
    }

    /// Whether it is by where and when it was written. This costs next to nothing.
    pub(super) fn matches_origin(&self, record: &LogRecord) -> bool {
        self.process.as_ref().is_none_or(|wanted| is_process(wanted, &record.process))
            && self.replica.as_ref().is_none_or(|wanted| record.replica.as_ref() == Some(wanted))
            && self.source.is_none_or(|wanted| record.source == wanted)
            && self.stream.is_none_or(|wanted| record.stream == wanted)
            && self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at < until)
    }

    /// Whether it is by what it says.
    pub(super) fn matches_text(&self, record: &LogRecord) -> bool {
        self.search.as_ref().is_none_or(|search| search.is_in(&record.text))
            && self.level.is_none_or(|wanted| LogLevel::of(&record.text).is_some_and(|level| level >= wanted))
    }
}

fn is_process(wanted: &str, process: &str) -> bool {
    match process.strip_prefix(wanted) {
        Some(rest) => rest.is_empty() || (rest.starts_with('.') && !wanted.contains('.')),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes() {
        for (wanted, process, matches) in [
            ("web", "web.1", true),
            ("web", "web.12", true),
            ("web.1", "web.1", true),
            ("web.1", "web.12", false),
            ("web", "webhook.1", false),
            ("web", "router", false),
            ("router", "router", true),
        ] {
            let record = LogRecord::berth(Timestamp::UNIX_EPOCH, process, "x");
            assert_eq!(LogFilter::process(wanted).matches(&record), matches, "{wanted} {process}");
            assert!(LogFilter::all().matches(&record));
        }
    }

    #[test]
    fn everything_that_is_given_must_hold() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let record = LogRecord {
            at: at(100).unwrap(),
            source: LogSource::App,
            process: "web.2".to_owned(),
            stream: LogStream::Stderr,
            text: "[error] Größe too LARGE".to_owned(),
            replica: Some("abc".to_owned()),
        };
        let all = LogFilter::all;
        let search = |text, any_case| Some(Search::new(text, any_case).unwrap());
        for (filter, matches) in [
            (LogFilter { replica: Some("abc".into()), ..all() }, true),
            (LogFilter { replica: Some("ab".into()), ..all() }, false),
            (LogFilter { source: Some(LogSource::App), ..all() }, true),
            (LogFilter { source: Some(LogSource::Router), ..all() }, false),
            (LogFilter { stream: Some(LogStream::Stderr), ..all() }, true),
            (LogFilter { stream: Some(LogStream::Stdout), ..all() }, false),
            (LogFilter { since: at(100), until: at(101), ..all() }, true),
            (LogFilter { since: at(101), ..all() }, false),
            (LogFilter { until: at(100), ..all() }, false),
            (LogFilter { search: search("too LARGE", false), ..all() }, true),
            (LogFilter { search: search("too large", false), ..all() }, false),
            (LogFilter { search: search("GRÖSSE", true), ..all() }, false),
            (LogFilter { search: search("GRÖßE TOO", true), ..all() }, true),
            (LogFilter { level: Some(LogLevel::Warn), ..all() }, true),
            (LogFilter { level: Some(LogLevel::Error), ..all() }, true),
            (LogFilter { level: Some(LogLevel::Fatal), ..all() }, false),
            (LogFilter { level: Some(LogLevel::Error), process: Some("worker".into()), ..all() }, false),
        ] {
            assert_eq!(filter.matches(&record), matches, "{filter:?}");
        }
        let silent = LogRecord { text: "no level".to_owned(), ..record };
        assert!(!LogFilter { level: Some(LogLevel::Trace), ..all() }.matches(&silent));
        assert_eq!(Search::new("", true), Err(BadSearch::Empty));
        assert_eq!(Search::new(&"x".repeat(MAX_SEARCH + 1), true), Err(BadSearch::Long));
    }
}
