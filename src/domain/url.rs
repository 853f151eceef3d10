//! URLs that users give.

use url::Url;

/// Reads a URL more strictly than the URL Standard's parser, which reads `https:///x`, `https:x` and `https:\\x` as `https://x/` and skips tabs and
/// ends of lines: what somebody forgot would become a host.
///
/// # Errors
/// What is wrong with it.
pub fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if text.contains(['\t', '\n', '\r']) {
        return Err("it has a tab or the end of a line in it".to_owned());
    }
    let rest = text.split_once(':').and_then(|(_, rest)| rest.strip_prefix("//"));
    let names_host = rest.is_some_and(|rest| !rest.starts_with(['/', '\\', '?', '#']));
    if names_host { Ok(url) } else { Err("it names no host after ://".to_owned()) }
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
        let no_host =
            ["https:///x", "https://\\x", "https://?x", "https://", "https://\t/x", "https:/\n//x", "https://\r\\x"];
        for text in no_slashes.into_iter().chain(no_host) {
            assert!(parse_url(text).is_err(), "{text}");
        }
    }
}
