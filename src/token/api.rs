//! The secrets of bearer tokens: how they are made, written and recognised.
//!
//! `berth_pat_`, 43 random letters and digits (256 bits), and six that are their checksum: CRC-32 (as in zlib) in base 62, the way
//! GitHub writes its tokens. The prefix lets secret scanners find one that has leaked; the checksum spares them false alarms, and tells
//! a mistyped token from an unknown one without a look into the store.

use std::fmt;

use rand::distr::{Alphanumeric, SampleString};
use ring::digest;

/// What every token begins with.
pub const PREFIX: &str = "berth_pat_";
/// Random characters: 43 × log₂ 62 is just over 256 bits.
const RANDOM: usize = 43;
/// Characters of the checksum: 62⁶ is more than 2³².
const CHECKSUM: usize = 6;
const BASE_62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Why a text cannot be a token, whatever the store has. The texts go to whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("it is not a token of Berth (`berth_pat_…`)")]
    OtherForm,
    /// Cut off, or a character is wrong.
    #[error("the token is incomplete or mistyped: its checksum does not fit")]
    Mistyped,
}

/// A token in clear. It never shows in a debug print; whoever wants to say it asks [`TokenSecret::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret(String);

impl TokenSecret {
    /// A new one, from the system's randomness.
    pub fn generate() -> Self {
        let random = Alphanumeric.sample_string(&mut rand::rng(), RANDOM);
        Self(format!("{PREFIX}{random}{}", checksum(&random)))
    }

    /// Takes what somebody says is a token, if it has the form of one.
    ///
    /// # Errors
    /// When no token of Berth was ever written like that.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let rest = text.strip_prefix(PREFIX).ok_or(SecretError::OtherForm)?;
        let (random, check) = rest.split_at_checked(RANDOM).ok_or(SecretError::Mistyped)?;
        let alphanumeric = random.bytes().all(|byte| byte.is_ascii_alphanumeric());
        // Nothing that has to be kept from a listener is compared here: anybody can make a checksum.
        if alphanumeric && check == checksum(random) { Ok(Self(text.to_owned())) } else { Err(SecretError::Mistyped) }
    }

    /// The token in clear: for who made it, once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it: SHA-256, hexadecimal. With 256 random bits there is nothing to try out, so it needs neither salt nor slowness;
    /// and as it is looked up by this, how long that takes tells nothing about the secret.
    pub fn hash(&self) -> String {
        hex::encode(digest::digest(&digest::SHA256, self.0.as_bytes()))
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

/// CRC-32 of the text in base 62, the most significant digit first.
fn checksum(random: &str) -> String {
    let mut rest = crc32fast::hash(random.as_bytes()) as usize;
    let mut digits = [BASE_62[0]; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = BASE_62[rest % BASE_62.len()];
        rest /= BASE_62.len();
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_the_form_that_scanners_look_for() {
        let form = regex::Regex::new("^berth_pat_[0-9A-Za-z]{49}$").unwrap();
        let secrets: Vec<TokenSecret> = (0..100).map(|_| TokenSecret::generate()).collect();
        for secret in &secrets {
            assert!(form.is_match(secret.reveal()), "{}", secret.reveal());
            assert_eq!(TokenSecret::parse(secret.reveal()).as_ref(), Ok(secret));
            assert_eq!(format!("{secret:?}"), "TokenSecret(…)");
        }
        let hashes: std::collections::BTreeSet<String> = secrets.iter().map(TokenSecret::hash).collect();
        assert_eq!(hashes.len(), 100);
        assert!(hashes.iter().all(|hash| hash.len() == 64));
    }

    #[test]
    fn the_checksum_is_that_of_zlib() {
        // The check value of CRC-32 is that of "123456789": 0xCBF43926.
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
        let digits = |text: &str| {
            text.bytes()
                .fold(0_u64, |sum, byte| sum * 62 + BASE_62.iter().position(|digit| *digit == byte).unwrap() as u64)
        };
        assert_eq!(digits(&checksum("123456789")), 0xCBF4_3926);
        assert_eq!(checksum("").len(), CHECKSUM);
    }

    #[test]
    fn no_change_of_a_single_character_goes_unnoticed() {
        let secret = TokenSecret::generate();
        let text = secret.reveal();
        for at in 0..text.len() {
            for replacement in ["A", "b", "_", "", "é"] {
                let changed = format!("{}{replacement}{}", &text[..at], &text[at + 1..]);
                let wanted = if at < PREFIX.len() { SecretError::OtherForm } else { SecretError::Mistyped };
                assert!(changed == text || TokenSecret::parse(&changed) == Err(wanted), "{at} {replacement}");
            }
        }
    }

    #[test]
    fn junk_is_refused() {
        let long = format!("{PREFIX}{}", "A".repeat(100_000));
        for text in ["", "bt1.x.y", "Bearer x", "berth_pat", "ghp_0123456789"] {
            assert_eq!(TokenSecret::parse(text), Err(SecretError::OtherForm), "{text}");
        }
        for text in [PREFIX, long.as_str(), "berth_pat_é", &format!("{PREFIX}{}", "é".repeat(49))] {
            assert_eq!(TokenSecret::parse(text), Err(SecretError::Mistyped), "{text:.20}");
        }
    }
}
