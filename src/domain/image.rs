//! Content digests and image references.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::AppRef;

/// A `sha256:…` content digest (OCI image spec, "Digests"); the only algorithm Berth uses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// The text is not `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a sha256 digest: {0:?}")]
pub struct DigestError(String);

impl Digest {
    /// The digest of a SHA-256 sum.
    pub fn from_sha256(sum: impl AsRef<[u8]>) -> Self {
        Self(format!("sha256:{}", hex::encode(sum)))
    }

    /// `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hexadecimal part alone, safe as a file name.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let valid = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if valid { Ok(Self(text.to_owned())) } else { Err(DigestError(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image in the platform's registry, pinned by digest: `REPOSITORY@sha256:…`. Which registry that is, the runtime
/// and registry adapters know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// Path within the registry, as in `berth/acme/shop`.
    pub repository: String,
    /// Digest of the image manifest.
    pub digest: Digest,
}

impl ImageRef {
    /// What comes first in the repositories of apps.
    const APPS: &str = "berth/";

    /// The repository of an app's images.
    pub fn repository_of(app: &AppRef) -> String {
        format!("{}{app}", Self::APPS)
    }

    /// The app whose image it is, if it is one's.
    pub fn app(&self) -> Option<AppRef> {
        self.repository.strip_prefix(Self::APPS)?.parse().ok()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_image_it_is() {
        let app: AppRef = "acme/shop".parse().unwrap();
        let image =
            |repository: &str| ImageRef { repository: repository.to_owned(), digest: Digest::from_sha256([7; 32]) };
        assert_eq!(image(&ImageRef::repository_of(&app)).app(), Some(app));
        for other in ["berth/stack-run", "acme/shop", "berth/acme/shop/x", "berth/../shop", ""] {
            assert_eq!(image(other).app(), None, "{other}");
        }
    }

    #[test]
    fn only_lower_case_sha256_is_a_digest() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().hex().len(), 64);
        for bad in ["", "sha256:", "sha512:aa", &good.to_uppercase(), &format!("{good}0"), &good.replace("0a", "/.")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
