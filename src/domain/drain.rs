//! Log drains: where an environment's log is sent as it is written, and how far that has come.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::{EnvRef, Timestamp, UserName, url::parse_url};

/// Longest URL of a drain, in bytes.
const LONGEST_URL: usize = 2048;
/// Where syslog over TLS is received unless the URL says otherwise (RFC 5425).
const SYSLOG_TLS_PORT: u16 = 6514;

/// A place in an environment's log: everything before it has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrainCursor {
    /// The file of the ring, and the bytes before the place in it, uncompressed.
    pub sequence: u64,
    pub offset: u64,
    /// The lines that were ever written before it, those that are not kept any more included.
    pub line: u64,
}

/// How a drain is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainScheme {
    /// RFC 5424 over TCP.
    Syslog,
    /// RFC 5424 over TLS (RFC 5425).
    SyslogTls,
    Http,
    Https,
}

/// The URL of a drain. User name, password, path and query are secrets: what is printed of it has none of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DrainUrl {
    url: Url,
    scheme: DrainScheme,
}

/// Why a text is no URL of a drain. Does not quote it, as it may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no URL of a log drain: {0}")]
pub struct DrainUrlError(String);

impl DrainUrl {
    /// How it is spoken to.
    pub fn scheme(&self) -> DrainScheme {
        self.scheme
    }

    /// The host name or address; an IPv6 address without brackets.
    pub fn host(&self) -> String {
        match self.url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) => host.to_string(),
            None => String::new(),
        }
    }

    /// The port that is connected to.
    pub fn port(&self) -> u16 {
        // The parser knows those of http and https.
        self.url.port_or_known_default().unwrap_or(SYSLOG_TLS_PORT)
    }

    /// Whether lines would go over the network as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self.scheme, DrainScheme::Syslog | DrainScheme::Http)
    }

    /// The whole URL, secrets included; to be used, not shown.
    pub fn secret(&self) -> &Url {
        &self.url
    }
}

/// Scheme, host and port; `***` and `…` stand for what is secret. A path is: many receivers have their token in it.
impl fmt::Display for DrainUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, .. } = self;
        let user = if url.username().is_empty() && url.password().is_none() { "" } else { "***@" };
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let query = if url.query().is_some() { "?***" } else { "" };
        let path = if matches!(url.path(), "" | "/") { url.path() } else { "/…" };
        write!(f, "{}://{user}{}{port}{path}{query}", url.scheme(), url.host_str().unwrap_or_default())
    }
}

impl fmt::Debug for DrainUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_host_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (1..=253).contains(&name.len()) && name.chars().all(is_part)
}

impl FromStr for DrainUrl {
    type Err = DrainUrlError;

    fn from_str(text: &str) -> Result<Self, DrainUrlError> {
        let wrong = |reason: &str| Err(DrainUrlError(reason.to_owned()));
        if text.len() > LONGEST_URL {
            return wrong("it is longer than 2048 bytes");
        }
        let url = parse_url(text).map_err(DrainUrlError)?;
        let scheme = match url.scheme() {
            "syslog" => DrainScheme::Syslog,
            "syslog+tls" => DrainScheme::SyslogTls,
            "http" => DrainScheme::Http,
            "https" => DrainScheme::Https,
            _ => return wrong("it must begin with https://, syslog+tls:// or syslog://"),
        };
        match url.host() {
            Some(Host::Domain(name)) if is_host_name(name) => {}
            Some(Host::Ipv4(_) | Host::Ipv6(_)) => {}
            _ => return wrong("it names no host"),
        }
        if url.fragment().is_some() {
            return wrong("it has a fragment (#)");
        }
        if matches!(scheme, DrainScheme::Syslog | DrainScheme::SyslogTls) {
            let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
            if !bare || !matches!(url.path(), "" | "/") {
                return wrong(
                    "a syslog receiver is named by host and port alone, as in syslog+tls://logs.example.com:6514",
                );
            }
            if scheme == DrainScheme::Syslog && url.port().is_none() {
                return wrong("it names no port, as in syslog://logs.example.com:601");
            }
        }
        if url.port() == Some(0) {
            return wrong("there is no port 0");
        }
        Ok(Self { url, scheme })
    }
}

impl TryFrom<String> for DrainUrl {
    type Error = DrainUrlError;
    fn try_from(text: String) -> Result<Self, DrainUrlError> {
        text.parse()
    }
}

impl From<DrainUrl> for String {
    fn from(url: DrainUrl) -> Self {
        url.url.into()
    }
}

/// Where the lines of an environment are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub env: EnvRef,
    /// Tells the drains of one environment apart.
    pub id: u64,
    pub url: DrainUrl,
    pub created_by: UserName,
    pub created_at: Timestamp,
}

/// How far a drain has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainMark {
    pub env: EnvRef,
    pub id: u64,
    /// Everything before it has been taken by the receiver, or is counted below.
    pub cursor: DrainCursor,
    /// Lines that the receiver has taken.
    pub sent: u64,
    /// Lines that it will never get.
    pub dropped: u64,
    /// As many of them as it has been told of.
    pub told: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_has_no_secrets() {
        for (text, shown, host, port) in [
            ("https://logs.example.com/in?key=hunter2", "https://logs.example.com/…?***", "logs.example.com", 443),
            (
                "https://logs.example.com/receiver/v1/http/hunter2",
                "https://logs.example.com/…",
                "logs.example.com",
                443,
            ),
            (
                "https://ann:hunter2@logs.example.com:8443",
                "https://***@logs.example.com:8443/",
                "logs.example.com",
                8443,
            ),
            ("https://hunter2@127.1/", "https://***@127.0.0.1/", "127.0.0.1", 443),
            ("http://[::1]:80/x", "http://[::1]/…", "::1", 80),
            ("syslog://logs:601", "syslog://logs:601", "logs", 601),
            ("syslog+tls://logs.example.com", "syslog+tls://logs.example.com", "logs.example.com", 6514),
            ("syslog+tls://[2001:db8::1]:1/", "syslog+tls://[2001:db8::1]:1/", "2001:db8::1", 1),
        ] {
            let url: DrainUrl = text.parse().unwrap();
            assert_eq!((url.to_string().as_str(), url.host().as_str(), url.port()), (shown, host, port));
            assert!(!format!("{url:?}").contains("hunter2"));
            let kept = serde_json::to_string(&url).unwrap();
            assert_eq!(serde_json::from_str::<DrainUrl>(&kept).unwrap(), url);
        }
    }

    #[test]
    fn other_urls_are_refused_without_being_quoted() {
        let long = format!("https://logs/{}", "x".repeat(3000));
        for text in [
            "",
            "logs.example.com",
            "ftp://logs/hunter2",
            "udp://logs:514",
            "syslog://logs",
            "syslog://hunter2@logs:1",
            "syslog://logs:1/hunter2",
            "syslog+tls://logs:1?hunter2",
            "syslog://:601",
            "syslog://a%20b:601",
            "https://logs/#hunter2",
            "https://",
            "https:///logs",
            "https://logs:0",
            "syslog://logs:0",
            &long,
        ] {
            let error = text.parse::<DrainUrl>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
