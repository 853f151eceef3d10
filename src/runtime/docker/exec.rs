//! Commands inside a running replica.
//!
//! The engine cannot end a command that it began, so the container's own `timeout` does: whoever gets rid of that harms only the replica
//! that he is in.

use std::{collections::VecDeque, time::Duration};

use bollard::{
    container::LogOutput,
    errors::Error,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    container::LAUNCHER,
    engine::{Engine, failed, status},
};
use crate::domain::ReplicaId;
use crate::runtime::{EXEC_OUTPUT, Executed, RuntimeError};

/// Ends commands; at this place in Debian's images and in busybox'.
const TIMEOUT: &str = "/bin/timeout";
/// Exit status of what SIGKILL ended.
const KILLED: i64 = 128 + 9;
/// How much longer than its limit a command may take, with all that the engine does for it.
const SLACK: Duration = Duration::from_secs(10);
/// The engine notes the end of a command a moment after its output has ended, and tells nobody but those who ask. First pause between two
/// questions, and the longest.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// See [`crate::runtime::Runtime::exec`].
pub async fn run(
    engine: &Engine,
    replica: &ReplicaId,
    command: &str,
    limit: Duration,
) -> Result<Executed, RuntimeError> {
    let doing = || format!("running a command in replica {}", replica.0);
    let sorted = |error: Error| match status(&error) {
        Some(404) => RuntimeError::Gone(format!("replica {}", replica.0)),
        _ => failed(&doing(), &error),
    };
    let deadline = Instant::now() + limit + SLACK;
    let late = || RuntimeError::Unavailable(format!("{}: no end within {:?}", doing(), limit + SLACK));
    let work = async {
        let made = engine.docker.create_exec(&replica.0, options(engine, command, limit)).await.map_err(sorted)?;
        let began = Instant::now();
        let start = StartExecOptions { detach: false, tty: false, output_capacity: None };
        let output = match engine.docker.start_exec(&made.id, Some(start)).await.map_err(sorted)? {
            StartExecResults::Attached { output, .. } => last_of(output).await.map_err(sorted)?,
            StartExecResults::Detached => Bytes::new(),
        };
        let code = exit_code(engine, &made.id).await.map_err(sorted)?;
        let over = code == KILLED && began.elapsed() >= limit;
        Ok(Executed { code: (!over).then_some(code), output })
    };
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late()))
}

fn options(engine: &Engine, command: &str, limit: Duration) -> CreateExecOptions<String> {
    let uid = engine.recipe.settings.uid;
    CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(argv(command, limit)),
        user: Some(format!("{uid}:{uid}")),
        privileged: Some(false),
        ..CreateExecOptions::default()
    }
}

fn argv(command: &str, limit: Duration) -> Vec<String> {
    // Rounded up, so that a command which is killed has had its whole time; nought would mean no limit.
    let tenths = limit.as_millis().div_ceil(100).max(1);
    let seconds = format!("{}.{}", tenths / 10, tenths % 10);
    [TIMEOUT, "-s", "KILL", &seconds, LAUNCHER, command].map(str::to_owned).to_vec()
}

/// The last bytes of a stream, once it has ended.
async fn last_of(mut output: impl Stream<Item = Result<LogOutput, Error>> + Unpin) -> Result<Bytes, Error> {
    let mut last = VecDeque::with_capacity(EXEC_OUTPUT);
    while let Some(chunk) = output.next().await {
        let bytes = chunk?.into_bytes();
        last.extend(&bytes[bytes.len().saturating_sub(EXEC_OUTPUT)..]);
        last.drain(..last.len().saturating_sub(EXEC_OUTPUT));
    }
    Ok(Vec::from(last).into())
}

/// The exit status, once the engine knows it; the caller has a deadline.
async fn exit_code(engine: &Engine, id: &str) -> Result<i64, Error> {
    let mut pause = ASK_AGAIN.0;
    loop {
        let found = engine.docker.inspect_exec(id).await?;
        if let (Some(false), Some(code)) = (found.running, found.exit_code) {
            return Ok(code);
        }
        sleep(pause).await;
        pause = (pause * 2).min(ASK_AGAIN.1);
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[test]
    fn limits_are_rounded_up() {
        for (limit, want) in [(0, "0.1"), (1, "0.1"), (100, "0.1"), (2000, "2.0"), (2001, "2.1"), (600_000, "600.0")] {
            assert_eq!(argv("true", Duration::from_millis(limit))[3], want, "{limit} ms");
        }
        assert_eq!(argv("a; b 'c'", Duration::ZERO)[4..], [LAUNCHER, "a; b 'c'"]);
    }

    #[tokio::test]
    async fn only_the_end_of_much_output_is_kept() {
        let chunk = |byte: u8, size| Ok(LogOutput::StdOut { message: vec![byte; size].into() });
        let chunks = vec![chunk(b'a', 10), chunk(b'b', 3 * EXEC_OUTPUT), chunk(b'c', 7)];
        let kept = last_of(stream::iter(chunks)).await.unwrap();
        assert_eq!(kept.len(), EXEC_OUTPUT);
        assert!(kept.starts_with(b"bbb") && kept.ends_with(b"bccccccc"));
        assert_eq!(last_of(stream::iter(vec![chunk(b'a', 2)])).await.unwrap(), "aa");
    }
}
