//! Lines as syslog messages: RFC 5424, framed by counting octets (RFC 6587, RFC 5425).
//!
//! The facility says who wrote a line (local0: the app, local1: the router, local2: the platform), the severity which stream it came from
//! (informational; error for standard error; notice for the platform).

use std::fmt::Write;

use crate::{
    domain::EnvRef,
    logs::{LogRecord, LogSource, LogStream, plain_line, plain_text},
};

/// Longest message, in octets: what RFC 5425 asks receivers to take. The text is cut to fit.
pub(super) const LONGEST_MESSAGE: usize = 8192;
/// Stands at the end of a text that was cut.
const CUT: &str = "…";
/// The fields' lengths (RFC 5424, section 6).
const HOST_NAME: usize = 255;
const APP_NAME: usize = 48;
const PROCESS_ID: usize = 128;
/// Longest value in the structured data, in characters.
const LONGEST_VALUE: usize = 128;
/// The text that follows is UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

const LOCAL0: u8 = 16;
const LOCAL1: u8 = 17;
const LOCAL2: u8 = 18;
const ERROR: u8 = 3;
const NOTICE: u8 = 5;
const INFORMATIONAL: u8 = 6;

/// Adds a line as one frame: `LENGTH SPACE MESSAGE`.
pub(super) fn frame(env: &EnvRef, record: &LogRecord, out: &mut Vec<u8>) {
    let message = message(env, record);
    out.extend_from_slice(message.len().to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(message.as_bytes());
}

fn message(env: &EnvRef, record: &LogRecord) -> String {
    let (process, index) = record.process.split_once('.').unwrap_or((&record.process, ""));
    let host = format!("{}.{}.{}", env.env, env.app, env.tenant);
    let mut message = format!(
        "<{}>1 {:.6} {} {} {} {} ",
        priority(record),
        record.at,
        field(&host, HOST_NAME),
        field(process, APP_NAME),
        field(index, PROCESS_ID),
        record.source.as_str(),
    );
    message.push_str("[berth@32473");
    let names = [("tenant", env.tenant.as_str()), ("app", env.app.as_str()), ("env", env.env.as_str())];
    for (name, value) in names.into_iter().chain(record.replica.iter().map(|id| ("replica", id.as_str()))) {
        // Writing to a String cannot fail.
        let _ = write!(message, " {name}=\"{}\"", escaped(value));
    }
    message.push_str("] ");
    message.push(BYTE_ORDER_MARK);
    let text = plain_text(record.text.trim_end_matches('\r'));
    let room = LONGEST_MESSAGE - message.len();
    if text.len() <= room {
        message.push_str(&text);
    } else {
        message.push_str(&text[..text.floor_char_boundary(room - CUT.len())]);
        message.push_str(CUT);
    }
    message
}

fn priority(record: &LogRecord) -> u8 {
    let (facility, severity) = match (record.source, record.stream) {
        (LogSource::App, LogStream::Stdout) => (LOCAL0, INFORMATIONAL),
        (LogSource::App, LogStream::Stderr) => (LOCAL0, ERROR),
        (LogSource::Router, _) => (LOCAL1, INFORMATIONAL),
        (LogSource::Berth, _) => (LOCAL2, NOTICE),
    };
    facility * 8 + severity
}

/// A header field: printable ASCII without spaces, at most `most` of it; `-` for nothing.
fn field(text: &str, most: usize) -> String {
    let printable: String = text.chars().filter(char::is_ascii_graphic).take(most).collect();
    if printable.is_empty() { "-".to_owned() } else { printable }
}

/// A parameter's value (RFC 5424, section 6.3.3).
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for c in plain_line(value, LONGEST_VALUE).chars() {
        if matches!(c, '"' | '\\' | ']') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> EnvRef {
        "acme/shop/dev".parse().unwrap()
    }

    fn record(text: &str) -> LogRecord {
        LogRecord {
            at: "2030-01-02T03:04:05.678901234Z".parse().unwrap(),
            source: LogSource::App,
            process: "web.2".into(),
            stream: LogStream::Stdout,
            text: text.into(),
            replica: None,
        }
    }

    #[test]
    fn messages() {
        let header = "1 2030-01-02T03:04:05.678901Z dev.shop.acme";
        let data = "[berth@32473 tenant=\"acme\" app=\"shop\" env=\"dev\"";
        let error = LogRecord { stream: LogStream::Stderr, ..record("it broke") };
        let router = LogRecord { source: LogSource::Router, process: "router".into(), ..record("at=info") };
        let berth = LogRecord { source: LogSource::Berth, ..record("v2 is deployed") };
        let odd = LogRecord { process: "we b\u{1b}é.\n".into(), replica: Some("a\"b]c\\d\n".into()), ..record("") };
        for (record, want) in [
            (record("héllo"), format!("<134>{header} web 2 app {data}] \u{feff}héllo")),
            (error, format!("<131>{header} web 2 app {data}] \u{feff}it broke")),
            (router, format!("<142>{header} router - router {data}] \u{feff}at=info")),
            (berth, format!("<149>{header} web 2 berth {data}] \u{feff}v2 is deployed")),
            (odd, format!("<134>{header} web - app {data} replica=\"a\\\"b\\]c\\\\d\"] \u{feff}")),
            // What was written over is there.
            (record("hidden\rseen\r"), format!("<134>{header} web 2 app {data}] \u{feff}hidden^Mseen")),
            // No second message, no terminal's escape, no other direction of text.
            (
                record("<script>\u{1b}[2Jx\n<13>1 - - - - - -\u{202e}\0\u{9b}31m"),
                format!(
                    "<134>{header} web 2 app {data}] \u{feff}<script>^[[2Jx^J<13>1 - - - - - -\\u{{202e}}^@\\u{{9b}}31m"
                ),
            ),
        ] {
            assert_eq!(message(&env(), &record), want);
        }
    }

    #[test]
    fn frames_count_octets_and_are_bounded() {
        let mut out = Vec::new();
        for text in ["ä", "b"] {
            frame(&env(), &record(text), &mut out);
        }
        let mut rest = std::str::from_utf8(&out).unwrap();
        for text in ["ä", "b"] {
            let (length, after) = rest.split_once(' ').unwrap();
            let (message, after) = after.split_at(length.parse().unwrap());
            assert!(message.starts_with("<134>1 ") && message.ends_with(&format!("\u{feff}{text}")), "{message}");
            rest = after;
        }
        assert_eq!(rest, "");
        for text in ["x".repeat(20_000), "ä".repeat(9000)] {
            let message = message(&env(), &record(&text));
            assert!((LONGEST_MESSAGE - 1..=LONGEST_MESSAGE).contains(&message.len()) && message.ends_with(CUT));
        }
    }
}
