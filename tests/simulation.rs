//! The planner over many environments at once, in virtual time: replicas crash, start slowly, and nodes are lost with all they ran.
//! Afterwards everything converges. `scripts/bench plan` runs the large one and reads its last line.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use berth::{
    domain::{ProcessType, ReleaseVersion, ReplicaId, SetId, Timestamp, UpgradePolicy},
    plan::{self, Backoff, Goal, Observed, Phase, Plan, ProcessGoal, RouteState, Seen},
};

/// Nodes that replicas are spread over.
const NODES: u64 = 40;
/// Replicas per environment.
const REPLICAS: u32 = 4;
/// For so long things go wrong.
const TROUBLE: Duration = Duration::from_secs(600);
/// By then everything has converged: the longest backoff, and a start after it.
const END: Duration = Duration::from_secs(1500);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Started(SetId),
    Ready(ReplicaId),
    Crashed(ReplicaId),
    Routed(ReplicaId, bool),
    Stopped(ReplicaId),
    NewRelease,
    Look,
}

struct Replica {
    seen: Seen,
    node: u64,
}

struct Environment {
    goal: Goal,
    release: u64,
    replicas: Vec<Replica>,
    starting: BTreeMap<SetId, u32>,
    backoffs: BTreeMap<SetId, Backoff>,
    settled: bool,
}

struct World {
    environments: Vec<Environment>,
    queue: BinaryHeap<Reverse<(Timestamp, usize, What)>>,
    random: Random,
    now: Timestamp,
    made: u64,
    plans: u64,
    crashes: u64,
}

fn set(place: usize, release: u64) -> SetId {
    let env = format!("t{}/app/e{}", place / 100, place % 100).parse().unwrap();
    SetId { env, process: "web".parse().unwrap(), release: ReleaseVersion(release), restarts: 0 }
}

fn goal(place: usize, release: u64) -> Goal {
    let web: ProcessType = "web".parse().unwrap();
    let policy = [(100, 100), (50, 0), (75, 25), (100, 0)][place % 4];
    Goal {
        processes: [(web.clone(), ProcessGoal { set: set(place, release), count: REPLICAS })].into(),
        policy: UpgradePolicy { min_healthy: policy.0, max_over: policy.1, ..UpgradePolicy::default() },
        fallback: if release > 1 { [(web, set(place, release - 1))].into() } else { BTreeMap::new() },
    }
}

impl Environment {
    fn observed(&self, now: Timestamp) -> Observed {
        let held = self.backoffs.iter().filter_map(|(set, backoff)| Some((set.clone(), backoff.until(now)?)));
        Observed {
            replicas: self.replicas.iter().map(|replica| replica.seen.clone()).collect(),
            starting: self.starting.clone(),
            held: held.collect(),
            ..Observed::default()
        }
    }

    fn serving(&self) -> u32 {
        let serves = |one: &&Replica| one.seen.phase == Phase::Ready && one.seen.route == RouteState::In;
        self.replicas.iter().filter(serves).count() as u32
    }
}

impl World {
    fn new(count: usize, seed: u64) -> Self {
        let environment = |place| Environment {
            goal: goal(place, 1),
            release: 1,
            replicas: Vec::new(),
            starting: BTreeMap::new(),
            backoffs: BTreeMap::new(),
            settled: false,
        };
        let mut world = Self {
            environments: (0..count).map(environment).collect(),
            queue: BinaryHeap::new(),
            random: Random(seed),
            now: Timestamp::UNIX_EPOCH,
            made: 0,
            plans: 0,
            crashes: 0,
        };
        for place in 0..count {
            world.after(world.now, place, What::Look, 0, 1000);
            // Half of them get a new release while things go wrong.
            if place % 2 == 0 {
                world.after(world.now, place, What::NewRelease, 60_000, 500_000);
            }
        }
        world
    }

    /// Has something happen between `least` and `most` milliseconds from `now`.
    fn after(&mut self, now: Timestamp, place: usize, what: What, least: u64, most: u64) {
        let delay = Duration::from_millis(least + self.random.below(most - least));
        self.queue.push(Reverse((now + delay, place, what)));
    }

    fn troubled(&self) -> bool {
        self.now < Timestamp::UNIX_EPOCH + TROUBLE
    }

    fn run(&mut self, until: Timestamp) {
        while self.queue.peek().is_some_and(|Reverse((moment, ..))| *moment <= until) {
            let Some(Reverse((moment, place, what))) = self.queue.pop() else { return };
            self.now = moment;
            self.happen(place, what);
            self.replan(place);
        }
        self.now = until;
    }

