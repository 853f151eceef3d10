//! What a client reads when no replica answers: a small page for browsers, plain text for everything else.

use std::fmt::Write;

use crate::domain::EnvRef;

/// Why the router answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble<'a> {
    /// The request cannot be served as it is; the text says why.
    BadRequest(&'static str),
    /// The request head is larger than the limit.
    HeadTooLarge,
    /// No environment answers at this host.
    UnknownHost { host: &'a str, base_domain: &'a str },
    /// The environment exists and nothing was ever deployed to it.
    NoRelease { env: &'a EnvRef, push_base: &'a str },
    /// Nothing runs that could answer.
    NoReplica { env: &'a EnvRef },
    /// No replica took the connection.
    Unreachable { env: &'a EnvRef },
    /// The replica closed the connection, or answered with something other than HTTP.
    BadAnswer { env: &'a EnvRef },
    /// No first byte in time.
    TooLate { env: &'a EnvRef, seconds: u64 },
    /// Something in the router itself.
    Internal,
}

/// An answer of the router's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
    /// Seconds after which it is worth trying again.
    pub(super) retry_after: Option<u32>,
}

impl Trouble<'_> {
    /// Status, as in Heroku's router where that has one for the case.
    fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::HeadTooLarge => 431,
            Self::UnknownHost { .. } => 404,
            Self::NoRelease { .. } | Self::NoReplica { .. } | Self::Unreachable { .. } => 503,
            Self::BadAnswer { .. } => 502,
            Self::TooLate { .. } => 504,
            Self::Internal => 500,
        }
    }

    /// Heading and explanation, both plain text.
    fn text(&self) -> (&'static str, String) {
        match self {
            Self::BadRequest(why) => ("Bad request", format!("The request cannot be served: {why}.")),
            Self::HeadTooLarge => (
                "Request header too large",
                "Address, cookies and other headers are larger than 64 KiB together.".to_owned(),
            ),
            Self::UnknownHost { host, base_domain } => (
                "No app at this address",
                format!(
                    "No app answers at {host}.\nApps answer at APP.TENANT.{base_domain}, their other environments at \
                     ENV.APP.TENANT.{base_domain}.\nIf this is your own domain, add it to its app first: domains add TENANT/APP/ENV {host}"
                ),
            ),
            Self::NoRelease { env, push_base } => (
                "Nothing deployed yet",
                format!(
                    "{env} is ready for its first push:\n\n    git remote add paas-dev {push_base}/{env}\n    git push paas-dev main"
                ),
            ),
            Self::NoReplica { env } => (
                "No healthy replica",
                format!(
                    "{env} has no replica that could answer just now.\nIts owner sees why with: ps {env}, logs {env}"
                ),
            ),
            Self::Unreachable { env } => (
                "App not reachable",
                format!("No replica of {env} took the connection.\nIts owner sees why with: ps {env}, logs {env}"),
            ),
            Self::BadAnswer { env } => (
                "App closed the connection",
                format!(
                    "A replica of {env} closed the connection without a complete answer.\nIts owner sees why with: logs {env}"
                ),
            ),
            Self::TooLate { env, seconds } => (
                "App took too long",
                format!(
                    "A replica of {env} sent no answer within {seconds} s.\nLong work belongs in a worker process; a stream has to send \
                     its first byte in time."
                ),
            ),
            Self::Internal => ("Router error", "The router failed to pass this request on.".to_owned()),
        }
    }

    /// The answer, in HTML if `html`, with the request id by which its log line is found.
    pub(super) fn page(&self, html: bool, request_id: &str) -> Page {
        let (heading, text) = self.text();
        let status = self.status();
        let retry_after = matches!(self, Self::NoReplica { .. } | Self::Unreachable { .. }).then_some(5);
        let (content_type, body) = if html {
            ("text/html; charset=utf-8", html_page(status, heading, &text, request_id))
        } else {
            ("text/plain; charset=utf-8", format!("{status} {heading}\n\n{text}\n\nRequest id: {request_id}\n"))
        };
        Page { status, content_type, body, retry_after }
    }
}

fn html_page(status: u16, heading: &str, text: &str, request_id: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{status} {heading}</title>\n<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42em;margin:4em auto;padding:0 1em;\
         color:#222;background:#fff}}pre{{font:14px/1.6 ui-monospace,monospace;white-space:pre-wrap;background:#f4f4f4;padding:1em}}\
         small{{color:#595959}}</style></head>\n<body><h1>{heading}</h1>\n<pre>{}</pre>\n<p><small>{status} · request {}</small></p>\
         </body></html>\n",
        escape(text),
        escape(request_id)
    )
}

/// Text as HTML text. Control characters other than line ends are shown as `\u{…}`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' => escaped.push('\n'),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "{}", c.escape_unicode());
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// Whether the client asks for HTML by name, as browsers do; `*/*` alone (curl, programs) means text.
pub(super) fn wants_html(accept: Option<&[u8]>) -> bool {
    accept.is_some_and(|accept| {
        accept.split(|byte| *byte == b',').any(|part| part.trim_ascii().starts_with(b"text/html"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trouble_has_its_status_and_says_what_to_do() {
        let env: EnvRef = "acme/shop/dev".parse().unwrap();
        let env = &env;
        let push_base = "ssh://berth@host:2222";
        for (trouble, status, says) in [
            (Trouble::BadRequest("no Host header"), 400, "no Host header"),
            (Trouble::HeadTooLarge, 431, "64 KiB"),
            (Trouble::UnknownHost { host: "x.localhost", base_domain: "localhost" }, 404, "APP.TENANT.localhost"),
            (Trouble::NoRelease { env, push_base }, 503, "git remote add paas-dev ssh://berth@host:2222/acme/shop/dev"),
            (Trouble::NoReplica { env }, 503, "logs acme/shop/dev"),
            (Trouble::Unreachable { env }, 503, "ps acme/shop/dev"),
            (Trouble::BadAnswer { env }, 502, "closed the connection"),
            (Trouble::TooLate { env, seconds: 30 }, 504, "within 30 s"),
            (Trouble::Internal, 500, "router"),
        ] {
            for html in [false, true] {
                let page = trouble.page(html, "id-1");
                assert_eq!(page.status, status, "{trouble:?}");
                assert!(page.body.contains(says) && page.body.contains("id-1"), "{}", page.body);
                assert_eq!(page.content_type.starts_with("text/html"), html);
            }
        }
        assert_eq!(Trouble::NoReplica { env }.page(false, "").retry_after, Some(5));
    }

    #[test]
    fn what_the_client_sent_is_escaped() {
        let host = "<script>\"'&\u{1b}</script>";
        let page = Trouble::UnknownHost { host, base_domain: "localhost" }.page(true, "<id>");
        assert!(
            !page.body.contains("<script>") && !page.body.contains('\u{1b}') && !page.body.contains("<id>"),
            "{}",
            page.body
        );
        assert!(page.body.contains("&lt;script&gt;&quot;&#39;&amp;"), "{}", page.body);
    }

    #[test]
    fn accept_headers() {
        for (accept, html) in [
            (None, false),
            (Some("*/*"), false),
            (Some("application/json"), false),
            (Some("text/html,application/xhtml+xml,*/*;q=0.8"), true),
            (Some("application/json, text/html;q=0.5"), true),
        ] {
            assert_eq!(wants_html(accept.map(str::as_bytes)), html, "{accept:?}");
        }
    }
}
