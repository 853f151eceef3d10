//! SSH keys: what people upload, and the server's own host key.

mod host;
mod upload;

pub use host::host_key;
pub use upload::{KeyError, MAX_KEYS, MAX_UPLOAD, ParsedKey, fingerprint, parse_upload};