    fn happen(&mut self, place: usize, what: What) {
        let now = self.now;
        let environment = &mut self.environments[place];
        match what {
            What::Look => {}
            What::NewRelease => {
                environment.release += 1;
                environment.goal = goal(place, environment.release);
            }
            What::Started(set) => self.started(place, &set),
            What::Ready(id) => {
                if let Some(one) = environment.replicas.iter_mut().find(|one| one.seen.id == id) {
                    one.seen.phase = Phase::Ready;
                    one.seen.was_ready = true;
                }
            }
            What::Crashed(id) => self.crash(place, &id),
            What::Routed(id, enters) => {
                if let Some(one) = environment.replicas.iter_mut().find(|one| one.seen.id == id) {
                    one.seen.route = match (enters, one.seen.route) {
                        (true, RouteState::Entering) => RouteState::In,
                        (false, RouteState::Leaving) => RouteState::Out,
                        (_, route) => route,
                    };
                }
            }
            What::Stopped(id) => environment.replicas.retain(|one| one.seen.id != id),
        }
        // A replica that has run well for long says that its set is fine.
        let fine = |one: &Replica| one.seen.phase == Phase::Ready && now >= one.seen.since + Duration::from_secs(60);
        let environment = &mut self.environments[place];
        for one in environment.replicas.iter().filter(|one| fine(one)) {
            if let Some(backoff) = environment.backoffs.get_mut(&one.seen.set) {
                backoff.healthy(Duration::from_secs(30));
            }
        }
    }

    fn started(&mut self, place: usize, set: &SetId) {
        let count = self.environments[place].starting.remove(set).unwrap_or(0);
        for index in 1..=count {
            let there = |one: &Replica| one.seen.set == *set && one.seen.index == index;
            if self.environments[place].replicas.iter().any(there) {
                continue;
            }
            self.made += 1;
            let id = ReplicaId(format!("r{}", self.made));
            let node = self.random.below(NODES);
            let seen = Seen {
                id: id.clone(),
                set: set.clone(),
                index,
                phase: Phase::Starting,
                was_ready: false,
                since: self.now,
                route: RouteState::Out,
                stopping: false,
            };
            self.environments[place].replicas.push(Replica { seen, node });
            let now = self.now;
            match self.random.below(20) {
                // One in twenty is slow, and one in ten crashes while things go wrong.
                0 => self.after(now, place, What::Ready(id), 10_000, 60_000),
                1 | 2 if self.troubled() => self.after(now, place, What::Crashed(id), 50, 30_000),
                _ => self.after(now, place, What::Ready(id), 100, 3000),
            }
        }
    }

    fn crash(&mut self, place: usize, id: &ReplicaId) {
        let now = self.now;
        let environment = &mut self.environments[place];
        let Some(one) = environment.replicas.iter_mut().find(|one| one.seen.id == *id) else { return };
        if one.seen.phase == Phase::Exited {
            return;
        }
        let lived = Duration::try_from(now.duration_since(one.seen.since)).unwrap_or_default();
        let backoff = environment.backoffs.entry(one.seen.set.clone()).or_default();
        backoff.failed(now, one.seen.was_ready.then_some(lived));
        (one.seen.phase, one.seen.route) = (Phase::Exited, RouteState::Out);
        self.crashes += 1;
    }

    /// A node is lost: what ran on it is gone at once.
    fn lose(&mut self, node: u64) {
        for place in 0..self.environments.len() {
            let on_it = self.environments[place].replicas.iter().filter(|one| one.node == node);
            let lost: Vec<ReplicaId> = on_it.map(|one| one.seen.id.clone()).collect();
            for id in &lost {
                self.crash(place, id);
                self.environments[place].replicas.retain(|one| one.seen.id != *id);
            }
            if !lost.is_empty() {
                self.replan(place);
            }
        }
    }

    fn replan(&mut self, place: usize) {
        let now = self.now;
        let observed = self.environments[place].observed(now);
        let plan = plan::plan(&self.environments[place].goal, &observed, now);
        self.plans += 1;
        let before = self.environments[place].serving();
        self.execute(place, &plan);
        let environment = &mut self.environments[place];
        environment.settled = plan.settled;
        let bounds = plan::Bounds::new(REPLICAS, &environment.goal.policy);
        let after = environment.serving();
        assert!(after >= bounds.min_healthy.min(before), "{place}: {before} → {after} serve");
    }

