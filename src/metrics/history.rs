//! What is remembered of the environments: 24 hours each, in bounded memory.
//!
//! An environment takes nothing before its first request or replica. When there are too many, or all take too much, those that have been
//! idle for longest go first.

use std::{
    collections::{HashMap, VecDeque},
    mem::size_of,
};

use super::{
    block::{Block, SLOTS, start_of},
    point::{KEPT, Point, Row},
};
use crate::domain::EnvRef;

/// Bytes of packed blocks of one environment; beyond that its oldest go. Enough for 24 hours of a thousand requests a second of all
/// latencies and classes (a test says so), several times what a usual one takes.
const MOST_OF_ONE: usize = 256 << 10;

/// Bounds of it all.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    /// Environments.
    pub environments: usize,
    /// Bytes of memory.
    pub memory: usize,
}

/// One environment.
#[derive(Debug, Default)]
struct Ring {
    closed: VecDeque<Block>,
    /// Bytes of the closed ones.
    bytes: usize,
    /// The block that is being filled: its first tick, and its rows by slot.
    start: u32,
    open: Vec<(u8, Row)>,
    /// Rows of the open block that were written to disk already.
    written: usize,
    /// The last tick at which there was something to tell.
    busy: u32,
}

impl Ring {
    fn size(&self) -> usize {
        size_of::<(EnvRef, Self)>()
            + self.bytes
            + self.closed.len() * size_of::<Block>()
            + self.open.capacity() * size_of::<(u8, Row)>()
    }

    fn push(&mut self, block: Block) {
        self.bytes += block.bytes.len();
        self.closed.push_back(block);
        while self.bytes > MOST_OF_ONE {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(gone) = self.closed.pop_front() {
            self.bytes -= gone.bytes.len();
        }
    }

    /// Closes the open block; what of it is not on disk yet.
    fn close(&mut self) -> Option<Block> {
        let rows = std::mem::take(&mut self.open);
        let written = std::mem::take(&mut self.written);
        if rows.is_empty() {
            return None;
        }
        self.push(Block::pack(self.start, &rows));
        (written < rows.len()).then(|| Block::pack(self.start, &rows[written..]))
    }

    /// Forgets what is older than 24 hours, and what is of a future that a clock which was set back has left.
    fn prune(&mut self, now: u32) {
        while self.closed.front().is_some_and(|block| block.start + SLOTS + KEPT <= now) {
            self.pop();
        }
        if self.closed.iter().any(|block| block.start > now) {
            self.closed.retain(|block| block.start <= now);
            self.bytes = self.closed.iter().map(|block| block.bytes.len()).sum();
        }
    }
}

/// All environments.
#[derive(Debug)]
pub struct History {
    limits: HistoryLimits,
    rings: HashMap<EnvRef, Ring>,
    /// Blocks that are full and not on disk yet.
    fresh: Vec<(EnvRef, Block)>,
}

/// What is remembered of one environment, to be unpacked when nobody waits.
#[derive(Debug, Default)]
pub struct Remembered {
    closed: Vec<Block>,
    open: Vec<(u32, Row)>,
}

impl History {
    /// Nothing yet.
    pub fn new(limits: HistoryLimits) -> Self {
        Self { limits, rings: HashMap::new(), fresh: Vec::new() }
    }

    /// Remembers a point. Ticks of one environment grow; when the clock was set back they begin again from there.
    pub fn record(&mut self, env: &EnvRef, tick: u32, point: Point) {
        let idle = point.is_idle();
        if idle && !self.rings.contains_key(env) {
            return;
        }
        let ring = self.rings.entry(env.clone()).or_default();
        let (start, slot) = (start_of(tick), (tick % SLOTS) as u8);
        if ring.start != start || ring.open.last().is_some_and(|(last, _)| *last >= slot) {
            self.fresh.extend(ring.close().map(|block| (env.clone(), block)));
            ring.start = start;
        }
        ring.open.push((slot, point.to_row()));
        if !idle {
            ring.busy = tick;
        }
    }

