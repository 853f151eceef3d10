//! Sizes and addresses in the configuration.

use std::{fmt, str::FromStr};

use serde::Deserialize;

use crate::domain::parse_url;

/// A number of bytes, written `512Mi`, `2Gi`, `10M` or as a plain number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Text")]
pub struct Bytes(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Number(u64),
    Text(String),
}

const UNITS: [(&str, u64); 7] =
    [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("k", 1000), ("M", 1_000_000), ("G", 1_000_000_000), ("", 1)];

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |(suffix, unit): &(&str, u64)| text.strip_suffix(suffix)?.trim().parse::<u64>().ok()?.checked_mul(*unit);
        UNITS
            .iter()
            .find_map(number)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a size; write it as 512Mi or 2Gi"))
    }
}

impl TryFrom<Text> for Bytes {
    type Error = String;
    fn try_from(text: Text) -> Result<Self, String> {
        match text {
            Text::Number(bytes) => Ok(Self(bytes)),
            Text::Text(text) => text.parse(),
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

/// How users reach something over HTTP: `https://berth.example.com`. Has no path, and never ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PublicUrl(String);

impl PublicUrl {
    /// As texts begin with it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PublicUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let off = |why: &str| format!("{text:?} {why}; write it as https://berth.example.com");
        let url = parse_url(text.trim()).map_err(|error| off(&format!("is not a URL ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(off("begins with neither http:// nor https://"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(off("has no host"));
        }
        // It is shown to everybody.
        if !url.username().is_empty() || url.password().is_some() {
            let text =
                "a user name or password in it would be shown to everybody; write it as https://berth.example.com";
            return Err(text.to_owned());
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(off("has a path, query or fragment, and the console's pages begin at the host"));
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl TryFrom<String> for PublicUrl {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("512Mi", 512 << 20), ("2Gi", 2 << 30), ("10 M", 10_000_000), ("7", 7)] {
            assert_eq!(text.parse::<Bytes>().unwrap().0, bytes, "{text}");
        }
        for text in ["", "Mi", "-1", "1.5Gi", "1Ti", "99999999999Gi"] {
            assert!(text.parse::<Bytes>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn public_urls() {
        let cases = [
            ("https://berth.example.com", "https://berth.example.com"),
            ("HTTPS://Berth.Example.com:443/", "https://berth.example.com"),
            ("http://10.0.0.1:7000/", "http://10.0.0.1:7000"),
            ("http://[::1]:7000", "http://[::1]:7000"),
            (" https://berth.example.com ", "https://berth.example.com"),
        ];
        for (text, url) in cases {
            assert_eq!(text.parse::<PublicUrl>().unwrap().as_str(), url);
        }
        for (text, why) in [
            ("berth.example.com", "not a URL"),
            ("ftp://berth.example.com", "neither"),
            ("https://", "not a URL"),
            ("https:///berth.example.com", "no host"),
            ("https://ann:secret@berth.example.com", "password"),
            ("https://example.com/berth", "path"),
            ("https://berth.example.com/?a=b", "query"),
            ("https://berth.example.com/#top", "fragment"),
        ] {
            let error = text.parse::<PublicUrl>().unwrap_err();
            assert!(error.contains(why) && error.contains("https://berth.example.com"), "{error}");
        }
    }
}