    fn execute(&mut self, place: usize, plan: &Plan) {
        let now = self.now;
        let mut next = Vec::new();
        let environment = &mut self.environments[place];
        for one in &mut environment.replicas {
            let (wanted, id) = (plan.route.contains(&one.seen.id), one.seen.id.clone());
            match (wanted, one.seen.route) {
                (true, RouteState::Out | RouteState::Leaving | RouteState::Draining) => {
                    one.seen.route = RouteState::Entering;
                    next.push((What::Routed(id, true), 2, 50));
                }
                (false, RouteState::In | RouteState::Entering) => {
                    one.seen.route = RouteState::Leaving;
                    next.push((What::Routed(id, false), 2, 5000));
                }
                _ => {}
            }
            if plan.stop.contains(&one.seen.id) {
                one.seen.stopping = true;
                next.push((What::Stopped(one.seen.id.clone()), 10, 10_000));
            }
        }
        for start in &plan.start {
            environment
                .replicas
                .retain(|r| r.seen.set != start.set || r.seen.phase != Phase::Exited || r.seen.stopping);
            environment.starting.insert(start.set.clone(), start.count);
            next.push((What::Started(start.set.clone()), 200, 4000));
        }
        for (what, least, most) in next {
            self.after(now, place, what, least, most);
        }
        if let Some(moment) = plan.wake {
            self.queue.push(Reverse((moment, place, What::Look)));
        }
    }

    /// How long one pass over all environments takes: the planning alone.
    fn pass(&self) -> Duration {
        let observed: Vec<Observed> = self.environments.iter().map(|one| one.observed(self.now)).collect();
        let began = Instant::now();
        for (environment, observed) in self.environments.iter().zip(&observed) {
            std::hint::black_box(plan::plan(&environment.goal, observed, self.now));
        }
        began.elapsed()
    }
}

/// Memory of this process, in bytes (`proc(5)`).
fn memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let resident = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    resident.unwrap_or(0) * 4096
}

struct Figures {
    passes: Vec<Duration>,
    memory: u64,
    plans: u64,
    crashes: u64,
}

fn simulate(count: usize, seed: u64) -> Figures {
    let before = memory();
    let mut world = World::new(count, seed);
    let mut passes = Vec::new();
    for minute in 1..=10_u64 {
        world.run(Timestamp::UNIX_EPOCH + Duration::from_secs(60 * minute));
        passes.push(world.pass());
        if minute % 3 == 0 {
            world.lose(minute % NODES);
            passes.push(world.pass());
        }
    }
    let memory = memory().saturating_sub(before);
    world.run(Timestamp::UNIX_EPOCH + END);
    for (place, environment) in world.environments.iter().enumerate() {
        let right = environment.replicas.iter().all(|one| one.seen.set.release.0 == environment.release);
        let all = environment.serving() == REPLICAS && environment.replicas.len() == REPLICAS as usize;
        let plan = plan::plan(&environment.goal, &environment.observed(world.now), world.now);
        assert!(environment.settled && plan.settled && right && all, "{place} did not converge: {plan:?}");
    }
    passes.push(world.pass());
    passes.sort();
    Figures { passes, memory, plans: world.plans, crashes: world.crashes }
}

#[test]
fn three_hundred_environments_converge() {
    let figures = simulate(300, 7);
    assert!(figures.crashes > 100 && figures.plans > 5000, "{} crashes", figures.crashes);
}

/// The large one; times mean something in an optimised build only.
#[test]
#[ignore = "run by scripts/bench plan"]
fn ten_thousand_environments() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let figures = simulate(10_000, seed);
    let milliseconds = |time: &Duration| time.as_secs_f64() * 1000.0;
    let (median, longest) = (&figures.passes[figures.passes.len() / 2], &figures.passes[figures.passes.len() - 1]);
    println!("\n10,000 environments × {REPLICAS} replicas, seed {seed}: all converged");
    println!("{:<28} {:>12}\n{:<28} {:>12}", "plans", figures.plans, "crashes", figures.crashes);
    println!(
        "{:<28} {:>9.1} ms\n{:<28} {:>9.1} ms",
        "one pass over all, median",
        milliseconds(median),
        "longest",
        milliseconds(longest)
    );
    println!("{:<28} {:>9.1} MiB\n", "memory", figures.memory as f64 / f64::from(1 << 20));
    println!(
        "{{\"name\":\"plan\",\"ours\":{:.1},\"peer\":100,\"ratio\":{:.3},\"unit\":\"ms\",\"runs\":{},\"median_ms\":{:.1},\"memory_mib\":{:.1},\"seed\":{seed}}}",
        milliseconds(longest),
        milliseconds(longest) / 100.0,
        figures.passes.len(),
        milliseconds(median),
        figures.memory as f64 / f64::from(1 << 20),
    );
    assert!(cfg!(debug_assertions) || *longest <= Duration::from_millis(100), "a pass took {longest:?}");
}
