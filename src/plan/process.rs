//! The decision for one process type.

use std::{cmp::Reverse, collections::BTreeSet};

use crate::domain::{ProcessType, ReplicaId, SetId, Timestamp};

use super::{
    bounds::Bounds,
    rollout::{Observed, Phase, RouteState, Seen, Start},
    wait::{Wait, Why},
};

/// Which set a replica is of. Found out once: identities are texts, and most of the time of a plan goes into comparing them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Target,
    Fallback,
    Other,
}

/// A replica, and which set it is of.
pub(super) struct Member<'a> {
    seen: &'a Seen,
    of: Of,
}

impl std::ops::Deref for Member<'_> {
    type Target = Seen;
    fn deref(&self) -> &Seen {
        self.seen
    }
}

impl<'a> Member<'a> {
    /// `fallback` is another set than `target`.
    pub(super) fn new(seen: &'a Seen, target: Option<&SetId>, fallback: Option<&SetId>) -> Self {
        let of = if target == Some(&seen.set) {
            Of::Target
        } else if fallback == Some(&seen.set) {
            Of::Fallback
        } else {
            Of::Other
        };
        Self { seen, of }
    }
}

/// One process type with all that bears on it.
pub(super) struct Scope<'a> {
    pub(super) process: &'a ProcessType,
    /// The new set; `None` when the type goes away.
    pub(super) target: Option<&'a SetId>,
    /// Never the target itself.
    pub(super) fallback: Option<&'a SetId>,
    pub(super) count: u32,
    pub(super) bounds: Bounds,
    pub(super) replicas: Vec<Member<'a>>,
    pub(super) observed: &'a Observed,
}

/// What to do about one process type.
#[derive(Default)]
pub(super) struct Step {
    pub(super) route: Vec<ReplicaId>,
    pub(super) start: Vec<Start>,
    pub(super) stop: Vec<ReplicaId>,
    pub(super) wait: Option<Wait>,
    pub(super) wake: Option<Timestamp>,
    pub(super) settled: bool,
}

fn size<T>(items: impl IntoIterator<Item = T>) -> u32 {
    u32::try_from(items.into_iter().count()).unwrap_or(u32::MAX)
}

impl<'a> Scope<'a> {
    fn alive(&self) -> impl Iterator<Item = &Member<'a>> {
        self.replicas.iter().filter(|replica| replica.phase != Phase::Exited)
    }

    /// Whether a replica is of a set.
    fn is_of(&self, replica: &Member, set: &SetId) -> bool {
        let is = |known: Option<&SetId>| known.is_some_and(|known| std::ptr::eq(known, set));
        match replica.of {
            Of::Target if is(self.target) => true,
            Of::Fallback if is(self.fallback) => true,
            _ if is(self.target) || is(self.fallback) => false,
            _ => replica.set == *set,
        }
    }

    fn is_new(&self, replica: &Member) -> bool {
        replica.of == Of::Target
    }

    fn is_fallback(&self, replica: &Member) -> bool {
        replica.of == Of::Fallback
    }

    /// New and wanted.
    fn is_kept(&self, replica: &Member) -> bool {
        self.is_new(replica) && replica.index <= self.count
    }

    /// Ready, not going away, and requests reach it if it is to have any.
    fn serves(&self, replica: &Member) -> bool {
        let reached = !self.process.is_web() || replica.route == RouteState::In;
        replica.phase == Phase::Ready && !replica.stopping && reached
    }

    /// Indexes of a set that are starting by a call that is under way and are not seen yet.
    fn launching(&self, set: &SetId) -> u32 {
        let count = self.observed.starting.get(set).copied().unwrap_or(0);
        let seen = size(self.alive().filter(|replica| self.is_of(replica, set) && replica.index <= count));
        count.saturating_sub(seen)
    }

    fn launching_in_all(&self) -> u32 {
        let sets = self.observed.starting.keys().filter(|set| set.process == *self.process);
        sets.map(|set| self.launching(set)).sum()
    }

    fn running(&self) -> u32 {
        size(self.alive()) + self.launching_in_all()
    }

    fn healthy(&self) -> u32 {
        size(self.alive().filter(|replica| self.serves(replica)))
    }

    /// Was ready once, and its probes fail now: worth more than nothing while nothing serves.
    fn is_sick(&self, replica: &Member) -> bool {
        replica.phase == Phase::Unhealthy && replica.was_ready && !replica.stopping
    }

    fn kept_sick(&self) -> u32 {
        size(self.alive().filter(|replica| self.is_kept(replica) && self.is_sick(replica)))
    }

    /// Whether the last ones that served are sick, so that one more is started beside them before any of them is replaced.
    fn surges(&self) -> bool {
        let room = self.bounds.min_healthy > 0 && self.bounds.max_running > self.count;
        room && self.healthy() == 0 && self.kept_sick() > 0
    }

    /// The one more.
    fn is_surge(&self, replica: &Member) -> bool {
        let hopeful = matches!(replica.phase, Phase::Starting | Phase::Ready);
        hopeful && self.is_new(replica) && replica.index == self.count.saturating_add(1) && self.surges()
    }

    fn new_serving(&self) -> u32 {
        size(self.alive().filter(|replica| self.is_kept(replica) && self.serves(replica)))
    }

    /// Whether all new replicas serve.
    pub(super) fn deployed(&self) -> bool {
        self.new_serving() >= self.count
    }

    fn highest_alive(&self, set: &SetId) -> u32 {
        let staying = self.alive().filter(|replica| self.is_of(replica, set) && !replica.stopping);
        staying.map(|replica| replica.index).max().unwrap_or(0)
    }

    /// Replicas of `set` that a start up to `count` would add.
    fn missing(&self, set: &SetId, count: u32) -> u32 {
        let present = size(self.alive().filter(|replica| self.is_of(replica, set) && replica.index <= count));
        count.saturating_sub(present)
    }
}

