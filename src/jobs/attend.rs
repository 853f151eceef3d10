//! Starting a job, watching it to its end, and clearing it up.

use std::{collections::VecDeque, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::LAST_LOG_LINE_CHARS,
    logs::{OutputTail, plain_line},
    runtime::{Job, JobExit, JobSpec, Output, Patience, Runtime, RuntimeError},
};

/// How long making and starting the job may take; it may have to wait for the image.
const START_DEADLINE: Duration = Duration::from_secs(300);
/// How long clearing up may take.
const FINISH_DEADLINE: Duration = Duration::from_secs(30);
/// The audience is told that the job still runs when there was no output for this long.
const SILENCE: Duration = Duration::from_secs(8);
/// Last lines of output that are kept.
const TAIL_LINES: usize = 30;
/// And bytes, of all of them together: they are kept in records.
const TAIL_BYTES: usize = 4 << 10;

/// What is never there.
enum Never {}

/// A job that runs. Dropping it kills it; [`Started::finish`] does so too, and waits.
pub struct Started {
    job: Box<dyn Job>,
    name: String,
}

impl Started {
    /// Makes the job's container and starts it, within five minutes.
    ///
    /// # Errors
    /// The engine's.
    pub async fn new(runtime: &dyn Runtime, spec: &JobSpec) -> Result<Self, RuntimeError> {
        let patience = Patience::new(runtime, Duration::ZERO);
        match Self::unless(runtime, spec, patience, std::future::pending::<Never>(), |_| {}).await? {
            Ok(started) => Ok(started),
            Err(never) => match never {},
        }
    }

    /// The same, unless `stopped` is there before the job begins to start; then what it gives, and nothing has run. Making the container is
    /// tried again within the patience; a start is not, since one whose answer was lost may have begun the job.
    async fn unless<T>(
        runtime: &dyn Runtime,
        spec: &JobSpec,
        patience: Patience<'_>,
        stopped: impl Future<Output = T>,
        tell: impl FnMut(&RuntimeError),
    ) -> Result<Result<Self, T>, RuntimeError> {
        let (mut job, deadline) = tokio::select! {
            biased;
            stopped = stopped => return Ok(Err(stopped)),
            made = make(runtime, spec, patience, tell) => made?,
        };
        timeout_at(deadline, job.start()).await.map_err(|_| late())??;
        Ok(Ok(Self { job, name: spec.name.clone() }))
    }

    /// The job itself, for its streams and its end.
    pub fn job(&mut self) -> &mut dyn Job {
        self.job.as_mut()
    }

    /// Kills it if it runs, and removes it. That it takes long is no error: the engine goes on by itself.
    pub async fn finish(self) -> Result<(), RuntimeError> {
        match timeout(FINISH_DEADLINE, self.job.finish()).await {
            Ok(finished) => finished,
            Err(_) => {
                tracing::warn!(job = self.name, "a job cannot be cleared up in time");
                Ok(())
            }
        }
    }
}

fn late() -> RuntimeError {
    RuntimeError::Unavailable(format!("no start within {} s", START_DEADLINE.as_secs()))
}

/// The job's container, and until when it is to be started.
async fn make(
    runtime: &dyn Runtime,
    spec: &JobSpec,
    mut patience: Patience<'_>,
    mut tell: impl FnMut(&RuntimeError),
) -> Result<(Box<dyn Job>, Instant), RuntimeError> {
    loop {
        let deadline = Instant::now() + START_DEADLINE;
        match timeout_at(deadline, runtime.job(spec)).await.unwrap_or_else(|_| Err(late())) {
            Ok(job) => return Ok((job, deadline)),
            Err(error) => patience.again(error, &mut tell).await?,
        }
    }
}

/// Who hears of an attended job.
#[async_trait]
pub trait Audience: Send {
    /// Output, as it came. The job waits meanwhile.
    async fn output(&mut self, output: Output);
    /// There was none for a while; the job has been running for so long.
    fn silent(&mut self, running: Duration);
    /// The engine does not answer, and is waited for.
    fn waiting(&mut self, _why: &RuntimeError) {}
}

/// How an attended job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// By itself.
    Exited(JobExit),
    /// It ran for as long as it may and was ended.
    TimeLimit(Duration),
    /// It was told to, with this reason.
    Stopped(String),
    /// It was to end, for this reason, before it had begun: nothing of it ran.
    NotBegun(String),
}

impl Ending {
    /// Why it has failed, if it has: `it exited with status 1`.
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::Exited(exit) if exit.code == 0 => None,
            Self::Exited(exit) if exit.out_of_memory => Some("it ran out of memory".to_owned()),
            Self::Exited(exit) => Some(format!("it exited with status {}", exit.code)),
            Self::TimeLimit(limit) => Some(format!("it took longer than {} s", limit.as_secs())),
            Self::Stopped(reason) | Self::NotBegun(reason) => Some(reason.clone()),
        }
    }

    /// The exit status, if it came to one.
    pub fn exit(&self) -> Option<i64> {
        match self {
            Self::Exited(exit) => Some(exit.code),
            Self::TimeLimit(_) | Self::Stopped(_) | Self::NotBegun(_) => None,
        }
    }
}

/// What there is to tell of a job that has been attended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attended {
    pub ending: Ending,
    /// The last lines of its output, 30 at most and 4 KiB in all, each as plain text of at most 500 characters.
    pub tail: Vec<String>,
}

