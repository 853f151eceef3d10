//! What a user may ask, once: ssh, api and control socket are three doors to it. Authorisation lives here.

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::domain::UserName;

/// Which way a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// With a registered key, over SSH.
    Ssh,
    /// From the host, through the control socket: whoever owns the server process.
    Host,
}

/// Who asks, after authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub user: UserName,
    pub operator: bool,
    pub door: Door,
}

/// The caller's terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pty {
    /// Size in characters.
    pub columns: u16,
    pub rows: u16,
    /// Terminal type, as in `xterm-256color`; printable ASCII, at most 64 characters.
    pub term: String,
}

/// What happens to a command's caller while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The terminal's size changed.
    Resize { columns: u16, rows: u16 },
    /// A signal for the command, named without `SIG`, as in `INT`.
    Signal(String),
    /// The caller is gone.
    Hangup,
}

/// A command's streams.
pub struct CommandIo {
    pub stdin: Box<dyn AsyncRead + Send + Unpin>,
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    pub stderr: Box<dyn AsyncWrite + Send + Unpin>,
    /// Present when the caller asked for a terminal.
    pub pty: Option<Pty>,
    pub controls: mpsc::Receiver<Control>,
}