/// Decides; `deployed` says whether all process types are, so that those that go away may.
pub(super) fn decide(scope: &Scope, deployed: bool, now: Timestamp) -> Step {
    let leaving = choose_leaving(scope, deployed);
    let mut step = Step::default();
    if scope.process.is_web() {
        step.route = choose_routed(scope, &leaving);
    }
    stop(scope, &leaving, deployed, &mut step);
    let mut why = start(scope, now, &mut step);
    if step.start.is_empty() && step.stop.is_empty() {
        why = why.or_else(|| explain(scope, &leaving, deployed));
    }
    let remains = scope.replicas.iter().any(|replica| !scope.is_kept(replica));
    step.settled = why.is_none() && !remains;
    step.wait =
        why.map(|why| Wait { process: scope.process.clone(), ready: scope.new_serving(), wanted: scope.count, why });
    step
}

/// Which replicas requests should go to: those that are ready. When none is, those that were: an app whose probes fail may still answer,
/// and no upstream at all answers nothing.
fn choose_routed(scope: &Scope, leaving: &BTreeSet<ReplicaId>) -> Vec<ReplicaId> {
    let staying = || scope.alive().filter(|replica| !replica.stopping && !leaving.contains(&replica.id));
    let ready = |replica: &&Member| replica.phase == Phase::Ready;
    let none = !staying().any(|replica| ready(&replica));
    staying().filter(|one| ready(one) || none && scope.is_sick(one)).map(|replica| replica.id.clone()).collect()
}

/// Which running replicas should get no more requests and then be stopped.
fn choose_leaving(scope: &Scope, deployed: bool) -> BTreeSet<ReplicaId> {
    let mut leaving = choose_replaced(scope);
    // Old replicas of a type that is not wanted any more stay until all others are deployed: a rollback would want them.
    let gate_open = scope.count > 0 || deployed;
    let mut candidates: Vec<&Member> = scope
        .alive()
        .filter(|replica| !replica.stopping && !scope.is_kept(replica) && !scope.is_surge(replica))
        .filter(|replica| gate_open || scope.is_new(replica) || !scope.is_fallback(replica))
        .collect();
    // Best to keep first: those of the fallback, those with requests, the oldest. Age counts in minutes: those that were started together
    // go by their numbers, which leaves no gaps.
    candidates.sort_by_key(|replica| {
        let kind = if scope.is_fallback(replica) {
            1
        } else if scope.is_new(replica) {
            0
        } else {
            2
        };
        let entered = (replica.route != RouteState::In, replica.route != RouteState::Entering);
        (kind, entered, replica.since.as_second() / 60, replica.index)
    });
    let (serving, idle): (Vec<&Member>, Vec<&Member>) =
        candidates.into_iter().partition(|replica| scope.serves(replica));
    let spare = scope.healthy().saturating_sub(scope.bounds.min_healthy);
    let go = usize::try_from(spare).unwrap_or(usize::MAX);
    leaving.extend(serving.iter().rev().take(go).map(|replica| replica.id.clone()));
    leaving.extend(choose_idle(scope, &idle));
    leaving
}

