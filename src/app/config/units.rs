//! Sizes in the configuration.

use std::{fmt, str::FromStr};

use serde::Deserialize;

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
}
