//! What goes over the control socket: one JSON object per line, both ways.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::receive::HookRequest;

/// Longest line, in bytes: a push of some ten thousand refs.
pub const MAX_LINE: usize = 8 * 1024 * 1024;
/// Most bytes in one message.
pub const CHUNK: usize = 32 * 1024;

/// What a client says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToServer {
    /// First: a hook asks.
    PreReceive(HookRequest),
    /// First: a command is to be run.
    Command { argv: Vec<String> },
    /// First: all records, for a backup.
    Snapshot,
    /// First: no collection may run for as long as this connection lasts (a backup is taken).
    Hold,
    /// First: whether the records fit what is there.
    Check { repair: bool },
    /// First: what the server lacks.
    Status,
    /// Then: its input, base64.
    Stdin(String),
    /// Its input is over.
    Eof,
    /// The person at the terminal wants it to stop.
    Interrupt,
}

/// What the server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToClient {
    /// base64
    Stdout(String),
    /// base64
    Stderr(String),
    /// Last.
    Exit(u8),
}

/// One message as a line.
pub fn line<M: Serialize>(message: &M) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Bytes as text.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// And back.
pub fn decode(text: &str) -> std::io::Result<Vec<u8>> {
    STANDARD.decode(text).map_err(std::io::Error::other)
}