/// Among replicas that serve nothing and are not wanted: all but those needed to come back up to the healthy minimum.
fn choose_idle(scope: &Scope, idle: &[&Member]) -> Vec<ReplicaId> {
    let nothing_serves = scope.healthy() == 0;
    let soon = size(scope.alive().filter(|replica| {
        scope.serves(replica) || scope.is_kept(replica) && replica.phase == Phase::Ready && !replica.stopping
    }));
    let mut short = scope.bounds.min_healthy.saturating_sub(soon);
    let mut keep = |useful: bool| {
        let kept = useful && short > 0;
        short -= u32::from(kept);
        kept
    };
    // Beside those, and while nothing serves, as many that served last. Above the count of its own set one would keep those below from
    // being started.
    let mut last_resort = if nothing_serves { scope.bounds.min_healthy.saturating_sub(scope.kept_sick()) } else { 0 };
    let mut leaving = Vec::new();
    let (ready, others): (Vec<&Member>, Vec<&Member>) =
        idle.iter().copied().partition(|replica| replica.phase == Phase::Ready);
    for replica in ready.into_iter().chain(others) {
        let sick = scope.is_sick(replica) && !scope.is_new(replica);
        let useful = replica.phase == Phase::Ready || replica.phase == Phase::Starting && scope.is_fallback(replica);
        if sick && last_resort > 0 {
            last_resort -= 1;
        } else if !keep(useful) {
            leaving.push(replica.id.clone());
        }
    }
    leaving
}

/// Which wanted replicas are to be replaced since their probes fail. Not all at once: when every replica fails (a database is away),
/// starting all of them anew would only add to the trouble. And those that served last stay until something else does, if there is room
/// for one more to try it.
fn choose_replaced(scope: &Scope) -> BTreeSet<ReplicaId> {
    let kept = || scope.alive().filter(|replica| scope.is_kept(replica));
    let under_way = size(kept().filter(|replica| replica.phase == Phase::Starting || replica.stopping))
        + scope.target.map_or(0, |set| scope.launching(set));
    // One that is missing and can be started (see `startable`) comes first, also while a backoff holds its start.
    let room = scope.bounds.max_running.saturating_sub(scope.running());
    let first_others = scope.target.is_some_and(|set| {
        let reach = scope.count.max(scope.highest_alive(set));
        scope.missing(set, scope.count) > 0 && scope.missing(set, reach) <= room
    });
    let at_once = scope.count.saturating_sub(scope.bounds.min_healthy).max(1);
    let free = usize::try_from(at_once.saturating_sub(under_way)).unwrap_or(usize::MAX);
    let unhealthy = kept().filter(|replica| replica.phase == Phase::Unhealthy && !replica.stopping);
    let mut dispensable = match (scope.surges() || first_others, scope.healthy()) {
        (true, _) => 0,
        (false, 0) => scope.kept_sick().saturating_sub(scope.bounds.min_healthy),
        (false, _) => scope.kept_sick(),
    };
    let mut may_go = |one: &&Member| {
        let goes = !scope.is_sick(one) || dispensable > 0;
        dispensable = dispensable.saturating_sub(u32::from(scope.is_sick(one)));
        goes
    };
    // Those that never were ready first, then the youngest.
    let mut unhealthy: Vec<&Member> = unhealthy.collect();
    unhealthy.sort_by_key(|one| (one.was_ready, Reverse((one.since.as_second() / 60, one.index))));
    unhealthy.into_iter().filter(|one| may_go(one)).take(free).map(|replica| replica.id.clone()).collect()
}

fn stop(scope: &Scope, leaving: &BTreeSet<ReplicaId>, deployed: bool, step: &mut Step) {
    let out = |replica: &&Member| !scope.process.is_web() || replica.route == RouteState::Out;
    let chosen = |replica: &&Member| replica.phase != Phase::Exited && leaving.contains(&replica.id);
    step.stop.extend(scope.replicas.iter().filter(chosen).filter(out).map(|replica| replica.id.clone()));
    // The remains of dead ones are removed, but for those that a start replaces.
    let replaceable = |replica: &Member| {
        let wanted_back = scope.is_fallback(replica) && !(deployed && scope.deployed());
        scope.is_kept(replica) || wanted_back
    };
    let dead = scope.replicas.iter().filter(|replica| replica.phase == Phase::Exited && !replica.stopping);
    let remains = dead.filter(|replica| !replaceable(replica) && !scope.observed.busy.contains(&replica.set));
    step.stop.extend(remains.map(|replica| replica.id.clone()));
}

