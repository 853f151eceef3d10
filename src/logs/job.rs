//! The output of a job on its way into its environment's log: no more of it than a replica may write.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{LogRecord, LogSource, LogStream, Logs, OutputLines, OutputTail, pace::Pace};
use crate::{
    domain::{EnvRef, Timestamp},
    runtime::{Output, Source},
};

/// For how long nothing is taken of a job that writes too fast.
const REST: Duration = Duration::from_secs(10);
/// Of what is left out, the lines that are kept until it is known whether they were the last.
const LAST: usize = 100;
/// How fast a job may write of what is left out, in bytes a second.
const HELD: f64 = (8 << 20) as f64;
/// What a line costs beyond its text, in bytes: a job that writes empty lines writes as well.
const LINE: usize = 64;
const STREAMS: [LogStream; 2] = [LogStream::Stdout, LogStream::Stderr];

/// Takes a job's output to its log by lines. What comes faster than [`super::LogLimits::replica_rate`] is left out and counted, and the job
/// is held to 8 MiB/s meanwhile: engine and server would do nothing else than carry what nobody reads.
pub struct JobOutput {
    logs: Logs,
    env: EnvRef,
    process: String,
    /// Of standard output and standard error.
    lines: [OutputLines; 2],
    pace: Pace,
    began: Instant,
    /// While nothing is taken, and what came meanwhile.
    resting: Option<Instant>,
    skipped: OutputTail,
}

impl JobOutput {
    /// For a job that begins now. `process`: what it is called in the log, as in `cron.report`.
    pub fn new(logs: Logs, env: EnvRef, process: impl Into<String>) -> Self {
        let pace = Pace::new(logs.replica_rate(), 0);
        Self {
            logs,
            env,
            process: process.into(),
            lines: Default::default(),
            pace,
            began: Instant::now(),
            resting: None,
            skipped: OutputTail::default(),
        }
    }

    /// Takes output as it came, at `at`. Waits while the log has no room for more of the tenant.
    pub async fn take(&mut self, output: &Output, at: Timestamp) {
        if self.resting.is_some_and(|since| since.elapsed() < REST) {
            self.skipped.take(output);
            // Whoever does not read holds the job up.
            return sleep(Duration::from_secs_f64(output.bytes.len() as f64 / HELD)).await;
        }
        if self.resting.take().is_some() {
            self.go_on(at);
        }
        let which = usize::from(output.source == Source::Stderr);
        let mut whole = Vec::new();
        self.lines[which].take(&output.bytes, |line| whole.push(line.to_owned()));
        for text in whole {
            match self.resting {
                None => self.line(STREAMS[which], text, at).await,
                Some(_) => self.skip(which, &text, "\n"),
            }
        }
        if self.resting.is_some() {
            // What has no end yet goes on among what is left out.
            for which in [0, 1] {
                if let Some(text) = self.lines[which].rest() {
                    self.skip(which, &text, "");
                }
            }
        }
    }

    /// The job has ended: what is left of its output, and how much was left out.
    pub async fn finish(&mut self, at: Timestamp) {
        for (which, stream) in STREAMS.into_iter().enumerate() {
            if let Some(text) = self.lines[which].rest() {
                self.line(stream, text, at).await;
            }
        }
        let skipped = std::mem::take(&mut self.skipped);
        let last = skipped.lines(LAST);
        self.tell_left_out(skipped.count() - last.len() as u64, at);
        // They say why it ended as it did.
        for (source, text) in last {
            let record = self.record(STREAMS[usize::from(source == Source::Stderr)], text, at);
            self.logs.append_when_ready(&self.env, record).await;
        }
    }

    async fn line(&mut self, stream: LogStream, text: String, at: Timestamp) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.pace.take(text.len() + LINE, now) {
            let record = self.record(stream, text, at);
            return self.logs.append_when_ready(&self.env, record).await;
        }
        let (process, rest) = (&self.process, REST.as_secs());
        self.say(at, format!("{process} writes too fast: what it writes in the next {rest} s is left out"));
        self.resting = Some(Instant::now());
        self.skip(usize::from(stream == LogStream::Stderr), &text, "\n");
    }

    fn record(&self, stream: LogStream, text: String, at: Timestamp) -> LogRecord {
        LogRecord { at, source: LogSource::App, process: self.process.clone(), stream, text, replica: None }
    }

    fn skip(&mut self, which: usize, text: &str, end: &str) {
        let source = [Source::Stdout, Source::Stderr][which];
        self.skipped.take(&Output { source, bytes: format!("{text}{end}").into_bytes().into() });
    }

    /// After a rest.
    fn go_on(&mut self, at: Timestamp) {
        let skipped = std::mem::take(&mut self.skipped);
        self.tell_left_out(skipped.count(), at);
    }

    fn tell_left_out(&self, lines: u64, at: Timestamp) {
        if lines > 0 {
            self.say(at, format!("{lines} lines of {} were left out", self.process));
        }
    }

    fn say(&self, at: Timestamp, text: String) {
        self.logs.append(&self.env, LogRecord::berth(at, "logs", text));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::logs::{LogFilter, LogLimits, MAX_TAIL};

    #[tokio::test]
    async fn a_job_that_writes_too_fast_is_cut_short_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path(), LogLimits { replica_rate: 1000, ..LogLimits::default() }).unwrap();
        let env: EnvRef = "acme/shop/dev".parse().unwrap();
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let mut job = JobOutput::new(logs.clone(), env.clone(), "cron.report");
        for n in 0..5000 {
            let source = if n % 2 == 0 { Source::Stdout } else { Source::Stderr };
            job.take(&Output { source, bytes: Bytes::from(format!("line {n}\n")) }, at).await;
        }
        job.take(&Output { source: Source::Stdout, bytes: Bytes::from("the end") }, at).await;
        job.finish(at).await;
        let all = logs.tail(&env, MAX_TAIL, &LogFilter::all()).await.unwrap();
        let (told, kept): (Vec<_>, Vec<_>) = all.iter().partition(|record| record.source == LogSource::Berth);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].text.starts_with("cron.report writes too fast"), "{}", told[0].text);
        let left_out: usize = told[1].text.split(' ').next().unwrap().parse().unwrap();
        assert_eq!((kept.len() + left_out, kept.last().unwrap().text.as_str()), (5001, "the end"));
        assert!(kept.len() < 200, "{} lines were kept", kept.len());
        assert_eq!(kept[1].stream, LogStream::Stderr);
    }

    #[tokio::test]
    async fn a_job_that_writes_without_end_is_held_up() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path(), LogLimits { replica_rate: 1000, ..LogLimits::default() }).unwrap();
        let env: EnvRef = "acme/shop/dev".parse().unwrap();
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let mut job = JobOutput::new(logs, env, "cron.report");
        let output = Output { source: Source::Stdout, bytes: Bytes::from("y\n".repeat(16 << 10)) };
        let began = Instant::now();
        for _ in 0..129 {
            job.take(&output, at).await;
        }
        // 4 MiB after the first chunk, which used up what it may write.
        assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
        job.finish(at).await;
    }
}