/// Runs a job to its end: until it exits, has run for `limit`, or `stopped` gives a reason to end it (then SIGTERM, the spec's grace time,
/// SIGKILL). Its container is gone afterwards.
///
/// # Errors
/// The engine's, when the job could not be started or followed.
pub async fn attend(
    runtime: &dyn Runtime,
    spec: &JobSpec,
    limit: Duration,
    stopped: impl Future<Output = String> + Send,
    audience: &mut dyn Audience,
) -> Result<Attended, RuntimeError> {
    let begin = Begin { within: Duration::ZERO, unwanted: CancellationToken::new() };
    attend_within(runtime, spec, begin, limit, stopped, audience).await
}

/// How late a job may begin: an engine that does not answer yet is waited for.
pub struct Begin {
    /// So long it may take.
    pub within: Duration,
    /// Nobody wants it any more. One that has begun goes on all the same.
    pub unwanted: CancellationToken,
}

/// As [`attend`], for a job that may begin later.
///
/// # Errors
/// The engine's, when the job could not be started in that time or followed.
pub async fn attend_within(
    runtime: &dyn Runtime,
    spec: &JobSpec,
    begin: Begin,
    limit: Duration,
    stopped: impl Future<Output = String> + Send,
    audience: &mut dyn Audience,
) -> Result<Attended, RuntimeError> {
    let mut stopped = std::pin::pin!(stopped);
    let patience = Patience::new(runtime, begin.within);
    let tell = |why: &RuntimeError| audience.waiting(why);
    let not_to_begin = async {
        tokio::select! {
            reason = &mut stopped => reason,
            () = begin.unwanted.cancelled() => "it is not wanted any more".to_owned(),
        }
    };
    let mut started = match Started::unless(runtime, spec, patience, not_to_begin, tell).await? {
        Ok(started) => started,
        Err(reason) => return Ok(Attended { ending: Ending::NotBegun(reason), tail: Vec::new() }),
    };
    let mut watched = Watched { output: started.job().output(), tail: OutputTail::default(), audience };
    let ending = watched.until_over(started.job(), limit, stopped).await;
    if let Ok(Ending::TimeLimit(_) | Ending::Stopped(_)) = ending {
        watched.stop(started.job(), spec.stop_grace).await;
    }
    let tail = plain_lines(&watched.tail);
    if let Err(error) = started.finish().await {
        tracing::warn!(job = spec.name, %error, "a job cannot be cleared up");
    }
    Ok(Attended { ending: ending?, tail })
}

struct Watched<'a> {
    output: BoxStream<'static, Result<Output, RuntimeError>>,
    tail: OutputTail,
    audience: &'a mut dyn Audience,
}

impl Watched<'_> {
    async fn until_over(
        &mut self,
        job: &mut dyn Job,
        limit: Duration,
        stopped: impl Future<Output = String> + Send,
    ) -> Result<Ending, RuntimeError> {
        let (began, deadline) = (Instant::now(), Instant::now() + limit);
        let mut stopped = std::pin::pin!(stopped);
        loop {
            tokio::select! {
                biased;
                reason = &mut stopped => return Ok(Ending::Stopped(reason)),
                // Before the output: one that never pauses does not outrun the limit.
                () = sleep_until(deadline) => return Ok(Ending::TimeLimit(limit)),
                chunk = self.output.next() => match chunk {
                    Some(chunk) => self.take(chunk?).await,
                    None => break,
                },
                () = sleep_until(Instant::now() + SILENCE) => self.audience.silent(began.elapsed()),
            }
        }
        tokio::select! {
            reason = stopped => Ok(Ending::Stopped(reason)),
            exit = timeout_at(deadline, job.wait()) => match exit {
                Ok(exit) => Ok(Ending::Exited(exit?)),
                Err(_) => Ok(Ending::TimeLimit(limit)),
            }
        }
    }

    async fn take(&mut self, output: Output) {
        self.tail.take(&output);
        self.audience.output(output).await;
    }

    /// Tells the job to end and hears its last words.
    async fn stop(&mut self, job: &mut dyn Job, grace: Duration) {
        let control = job.control();
        let last_words = async {
            if let Err(error) = control.signal("TERM").await {
                tracing::debug!(%error, "a job that is to end has ended already");
            }
            while let Some(Ok(chunk)) = self.output.next().await {
                self.take(chunk).await;
            }
            let _ = job.wait().await;
        };
        // One that does not end in time is killed by its clearing up.
        let _ = timeout(grace, last_words).await;
    }
}

/// The last lines, as plain text.
fn plain_lines(tail: &OutputTail) -> Vec<String> {
    let lines = tail.lines(TAIL_LINES).into_iter();
    let mut lines: VecDeque<String> = lines.map(|(_, line)| plain_line(&line, LAST_LOG_LINE_CHARS)).collect();
    while lines.iter().map(String::len).sum::<usize>() > TAIL_BYTES {
        lines.pop_front();
    }
    lines.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Source;

    #[test]
    fn the_tail_is_plain_lines_of_both_streams() {
        let mut tail = OutputTail::default();
        for (source, text) in [
            (Source::Stdout, "\u{1b}[32mmigr"),
            (Source::Stderr, "Err"),
            (Source::Stdout, "ating\u{1b}[0m\n10%\r20%\n"),
            (Source::Stderr, "or: no table\n"),
            (Source::Stdout, "half a line"),
        ] {
            tail.take(&Output { source, bytes: text.as_bytes().to_vec().into() });
        }
        assert_eq!(plain_lines(&tail), ["migrating", "20%", "Error: no table", "half a line"]);
        let mut tail = OutputTail::default();
        let bytes = format!("{}\n", "x".repeat(2000)).repeat(100).into_bytes().into();
        tail.take(&Output { source: Source::Stdout, bytes });
        let lines = plain_lines(&tail);
        assert!(lines.len() == TAIL_BYTES / LAST_LOG_LINE_CHARS && lines.iter().all(|line| line.len() == 500));
    }
}