/// Starts what is missing: of the new set first, then of the fallback what the healthy minimum lacks. Says what keeps it from it.
fn start(scope: &Scope, now: Timestamp, step: &mut Step) -> Option<Why> {
    let mut room = scope.bounds.max_running.saturating_sub(scope.running());
    let mut why = None;
    if let Some(set) = scope.target
        && scope.missing(set, scope.count) > scope.launching(set)
    {
        match startable(scope, set, scope.count, room, now, step) {
            Ok(count) => {
                room = room.saturating_sub(scope.missing(set, count));
                step.start.push(Start { set: set.clone(), count });
            }
            Err(reason) => why = Some(reason),
        }
    }
    if let Some(set) = scope.target.filter(|_| why.is_none() && step.start.is_empty() && needs_surge(scope)) {
        match startable(scope, set, scope.count.saturating_add(1), room, now, step) {
            Ok(count) => {
                room = room.saturating_sub(scope.missing(set, count));
                step.start.push(Start { set: set.clone(), count });
            }
            Err(reason) => why = Some(reason),
        }
    }
    if let Some(set) = scope.fallback.filter(|set| scope.target.is_some() && scope.target != Some(set)) {
        let needed = scope.bounds.min_healthy.saturating_sub(scope.new_serving());
        let usable =
            |replica: &&Member| scope.is_of(replica, set) && !replica.stopping && replica.phase != Phase::Unhealthy;
        let there = size(scope.alive().filter(usable)) + scope.launching(set);
        if there < needed
            && let Ok(count) = startable(scope, set, needed, room, now, step)
            && scope.missing(set, count) <= room
        {
            step.start.push(Start { set: set.clone(), count });
        }
    }
    why
}

/// Whether one more is to be started beside sick ones: all that are wanted run, and none of them or beside them may still become ready.
fn needs_surge(scope: &Scope) -> bool {
    let hopeful = scope.alive().any(|one| scope.is_kept(one) && matches!(one.phase, Phase::Starting | Phase::Ready));
    scope.surges() && !hopeful && scope.target.is_some_and(|set| scope.highest_alive(set) <= scope.count)
}

/// The count to ask for so that as many as possible of `wanted` are started within `room`. Asking for less than the highest index that
/// runs would stop it with requests under way, so gaps below it are filled together.
fn startable(scope: &Scope, set: &SetId, wanted: u32, room: u32, now: Timestamp, step: &mut Step) -> Result<u32, Why> {
    if scope.observed.starting.contains_key(set) {
        return Err(Why::Launch(scope.launching(set)));
    }
    if let Some(until) = scope.observed.held.get(set).filter(|until| **until > now) {
        step.wake = Some(step.wake.map_or(*until, |wake| wake.min(*until)));
        return Err(Why::Backoff(*until));
    }
    if scope.observed.busy.contains(set) {
        return Err(Why::LastOutput);
    }
    if scope.process.is_web() && scope.observed.stale_routes {
        return Err(Why::RouteOutDead);
    }
    let lowest = scope.highest_alive(set).max(1);
    let reach = wanted.max(lowest);
    if scope.alive().any(|replica| scope.is_of(replica, set) && replica.stopping && replica.index <= reach) {
        // A start now could find the container that is going away in its place.
        return Err(Why::Stopping(size(scope.alive().filter(|replica| replica.stopping))));
    }
    let fits = |count: &u32| scope.missing(set, *count) <= room;
    if let Some(count) = (lowest..=reach).rev().find(fits).filter(|count| scope.missing(set, *count) > 0) {
        return Ok(count);
    }
    // Low indexes died, and the higher ones are among the last healthy ones: neither may they be taken away nor is there room for all the
    // gaps below them. Those ran a moment ago, so there is capacity for them; a healthy one too few would be worse than one too many.
    let at_rest = scope.launching_in_all() == 0 && scope.alive().all(|replica| scope.serves(replica));
    let gaps = lowest == scope.highest_alive(set) && scope.missing(set, lowest) > 0;
    if gaps && at_rest && scope.healthy() <= scope.bounds.min_healthy {
        return Ok(lowest);
    }
    Err(Why::Room { running: scope.running(), max: scope.bounds.max_running })
}

/// Why nothing happens though something is left to do.
fn explain(scope: &Scope, leaving: &BTreeSet<ReplicaId>, deployed: bool) -> Option<Why> {
    let launching = scope.launching_in_all();
    let kept = || scope.alive().filter(|replica| scope.is_kept(replica) && !replica.stopping);
    let indexes =
        |phase: &dyn Fn(&Member) -> bool| kept().filter(|replica| phase(replica)).map(|r| r.index).collect::<Vec<_>>();
    let unready = indexes(&|replica| replica.phase != Phase::Ready);
    let entering = indexes(&|replica| replica.phase == Phase::Ready && !scope.serves(replica));
    let stopping = size(scope.replicas.iter().filter(|replica| replica.stopping));
    let old = scope.alive().any(|replica| !scope.is_kept(replica));
    if launching > 0 {
        Some(Why::Launch(launching))
    } else if !unready.is_empty() {
        Some(Why::Ready(unready))
    } else if !entering.is_empty() {
        Some(Why::RouterIn)
    } else if stopping > 0 {
        Some(Why::Stopping(stopping))
    } else if !leaving.is_empty() {
        Some(Why::Drain)
    } else if old && scope.count == 0 && !deployed {
        Some(Why::OthersFirst)
    } else if old {
        Some(Why::MinHealthy { healthy: scope.healthy(), min: scope.bounds.min_healthy })
    } else {
        None
    }
}
