//! One-off commands in the current release.

use axum::{
    body::Body as ResponseBody,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        extract::{Body, Names},
        names::EnvPath,
        problem::{Problem, Refusals},
    },
    commands::{Caller, CommandError, CommandIo, Control},
    domain::EnvRef,
};

/// Bytes of output in one piece, and pieces that wait for a slow client; then the command waits too.
const PIECE: usize = 16 << 10;
const WAITING: usize = 16;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(run_command))
}

/// A command to be run.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRun {
    /// One word is a line for the shell; several are a program and what it is given
    #[schema(example = json!(["python", "manage.py", "migrate"]))]
    command: Vec<String>,
    /// Its standard input
    #[serde(default)]
    stdin: String,
}

/// Run a one-off command (developers). Its output comes as it is written, one JSON object a line: `{"stream": "stdout", "text": …}`, at the end
/// `{"exit_status": 0}`. A client that goes away ends it. It takes no Idempotency-Key: the output is not kept, and asked again it runs again
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/runs", tag = "environments", params(EnvPath), request_body = NewRun,
    responses((status = 200, body = String, content_type = "application/x-ndjson"), Refusals))]
async fn run_command(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Body(new): Body<NewRun>,
) -> Result<Response, Problem> {
    if new.command.iter().all(String::is_empty) {
        return Err(Problem::bad_request("command names none").with_hint("as in {\"command\": [\"ls\", \"-l\"]}"));
    }
    let (lines, mut output) = mpsc::channel::<Result<Bytes, std::io::Error>>(WAITING);
    let mut running = tokio::spawn(run((*api).clone(), caller, path.env(), new, lines));
    // What keeps it from beginning is a problem; once it has said something, its end is told behind that.
    let first = tokio::select! {
        biased;
        first = output.recv() => first,
        ended = &mut running => match ended {
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(())) => output.recv().await,
            Err(error) => return Err(Problem::broken(error)),
        },
    };
    let first = match first {
        Some(first) => first,
        // It has ended with an error, and nothing before.
        None => match running.await {
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(())) => return Err(Problem::broken("a command has ended without a status")),
            Err(error) => return Err(Problem::broken(error)),
        },
    };
    let lines = futures::StreamExt::chain(tokio_stream::once(first), ReceiverStream::new(output));
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, ResponseBody::from_stream(lines)).into_response())
}

type Lines = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// Runs it until it ends or nobody listens. An error after the first line is told as the last one.
async fn run(
    commands: crate::commands::Commands,
    caller: Caller,
    env: EnvRef,
    new: NewRun,
    lines: Lines,
) -> Result<(), CommandError> {
    let ((stdout, out), (stderr, err)) = (tokio::io::duplex(PIECE), tokio::io::duplex(PIECE));
    let (control, controls) = mpsc::channel(1);
    let io = CommandIo::new(std::io::Cursor::new(new.stdin.into_bytes()), stdout, stderr, controls);
    let hangs_up = async {
        lines.closed().await;
        let _ = control.send(Control::Hangup).await;
        std::future::pending::<()>().await;
    };
    let relayed = async { tokio::join!(relay("stdout", out, &lines), relay("stderr", err, &lines)) };
    let work = async { tokio::join!(commands.run_for(&caller, &env, &new.command, io), relayed) };
    let (status, (said_out, said_err)) = tokio::select! {
        done = work => done,
        () = hangs_up => return Ok(()),
    };
    let last = match status {
        Ok(status) => json!({"exit_status": status}),
        Err(error) if !said_out && !said_err => return Err(error),
        Err(error) => json!({"error": error.to_string(), "exit_status": error.exit_status()}),
    };
    let _ = lines.send(Ok(Bytes::from(format!("{last}\n")))).await;
    Ok(())
}

/// Whether anything came.
async fn relay(stream: &str, mut output: impl AsyncRead + Unpin, lines: &Lines) -> bool {
    let (mut piece, mut said, mut rest) = (vec![0; PIECE], false, Vec::new());
    loop {
        let read = output.read(&mut piece).await.unwrap_or(0);
        rest.extend_from_slice(&piece[..read]);
        // A character may be cut in two by where pieces end.
        let whole = if read == 0 { rest.len() } else { whole_characters(&rest) };
        if whole > 0 {
            said = true;
            let text = String::from_utf8_lossy(&rest[..whole]).into_owned();
            rest.drain(..whole);
            let line = format!("{}\n", json!({"stream": stream, "text": text}));
            if lines.send(Ok(Bytes::from(line))).await.is_err() {
                return said;
            }
        }
        if read == 0 {
            return said;
        }
    }
}

/// Up to where there are whole characters, or bytes that will never be any.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => {
            // A character that is cut has at most three bytes.
            let tail = bytes.len().saturating_sub(3);
            (tail..bytes.len())
                .find(|at| {
                    std::str::from_utf8(&bytes[*at..])
                        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
                })
                .unwrap_or(bytes.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_not_cut() {
        for (bytes, whole) in
            [(&b"abc"[..], 3), (b"a\xc3", 1), (b"\xffa\xc3", 2), (b"\xff", 1), (b"\xe2\x82", 0), (b"", 0)]
        {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }
}
