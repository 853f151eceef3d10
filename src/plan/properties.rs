//! What no rollout may ever do, tried on many.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{prelude::*, test_runner::TestRng};

use super::{rollout::*, *};
use crate::domain::{ProcessType, ReleaseVersion, ReplicaId, SetId, Timestamp, UpgradePolicy};

fn set(process: &str, release: u64) -> SetId {
    let process = process.parse().unwrap();
    SetId { env: "acme/shop/dev".parse().unwrap(), process, release: ReleaseVersion(release), restarts: 0 }
}

fn goal(counts: &[(&str, u32)], release: u64, fallback: Option<u64>, policy: UpgradePolicy) -> Goal {
    let process = |name: &str| name.parse::<ProcessType>().unwrap();
    let processes =
        counts.iter().map(|(name, count)| (process(name), ProcessGoal { set: set(name, release), count: *count }));
    let types = ["web", "worker", "clock"];
    let fallback = fallback.map(|version| types.iter().map(|name| (process(name), set(name, version))).collect());
    Goal { processes: processes.collect(), policy, fallback: fallback.unwrap_or_default() }
}

/// Something that can happen next.
type Move = Box<dyn Fn(&mut World)>;

/// A world in which everything that the planner asks for happens, in any order, and replicas die.
#[derive(Debug, Default)]
struct World {
    replicas: Vec<Seen>,
    starting: BTreeMap<SetId, u32>,
    /// In their backoff.
    held: BTreeMap<SetId, Timestamp>,
    /// Whose last output is being read.
    busy: BTreeSet<SetId>,
    stale_routes: bool,
    next: u64,
}

impl World {
    fn add(&mut self, set: &SetId, index: u32, phase: Phase, route: RouteState) {
        self.next += 1;
        let id = ReplicaId(format!("{}-{}", set.release, self.next));
        let since = Timestamp::UNIX_EPOCH + Duration::from_secs(40 * self.next);
        let was_ready = phase == Phase::Ready;
        let set = set.clone();
        self.replicas.push(Seen { id, set, index, phase, was_ready, since, route, stopping: false });
    }

    fn observed(&self) -> Observed {
        Observed {
            replicas: self.replicas.clone(),
            starting: self.starting.clone(),
            held: self.held.clone(),
            busy: self.busy.clone(),
            stale_routes: self.stale_routes,
        }
    }

    fn serves(replica: &Seen) -> bool {
        let reached = !replica.set.process.is_web() || replica.route == RouteState::In;
        replica.phase == Phase::Ready && reached && !replica.stopping
    }

    fn healthy(&self, process: &ProcessType) -> u32 {
        self.replicas.iter().filter(|r| r.set.process == *process && Self::serves(r)).count() as u32
    }

    fn running(&self, process: &ProcessType) -> u32 {
        let alive = |r: &&Seen| r.set.process == *process && r.phase != Phase::Exited;
        let there = self.replicas.iter().filter(alive).count() as u32;
        let launching = self.starting.iter().filter(|(set, _)| set.process == *process).map(|(set, count)| {
            let seen = self.replicas.iter().filter(alive).filter(|r| r.set == *set && r.index <= *count).count();
            *count - seen as u32
        });
        there + launching.sum::<u32>()
    }

    /// Unhealthy replicas go before healthy ones, and younger ones before older ones.
    fn assert_order(&self, goal: &Goal, plan: &Plan) {
        let kept = |r: &Seen| goal.processes.get(&r.set.process).is_some_and(|p| p.set == r.set && r.index <= p.count);
        // The fallback of a process type that goes away stays until the others are deployed.
        if goal.processes.get(&"web".parse::<ProcessType>().unwrap()).is_none_or(|p| p.count == 0) {
            return;
        }
        let surplus = |r: &&Seen| r.set.process.is_web() && !r.stopping && r.phase != Phase::Exited && !kept(r);
        let stays = |r: &Seen| plan.route.contains(&r.id);
        for gone in self.replicas.iter().filter(surplus).filter(|r| Self::serves(r) && !stays(r)) {
            for other in self.replicas.iter().filter(surplus).filter(|r| stays(r)) {
                assert_eq!(other.phase, Phase::Ready, "{gone:?} goes before {other:?}");
                let minutes = |r: &Seen| r.since.as_second() / 60;
                let alike = other.set == gone.set && Self::serves(other);
                assert!(!alike || minutes(gone) >= minutes(other), "{gone:?} goes before {other:?}");
            }
        }
    }

