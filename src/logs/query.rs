//! What somebody asks of an environment's log.

use std::str::FromStr;

use jiff::{SignedDuration, Span, SpanRelativeTo};

use super::{LogCursor, LogFilter};
use crate::domain::Timestamp;

/// Which lines, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    pub filter: LogFilter,
    /// At most so many, and never more than [`super::MAX_TAIL`]: the last ones or, with `after`, the first ones after it. Who follows from a
    /// place on gets all of them.
    pub lines: usize,
    /// Only what comes after this place.
    pub after: Option<LogCursor>,
}

impl Default for LogQuery {
    /// The last 100 lines.
    fn default() -> Self {
        Self { filter: LogFilter::all(), lines: 100, after: None }
    }
}

/// A moment as people give it: so long ago (`10m`, `1h 30m`, `2d`), or when (`2026-01-02T03:04:05Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Ago(SignedDuration),
    At(Timestamp),
}

/// A text that is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no moment; write how long ago (10m, 2h, 1d), or when, with a time zone (2026-01-02T03:04:05Z)")]
pub struct BadMoment(String);

impl Moment {
    /// When that is.
    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            // What is before all time is asked for when everything is.
            Self::Ago(duration) => now.checked_sub(duration).unwrap_or(Timestamp::MIN),
            Self::At(at) => at,
        }
    }
}

impl FromStr for Moment {
    type Err = BadMoment;

    fn from_str(text: &str) -> Result<Self, BadMoment> {
        let duration = |text: &str| {
            let span: Span = text.parse().ok()?;
            span.to_duration(SpanRelativeTo::days_are_24_hours()).ok().filter(|duration| !duration.is_negative())
        };
        let ago = duration(text).map(Self::Ago);
        let moment = ago.or_else(|| text.parse().ok().map(Self::At));
        moment.ok_or_else(|| BadMoment(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        for (text, at) in [
            ("10m", "2026-01-09T23:50:00Z"),
            ("1h30m", "2026-01-09T22:30:00Z"),
            ("90 s", "2026-01-09T23:58:30Z"),
            ("2d", "2026-01-08T00:00:00Z"),
            ("PT1H", "2026-01-09T23:00:00Z"),
            ("2026-01-02T03:04:05+01:00", "2026-01-02T02:04:05Z"),
            ("2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05.5Z"),
        ] {
            assert_eq!(text.parse::<Moment>().unwrap().at(now), at.parse().unwrap(), "{text}");
        }
        for text in ["", "10", "-10m", "yesterday", "10m ago", "2026-01-02", "1 month"] {
            let error = text.parse::<Moment>().unwrap_err();
            assert!(error.to_string().contains("10m"), "{text}: {error}");
        }
        assert_eq!("9999h".parse::<Moment>().unwrap().at(Timestamp::MIN), Timestamp::MIN);
    }
}
