//! From what runs to what should run, one safe step at a time.
//!
//! Per replica the order is: start → probe ready → route in → (the router serves it) → route out an old one → (drained) → stop it.
//! Rules that no state of the world breaks, checked by the property tests: a healthy replica is taken away only while at least
//! [`Bounds::min_healthy`] others are; nothing is started above [`Bounds::max_running`]; nothing is stopped that the router may still
//! send requests to; what was ready goes on being served as long as nothing better is, however its probes flap.
//!
//! Unhealthy replicas go before healthy ones and younger ones before older ones. Which of a release's replicas are wanted is a matter of
//! their numbers, though: scaling down takes the highest, and an unhealthy one with a low number is replaced first.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{ProcessType, ReplicaId, SetId, Timestamp, UpgradePolicy};

use super::{
    bounds::Bounds,
    process::{self, Member, Scope},
    wait::Wait,
};

/// What a replica is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It runs (or is about to) and has not been ready yet.
    Starting,
    Ready,
    /// It runs, and its probes say that it should be replaced.
    Unhealthy,
    /// It has ended; the container is still there.
    Exited,
}

/// What the router does with a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteState {
    /// Sends it nothing, and nothing is under way.
    Out,
    /// Has been told to send it requests and has not acknowledged.
    Entering,
    /// Sends it requests.
    In,
    /// Has been told to send it no more, and has not acknowledged.
    Leaving,
    /// Sends it no more; requests are under way.
    Draining,
}

/// A replica with what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub id: ReplicaId,
    pub set: SetId,
    /// From 1.
    pub index: u32,
    pub phase: Phase,
    /// It has been ready, now or before.
    pub was_ready: bool,
    /// When it was first seen to run: of two alike, the younger goes first.
    pub since: Timestamp,
    pub route: RouteState,
    /// It has been asked to stop already.
    pub stopping: bool,
}

/// What one process type should come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessGoal {
    pub set: SetId,
    pub count: u32,
}

/// What an environment should come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Goal {
    /// Process types that are not named go away.
    pub processes: BTreeMap<ProcessType, ProcessGoal>,
    pub policy: UpgradePolicy,
    /// The sets that served before and are kept up until the new ones can take over.
    pub fallback: BTreeMap<ProcessType, SetId>,
}

/// What is known about an environment.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub replicas: Vec<Seen>,
    /// Sets that the engine is being asked to bring to a count right now.
    pub starting: BTreeMap<SetId, u32>,
    /// Sets that may not be started before a time.
    pub held: BTreeMap<SetId, Timestamp>,
    /// Sets whose dead replicas must be left alone for now: their last output is being read.
    pub busy: BTreeSet<SetId>,
    /// The published routes name a replica that does not run any more. A new one could be given its address.
    pub stale_routes: bool,
}

/// Bring the set to at least `count`: see [`crate::domain::ReplicaSet`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Start {
    pub set: SetId,
    pub count: u32,
}

/// What to do now, and why not more.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The replicas that the router should send requests to: all of them, not a difference.
    pub route: BTreeSet<ReplicaId>,
    pub start: Vec<Start>,
    /// Replicas to stop and remove, or whose remains are to be removed.
    pub stop: Vec<ReplicaId>,
    pub waits: Vec<Wait>,
    /// When to look again though nothing happened.
    pub wake: Option<Timestamp>,
    /// Every process type of the goal has all its new replicas ready and, for web, served by the router.
    pub deployed: bool,
    /// The router sends requests to no replica but those of the goal (older ones may still be answering what they have).
    pub switched: bool,
    /// And nothing else is left: what runs is what should.
    pub settled: bool,
}

/// Decides what to do about an environment.
pub fn plan(goal: &Goal, observed: &Observed, now: Timestamp) -> Plan {
    let mut types: BTreeSet<&ProcessType> = goal.processes.keys().collect();
    types.extend(observed.replicas.iter().map(|replica| &replica.set.process));
    types.extend(observed.starting.keys().map(|set| &set.process));
    let scopes: Vec<Scope> = types.into_iter().map(|process| scope(goal, observed, process)).collect();
    let deployed = scopes.iter().all(Scope::deployed);
    let mut plan = Plan { deployed, switched: switched(goal, observed), settled: true, ..Plan::default() };
    for scope in &scopes {
        let step = process::decide(scope, deployed, now);
        plan.route.extend(step.route);
        plan.start.extend(step.start);
        plan.stop.extend(step.stop);
        plan.wake = earliest(plan.wake, step.wake);
        plan.settled &= step.settled;
        plan.waits.extend(step.wait);
    }
    plan.settled &= plan.start.is_empty() && plan.stop.is_empty() && deployed;
    plan
}

fn switched(goal: &Goal, observed: &Observed) -> bool {
    let wanted = |set: &SetId| goal.processes.get(&set.process).is_some_and(|process| process.set == *set);
    observed.replicas.iter().all(|one| wanted(&one.set) || matches!(one.route, RouteState::Out | RouteState::Draining))
}

fn scope<'a>(goal: &'a Goal, observed: &'a Observed, process: &'a ProcessType) -> Scope<'a> {
    let target = goal.processes.get(process);
    let count = target.map_or(0, |target| target.count);
    let bounds = Bounds::new(count, &goal.policy);
    let target = target.map(|target| &target.set);
    let fallback = goal.fallback.get(process).filter(|set| target != Some(*set));
    let of_process = observed.replicas.iter().filter(|replica| replica.set.process == *process);
    Scope {
        process,
        target,
        fallback,
        count,
        bounds,
        replicas: of_process.map(|seen| Member::new(seen, target, fallback)).collect(),
        observed,
    }
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}
