//! Brings the output of every replica into its environment's log.
//!
//! Level-triggered: an event is only a reason to observe; whatever is observed and not followed is followed. A replica is read from where
//! the log has it, so that neither a restart of the server nor of the engine loses or doubles a line.
//!
//! A replica that writes faster than it may ([`super::LogLimits::replica_rate`]) is not read for a while, and what it wrote meanwhile is
//! left out and counted: reading on would cost the engine and this process more than the replica's own limits let it have, and keeping the
//! engine waiting would leave its log ever further behind. One that writes faster than anybody could ever want to read is held up too, until
//! it stops that: see `hold`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream::BoxStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    LogRecord, LogSource, LogStream, Logs, ResumePoint,
    hold::{Hold, Why},
    pace::{LeftOut, Speed},
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
/// For how long one that writes too fast is looked at before it is held up, and how much later than that began it must still do so: what
/// comes at once is no flood, however long the engine takes to hand it out.
const LOOK_ON: Duration = Duration::from_millis(1500);
const SUSTAINED: Duration = Duration::from_millis(700);
/// For how long one that is held up must have written less after that to be let go of.
const CALM: Duration = Duration::from_secs(10);
/// How long letting go of all that are held may take at the end.
const LET_GO: Duration = Duration::from_secs(5);
/// How long reading what is left out may take: with a clock that was set back, its end would not come.
const CATCH_UP: Duration = Duration::from_secs(20);
/// Clocks of engine and server may be so far apart; a line from further ahead is from before the clock was set back.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// Tells what time it is.
type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Follows the output of replicas.
pub struct Collector {
    runtime: Arc<dyn Runtime>,
    logs: Logs,
    clock: Clock,
    /// Replicas that are being read.
    following: HashSet<ReplicaId>,
    /// Replicas that have ended and are read to their end, as long as the engine still has them.
    finished: HashSet<ReplicaId>,
    /// Of the replicas that are there and have been read.
    holds: HashMap<ReplicaId, Arc<Hold>>,
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
        Self::with_clock(runtime, logs, Arc::new(Timestamp::now))
    }

    fn with_clock(runtime: Arc<dyn Runtime>, logs: Logs, clock: Clock) -> Self {
        let (following, finished, holds) = (HashSet::new(), HashSet::new(), HashMap::new());
        Self { runtime, logs, clock, following, finished, holds, readers: JoinSet::new(), tasks: HashMap::new() }
    }

    /// Collects until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.follow_events(&stop).await {
                tracing::warn!(%error, "replicas' output cannot be followed just now");
            }
            pause(&stop).await;
        }
        // The next server would too, whenever that comes.
        let let_go = futures::future::join_all(self.holds.values().map(|hold| hold.let_go()));
        if tokio::time::timeout(LET_GO, let_go).await.is_err() {
            tracing::warn!("replicas that are slowed down stay so until the next start");
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
        self.holds.retain(|id, _| there.contains(id));
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
            let hold = || Arc::new(Hold::new(self.runtime.clone(), replica.id.clone()));
            let hold = self.holds.entry(replica.id.clone()).or_insert_with(hold).clone();
            let reader = Reader::new(self, replica, hold);
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

/// A line that was more than is kept.
struct TooFast {
    at: Timestamp,
    /// And it goes on, faster than anybody could ever want to read.
    floods: bool,
}

type Lines = BoxStream<'static, Result<LogLine, RuntimeError>>;

/// Reads one replica.
struct Reader {
    runtime: Arc<dyn Runtime>,
    logs: Logs,
    clock: Clock,
    env: EnvRef,
    id: ReplicaId,
    process: String,
    hold: Arc<Hold>,
}

impl Reader {
    fn new(collector: &Collector, replica: &Replica, hold: Arc<Hold>) -> Self {
        let process = format!("{}.{}", replica.set.process, replica.index);
        let (runtime, logs, clock) = (collector.runtime.clone(), collector.logs.clone(), collector.clock.clone());
        Self { runtime, logs, clock, env: replica.set.env.clone(), id: replica.id.clone(), process, hold }
    }

    async fn run(self) -> Outcome {
        let watch = async {
            self.hold.while_it_forks(&self.process, |text| self.say(text)).await;
            std::future::pending().await
        };
        let result = tokio::select! {
            result = self.read() => result,
            never = watch => never,
        };
        match result {
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
        let mut speed = Speed::new(self.logs.replica_rate());
        let mut left_out = None;
        // By who read it before.
        let mut held = self.held_until(CALM).await;
        while let Some(too_fast) = self.read_from(point, &mut speed, &mut held, &mut left_out).await? {
            self.slow_down(too_fast.floods, &mut held).await;
            tokio::time::sleep(REST).await;
            point = Some(ResumePoint { at: too_fast.at, lines: 0 });
            left_out = Some(LeftOut::new((self.clock)()));
        }
        let Some(left_out) = left_out else { return Ok(()) };
        let (lines, last) = left_out.into_last();
        self.say_left_out(lines);
        for line in last {
            self.logs.append_when_ready(&self.env, self.record(line)).await;
        }
        Ok(())
    }

    /// When to let go of it, if it is held up or may be.
    async fn held_until(&self, rest: Duration) -> Option<tokio::time::Instant> {
        self.hold.has(Why::Writes).await.then(|| tokio::time::Instant::now() + rest)
    }

    /// It has written more than is kept of it.
    async fn slow_down(&self, floods: bool, held: &mut Option<tokio::time::Instant>) {
        let holds = floods && self.hold.set(Why::Writes, true).await.is_ok();
        if floods {
            *held = self.held_until(REST + CALM).await;
        }
        let (process, rest) = (&self.process, REST.as_secs());
        let and = if holds { "it is slowed down until it stops that, and " } else { "" };
        self.say(format!("{process} writes too fast: {and}what it writes in the next {rest} s is left out"));
    }

    /// The next line. Meanwhile, lets go of a replica whose time has come.
    async fn next_line(
        &self,
        lines: &mut Lines,
        held: &mut Option<tokio::time::Instant>,
    ) -> Option<Result<LogLine, RuntimeError>> {
        if let Some(until) = *held {
            tokio::select! {
                // What it has written comes first.
                biased;
                line = lines.next() => return line,
                () = tokio::time::sleep_until(until) => {}
            }
            if self.hold.set(Why::Writes, false).await.is_ok() {
                self.say(format!("{} is not slowed down any more", self.process));
            }
            *held = self.held_until(CALM).await;
        }
        lines.next().await
    }

    /// Until the output ends, or until a line that came too fast.
    async fn read_from(
        &self,
        point: Option<ResumePoint>,
        speed: &mut Speed,
        held: &mut Option<tokio::time::Instant>,
        left_out: &mut Option<LeftOut>,
    ) -> anyhow::Result<Option<TooFast>> {
        let mut skip = Skip::new(point, (self.clock)());
        let (mut lines, began) = (self.runtime.logs(&self.id, skip.since()).await?, Instant::now());
        while let Some(line) = self.next_line(&mut lines, held).await {
            let line = line?;
            if skip.is_known(&line, began.elapsed()) {
                continue;
            }
            speed.note(line.bytes.len(), line.at);
            if let Some(gap) = left_out {
                if gap.covers(&line) && began.elapsed() < CATCH_UP {
                    gap.add(line);
                    continue;
                }
                self.say_left_out(gap.lines);
                *left_out = None;
            }
            if !speed.may_be_kept(line.bytes.len()) {
                let floods = speed.floods() && look_on(&mut lines, speed, (self.clock)() + SUSTAINED).await;
                return Ok(Some(TooFast { at: line.at, floods }));
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
        self.logs.append(&self.env, LogRecord::berth((self.clock)(), "logs", text));
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

/// Reads on for a moment; returns whether a flood goes on `later`.
async fn look_on(lines: &mut Lines, speed: &mut Speed, later: Timestamp) -> bool {
    let read = async {
        while let Some(Ok(line)) = lines.next().await {
            speed.note(line.bytes.len(), line.at);
            if line.at >= later && speed.floods() {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(LOOK_ON, read).await.unwrap_or(false)
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
