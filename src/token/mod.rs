//! Tokens: here the project token, which is no secret; in [`api`] the secrets of bearer tokens.
//!
//! The project token: `auth:` in `berth.yaml`, a signed statement that a repository belongs to an app.
//!
//! It is no secret: anyone may read it, only the server can make one. `bt1.PAYLOAD.SIGNATURE`, where PAYLOAD is the
//! base64url of `{"app":"TENANT/APP","key":"KEY-ID"}` and SIGNATURE the base64url of the Ed25519 signature over
//! `bt1.PAYLOAD`. Signing is deterministic: one key gives an app one token, whenever it is asked for.

pub mod api;

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};

use crate::domain::AppRef;

/// Names the format, and keeps these signatures from meaning anything elsewhere.
const PREFIX: &str = "bt1";

/// Longest token that is looked at, in bytes; a real one has about 200.
const MAX_LENGTH: usize = 1024;

/// Why a token does not count. The texts go to the person who pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is not a project token (`bt1.…`)")]
    Malformed,
    /// Another server's, or this one's before its key was replaced.
    #[error("it was made by another Berth server, or before this one got a new key")]
    OtherKey,
    #[error("its signature is wrong: it was changed after it was made")]
    BadSignature,
}

/// Why a key cannot be made or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the system gives no random numbers to make a key from")]
    NoRandomness,
    #[error("the token key is not an Ed25519 key in PKCS#8 form: {0}")]
    Unreadable(String),
}

/// The key that signs project tokens. Made once, kept secret, and kept: with a new one, all tokens stop counting.
pub struct TokenKey {
    pair: Ed25519KeyPair,
}

/// What a token says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    app: AppRef,
    /// [`key_id`] of the key that signed.
    key: String,
}

impl TokenKey {
    /// A new key as PKCS#8 bytes, for [`TokenKey::from_pkcs8`] and for the disk.
    pub fn generate() -> Result<Vec<u8>, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::NoRandomness)?;
        Ok(document.as_ref().to_vec())
    }

    /// The key that [`TokenKey::generate`] made.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(bytes).map_err(|error| KeyError::Unreadable(error.to_string()))?;
        Ok(Self { pair })
    }

    /// The 32 bytes that [`verify`] needs.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({})", key_id(self.public_key()))
    }
}

/// Short name of a public key: the first 8 bytes of its SHA-256, in hexadecimal.
fn key_id(public_key: &[u8]) -> String {
    hex::encode(&digest::digest(&digest::SHA256, public_key).as_ref()[..8])
}

/// The token of `app`.
pub fn issue(key: &TokenKey, app: &AppRef) -> String {
    // The texts are names and hexadecimal digits: nothing in them needs escaping.
    let payload = format!(r#"{{"app":"{app}","key":"{}"}}"#, key_id(key.public_key()));
    let signed = format!("{PREFIX}.{}", URL_SAFE_NO_PAD.encode(payload));
    let signature = key.pair.sign(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The app that `token` was made for, if the owner of `public_key` made it.
///
/// That it is the app that is pushed to is for the caller to compare.
pub fn verify(public_key: &[u8], token: &str) -> Result<AppRef, TokenError> {
    if token.len() > MAX_LENGTH {
        return Err(TokenError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let payload = signed.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')).ok_or(TokenError::Malformed)?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed);
    let signature = decode(signature)?;
    let payload: Payload = serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)?;
    // Before the signature, only to say what is more useful than "wrong signature".
    if payload.key != key_id(public_key) {
        return Err(TokenError::OtherKey);
    }
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| TokenError::BadSignature)?;
    Ok(payload.app)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> TokenKey {
        TokenKey::from_pkcs8(&TokenKey::generate().unwrap()).unwrap()
    }

    fn app(text: &str) -> AppRef {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_says_its_app_and_fits_the_manifest() {
        let key = key();
        let longest = format!("{0}/{0}", "a".repeat(30));
        for name in ["acme/shop", longest.as_str()] {
            let token = issue(&key, &app(name));
            assert_eq!(verify(key.public_key(), &token), Ok(app(name)));
            assert_eq!(issue(&key, &app(name)), token, "signing is deterministic");
            let text = crate::manifest::template(&app(name), &token);
            let manifest = crate::manifest::parse(text, crate::manifest::FILE_NAME).unwrap();
            assert_eq!(manifest.for_environment(&"dev".parse().unwrap()).auth, Some(token));
        }
    }

    #[test]
    fn what_another_key_signed_does_not_count() {
        let (ours, theirs) = (key(), key());
        let token = issue(&theirs, &app("acme/shop"));
        assert_eq!(verify(ours.public_key(), &token), Err(TokenError::OtherKey));
        // Their signature under our key's name.
        let payload = format!(r#"{{"app":"acme/shop","key":"{}"}}"#, key_id(ours.public_key()));
        let signed = format!("bt1.{}", URL_SAFE_NO_PAD.encode(payload));
        let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(theirs.pair.sign(signed.as_bytes())));
        assert_eq!(verify(ours.public_key(), &forged), Err(TokenError::BadSignature));
    }

    #[test]
    fn a_token_for_one_app_cannot_be_turned_into_another_s() {
        let key = key();
        let (shop, other) = (issue(&key, &app("acme/shop")), issue(&key, &app("acme/shoq")));
        let parts = |token: &str| token.split('.').map(str::to_owned).collect::<Vec<_>>();
        let mixed = format!("bt1.{}.{}", parts(&other)[1], parts(&shop)[2]);
        assert_eq!(verify(key.public_key(), &mixed), Err(TokenError::BadSignature));
    }

    #[test]
    fn no_change_of_a_single_character_survives() {
        let key = key();
        let token = issue(&key, &app("acme/shop"));
        for at in 0..token.len() {
            for replacement in ["A", "b", "-", ".", "=", ""] {
                let changed = format!("{}{replacement}{}", &token[..at], &token[at + 1..]);
                assert!(changed == token || verify(key.public_key(), &changed).is_err(), "{changed}");
            }
        }
    }

    #[test]
    fn junk_is_refused() {
        let key = key();
        let long = format!("bt1.{}.x", "A".repeat(100_000));
        for text in ["", "bt1", "bt1.", "bt1..", "bt1.….x", "bt2.e30.AA", "bt1.e30.AA", "é", "...", long.as_str()] {
            assert_eq!(verify(key.public_key(), text), Err(TokenError::Malformed), "{text:.20}");
        }
        assert!(TokenKey::from_pkcs8(b"not a key").is_err());
    }
}
