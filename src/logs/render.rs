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

/// A record as one line of plain text without line end, as [`render_record`] but without colours: for whatever is not a terminal.
pub fn plain_record(record: &LogRecord) -> String {
    let source = record.source.as_str();
    format!("{:.6} {source}[{}]: {}", record.at, plain_text(&record.process), plain_text(&record.text))
}

/// The text without colours, with control characters other than tab made visible as by [`render_line`].
pub fn plain_text(text: &str) -> String {
    if !text.chars().any(is_unsafe) {
        return text.to_owned();
    }
    let mut plain = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = colour_sequence(rest);
        if length.is_none() {
            push_visible(&mut plain, c);
        }
        rest = &rest[length.unwrap_or(c.len_utf8())..];
    }
    plain
}

/// A value as JSON in one line that reads back exactly, with everything that [`is_unsafe`] escaped (RFC 8259, section 7): what is printed on
/// a terminal may be JSON, too, and JSON itself asks only for U+0000 to U+001F to be escaped. HTML is not what this makes harmless.
pub fn safe_json(value: &impl serde::Serialize) -> String {
    // Fails for maps with keys that are no text, and for what cannot say itself; neither is here.
    let json = serde_json::to_string(value).unwrap_or_default();
    if !json.chars().any(is_unsafe) {
        return json;
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Characters that do something to where they are shown rather than to be seen: control characters other than tab (those of C1 among
/// them, which terminals take for escape sequences), those that change the direction of text, that have no width, or that end lines.
pub fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c,
            // Direction: marks, embeddings, overrides, isolates.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Without width; the deprecated ones, and tags, too. Joiners are part of how words and emoji are written, and stay.
            | '\u{ad}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
            // Line and paragraph separator.
            | '\u{2028}' | '\u{2029}')
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
    use crate::domain::Timestamp;

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

    /// Lines that an app may write to harm whoever reads them: for terminals, as plain text, as JSON.
    #[test]
    fn hostile_lines_are_harmless_everywhere() {
        for (text, terminal, plain, json) in [
            // The clipboard (OSC 52), a title, the screen.
            (
                "\u{1b}]52;c;cm0gLXJm\u{7}x",
                "^[]52;c;cm0gLXJm^Gx",
                "^[]52;c;cm0gLXJm^Gx",
                r#""\u001b]52;c;cm0gLXJm\u0007x""#,
            ),
            ("\u{1b}[31mred", "\u{1b}[31mred\u{1b}[0m", "red", r#""\u001b[31mred""#),
            ("\u{1b}[2J\u{1b}[6n", "^[[2J^[[6n", "^[[2J^[[6n", r#""\u001b[2J\u001b[6n""#),
            ("\u{1b}c\u{1b}P1$r\u{1b}\\", "^[c^[P1$r^[\\", "^[c^[P1$r^[\\", r#""\u001bc\u001bP1$r\u001b\\""#),
            // The same as single characters (C1).
            (
                "\u{9b}2J\u{9d}0;t\u{9c}",
                "\\u{9b}2J\\u{9d}0;t\\u{9c}",
                "\\u{9b}2J\\u{9d}0;t\\u{9c}",
                r#""\u009b2J\u009d0;t\u009c""#,
            ),
            ("user\u{202e}nimda", "user\\u{202e}nimda", "user\\u{202e}nimda", r#""user\u202enimda""#),
            ("a\u{200b}b\u{feff}", "a\\u{200b}b\\u{feff}", "a\\u{200b}b\\u{feff}", r#""a\u200bb\ufeff""#),
            ("\u{e0041}", "\\u{e0041}", "\\u{e0041}", r#""\udb40\udc41""#),
            // A second line, made up.
            (
                "x\n2030 app[web.1]: ok",
                "x^J2030 app[web.1]: ok",
                "x^J2030 app[web.1]: ok",
                r#""x\n2030 app[web.1]: ok""#,
            ),
            ("x\u{2028}\u{85}", "x\\u{2028}\\u{85}", "x\\u{2028}\\u{85}", r#""x\u2028\u0085""#),
            // Markup is for those who make HTML of it.
            (
                "<script>alert(1)</script>",
                "<script>alert(1)</script>",
                "<script>alert(1)</script>",
                r#""<script>alert(1)</script>""#,
            ),
            ("👩\u{200d}💻 ok", "👩\u{200d}💻 ok", "👩\u{200d}💻 ok", "\"👩\u{200d}💻 ok\""),
        ] {
            assert_eq!(render_line(text), terminal, "{text:?}");
            assert_eq!(plain_text(text), plain, "{text:?}");
            assert_eq!(safe_json(&text), json, "{text:?}");
            assert_eq!(serde_json::from_str::<String>(&safe_json(&text)).unwrap(), text);
            assert!(!plain_text(text).chars().any(is_unsafe) && !safe_json(&text).chars().any(is_unsafe), "{text:?}");
        }
        let record = LogRecord::berth(Timestamp::UNIX_EPOCH, "web\u{1b}[31m", "\u{1b}[31mx\u{1b}[m\r");
        assert_eq!(plain_record(&record), "1970-01-01T00:00:00.000000Z berth[web]: x^M");
    }
}
