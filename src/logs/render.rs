//! Log lines for people. An app's output may hold anything, so nothing reaches a terminal that could do more there than colour text.

use std::fmt::Write;

use super::LogRecord;

/// Longest colour sequence that passes, in bytes.
const MAX_SGR: usize = 32;
const ESCAPE: char = '\u{1b}';

/// A record as one line without line end: `2026-01-02T03:04:05.678901Z app[web.2]: text`.
pub fn render_record(record: &LogRecord) -> String {
    let source = record.source.as_str();
    format!("{:.6} {source}[{}]: {}", record.at, render_line(&record.process), render_line(&record.text))
}

/// The text with control characters other than tab made visible (`^[`, `^M`, `\u{9b}`); colours pass, and are reset at the end.
pub fn render_line(text: &str) -> String {
    if !text.chars().any(is_unsafe) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len() + 8);
    let mut coloured = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(length) = colour_sequence(rest) {
            safe.push_str(&rest[..length]);
            coloured = true;
            rest = &rest[length..];
            continue;
        }
        push_visible(&mut safe, c);
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        safe.push_str("\u{1b}[0m");
    }
    safe
}

/// Control characters, and those that change the direction of text.
pub(super) fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_visible(safe: &mut String, c: char) {
    // Writing to a String cannot fail.
    let _ = match c {
        c if !is_unsafe(c) => write!(safe, "{c}"),
        c if c.is_ascii() => write!(safe, "^{}", char::from((c as u8) ^ 0x40)),
        c => write!(safe, "{}", c.escape_unicode()),
    };
}

/// The length of the colour sequence (SGR: `ESC [ digits ; … m`) that the text begins with.
fn colour_sequence(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix(ESCAPE)?.strip_prefix('[')?;
    let end = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    (end <= MAX_SGR && parameters[end..].starts_with('m')).then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colours_pass() {
        for (text, want) in [
            ("plain\ttext ä", "plain\ttext ä"),
            ("\u{1b}[31mred\u{1b}[0m", "\u{1b}[31mred\u{1b}[0m\u{1b}[0m"),
            ("\u{1b}[1;38;5;196mx", "\u{1b}[1;38;5;196mx\u{1b}[0m"),
            ("\u{1b}[mx", "\u{1b}[mx\u{1b}[0m"),
            ("\u{1b}[2J", "^[[2J"),
            ("\u{1b}]0;title\u{7}", "^[]0;title^G"),
            ("\u{1b}[31", "^[[31"),
            ("over\rwrite\u{8}", "over^Mwrite^H"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{7f}\0", "^?^@"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("\u{1b}", "^["),
        ] {
            assert_eq!(render_line(text), want, "{text:?}");
        }
        let long = format!("\u{1b}[{}m", "1;".repeat(40));
        assert!(render_line(&long).starts_with("^[["));
    }

    #[test]
    fn records() {
        let record = LogRecord::berth("2030-01-02T03:04:05.678901234Z".parse().unwrap(), "web.2", "hello\r");
        assert_eq!(render_record(&record), "2030-01-02T03:04:05.678901Z berth[web.2]: hello^M");
    }
}
