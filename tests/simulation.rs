//! The planner over many environments at once, in virtual time: replicas crash while they start and while they serve, start slowly, have
//! probes that fail now and then or for good, and nodes are lost with all they ran. Afterwards everything converges. `scripts/bench plan`
//! runs the large one and reads its last line.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use berth::{
    domain::{Health, HealthProbe, ProcessType, ReleaseVersion, ReplicaId, SetId, Timestamp, UpgradePolicy},
    plan::{self, Backoff, Goal, Observed, Phase, Plan, ProcessGoal, RouteState, Seen, Tracker},
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
    /// The first answer to its probes.
    Ready(ReplicaId),
    /// It ends by itself before it was ever ready.
    Crashed(ReplicaId),
    /// It ends by itself though it was ready.
    Died(ReplicaId),
    /// The next probe of one whose probes flap.
    Probed(ReplicaId),
    /// From now on its probes fail for good.
    Sickened(ReplicaId),
    Routed(ReplicaId, bool),
    Stopped(ReplicaId),
    NewRelease,
    Look,
}

struct Replica {
    seen: Seen,
    node: u64,
    probes: Tracker,
}

/// What went wrong, so that a test can tell that it did.
#[derive(Default)]
struct Troubles {
    /// Replicas that ended before they were ready.
    crashed: u64,
    /// Replicas that ended after that, on nodes that went on.
    died: u64,
    /// Of those, such as requests were sent to.
    served: u64,
    /// Replicas lost with their node.
    lost: u64,
    /// Times that a ready replica's probes made it unhealthy,
    unhealthy: u64,
    /// and that an unhealthy one came back.
    recovered: u64,
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
    troubles: Troubles,
}

