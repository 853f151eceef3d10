//! URLs that users give.

use url::{ParseError, Url};

/// Reads a URL more strictly than the URL Standard's parser, which reads `https:///x`, `https:x` and `https:\\x` as `https://x/` and skips tabs and
/// ends of lines: what somebody forgot would become a host.
///
/// # Errors
/// What is wrong with it.
pub fn parse_url(text: &str) -> Result<Url, String> {
    if text.contains(|c: char| c.is_ascii_control()) || text.trim() != text {
        return Err("it has a space at an end, a tab or the end of a line in it".to_owned());
    }
    let url = Url::parse(text).map_err(|error| match error {
        ParseError::RelativeUrlWithoutBase => "it must begin as in https://example.com".to_owned(),
        error => error.to_string(),
    })?;
    let rest = text.split_once(':').and_then(|(_, rest)| rest.strip_prefix("//"));
    let names_host = rest.is_some_and(|rest| !rest.starts_with(['/', '\\', '?', '#']));
    if names_host { Ok(url) } else { Err("it names no host, as in https://example.com".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_forgotten_becomes_a_host() {
        for text in ["https://x", "HTTPS://x/a?b", "http://[::1]:80/", "syslog+tls://x:1"] {
            assert!(parse_url(text).is_ok(), "{text}");
        }
        let no_slashes = ["https:x", "https:/x", "https:\\\\x/y://z", "x", ""];
        let no_host = [
            "https:///x",
            "https://\\x",
            "https://?x",
            "https://",
            "https://\t/x",
            "https:/\n//x",
            "https://\r\\x",
            " https://x",
            "https://x\n",
        ];
        for text in no_slashes.into_iter().chain(no_host) {
            assert!(parse_url(text).is_err(), "{text}");
        }
    }
}