    /// Whether something reaches a replica that is healthy, or was and is the best there is.
    fn is_reached(&self, goal: &Goal) -> bool {
        let surplus = |r: &Seen| goal.processes.values().any(|p| p.set == r.set && r.index > p.count);
        let routed = |r: &Seen| matches!(r.route, RouteState::In | RouteState::Entering);
        let good = |r: &Seen| r.phase == Phase::Ready || r.phase == Phase::Unhealthy && r.was_ready && !surplus(r);
        self.replicas.iter().any(|r| r.set.process.is_web() && !r.stopping && routed(r) && good(r))
    }

    /// What must wait, waits: sets in their backoff, the remains of those whose output is being read, and replicas that could be given an
    /// address that the router still sends requests to.
    fn assert_patience(&self, plan: &Plan) {
        for start in &plan.start {
            let waits = self.held.contains_key(&start.set) || self.busy.contains(&start.set);
            assert!(!(waits || self.stale_routes && start.set.process.is_web()), "{start:?} does not wait: {self:#?}");
        }
        let read = |r: &&Seen| r.phase == Phase::Exited && self.busy.contains(&r.set);
        let taken = self.replicas.iter().filter(read).find(|r| plan.stop.contains(&r.id));
        assert!(taken.is_none(), "{taken:?} goes while its output is read");
    }

    /// Does what the plan says, checking that it may be done, and that nothing is done twice when nothing new was seen.
    fn execute(&mut self, goal: &Goal, plan: &Plan) {
        self.assert_order(goal, plan);
        self.assert_patience(plan);
        let reached = self.is_reached(goal);
        self.do_as_told(goal, plan);
        let web = goal.processes.get(&"web".parse::<ProcessType>().unwrap()).map_or(0, |p| p.count);
        if reached && Bounds::new(web, &goal.policy).min_healthy > 0 {
            assert!(self.is_reached(goal), "the last one that may answer is taken away: {:#?}", self.replicas);
        }
        let again = super::plan(goal, &self.observed(), Timestamp::UNIX_EPOCH);
        let twice = again.start.iter().any(|start| plan.start.iter().any(|before| before.set == start.set));
        let twice = twice || again.stop.iter().any(|id| plan.stop.contains(id));
        assert!(!twice, "a stale look has something done twice: {plan:#?} {again:#?}");
    }

    fn do_as_told(&mut self, goal: &Goal, plan: &Plan) {
        let types: BTreeSet<ProcessType> = self.replicas.iter().map(|r| r.set.process.clone()).collect();
        let before: BTreeMap<&ProcessType, u32> = types.iter().map(|t| (t, self.healthy(t))).collect();
        for replica in &mut self.replicas {
            let wanted = plan.route.contains(&replica.id);
            replica.route = match (wanted, replica.route) {
                (true, RouteState::Out | RouteState::Leaving | RouteState::Draining) => RouteState::Entering,
                (false, RouteState::In | RouteState::Entering) => RouteState::Leaving,
                (_, as_it_is) => as_it_is,
            };
        }
        for id in &plan.stop {
            let replica = self.replicas.iter_mut().find(|r| r.id == *id).expect("only what exists is stopped");
            assert!(replica.phase == Phase::Exited || replica.route == RouteState::Out, "stopped while routed");
            assert!(!replica.stopping, "stopped twice");
            replica.stopping = true;
        }
        for (process, before) in before {
            let count = goal.processes.get(process).map_or(0, |p| p.count);
            let min = Bounds::new(count, &goal.policy).min_healthy;
            let after = self.healthy(process);
            assert!(after >= min.min(before), "{process}: {before} → {after} healthy, {min} must stay");
        }
        for start in &plan.start {
            let process = &start.set.process;
            self.replicas.retain(|r| r.set != start.set || r.phase != Phase::Exited || r.index > start.count);
            let runs = |r: &Seen| r.phase != Phase::Exited && !r.stopping;
            let torn = self.replicas.iter().any(|r| r.set == start.set && r.index > start.count && runs(r));
            assert!(!torn, "a start would stop replicas that run");
            assert!(self.starting.insert(start.set.clone(), start.count).is_none(), "started twice");
            let max = Bounds::new(goal.processes.get(process).map_or(0, |p| p.count), &goal.policy).max_running;
            let fills_gaps = self.replicas.iter().any(|r| r.set == start.set && r.index == start.count && runs(r));
            assert!(self.running(process) <= max || fills_gaps, "{} run of {max}", self.running(process));
        }
    }

