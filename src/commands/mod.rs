//! What a user may ask, once: ssh, the API and the control socket are doors to it. Authorisation lives here ([`access`]).
//!
//! Words are parsed in [`parse`]; each group of commands has a file of its own; what they find is said for people or programs by
//! [`answer`], and what went wrong, with its exit status, by [`CommandError`].

mod access;
mod answer;
mod error;
mod keys;
mod parse;
mod tenants;

use std::sync::Arc;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

pub use error::CommandError;

use answer::Answer;
use parse::{Command, Parsed};

use crate::{
    domain::{EnvRef, Environment, PublicKey, Timestamp, User, UserName, Verb},
    store::{Store, StoreError},
};

/// Where a command came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Ssh,
    /// The control socket: whoever may open it is root or runs the server.
    Host,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub user: UserName,
    pub operator: bool,
    pub door: Door,
}

/// A terminal on the caller's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pty {
    pub columns: u16,
    pub rows: u16,
    /// Value for `TERM`.
    pub term: String,
}

/// What the caller's side does while a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    Resize {
        columns: u16,
        rows: u16,
    },
    /// A signal by its name without `SIG`.
    Signal(String),
    /// The connection is gone.
    Hangup,
}

/// The streams of a command.
pub struct CommandIo {
    pub stdin: Box<dyn AsyncRead + Send + Unpin>,
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    pub stderr: Box<dyn AsyncWrite + Send + Unpin>,
    pub pty: Option<Pty>,
    pub controls: mpsc::Receiver<Control>,
}

/// Largest standard input that is read whole (keys, config values), in bytes.
const MAX_STDIN: u64 = 1 << 20;

impl CommandIo {
    /// All of standard input, up to 1 MiB.
    async fn read_all(&mut self) -> Result<Vec<u8>, CommandError> {
        let mut bytes = Vec::new();
        let read = (&mut self.stdin).take(MAX_STDIN + 1).read_to_end(&mut bytes).await;
        read.map_err(|error| CommandError::Failed(format!("standard input could not be read: {error}")))?;
        if bytes.len() as u64 > MAX_STDIN {
            return Err(CommandError::Usage("standard input is larger than 1 MiB".into()));
        }
        Ok(bytes)
    }

    async fn print(&mut self, text: &str) -> Result<(), CommandError> {
        let written = async {
            self.stdout.write_all(text.as_bytes()).await?;
            self.stdout.flush().await
        };
        written.await.map_err(|_| CommandError::Failed("the connection is gone".into()))
    }
}

/// What the commands need.
pub struct Services {
    pub store: Store,
}

/// All commands. Clones share everything.
#[derive(Clone)]
pub struct Commands(Arc<Services>);

impl std::ops::Deref for Commands {
    type Target = Services;
    fn deref(&self) -> &Services {
        &self.0
    }
}

/// The present.
fn now() -> Timestamp {
    Timestamp::now()
}

impl Commands {
    /// Commands over these services.
    pub fn new(services: Services) -> Self {
        Self(Arc::new(services))
    }

    /// Who owns the key with this `SHA256:…` fingerprint.
    pub async fn authenticate(&self, fingerprint: &str) -> Result<Option<Caller>, StoreError> {
        let Some(key) = self.store.get::<PublicKey>(fingerprint).await? else { return Ok(None) };
        let user = self.store.get::<User>(&key.user).await?;
        Ok(user.map(|user| Caller { user: user.name.clone(), operator: user.operator, door: Door::Ssh }))
    }

    /// The environment, if the caller may do `verb` to it; for the git door.
    pub async fn may(&self, caller: &Caller, verb: Verb, env: &EnvRef) -> Result<Environment, CommandError> {
        Ok(self.env_for(caller, verb, env).await?.record)
    }

    /// Runs a command and returns its exit status. Everything it has to say has been written when this returns.
    pub async fn run(&self, caller: Caller, argv: Vec<String>, mut io: CommandIo) -> u8 {
        let line = match parse::parse(argv) {
            Parsed::Command(line) => *line,
            Parsed::Help(text) => return finish(io.print(&text).await, &mut io, false).await,
            Parsed::Usage(text) => return finish(Err(CommandError::Usage(text)), &mut io, false).await,
        };
        tracing::info!(user = %caller.user, door = ?caller.door, command = line.command.name(), "command");
        let result = match self.dispatch(&caller, line.command, line.json, &mut io).await {
            Ok(Some(answer)) => io.print(&answer.render(line.json)).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        finish(result, &mut io, line.json).await
    }

    /// `None`: the command has written its answer itself.
    async fn dispatch(
        &self,
        caller: &Caller,
        command: Command,
        _json: bool,
        io: &mut CommandIo,
    ) -> Result<Option<Answer>, CommandError> {
        match command {
            Command::UploadKey { name } => self.upload_key(caller, &name, io).await.map(Some),
            Command::Keys(command) => self.keys(caller, command).await.map(Some),
            Command::Whoami => self.whoami(caller).await.map(Some),
            Command::Tenants(command) => self.tenants(caller, command).await.map(Some),
            _ => Err(CommandError::Failed("not there yet".into())),
        }
    }
}

/// Says what went wrong, if anything, and gives the exit status.
async fn finish(result: Result<(), CommandError>, io: &mut CommandIo, json: bool) -> u8 {
    let Err(error) = result else { return 0 };
    let status = error.exit_status();
    let text = match (&error, json) {
        // clap's texts are complete.
        (CommandError::Usage(text), false) if text.ends_with('\n') => text.clone(),
        (error, false) => format!(" !     {error}\n"),
        (error, true) => format!("{}\n", serde_json::json!({"error": error.to_string(), "exit_status": status})),
    };
    // The caller may be gone; the status still goes to the log of the door.
    let _ = io.stderr.write_all(text.as_bytes()).await;
    let _ = io.stderr.flush().await;
    status
}
