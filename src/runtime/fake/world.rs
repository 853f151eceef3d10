//! What the in-memory engine keeps, and how its replicas live.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, broadcast, watch};

use super::{Behaviour, Script};
use crate::{
    domain::{ImageRef, ReplicaId, ReplicaSet, SetId, Timestamp},
    runtime::{Change, LogLine, RuntimeError, RuntimeEvent, Source, Usage},
};

/// Events kept for a slow follower before it is told to look at everything anew.
const EVENTS: usize = 1024;
/// Lines kept per replica; older ones are forgotten.
const LINES: usize = 10_000;
/// Status of a process that SIGTERM or SIGKILL ended.
const TERMINATED: i64 = 128 + 15;
const KILLED: i64 = 128 + 9;

/// Where a replica stands.
#[derive(Debug, Clone, Copy)]
pub enum Phase {
    Created,
    Running,
    Exited { code: i64, out_of_memory: bool },
}

/// One replica.
#[derive(Debug)]
pub struct Kept {
    pub set: ReplicaSet,
    pub index: u32,
    pub phase: Phase,
    /// Told to stop, and no longer shown.
    pub retired: bool,
    pub address: Ipv4Addr,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub script: Script,
    pub log: Log,
    /// How often it was refused a process; the sender goes when it ends.
    pub refused: watch::Sender<u64>,
    pub held: Option<u32>,
    pub usage: Usage,
}

/// A log that can be followed: the lines, and whether it has ended.
#[derive(Debug, Clone)]
pub struct Log(Arc<watch::Sender<(Vec<LogLine>, bool)>>);

impl Log {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new((Vec::new(), false))))
    }

    fn push(&self, line: LogLine) {
        self.0.send_modify(|(lines, _)| {
            lines.push(line);
            let surplus = lines.len().saturating_sub(LINES);
            lines.drain(..surplus);
        });
    }

    fn end(&self) {
        self.0.send_modify(|(_, ended)| *ended = true);
    }

    /// Lines from `since` on, until the end.
    pub fn follow(&self, since: Option<Timestamp>) -> impl Stream<Item = LogLine> + Send + 'static {
        stream::unfold((self.0.subscribe(), 0), move |(mut log, mut next)| async move {
            loop {
                let found = {
                    let state = log.wait_for(|(lines, ended)| lines.len() > next || *ended).await.ok()?;
                    state.0.get(next).cloned()
                };
                let line = found?;
                next += 1;
                if since.is_none_or(|since| line.at >= since) {
                    return Some((line, (log, next)));
                }
            }
        })
    }
}

/// All state.
#[derive(Default)]
pub struct State {
    pub replicas: BTreeMap<ReplicaId, Kept>,
    pub missing: Vec<ImageRef>,
    /// Jobs by environment and name: the process that owns each, and how to end it.
    pub jobs: HashMap<String, (u64, watch::Sender<Option<i64>>)>,
    turns: HashMap<SetId, Arc<AsyncMutex<()>>>,
    made: u32,
}

/// The engine.
pub struct Engine {
    pub behaviour: Behaviour,
    pub events: broadcast::Sender<RuntimeEvent>,
    state: Mutex<State>,
    /// Grows with every change of a replica; for waiting.
    changes: watch::Sender<u64>,
}

