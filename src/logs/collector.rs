//! Brings the output of every replica into its environment's log.
//!
//! Level-triggered: an event is only a reason to observe; whatever is observed and not followed is followed. A replica is read from where
//! the log has it, so that neither a restart of the server nor of the engine loses or doubles a line.
//!
//! A replica that writes faster than it may ([`super::LogLimits::replica_rate`]) is not read for a while, and what it wrote meanwhile is
//! left out and counted: reading on would cost the engine and this process more than the replica's own limits let it have, and keeping the
//! engine waiting would leave its log ever further behind.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    LogRecord, LogSource, LogStream, Logs, ResumePoint,
    pace::{LeftOut, Pace},
};
use crate::{
    domain::{EnvRef, Replica, ReplicaId, ReplicaState, Timestamp},
    runtime::{LogLine, Runtime, RuntimeError, Source},
};

/// Pause after the engine did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How long a replica that writes too fast is not read.
const REST: Duration = Duration::from_secs(10);
/// Looks at what runs take a fifth of the time at the most, so that they take little from the engine when much starts or stops.
const BREATH: u32 = 4;
/// But the next one comes no later than this: what a replica says in its first moment is to be seen soon.
const LONGEST_BREATH: Duration = Duration::from_millis(250);
/// How long reading what is left out may take: with a clock that was set back, its end would not come.
const CATCH_UP: Duration = Duration::from_secs(20);
/// Clocks of engine and server may be so far apart; a line from further ahead is from before the clock was set back.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// Follows the output of replicas.
pub struct Collector {
    runtime: Arc<dyn Runtime>,
    logs: Logs,
    /// Replicas that are being read.
    following: HashSet<ReplicaId>,
    /// Replicas that have ended and are read to their end, as long as the engine still has them.
    finished: HashSet<ReplicaId>,
    readers: JoinSet<(ReplicaId, Outcome)>,
    tasks: HashMap<tokio::task::Id, ReplicaId>,
}

/// Why reading a replica's output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The engine said that there is no more.
    Ended,
    /// The engine or the log failed; to be tried again.
    Failed,
}

impl Collector {
    /// A collector that reads from `runtime` into `logs`.
    pub fn new(runtime: Arc<dyn Runtime>, logs: Logs) -> Self {
        let (following, finished) = (HashSet::new(), HashSet::new());
        Self { runtime, logs, following, finished, readers: JoinSet::new(), tasks: HashMap::new() }
    }

    /// Collects until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.follow_events(&stop).await {
                tracing::warn!(%error, "replicas' output cannot be followed just now");
            }
            pause(&stop).await;
        }
    }

    /// Until the event stream ends, the engine fails, or `stop`.
    async fn follow_events(&mut self, stop: &CancellationToken) -> Result<(), RuntimeError> {
        // First, so that what starts while observing is not missed.
        let mut events = self.runtime.events().await?;
        let mut rested = self.look().await?;
        loop {
            tokio::select! {
                event = events.next() => if event.is_none() { return Ok(()) },
                Some(ended) = self.readers.join_next_with_id() => self.reader_ended(ended),
                () = stop.cancelled() => return Ok(()),
            }
            // They come in crowds, as when a set of many replicas starts.
            tokio::select! {
                () = tokio::time::sleep_until(rested) => {}
                () = stop.cancelled() => return Ok(()),
            }
            // One look serves all that are there.
            while let Some(Some(_)) = events.next().now_or_never() {}
            while let Some(ended) = self.readers.try_join_next_with_id() {
                self.reader_ended(ended);
            }
            rested = self.look().await?;
        }
    }

    /// Observes; returns when it is time for the next look.
    async fn look(&mut self) -> Result<tokio::time::Instant, RuntimeError> {
        let began = tokio::time::Instant::now();
        self.observe().await?;
        Ok(tokio::time::Instant::now() + (began.elapsed() * BREATH).min(LONGEST_BREATH))
    }

    fn reader_ended(&mut self, ended: Result<(tokio::task::Id, (ReplicaId, Outcome)), tokio::task::JoinError>) {
        let (task, outcome) = match ended {
            Ok((task, (_, outcome))) => (task, outcome),
            Err(error) => {
                tracing::error!(%error, "reading a replica's output failed");
                (error.id(), Outcome::Failed)
            }
        };
        if let Some(replica) = self.tasks.remove(&task) {
            self.following.remove(&replica);
            if outcome == Outcome::Ended {
                self.finished.insert(replica);
            }
        }
    }

    /// Follows every replica that is not followed.
    async fn observe(&mut self) -> Result<(), RuntimeError> {
        let replicas = self.runtime.observe().await?;
        let there: HashSet<&ReplicaId> = replicas.iter().map(|replica| &replica.id).collect();
        self.finished.retain(|id| there.contains(id));
        for replica in &replicas {
            if replica.state == ReplicaState::Created || self.following.contains(&replica.id) {
                continue;
            }
            let running = replica.state == ReplicaState::Running;
            // One that ended is read once; one that runs although its output ended was started again, or the engine was.
            if self.finished.contains(&replica.id) && !running {
                continue;
            }
            let again = self.finished.remove(&replica.id);
            self.following.insert(replica.id.clone());
            let reader = Reader::new(self.runtime.clone(), self.logs.clone(), replica);
            let id = replica.id.clone();
            let task = self.readers.spawn(async move {
                if again {
                    // Not a busy loop when the engine ends the stream of a running replica at once.
                    tokio::time::sleep(RETRY).await;
                }
                (id, reader.run().await)
            });
            self.tasks.insert(task.id(), replica.id.clone());
        }
        Ok(())
    }
}

