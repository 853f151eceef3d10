//! The streams of a command, and what its caller does meanwhile.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use serde_json::Value;

use super::{CommandError, etag};

/// Largest standard input that is read whole (keys, config values), in bytes.
const MAX_STDIN: u64 = 1 << 20;

/// A terminal on the caller's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pty {
    /// Size in characters.
    pub columns: u16,
    pub rows: u16,
    /// Terminal type, as in `xterm-256color`; printable ASCII, at most 64 characters.
    pub term: String,
}

/// What the caller's side does while a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The terminal's size changed.
    Resize { columns: u16, rows: u16 },
    /// A signal for the command, named without `SIG`, as in `INT`.
    Signal(String),
    /// The caller is gone.
    Hangup,
}

/// The entity tags (`commands::etag`) that the caller has seen, as in an `If-Match` header; if what is to be changed has none of them by now,
/// it is not changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnlyIf(pub Option<String>);

impl OnlyIf {
    /// Refuses a change of what is not as the caller has seen it.
    pub(super) fn check(&self, now: &Value) -> Result<(), CommandError> {
        match &self.0 {
            Some(seen) if seen != "*" && !seen.split(',').any(|seen| seen.trim() == etag(now)) => {
                let text = "it has been changed since you read it, and nothing was changed now; read it again";
                Err(CommandError::Stale(text.into()))
            }
            _ => Ok(()),
        }
    }
}

/// The streams of a command.
pub struct CommandIo {
    pub stdin: Box<dyn AsyncRead + Send + Unpin>,
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    pub stderr: Box<dyn AsyncWrite + Send + Unpin>,
    /// Present when the caller asked for a terminal.
    pub pty: Option<Pty>,
    pub controls: mpsc::Receiver<Control>,
    /// Whether the caller waits for the end of what takes long, as a person at a terminal does; a program is told how to follow it.
    pub waits: bool,
    pub only_if: OnlyIf,
}

impl CommandIo {
    /// Streams of somebody without a terminal, who waits.
    pub fn new(
        stdin: impl AsyncRead + Send + Unpin + 'static,
        stdout: impl AsyncWrite + Send + Unpin + 'static,
        stderr: impl AsyncWrite + Send + Unpin + 'static,
        controls: mpsc::Receiver<Control>,
    ) -> Self {
        let (stdin, stdout, stderr) = (Box::new(stdin), Box::new(stdout), Box::new(stderr));
        Self { stdin, stdout, stderr, pty: None, controls, waits: true, only_if: OnlyIf::default() }
    }

    /// All of standard input, up to 1 MiB.
    pub(super) async fn read_all(&mut self) -> Result<Vec<u8>, CommandError> {
        let mut bytes = Vec::new();
        let read = (&mut self.stdin).take(MAX_STDIN + 1).read_to_end(&mut bytes).await;
        read.map_err(|error| CommandError::Failed(format!("standard input could not be read: {error}")))?;
        if bytes.len() as u64 > MAX_STDIN {
            return Err(CommandError::Usage("standard input is larger than 1 MiB".into()));
        }
        Ok(bytes)
    }

    /// Writes to standard output.
    pub(super) async fn print(&mut self, text: &str) -> Result<(), CommandError> {
        let written = async {
            self.stdout.write_all(text.as_bytes()).await?;
            self.stdout.flush().await
        };
        written.await.map_err(|_| CommandError::Failed("the connection is gone".into()))
    }

    /// Writes to standard error. That the caller is gone is no error: what is told here is told besides.
    pub(super) async fn tell(&mut self, text: &str) {
        let written = async {
            self.stderr.write_all(text.as_bytes()).await?;
            self.stderr.flush().await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "a command's caller does not read any more");
        }
    }
}

/// Returns when the caller has interrupted the command or is gone.
pub(super) async fn interrupted(controls: &mut mpsc::Receiver<Control>) {
    while let Some(control) = controls.recv().await {
        if !matches!(control, Control::Resize { .. }) {
            return;
        }
    }
}
