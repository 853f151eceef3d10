//! Requests that are done once however often they come.

use serde::{Deserialize, Serialize};

use super::{Timestamp, UserName};

/// A request with an idempotency key, kept for a while so that a repetition is not done again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceRequest {
    pub user: UserName,
    /// Id of the token that it came with: another one of the user, which may be good for less, gets no answer of it. Empty in records of
    /// before this was kept.
    #[serde(default)]
    pub token: String,
    /// SHA-256 of the key, hexadecimal.
    pub key_hash: String,
    /// SHA-256 of what was asked, hexadecimal.
    pub request_hash: String,
    pub at: Timestamp,
    /// The server that does it: one of before has not finished what is not answered.
    pub server: u64,
    /// The HTTP status and body of the answer, once it is done. Without the body where that holds a secret.
    pub answer: Option<(u16, Option<String>)>,
}