    /// Takes back what was on disk.
    pub(super) fn restore(&mut self, env: EnvRef, block: Block) {
        let Some(rows) = block.unpack() else { return };
        let ring = self.rings.entry(env).or_default();
        let busy = rows.iter().rev().find(|(_, row)| !Point::of_row(row).is_idle());
        ring.busy = ring.busy.max(busy.map_or(0, |(tick, _)| *tick));
        ring.push(block);
    }

    /// Forgets an environment.
    pub fn forget(&mut self, env: &EnvRef) {
        self.rings.remove(env);
        self.fresh.retain(|(other, _)| other != env);
    }

    /// To be called when all points of a tick are recorded: closes what is full, forgets what is too old or too much.
    pub fn advance(&mut self, now: u32) {
        for (env, ring) in &mut self.rings {
            if ring.start != start_of(now) {
                self.fresh.extend(ring.close().map(|block| (env.clone(), block)));
            }
            ring.prune(now);
        }
        self.rings.retain(|_, ring| ring.busy + KEPT > now);
        self.make_room();
    }

    /// Those idle for longest go, until the limits hold.
    fn make_room(&mut self) {
        let (mut count, mut bytes) = (self.rings.len(), self.bytes());
        if count <= self.limits.environments && bytes <= self.limits.memory {
            return;
        }
        let mut by_age: Vec<(u32, usize, EnvRef)> =
            self.rings.iter().map(|(env, ring)| (ring.busy, ring.size(), env.clone())).collect();
        by_age.sort();
        for (_, size, env) in by_age {
            if count <= self.limits.environments && bytes <= self.limits.memory {
                break;
            }
            self.rings.remove(&env);
            (count, bytes) = (count - 1, bytes - size);
        }
        tracing::warn!(
            kept = count,
            "metrics of the environments that were idle for longest are forgotten; see metrics.environments and metrics.memory"
        );
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.rings.values().map(Ring::size).sum()
    }

    /// The environments that something is remembered of.
    pub fn environments(&self) -> impl Iterator<Item = &EnvRef> {
        self.rings.keys()
    }

    /// What is remembered of an environment from one tick to another, both included.
    pub fn recall(&self, env: &EnvRef, from: u32, to: u32) -> Remembered {
        let Some(ring) = self.rings.get(env) else { return Remembered::default() };
        let closed = ring.closed.iter().filter(|block| block.start <= to && block.start + SLOTS > from);
        let open = ring.open.iter().map(|(slot, row)| (ring.start + u32::from(*slot), *row));
        Remembered {
            closed: closed.cloned().collect(),
            open: open.filter(|(tick, _)| (from..=to).contains(tick)).collect(),
        }
    }

    /// Full blocks that are to be written to disk; they are told once.
    pub(super) fn take_fresh(&mut self) -> Vec<(EnvRef, Block)> {
        std::mem::take(&mut self.fresh)
    }

    /// The same with the blocks that are being filled: for the end.
    pub(super) fn take_all(&mut self) -> Vec<(EnvRef, Block)> {
        let mut all = std::mem::take(&mut self.fresh);
        for (env, ring) in &mut self.rings {
            if ring.written < ring.open.len() {
                all.push((env.clone(), Block::pack(ring.start, &ring.open[ring.written..])));
                ring.written = ring.open.len();
            }
        }
        all
    }
}

impl Remembered {
    /// The points by tick, in order; of two for the same tick the later one.
    pub fn points(self, from: u32, to: u32) -> Vec<(u32, Point)> {
        let unpacked = self.closed.iter().filter_map(Block::unpack).flatten().chain(self.open);
        let by_tick: std::collections::BTreeMap<u32, Row> =
            unpacked.filter(|(tick, _)| (from..=to).contains(tick)).collect();
        by_tick.iter().map(|(tick, row)| (*tick, Point::of_row(row))).collect()
    }
}
