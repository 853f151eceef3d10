//! Commands run inside a replica: bounded in time, output and number.
//!
//! The engine cannot end what it runs in a container, so `timeout` of the run stack does, within the container: it kills the whole
//! process group. The engine's answer is waited for a little longer than that and not at all after it.

use std::time::Duration;

use bollard::{
    Docker,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
};
use futures::StreamExt;
use tokio::{sync::Semaphore, time::timeout};

use super::engine::failed;
use crate::runtime::{EXEC_OUTPUT, Executed, RuntimeError};

/// Ends a command that takes too long; part of every Debian system.
const TIMEOUT: &str = "/bin/timeout";
/// Status of `timeout` when it has killed the command with SIGKILL.
const KILLED: i64 = 137;
/// Commands under way at once in all; each costs the engine a few processes for as long as it runs.
const AT_ONCE: usize = 16;
/// How much longer than its command an answer may take.
const SLACK: Duration = Duration::from_secs(3);

/// The places of commands under way.
#[derive(Debug)]
pub struct Places(Semaphore);

impl Default for Places {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

/// Runs `argv` in a container that runs; see [`crate::runtime::Runtime::exec`].
pub async fn run(
    docker: &Docker,
    places: &Places,
    container: &str,
    argv: &[String],
    limit: Duration,
) -> Result<Executed, RuntimeError> {
    let stopping = |_| RuntimeError::Unavailable("Berth is shutting down".to_owned());
    let _place = places.0.acquire().await.map_err(stopping)?;
    let late = || RuntimeError::Unavailable(format!("a command in container {container} is not answered for in time"));
    timeout(limit + SLACK, attempt(docker, container, argv, limit)).await.unwrap_or_else(|_| Err(late()))
}

async fn attempt(docker: &Docker, container: &str, argv: &[String], limit: Duration) -> Result<Executed, RuntimeError> {
    let doing = |error| failed(&format!("running a command in container {container}"), &error);
    let seconds = format!("{:.3}", limit.as_secs_f64());
    let mut cmd = [TIMEOUT, "-s", "KILL", &seconds].map(str::to_owned).to_vec();
    cmd.extend_from_slice(argv);
    let options = CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(cmd),
        ..Default::default()
    };
    let made = docker.create_exec(container, options).await.map_err(doing)?;
    let started = docker.start_exec(&made.id, None::<StartExecOptions>).await.map_err(doing)?;
    let mut output = Vec::new();
    if let StartExecResults::Attached { output: mut chunks, .. } = started {
        while let Some(chunk) = chunks.next().await {
            let bytes = chunk.map_err(doing)?.into_bytes();
            // The rest is read and forgotten, so that the command is not held up.
            output.extend(bytes.iter().take(EXEC_OUTPUT.saturating_sub(output.len())));
        }
    }
    let ended = docker.inspect_exec(&made.id).await.map_err(doing)?;
    let status = ended.exit_code.filter(|code| *code != KILLED);
    Ok(Executed { status, output })
}