    /// Something that was asked for happens.
    fn advance(&mut self, choose: &mut impl FnMut(usize) -> usize) {
        let mut moves: Vec<Move> = Vec::new();
        for (set, count) in self.starting.clone() {
            moves.push(Box::new(move |world| {
                world.starting.remove(&set);
                for index in 1..=count {
                    if !world.replicas.iter().any(|r| r.set == set && r.index == index) {
                        world.add(&set, index, Phase::Starting, RouteState::Out);
                    }
                }
            }));
        }
        for (place, replica) in self.replicas.iter().enumerate() {
            if replica.stopping {
                moves.push(Box::new(move |world| drop(world.replicas.remove(place))));
            } else if replica.phase == Phase::Starting {
                moves.push(Box::new(move |world| {
                    world.replicas[place].phase = Phase::Ready;
                    world.replicas[place].was_ready = true;
                }));
            }
            match replica.route {
                RouteState::Entering => moves.push(Box::new(move |w| w.replicas[place].route = RouteState::In)),
                RouteState::Leaving => moves.push(Box::new(move |w| w.replicas[place].route = RouteState::Draining)),
                RouteState::Draining => moves.push(Box::new(move |w| w.replicas[place].route = RouteState::Out)),
                RouteState::In | RouteState::Out => {}
            }
        }
        if !self.held.is_empty() {
            moves.push(Box::new(|world| world.held.clear()));
        }
        if !self.busy.is_empty() {
            moves.push(Box::new(|world| world.busy.clear()));
        }
        if self.stale_routes {
            moves.push(Box::new(|world| world.stale_routes = false));
        }
        if !moves.is_empty() {
            let chosen = moves.swap_remove(choose(moves.len()));
            chosen(self);
        }
    }

    fn harm(&mut self, what: u8, choose: &mut impl FnMut(usize) -> usize) {
        if self.replicas.is_empty() {
            return;
        }
        let place = choose(self.replicas.len());
        let replica = &mut self.replicas[place];
        match what {
            0..=1 => {
                replica.phase = Phase::Exited;
                replica.route = RouteState::Out;
            }
            2 if replica.phase != Phase::Exited => replica.phase = Phase::Unhealthy,
            // Probes flap: those that were ready fail all at once, or answer again.
            3 | 4 => {
                let (from, to) =
                    if what == 3 { (Phase::Ready, Phase::Unhealthy) } else { (Phase::Unhealthy, Phase::Ready) };
                let flapping = self.replicas.iter_mut().filter(|r| r.was_ready && r.phase == from);
                flapping.for_each(|r| r.phase = to);
            }
            2 => {}
            6 => drop(self.held.insert(replica.set.clone(), Timestamp::UNIX_EPOCH + Duration::from_secs(1))),
            7 => drop(self.busy.insert(replica.set.clone())),
            8 => self.stale_routes = true,
            _ => drop(self.replicas.remove(place)),
        }
    }

    fn run_to_rest(&mut self, goal: &Goal, choose: &mut impl FnMut(usize) -> usize) {
        for _ in 0..2000 {
            let plan = plan(goal, &self.observed(), Timestamp::UNIX_EPOCH);
            self.execute(goal, &plan);
            if plan.settled {
                return;
            }
            self.advance(choose);
        }
        let plan = plan(goal, &self.observed(), Timestamp::UNIX_EPOCH);
        panic!("does not converge: {:#?}\n{:#?}", self.replicas, plan);
    }

