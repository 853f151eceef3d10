//! How grave a line says it is. Apps write that in many ways; this knows those of the usual loggers.

use std::str::FromStr;

use super::plain::plain_line;

/// So much of a line is looked at, in characters.
const LOOKED_AT: usize = 200;
/// Keys whose value is the level, as logfmt (`level=error`) and JSON (`"level":"error"`) have them. `at`: Heroku's router and this one.
const KEYS: [&str; 6] = ["level", "lvl", "severity", "levelname", "loglevel", "at"];

/// From harmless to grave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

/// A word that is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no level; there are trace, debug, info, warn, error and fatal")]
pub struct NoLevel(String);

impl FromStr for LogLevel {
    type Err = NoLevel;

    /// The words that loggers use, in any case.
    fn from_str(word: &str) -> Result<Self, NoLevel> {
        Ok(match word.to_ascii_lowercase().as_str() {
            "trace" | "trc" | "verbose" => Self::Trace,
            "debug" | "dbg" => Self::Debug,
            "info" | "inf" | "information" | "notice" => Self::Info,
            "warn" | "wrn" | "warning" => Self::Warn,
            "error" | "err" | "severe" => Self::Error,
            "fatal" | "ftl" | "critical" | "crit" | "alert" | "emerg" | "emergency" | "panic" => Self::Fatal,
            _ => return Err(NoLevel(word.chars().take(32).collect())),
        })
    }
}

impl LogLevel {
    /// The level that the line's first 200 characters name, colours aside: as the value of a key (`level=error`, `"level":"error"`, the
    /// numbers of bunyan and pino), in brackets (`[error]`), in front of a colon at the very beginning (`Error: …`), or as a word in
    /// capitals. Where there are several, a key counts most, then what comes first.
    pub fn of(text: &str) -> Option<Self> {
        let start: String;
        let text = match text.contains(['\u{1b}', '\u{9b}']) {
            true => {
                start = plain_line(text, LOOKED_AT);
                start.as_str()
            }
            false => text.char_indices().nth(LOOKED_AT).map_or(text, |(end, _)| &text[..end]),
        };
        let words = || Words { text, at: 0 };
        let keyed = words().find_map(|(start, end)| {
            let is_key = KEYS.iter().any(|key| text[start..end].eq_ignore_ascii_case(key));
            if is_key { value_of_key(&text[..start], &text[end..]) } else { None }
        });
        keyed.or_else(|| words().find_map(|(start, end)| bare(&text[..start], &text[start..end], &text[end..])))
    }
}

/// Where the words of a text are: runs of letters, digits and underscores.
struct Words<'a> {
    text: &'a str,
    at: usize,
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl Iterator for Words<'_> {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at + self.text[self.at..].find(is_of_word)?;
        let end = self.text[start..].find(|c| !is_of_word(c)).map_or(self.text.len(), |length| start + length);
        self.at = end;
        Some((start, end))
    }
}

/// The level after a key of logfmt or JSON.
fn value_of_key(before: &str, after: &str) -> Option<LogLevel> {
    let in_quotes = before.ends_with('"');
    let after =
        if in_quotes { after.strip_prefix('"')?.trim_start().strip_prefix(':')? } else { after.strip_prefix('=')? };
    let value = after.trim_start();
    let value = value.strip_prefix('"').unwrap_or(value);
    let value = &value[..value.find(|c| !is_of_word(c)).unwrap_or(value.len())];
    match value.parse::<u32>() {
        // As in pino and bunyan.
        Ok(number @ 10..=69) if in_quotes => {
            use LogLevel::{Debug, Error, Fatal, Info, Trace, Warn};
            [Trace, Debug, Info, Warn, Error, Fatal].get(number as usize / 10 - 1).copied()
        }
        _ => value.parse().ok(),
    }
}

/// The level that a word by itself names.
fn bare(before: &str, word: &str, after: &str) -> Option<LogLevel> {
    let level = word.parse().ok()?;
    let in_brackets = before.trim_end_matches(' ').ends_with('[') && after.trim_start_matches(' ').starts_with(']');
    let first = before.is_empty() && after.starts_with(':');
    // What is part of a name (`ERROR-42`, `a.INFO`, `/ERROR`) says nothing.
    let alone = before.chars().next_back().is_none_or(|c| c.is_whitespace() || "[(<|:".contains(c))
        && after.chars().next().is_none_or(|c| c.is_whitespace() || "])>|:,".contains(c));
    let in_capitals = word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase());
    (in_brackets || first || alone && in_capitals).then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        use LogLevel::*;
        for (text, level) in [
            ("level=error msg=\"it broke\"", Some(Error)),
            ("time=2026-01-02 lvl=WARN msg=x", Some(Warn)),
            ("severity=\"Critical\" x", Some(Fatal)),
            ("at=info method=GET path=\"/\"", Some(Info)),
            ("at=error error=no-healthy-replica", Some(Error)),
            (r#"{"level":"error","msg":"x"}"#, Some(Error)),
            (r#"{"time":"x", "severity" : "WARNING"}"#, Some(Warn)),
            (r#"{"level":50,"time":1}"#, Some(Error)),
            (r#"{"level":35}"#, Some(Info)),
            (r#"{"level":7}"#, None),
            ("[ERROR] it broke", Some(Error)),
            ("[2026-01-02 10:00:00 +0000] [12] [info] Booting", Some(Info)),
            ("[ warn ] x", Some(Warn)),
            ("ERROR: relation does not exist", Some(Error)),
            ("Error: Cannot find module", Some(Error)),
            ("warning: unused", Some(Warn)),
            ("WARNING:root:careful", Some(Warn)),
            ("2026-01-02 10:00:00,123 - name - CRITICAL - x", Some(Fatal)),
            ("2026-01-02T10:00:00Z ERROR app: x", Some(Error)),
            ("10:00:00.123 [main] DEBUG c.e.Foo - ERROR in a word", Some(Debug)),
            ("\u{1b}[2m2026\u{1b}[0m \u{1b}[31mERROR\u{1b}[0m app", Some(Error)),
            // What was meant for a key counts more than what stands before it.
            ("ERROR level=info", Some(Info)),
            ("level=unknown ERROR x", Some(Error)),
            ("no error here", None),
            ("an error: it broke", None),
            ("GET /ERROR/INFO?level 200", None),
            ("ERROR-42 and a.INFO", None),
            ("info", None),
            ("ein FEHLER", None),
            ("", None),
            ("\u{1b}", None),
        ] {
            assert_eq!(LogLevel::of(text), level, "{text:?}");
        }
        assert_eq!(LogLevel::of(&format!("{} ERROR", "ä".repeat(190))), Some(Error));
        assert_eq!(LogLevel::of(&format!("{} ERROR", "ä".repeat(200))), None);
        assert!("loud".parse::<LogLevel>().unwrap_err().to_string().contains("fatal"));
    }
}