impl Engine {
    pub fn new(behaviour: Behaviour) -> Self {
        Self {
            behaviour,
            events: broadcast::Sender::new(EVENTS),
            state: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// The state; no lock is held across a wait.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells followers of events; that there are none is fine.
    pub fn announce(&self, event: RuntimeEvent) {
        let _ = self.events.send(event);
        self.changes.send_modify(|count| *count += 1);
    }

    /// One `apply` per set at a time.
    pub async fn turn(&self, set: &SetId) -> OwnedMutexGuard<()> {
        let turn = self.lock().turns.entry(set.clone()).or_default().clone();
        turn.lock_owned().await
    }

    pub fn pull(&self, image: &ImageRef) -> Result<(), RuntimeError> {
        if self.lock().missing.contains(image) {
            return Err(RuntimeError::Image { image: image.to_string(), reason: "manifest unknown".to_owned() });
        }
        Ok(())
    }

    fn now(&self) -> Timestamp {
        (self.behaviour.clock)()
    }

    /// Makes and starts a replica.
    pub async fn start(self: Arc<Self>, set: ReplicaSet, index: u32) -> Result<(), RuntimeError> {
        let script = (self.behaviour.replicas)(&set, index);
        let id = {
            let mut state = self.lock();
            state.made += 1;
            let made = state.made;
            let id = ReplicaId(format!("fake-{made:06}"));
            let [_, b, c, d] = (made + 1).to_be_bytes();
            let (memory, memory_limit) = (1 << 20, Some(set.limits.memory));
            let usage = Usage { cpu_micros: 1000, memory, memory_limit, ..Usage::default() };
            let kept = Kept {
                set,
                index,
                phase: Phase::Created,
                retired: false,
                address: Ipv4Addr::new(127, b, c, d),
                started_at: None,
                finished_at: None,
                script: script.clone(),
                log: Log::new(),
                refused: watch::Sender::new(script.refused),
                held: None,
                usage,
            };
            state.replicas.insert(id.clone(), kept);
            id
        };
        tokio::time::sleep(script.start_delay).await;
        if let Some(reason) = script.start_error {
            return Err(RuntimeError::Refused(format!("starting {}: {reason}", id.0)));
        }
        {
            let mut state = self.lock();
            // Removed while it was starting.
            let Some(kept) = state.replicas.get_mut(&id) else { return Ok(()) };
            kept.phase = Phase::Running;
            kept.started_at = Some(self.now());
            self.changed(&id, kept, Change::Started);
        }
        for (source, line) in &script.lines {
            self.print(&id, *source, line);
        }
        if let Some((after, code)) = script.ends {
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                self.end(&id, code, false);
            });
        }
        Ok(())
    }

    /// Ends a running replica.
    pub fn end(&self, id: &ReplicaId, code: i64, out_of_memory: bool) {
        let mut state = self.lock();
        let Some(kept) = state.replicas.get_mut(id) else { return };
        if !matches!(kept.phase, Phase::Running) {
            return;
        }
        kept.phase = Phase::Exited { code, out_of_memory };
        kept.finished_at = Some(self.now());
        kept.log.end();
        kept.refused = watch::Sender::new(0);
        if out_of_memory {
            self.changed(id, kept, Change::OutOfMemory);
        }
        self.changed(id, kept, Change::Died);
    }

    pub fn print(&self, id: &ReplicaId, source: Source, line: &str) {
        let at = self.now();
        if let Some(kept) = self.lock().replicas.get(id) {
            kept.log.push(LogLine { at, source, bytes: Bytes::copy_from_slice(line.as_bytes()) });
        }
    }

    /// SIGTERM, `grace`, SIGKILL; then removes it.
    pub async fn stop(self: Arc<Self>, id: ReplicaId, grace: Duration) {
        let delay = match self.lock().replicas.get(&id) {
            Some(kept) if matches!(kept.phase, Phase::Running) => Some(kept.script.stop_delay),
            Some(_) => None,
            None => return,
        };
        if let Some(delay) = delay {
            let mut changes = self.changes.subscribe();
            let runs = || self.lock().replicas.get(&id).is_some_and(|kept| matches!(kept.phase, Phase::Running));
            // Not `wait_for`, which asks under the channel's lock: changes are announced under the state's.
            let ended = async { while runs() && changes.changed().await.is_ok() {} };
            // It may end by itself, or be stopped by somebody else with less patience.
            let _ = tokio::time::timeout(delay.min(grace), ended).await;
            self.end(&id, if delay < grace { TERMINATED } else { KILLED }, false);
        }
        let gone = self.lock().replicas.remove(&id);
        if let Some(kept) = gone {
            kept.log.end();
            self.changed(&id, &kept, Change::Removed);
        }
    }

    /// Ends and forgets the jobs whose owner is such; how many.
    pub fn end_jobs(&self, owner: impl Fn(u64) -> bool) -> usize {
        let mut state = self.lock();
        let before = state.jobs.len();
        state.jobs.retain(|_, (boot, end)| {
            let ends = owner(*boot);
            if ends {
                end.send_replace(Some(KILLED));
            }
            !ends
        });
        before - state.jobs.len()
    }
}