    fn assert_is(&self, goal: &Goal) {
        let key = |set: &SetId, index: u32| (set.clone(), index);
        let there: Vec<_> = self.replicas.iter().map(|r| key(&r.set, r.index)).collect();
        let wanted: BTreeSet<_> =
            goal.processes.values().flat_map(|p| (1..=p.count).map(|index| key(&p.set, index))).collect();
        assert_eq!(there.len(), wanted.len(), "{there:?}");
        assert_eq!(there.into_iter().collect::<BTreeSet<_>>(), wanted);
        assert!(self.replicas.iter().all(Self::serves));
        let again = plan(goal, &self.observed(), Timestamp::UNIX_EPOCH);
        assert!(again.settled && again.deployed && again.start.is_empty() && again.stop.is_empty(), "{again:?}");
        assert!(again.waits.is_empty() && again.wake.is_none(), "{again:?}");
    }
}

fn policy() -> impl Strategy<Value = UpgradePolicy> {
    let percent = prop_oneof![Just(0), Just(50), Just(100), 0..=100u32];
    (percent.clone(), prop_oneof![percent, Just(150)]).prop_map(|(min_healthy, max_over)| UpgradePolicy {
        min_healthy,
        max_over,
        ..UpgradePolicy::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rollouts, scales and supersedings one after another, with replicas dying and failing at any moment.
    #[test]
    fn every_rollout_converges_within_its_bounds(
        policy in policy(),
        steps in prop::collection::vec((0..5u32, 0..3u32, any::<bool>(), 0..16usize), 1..4),
        harms in prop::collection::vec((0..40usize, 0..9u8), 0..12),
        seed in any::<[u8; 32]>(),
    ) {
        let mut random = TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &seed);
        let mut choose = |below: usize| (random.next_u64() % below as u64) as usize;
        let mut world = World::default();
        let (mut release, mut current, mut moment) = (1, None, 0);
        let mut last = Goal::default();
        for (web, worker, new_release, patience) in steps {
            release += u64::from(new_release);
            let mut counts = vec![("web", web)];
            if worker > 0 {
                counts.push(("worker", worker));
            }
            last = goal(&counts, release, current.filter(|version| *version != release), policy.clone());
            for _ in 0..patience {
                let plan = plan(&last, &world.observed(), Timestamp::UNIX_EPOCH);
                world.execute(&last, &plan);
                if plan.deployed {
                    current = Some(release);
                }
                world.advance(&mut choose);
                moment += 1;
                for (_, what) in harms.iter().filter(|(when, _)| *when == moment) {
                    world.harm(*what, &mut choose);
                }
            }
        }
        world.run_to_rest(&last, &mut choose);
        world.assert_is(&last);
    }
}

#[test]
fn with_nothing_ready_nothing_old_is_touched() {
    let mut world = World::default();
    for index in 1..=3 {
        world.add(&set("web", 1), index, Phase::Ready, RouteState::In);
        world.add(&set("web", 2), index, Phase::Starting, RouteState::Out);
    }
    world.add(&set("worker", 1), 1, Phase::Ready, RouteState::Out);
    let goal = goal(&[("web", 3)], 2, Some(1), UpgradePolicy::default());
    let plan = plan(&goal, &world.observed(), Timestamp::UNIX_EPOCH);
    assert_eq!((plan.start.len(), plan.stop.len(), plan.route.len()), (0, 0, 3), "{plan:?}");
    let waits: Vec<String> = plan.waits.iter().map(Wait::to_string).collect();
    assert_eq!(
        waits,
        [
            "web: 0/3 ready (waiting for web.1, web.2, web.3 to be ready)",
            "worker: 0/0 ready (goes away once the other process types are deployed)"
        ]
    );
}

#[test]
fn a_dead_old_replica_comes_back_while_the_new_release_is_not_ready() {
    let mut world = World::default();
    world.add(&set("web", 1), 1, Phase::Ready, RouteState::In);
    world.add(&set("web", 1), 2, Phase::Exited, RouteState::Out);
    world.add(&set("web", 2), 1, Phase::Starting, RouteState::Out);
    world.add(&set("web", 2), 2, Phase::Starting, RouteState::Out);
    let goal = goal(&[("web", 2)], 2, Some(1), UpgradePolicy::default());
    let plan = plan(&goal, &world.observed(), Timestamp::UNIX_EPOCH);
    assert_eq!(plan.start, [Start { set: set("web", 1), count: 2 }]);
    assert_eq!(plan.stop, []);
}

#[test]
fn held_sets_wait_and_say_until_when() {
    let goal = goal(&[("web", 1)], 1, None, UpgradePolicy::default());
    let now = Timestamp::UNIX_EPOCH;
    let later = now + std::time::Duration::from_secs(5);
    let observed = Observed { held: [(set("web", 1), later)].into(), ..Observed::default() };
    let held = plan(&goal, &observed, now);
    assert_eq!((held.start.len(), held.wake, held.waits.len()), (0, Some(later), 1));
    assert_eq!(plan(&goal, &observed, later).start.len(), 1);
    let stale = Observed { stale_routes: true, ..Observed::default() };
    assert_eq!(plan(&goal, &stale, now).waits[0].why, Why::RouteOutDead);
}

#[test]
fn unhealthy_replicas_are_replaced_a_few_at_a_time() {
    let mut world = World::default();
    for index in 1..=4 {
        world.add(&set("web", 1), index, Phase::Unhealthy, RouteState::Out);
    }
    let all = UpgradePolicy::default();
    let half = UpgradePolicy { min_healthy: 50, ..all.clone() };
    for (policy, at_once) in [(all, 1), (half, 2)] {
        let goal = goal(&[("web", 4)], 1, None, policy);
        assert_eq!(plan(&goal, &world.observed(), Timestamp::UNIX_EPOCH).stop.len(), at_once);
    }
}

#[test]
fn the_last_ones_that_served_stay_until_another_does() {
    let one = goal(&[("web", 1)], 1, None, UpgradePolicy::default());
    let mut world = World::default();
    world.add(&set("web", 1), 1, Phase::Ready, RouteState::In);
    world.replicas[0].phase = Phase::Unhealthy;
    let first = plan(&one, &world.observed(), Timestamp::UNIX_EPOCH);
    assert_eq!((first.route.len(), first.stop.len()), (1, 0), "{first:?}");
    assert_eq!(first.start, [Start { set: set("web", 1), count: 2 }], "one more is tried beside it");
    // The other one answers: now the sick one may go.
    world.add(&set("web", 1), 2, Phase::Ready, RouteState::In);
    let then = plan(&one, &world.observed(), Timestamp::UNIX_EPOCH);
    assert_eq!(then.route.iter().map(|id| id.0.as_str()).collect::<Vec<_>>(), ["v1-2"]);
    // Neither answers: both are asked.
    world.replicas[1].phase = Phase::Unhealthy;
    let both = plan(&one, &world.observed(), Timestamp::UNIX_EPOCH);
    assert!(!both.route.is_empty() && both.start.is_empty(), "{both:?}");
    // Without room for another, one after the other is replaced, and the rest goes on being asked.
    let tight = UpgradePolicy { min_healthy: 50, max_over: 0, ..UpgradePolicy::default() };
    let tight = plan(&goal(&[("web", 2)], 1, None, tight), &world.observed(), Timestamp::UNIX_EPOCH);
    assert_eq!((tight.route.len(), tight.start.len()), (1, 0), "{tight:?}");
}

#[test]
fn of_those_that_go_the_youngest_goes_first() {
    let mut world = World::default();
    for index in [3, 1, 2] {
        world.add(&set("web", 1), index, Phase::Ready, RouteState::In);
        world.next += 3;
    }
    world.add(&set("web", 2), 1, Phase::Ready, RouteState::In);
    let next = goal(&[("web", 3)], 2, Some(1), UpgradePolicy::default());
    let plan = plan(&next, &world.observed(), Timestamp::UNIX_EPOCH);
    let left: Vec<u32> = world.replicas.iter().filter(|r| plan.route.contains(&r.id)).map(|r| r.index).collect();
    assert_eq!(left, [3, 1, 1], "web.2, the youngest old one, leaves");
}
