//! Requests of programs, which have no words to be parsed, and do not wait for what takes long.

use std::{collections::BTreeMap, io::Cursor};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Caller, Command, CommandError, CommandIo, Commands, Control, OnlyIf};
use crate::domain::EnvRef;

/// Bytes of a hash in an entity tag.
const TAG_BYTES: usize = 12;

/// The entity tag (RFC 9110, section 8.8.3) of a resource that is represented by this value, with its quotes.
pub(crate) fn etag(value: &Value) -> String {
    let hash = Sha256::digest(value.to_string().as_bytes());
    format!("\"{}\"", hex::encode(&hash[..TAG_BYTES]))
}

/// Which part of a list by name is asked for; as a rule, all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// What comes after this name.
    pub after: String,
    /// At most so many.
    pub most: usize,
}

impl Default for Part {
    fn default() -> Self {
        Self { after: String::new(), most: usize::MAX }
    }
}

/// One request.
pub(crate) struct Ask {
    command: Command,
    stdin: Vec<u8>,
    only_if: OnlyIf,
}

impl Ask {
    pub(crate) fn new(command: Command) -> Self {
        Self { command, stdin: Vec::new(), only_if: OnlyIf::default() }
    }

    /// What would come on standard input.
    pub(crate) fn with_input(self, stdin: impl Into<Vec<u8>>) -> Self {
        Self { stdin: stdin.into(), ..self }
    }

    /// The value of an `If-Match` header: nothing is changed unless what would be changed has one of these tags.
    pub(crate) fn only_if(self, only_if: OnlyIf) -> Self {
        Self { only_if, ..self }
    }
}

impl Commands {
    /// Does as asked, once begun whether or not the caller stays; answers with what `--json` prints.
    ///
    /// # Errors
    /// Those of the command; [`CommandError::Stale`] when the entity tag is another.
    pub(crate) async fn ask(&self, caller: Caller, ask: Ask) -> Result<Value, CommandError> {
        tracing::info!(user = %caller.user, door = ?caller.door, command = ask.command.name(), "command");
        let Ask { command, stdin, only_if } = ask;
        let commands = self.clone();
        let answer = to_its_end(async move {
            let (mut io, _stays) = silent_io(stdin, only_if);
            commands.dispatch(&caller, command, true, &mut io).await
        });
        let none = || CommandError::Broken("the command has no answer for programs; the server's log says why".into());
        answer.await?.map(|answer| answer.json).ok_or_else(none)
    }

    /// Sets (`Some`) and removes variables of an environment's config in one step.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) async fn ask_config(
        &self,
        caller: Caller,
        env: EnvRef,
        changes: BTreeMap<String, Option<String>>,
        only_if: OnlyIf,
    ) -> Result<Value, CommandError> {
        tracing::info!(user = %caller.user, door = ?caller.door, command = "config", "command");
        let commands = self.clone();
        let answer = to_its_end(async move {
            let (mut io, _stays) = silent_io(Vec::new(), only_if);
            commands.patch_config(&caller, &env, changes, &mut io).await
        });
        Ok(answer.await?.json)
    }
}

/// In a task of its own: a request that is given up is not done by half.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, CommandError>> + Send + 'static,
) -> Result<T, CommandError> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a command has failed");
        Err(CommandError::Broken("the command has failed; the server's log says why".into()))
    })
}

/// Streams of somebody who only wants the answer, and what they would interrupt by: as long as it is there, they do not.
fn silent_io(stdin: Vec<u8>, only_if: OnlyIf) -> (CommandIo, mpsc::Sender<Control>) {
    let (stays, controls) = mpsc::channel(1);
    let io = CommandIo::new(Cursor::new(stdin), tokio::io::sink(), tokio::io::sink(), controls);
    (CommandIo { waits: false, only_if, ..io }, stays)
}