async fn pause(stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(RETRY) => {}
        () = stop.cancelled() => {}
    }
}

/// Reads one replica.
struct Reader {
    runtime: Arc<dyn Runtime>,
    logs: Logs,
    env: EnvRef,
    id: ReplicaId,
    process: String,
}

impl Reader {
    fn new(runtime: Arc<dyn Runtime>, logs: Logs, replica: &Replica) -> Self {
        let process = format!("{}.{}", replica.set.process, replica.index);
        Self { runtime, logs, env: replica.set.env.clone(), id: replica.id.clone(), process }
    }

    async fn run(self) -> Outcome {
        match self.read().await {
            Ok(()) => Outcome::Ended,
            Err(error) => {
                match error.downcast_ref::<RuntimeError>() {
                    // Removed since it was observed.
                    Some(RuntimeError::Gone(_)) => return Outcome::Ended,
                    _ => {
                        tracing::warn!(env = %self.env, process = %self.process, error = format!("{error:#}"), "its output cannot be read")
                    }
                }
                tokio::time::sleep(RETRY).await;
                Outcome::Failed
            }
        }
    }

    async fn read(&self) -> anyhow::Result<()> {
        let mut point = self.logs.resume_point(&self.env, &self.id).await?;
        let clock = Instant::now();
        let mut pace = Pace::new(self.logs.replica_rate(), 0);
        let mut left_out = None;
        while let Some(too_fast) = self.read_from(point, &clock, &mut pace, &mut left_out).await? {
            self.say(format!(
                "{} writes too fast: what it writes in the next {} s is left out",
                self.process,
                REST.as_secs()
            ));
            tokio::time::sleep(REST).await;
            point = Some(ResumePoint { at: too_fast, lines: 0 });
            left_out = Some(LeftOut::new(Timestamp::now()));
        }
        let Some(left_out) = left_out else { return Ok(()) };
        let (lines, last) = left_out.into_last();
        self.say_left_out(lines);
        for line in last {
            self.logs.append_when_ready(&self.env, self.record(line)).await;
        }
        Ok(())
    }

    /// Until the output ends, or until a line that came too fast, whose moment is returned.
    async fn read_from(
        &self,
        point: Option<ResumePoint>,
        clock: &Instant,
        pace: &mut Pace,
        left_out: &mut Option<LeftOut>,
    ) -> anyhow::Result<Option<Timestamp>> {
        let mut skip = Skip::new(point, Timestamp::now());
        let (mut lines, began) = (self.runtime.logs(&self.id, skip.since()).await?, Instant::now());
        while let Some(line) = lines.next().await {
            let line = line?;
            if skip.is_known(&line, began.elapsed()) {
                continue;
            }
            if let Some(gap) = left_out {
                if gap.covers(&line) && began.elapsed() < CATCH_UP {
                    gap.add(line);
                    continue;
                }
                self.say_left_out(gap.lines);
                *left_out = None;
            }
            let now = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
            if !pace.take(line.bytes.len(), now) {
                return Ok(Some(line.at));
            }
            // Waiting here makes the engine keep the rest, which is its job.
            self.logs.append_when_ready(&self.env, self.record(line)).await;
        }
        Ok(None)
    }

    fn say_left_out(&self, lines: u64) {
        if lines > 0 {
            self.say(format!("{lines} lines of {} and what the engine no longer had were left out", self.process));
        }
    }

    fn say(&self, text: String) {
        self.logs.append(&self.env, LogRecord::berth(Timestamp::now(), "logs", text));
    }

    fn record(&self, line: LogLine) -> LogRecord {
        LogRecord {
            at: line.at,
            source: LogSource::App,
            process: self.process.clone(),
            stream: match line.source {
                Source::Stdout => LogStream::Stdout,
                Source::Stderr => LogStream::Stderr,
            },
            text: String::from_utf8_lossy(&line.bytes).into_owned(),
            replica: Some(self.id.0.clone()),
        }
    }
}

/// Which of the first lines are in the log already.
struct Skip {
    point: Option<ResumePoint>,
    /// Lines from beyond are from before the clock was set back.
    ahead: Timestamp,
    /// The point lies ahead: the clock has been set back since. Then what comes after it bears an earlier time, and order alone tells.
    by_order: bool,
}

impl Skip {
    fn new(point: Option<ResumePoint>, now: Timestamp) -> Self {
        let ahead = now + CLOCKS_APART;
        Self { point, ahead, by_order: point.is_some_and(|point| point.at > ahead) }
    }

    /// From when on lines are asked for.
    fn since(&self) -> Option<Timestamp> {
        self.point.filter(|_| !self.by_order).map(|point| point.at)
    }

    /// `elapsed`: since the first was asked for.
    fn is_known(&mut self, line: &LogLine, elapsed: Duration) -> bool {
        let Some(point) = &mut self.point else { return false };
        let is_there = line.at == point.at && point.lines > 0;
        point.lines -= usize::from(is_there);
        let known = match self.by_order {
            // The engine may not have that line any more; what comes later than it gives out what it has is new in any case.
            true => is_there || (point.lines > 0 && elapsed < CATCH_UP),
            false => is_there || line.at < point.at || line.at > self.ahead,
        };
        if !known {
            self.point = None;
        }
        known
    }
}

#[cfg(test)]
mod tests;