fn health() -> Health {
    Health {
        probe: HealthProbe::Tcp,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        grace: Duration::from_secs(60),
        failures: 3,
    }
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

    fn replica(&mut self, id: &ReplicaId) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|one| one.seen.id == *id)
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
            troubles: Troubles::default(),
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
            What::Ready(id) => self.ready(place, id),
            What::Crashed(id) => self.troubles.crashed += u64::from(self.end(place, &id).is_some()),
            What::Died(id) => self.die(place, &id),
            What::Probed(id) => self.flap(place, id),
            What::Sickened(id) => self.sicken(place, &id),
            What::Routed(id, enters) => {
                if let Some(one) = environment.replica(&id) {
                    one.seen.route = match (enters, one.seen.route) {
                        (true, RouteState::Entering) => RouteState::In,
                        (false, RouteState::Leaving) => RouteState::Out,
                        (_, route) => route,
                    };
                }
            }
            What::Stopped(id) => environment.replicas.retain(|one| one.seen.id != id),
        }
        // A set all of whose replicas have run well for long is fine.
        let fine = |one: &Replica| one.seen.phase == Phase::Ready && now >= one.seen.since + Duration::from_secs(60);
        let environment = &mut self.environments[place];
        for (set, backoff) in &mut environment.backoffs {
            let of_set = || environment.replicas.iter().filter(|one| one.seen.set == *set);
            if of_set().count() >= REPLICAS as usize && of_set().all(fine) {
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
            let probes = Tracker::starting(health(), self.now);
            self.environments[place].replicas.push(Replica { seen, node, probes });
            let now = self.now;
            match self.random.below(20) {
                // One in twenty is slow, and one in ten crashes while things go wrong.
                0 => self.after(now, place, What::Ready(id), 10_000, 60_000),
                1 | 2 if self.troubled() => self.after(now, place, What::Crashed(id), 50, 30_000),
                _ => self.after(now, place, What::Ready(id), 100, 3000),
            }
        }
    }

    /// It answers its probes for the first time. While things go wrong, some end later, though they serve, and some have probes that fail.
    fn ready(&mut self, place: usize, id: ReplicaId) {
        if self.probe(place, &id, true).is_none() || !self.troubled() {
            return;
        }
        let now = self.now;
        match self.random.below(20) {
            0 | 1 => self.after(now, place, What::Died(id), 500, 200_000),
            2 | 3 => self.after(now, place, What::Probed(id), 1000, 60_000),
            4 => self.after(now, place, What::Sickened(id), 1000, 60_000),
            _ => {}
        }
    }

    /// Takes a probe's result as the deployer does (`plan::Tracker`); nothing when the replica does not run any more.
    fn probe(&mut self, place: usize, id: &ReplicaId, succeeded: bool) -> Option<Phase> {
        let now = self.now;
        let one = self.environments[place].replica(id).filter(|one| one.seen.phase != Phase::Exited)?;
        let before = one.seen.phase;
        one.seen.phase = one.probes.observe(succeeded, now);
        one.seen.was_ready |= one.seen.phase == Phase::Ready;
        self.troubles.unhealthy += u64::from(before == Phase::Ready && one.seen.phase == Phase::Unhealthy);
        self.troubles.recovered += u64::from(before == Phase::Unhealthy && one.seen.phase == Phase::Ready);
        Some(one.seen.phase)
    }

    /// Two of three probes fail while things go wrong; then they succeed again.
    fn flap(&mut self, place: usize, id: ReplicaId) {
        let succeeds = !self.troubled() || self.random.below(3) == 0;
        if self.probe(place, &id, succeeds).is_some() && self.troubled() {
            let now = self.now;
            self.after(now, place, What::Probed(id), 4000, 6000);
        }
    }

    /// Its probes fail from now on, whatever happens to the others: only a replacement helps.
    fn sicken(&mut self, place: usize, id: &ReplicaId) {
        for _ in 0..health().failures {
            self.probe(place, id, false);
        }
    }

    /// It ends by itself after it was ready, if things still go wrong.
    fn die(&mut self, place: usize, id: &ReplicaId) {
        if self.troubled()
            && let Some(route) = self.end(place, id)
        {
            self.troubles.died += 1;
            self.troubles.served += u64::from(route == RouteState::In);
        }
    }

    /// A replica ends by itself, unless it has; what the router did with it until then.
    fn end(&mut self, place: usize, id: &ReplicaId) -> Option<RouteState> {
        let now = self.now;
        let environment = &mut self.environments[place];
        let one = environment.replicas.iter_mut().find(|one| one.seen.id == *id && one.seen.phase != Phase::Exited)?;
        let route = one.seen.route;
        (one.seen.phase, one.seen.route) = (Phase::Exited, RouteState::Out);
        if !one.seen.stopping {
            let lived = Duration::try_from(now.duration_since(one.seen.since)).unwrap_or_default();
            let backoff = environment.backoffs.entry(one.seen.set.clone()).or_default();
            backoff.failed(now, one.seen.was_ready.then_some(lived));
        }
        Some(route)
    }

    /// A node is lost: what ran on it is gone at once.
    fn lose(&mut self, node: u64) {
        for place in 0..self.environments.len() {
            let on_it = self.environments[place].replicas.iter().filter(|one| one.node == node);
            let lost: Vec<ReplicaId> = on_it.map(|one| one.seen.id.clone()).collect();
            for id in &lost {
                self.troubles.lost += u64::from(self.end(place, id).is_some());
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

    /// How long one pass over all environments takes: to put together what is known of each, and to plan it.
    fn pass(&self) -> Duration {
        let began = Instant::now();
        for environment in &self.environments {
            std::hint::black_box(plan::plan(&environment.goal, &environment.observed(self.now), self.now));
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
    troubles: Troubles,
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
    Figures { passes, memory, plans: world.plans, troubles: world.troubles }
}

#[test]
fn three_hundred_environments_converge() {
    let figures = simulate(300, 7);
    let Troubles { crashed, died, served, lost, unhealthy, recovered } = figures.troubles;
    assert!(figures.plans > 5000, "{} plans", figures.plans);
    for (what, times) in [
        ("crashed while starting", crashed),
        ("died after they were ready", died),
        ("died while requests were sent to them", served),
        ("lost with a node", lost),
        ("became unhealthy", unhealthy),
        ("became healthy again", recovered),
    ] {
        assert!(times > 50, "only {times} {what}: what is this simulation of?");
    }
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
    let Troubles { crashed, died, served, lost, unhealthy, recovered } = figures.troubles;
    for (what, times) in [
        ("plans", figures.plans),
        ("crashed while starting", crashed),
        ("died after being ready", died),
        ("of those, serving", served),
        ("lost with their node", lost),
        ("ready ones unhealthy", unhealthy),
        ("and healthy again", recovered),
    ] {
        println!("{what:<28} {times:>12}");
    }
    println!(
        "{:<28} {:>9.1} ms\n{:<28} {:>9.1} ms",
        "one pass, observe + plan",
        milliseconds(median),
        "the longest of all passes",
        milliseconds(longest)
    );
    println!("{:<28} {:>9.1} MiB\n", "memory", figures.memory as f64 / f64::from(1 << 20));
    println!(
        "{{\"name\":\"plan\",\"ours\":{:.1},\"peer\":100,\"ratio\":{:.3},\"unit\":\"ms for the longest pass: observed state put together and planned\",\"runs\":{},\"median_ms\":{:.1},\"memory_mib\":{:.1},\"seed\":{seed}}}",
        milliseconds(longest),
        milliseconds(longest) / 100.0,
        figures.passes.len(),
        milliseconds(median),
        figures.memory as f64 / f64::from(1 << 20),
    );
    assert!(cfg!(debug_assertions) || *longest <= Duration::from_millis(100), "a pass took {longest:?}");
}
