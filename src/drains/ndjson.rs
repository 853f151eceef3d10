//! Lines as JSON objects, one per line.

use serde::Serialize;

use crate::{
    domain::{AppName, EnvName, EnvRef, TenantName},
    logs::{LogRecord, LogSource, LogStream, plain_text},
};

/// One line of an environment's log, as a receiver gets it.
#[derive(Serialize)]
struct Line<'a> {
    /// RFC 3339, microseconds.
    time: String,
    tenant: &'a TenantName,
    app: &'a AppName,
    env: &'a EnvName,
    source: LogSource,
    process: &'a str,
    stream: LogStream,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<&'a str>,
    /// Without colours, and with control characters made visible: nothing that an app has written is left out.
    text: String,
}

/// Adds a line. It has none of the characters that HTML is made of: whoever puts it into a page as it is does no harm.
pub(super) fn line(env: &EnvRef, record: &LogRecord, out: &mut Vec<u8>) {
    let line = Line {
        time: format!("{:.6}", record.at),
        tenant: &env.tenant,
        app: &env.app,
        env: &env.env,
        source: record.source,
        process: &record.process,
        stream: record.stream,
        replica: record.replica.as_deref(),
        text: plain_text(record.text.trim_end_matches('\r')),
    };
    // Plain strings: nothing that could fail.
    for byte in serde_json::to_vec(&line).unwrap_or_default() {
        match byte {
            // In JSON they stand in strings alone.
            b'<' | b'>' | b'&' => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            byte => out.push(byte),
        }
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let record = LogRecord {
            at: "2030-01-02T03:04:05.678901234Z".parse().unwrap(),
            source: LogSource::App,
            process: "web.2".into(),
            stream: LogStream::Stderr,
            text: "<script>\u{1b}[31m\"ä\" &\n\u{9b}2J\u{2028}".into(),
            replica: Some("abc".into()),
        };
        let mut out = Vec::new();
        line(&"acme/shop/dev".parse().unwrap(), &record, &mut out);
        assert_eq!(
            String::from_utf8(out.clone()).unwrap(),
            "{\"time\":\"2030-01-02T03:04:05.678901Z\",\"tenant\":\"acme\",\"app\":\"shop\",\"env\":\"dev\",\"source\":\"app\",\
             \"process\":\"web.2\",\"stream\":\"stderr\",\"replica\":\"abc\",\
             \"text\":\"\\u003cscript\\u003e\\\"ä\\\" \\u0026^J\\\\u{9b}2J\\\\u{2028}\"}\n"
        );
        let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(read["text"], "<script>\"ä\" &^J\\u{9b}2J\\u{2028}");
    }
}
