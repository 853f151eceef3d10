//! One session: what an exec or shell request leads to.

use std::sync::Arc;

use bytes::Bytes;
use russh::{ChannelWriteHalf, server::Msg};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Access, GitRequest,
    connection::Connection,
    exec::{ExecError, Request, parse},
    inlet::InletReader,
    outlet::{FrameWriter, WAITING_FRAMES, finish, relay},
};
use crate::{
    commands::{Caller, CommandIo, Control, Pty},
    domain::{EnvRef, Verb},
    git::{
        settings::Service,
        wire::{Frame, WireIo},
    },
};

/// Exit statuses of the contract that this door gives itself.
mod status {
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_PERMITTED: u8 = 3;
    pub const NOT_FOUND: u8 = 4;
}

/// A session that is about to run.
pub struct Session {
    pub connection: Arc<Connection>,
    pub caller: Caller,
    pub channel: ChannelWriteHalf<Msg>,
    /// Cancelled when the channel or its connection is gone.
    pub gone: CancellationToken,
    pub input: InletReader,
    pub controls: mpsc::Receiver<Control>,
    pub pty: Option<Pty>,
    pub protocol: Option<&'static str>,
}

impl Session {
    /// Runs a request (`None`: a shell was asked for) until it ends, and tells the client how.
    pub async fn run(self, line: Option<Vec<u8>>) {
        let Self { connection, caller, channel, gone, input, controls, pty, protocol } = self;
        let _guard = connection.session();
        let (frames, waiting) = mpsc::channel(WAITING_FRAMES);
        let relay = relay(&channel, waiting, connection.gate.clone(), &gone);
        let stop = connection.stop.clone();
        let connection = &connection;
        // It owns the frames' sender: when it ends, or is dropped, the relay ends.
        let work = async move {
            let request = match &line {
                None => Ok(Request::Empty),
                Some(line) => parse(line),
            };
            match request {
                // Without a command: its greeting.
                Ok(Request::Empty) => {
                    let io = command_io(&[], input, controls, pty, &frames);
                    connection.backend.run(caller, Vec::new(), io).await
                }
                Ok(Request::Command(argv)) => {
                    let io = command_io(&argv, input, controls, pty, &frames);
                    connection.backend.run(caller, argv, io).await
                }
                Ok(Request::Git { service, env }) => {
                    git(connection, caller, service, env, protocol, input, frames).await
                }
                Err(error) => {
                    say(&frames, &format!(" !     {error}\n")).await;
                    if matches!(error, ExecError::Path { .. }) { status::NOT_FOUND } else { status::USAGE }
                }
            }
        };
        let work = async {
            tokio::select! {
                status = work => status,
                () = stop.cancelled() => status::FAILED,
            }
        };
        let ((), status) = tokio::join!(relay, work);
        finish(&channel, u32::from(status), &gone).await;
    }
}

fn command_io(
    argv: &[String],
    input: InletReader,
    controls: mpsc::Receiver<Control>,
    pty: Option<Pty>,
    frames: &mpsc::Sender<Frame>,
) -> CommandIo {
    let cooked = pty.is_some() && is_cooked(argv);
    let stdout = FrameWriter::new(frames.clone(), Frame::Out, cooked);
    let stderr = FrameWriter::new(frames.clone(), Frame::Err, cooked);
    CommandIo { pty, ..CommandIo::new(input, stdout, stderr, controls) }
}

/// Whether the command leaves line ends and control characters to the terminal driver: all but `run`, whose container has a
/// terminal of its own.
pub fn is_cooked(argv: &[String]) -> bool {
    argv.first().is_none_or(|command| command != "run")
}

async fn git(
    connection: &Connection,
    caller: Caller,
    service: Service,
    env: EnvRef,
    protocol: Option<&'static str>,
    input: InletReader,
    frames: mpsc::Sender<Frame>,
) -> u8 {
    let verb = match service {
        Service::ReceivePack => Verb::Push,
        Service::UploadPack => Verb::Read,
    };
    let access = match connection.backend.may(&caller, verb, &env).await {
        Ok(access) => access,
        Err(error) => {
            tracing::error!(%error, %env, "access to an environment could not be looked up");
            say(&frames, " !     The server has trouble with its store; try again in a moment.\n").await;
            return status::FAILED;
        }
    };
    match access {
        Access::Granted => {
            let request = GitRequest { service, env, user: caller.user, protocol };
            connection.backend.git(request, WireIo { stdin: Box::new(input), output: frames }).await
        }
        Access::NotFound => {
            let text = format!(
                " !     There is no environment {env}, or {} has no access to it.\n\
                 \x20      Check the remote (`git remote -v`), or ask an owner of {} to invite you.\n",
                caller.user, env.tenant
            );
            say(&frames, &text).await;
            status::NOT_FOUND
        }
        Access::NotPermitted => {
            let text = format!(
                " !     {} may see {env}, but not push to it.\n\x20      Ask an owner of {} for the role of a developer.\n",
                caller.user, env.tenant
            );
            say(&frames, &text).await;
            status::NOT_PERMITTED
        }
    }
}

async fn say(frames: &mpsc::Sender<Frame>, text: &str) {
    // A client that is gone does not read it.
    let _ = frames.send(Frame::Err(Bytes::copy_from_slice(text.as_bytes()))).await;
}
