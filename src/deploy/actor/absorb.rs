//! From pictures and verdicts to what the planner sees.

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::{Actor, Picture, Tracked, tell};
use crate::{
    deploy::{
        clock::elapsed,
        spec,
        watcher::{Verdict, Watcher, secrets},
    },
    domain::{
        EventKind, FailPoint, Health, HealthProbe, Replica, ReplicaId, ReplicaState, SetId, Timestamp,
        fail_point::reached,
    },
    plan::{Goal, Observed, Phase, RouteState, Seen, backoff::HEALTHY_WHILE},
    router::table::Upstream,
};

impl Actor {
    /// Takes in what runs.
    pub(super) fn absorb(&mut self, picture: &Picture) {
        if !picture.known {
            return;
        }
        self.starting.retain(|_, launch| launch.seen_by.is_none_or(|ticket| picture.ticket < ticket));
        self.removed.retain(|_, ticket| picture.ticket < *ticket);
        let nothing = Vec::new();
        let there = picture.replicas.get(&self.env).unwrap_or(&nothing);
        for replica in there {
            if !self.removed.contains_key(&replica.id) {
                self.meet(replica);
            }
        }
        let gone = |id: &ReplicaId| !there.iter().any(|replica| replica.id == *id);
        let told = |one: &Tracked| one.stopping && !one.stop_again;
        let lost: Vec<ReplicaId> =
            self.replicas.iter().filter(|(id, one)| gone(id) && !told(one)).map(|(id, _)| id.clone()).collect();
        for id in lost {
            // One that is stopping has gone because it was told to, however long that took.
            if self.replicas.get(&id).is_some_and(|one| one.phase != Phase::Exited && !one.stopping) {
                self.died(&id, "was removed from the engine by someone else");
            }
            self.replicas.remove(&id);
        }
        self.met = true;
    }

    fn meet(&mut self, replica: &Replica) {
        let before = self.replicas.get(&replica.id).map(|one| &one.replica);
        if before.is_some_and(|before| before.state == replica.state && before.address == replica.address) {
            return;
        }
        let new = !self.replicas.contains_key(&replica.id);
        let now = self.parts.steady.now();
        // By the engine's clock, which is as good as any for telling the older from the younger.
        let since = replica.started_at.map_or(now, |started| started.min(now));
        let tracked = self.replicas.entry(replica.id.clone()).or_insert_with(|| Tracked {
            replica: replica.clone(),
            phase: Phase::Starting,
            reason: None,
            ready_since: None,
            since,
            was_routed: false,
            left_routes: None,
            stopping: false,
            stop_again: false,
            told_healthy: None,
            shown: None,
            watcher: None,
        });
        tracked.replica = replica.clone();
        match &replica.state {
            ReplicaState::Created => {}
            ReplicaState::Running => self.watch(&replica.id, new && !self.met),
            ReplicaState::Exited { code, out_of_memory } => {
                let how = match (out_of_memory, code) {
                    (true, _) => "ran out of memory and was killed (OOM-killed)".to_owned(),
                    (false, 137) => "was killed (SIGKILL, status 137)".to_owned(),
                    (false, code) => format!("exited with status {code}"),
                };
                self.died(&replica.id, &how);
            }
        }
    }

    /// Begins to probe a replica that runs. One that was there before this process and is in the routes table, or is of
    /// the release that serves and has no routes, goes on serving.
    fn watch(&mut self, id: &ReplicaId, found: bool) {
        let now = self.parts.steady.now();
        let view = self.views.borrow().clone();
        let Some(one) = self.replicas.get(id) else { return };
        let set = &one.replica.set;
        let process = self.releases.get(&set.release).and_then(|release| release.processes.get(&set.process));
        // Without its release nothing is known but that it runs; it will not be asked for anything.
        let health = process.map_or(UNKNOWN, |spec| spec.health.clone());
        let port = process.map_or(0, |spec| spec.port);
        let upstream = upstream(&one.replica, port);
        let published = upstream.is_some_and(|upstream| view.published(&self.env).contains(&upstream));
        let started_at = one.replica.started_at.filter(|started| found && *started < now).unwrap_or(now);
        let adopted = found && (published || self.served_unseen(set, &health, elapsed(started_at, now)));
        let stable = health.probe == HealthProbe::Running && elapsed(started_at, now) >= self.parts.settings.stability;
        let secrets = self.releases.get(&set.release).map(|release| secrets(&release.config)).unwrap_or_default();
        let watcher = Watcher {
            replica: id.clone(),
            address: one.replica.address,
            port,
            host: self.env.host(&self.parts.settings.base_domain),
            // A grace time that went by while nobody watched is granted anew: a single late answer must not cost a healthy replica.
            started_at: if health.probe == HealthProbe::Running { started_at } else { now },
            health,
            adopted,
            stability: self.parts.settings.stability,
            steady: self.parts.steady,
            prober: self.parts.prober.clone(),
            runtime: self.parts.runtime.clone(),
            verdicts: self.verdicts.0.clone(),
            secrets,
        };
        let set = set.clone();
        let index = one.replica.index;
        let name = format!("{}.{index}", set.process);
        let watcher = AbortOnDropHandle::new(tokio::spawn(watcher.run()));
        if let Some(one) = self.replicas.get_mut(id) {
            one.watcher = Some(watcher);
            // What left the table shortly before this process began may still have requests.
            one.was_routed = found;
            if adopted || stable {
                one.phase = Phase::Ready;
                one.ready_since = Some(started_at);
                // Found healthy, which is no news.
                one.told_healthy = found.then_some(true);
            }
        }
        if adopted || stable {
            self.sets.entry(set.clone()).or_default().ever_ready = true;
        }
        if !found {
            let event = self.event(EventKind::ReplicaStarted, format!("{name} of {} started", set.release));
            self.parts.event(tell::of_replica(event, &set, index));
        }
    }

    /// Whether a replica that runs for `age` served, though no router sends to it: it is of the release that serves, has had the time to
    /// become ready, and does not just take the place of one of before a `restart`.
    fn served_unseen(&self, set: &SetId, health: &Health, age: Duration) -> bool {
        let picture = self.pictures.borrow();
        let others = picture.replicas.get(&self.env).into_iter().flatten().map(|other| &other.set);
        let older = |other: &SetId| {
            (&other.process, other.release) == (&set.process, set.release) && other.restarts < set.restarts
        };
        let current = self.record.as_ref().and_then(|record| record.current);
        !set.process.is_web()
            && health.probe != HealthProbe::Running
            && current == Some(set.release)
            && age >= health.grace
            && !others.clone().any(older)
    }

    /// Takes in what a watcher found out.
    pub(super) fn judge(&mut self, verdict: Verdict) {
        let now = self.parts.steady.now();
        // While it still counts as what it was.
        self.forget_failures(&self.goal(), now);
        let Some(one) = self.replicas.get_mut(&verdict.replica) else { return };
        if one.phase == Phase::Exited {
            return;
        }
        let before = one.phase;
        one.phase = verdict.phase;
        one.reason = verdict.reason.clone();
        let name = format!("{}.{}", one.replica.set.process, one.replica.index);
        let state = self.sets.entry(one.replica.set.clone()).or_default();
        match verdict.phase {
            Phase::Ready => {
                reached(FailPoint::Probe);
                one.ready_since.get_or_insert(now);
                state.ever_ready = true;
            }
            Phase::Unhealthy if before != Phase::Unhealthy && !one.stopping => {
                let why = verdict.reason.unwrap_or_else(|| "its probes fail".to_owned());
                state.backoff.failed(now, one.ready_since.map(|since| elapsed(since, now)));
                state.grace_over |= before == Phase::Starting;
                state.trouble = Some(format!("{name} is not healthy: {why}"));
                self.read_tail(&verdict.replica);
            }
            _ => {}
        }
    }

    fn died(&mut self, id: &ReplicaId, how: &str) {
        let now = self.parts.steady.now();
        self.forget_failures(&self.goal(), now);
        let Some(one) = self.replicas.get_mut(id) else { return };
        let lived = one.ready_since.map(|since| elapsed(since, now)).or_else(|| lived_before(&one.replica, self.met));
        one.phase = Phase::Exited;
        one.watcher = None;
        one.reason = Some(how.to_owned());
        if one.stopping {
            return;
        }
        let (set, index) = (one.replica.set.clone(), one.replica.index);
        let exit = match one.replica.state {
            ReplicaState::Exited { code, out_of_memory } => Some((code, out_of_memory)),
            ReplicaState::Created | ReplicaState::Running => None,
        };
        let mut message =
            format!("{}.{} of {} {how}", one.replica.set.process, one.replica.index, one.replica.set.release);
        let state = self.sets.entry(one.replica.set.clone()).or_default();
        match self.met {
            true => state.backoff.failed(now, lived),
            false => state.backoff.found_dead(now, lived, spec::share(&one.replica.set)),
        }
        if state.backoff.is_crash_looping() {
            message.push_str(&format!("; it is crash-looping ({} failures in a row)", state.backoff.failures()));
        }
        if lived.is_none_or(|time| time < HEALTHY_WHILE) {
            state.crashes = state.crashes.saturating_add(1);
        }
        state.trouble = Some(message.clone());
        let failures = state.backoff.failures();
        tracing::info!(env = %self.env, "{message}");
        let event = self.event(EventKind::ReplicaDied, message).data("reason", how).data("failures", failures);
        let event = tell::of_replica(event, &set, index);
        self.parts.event(match exit {
            Some((code, out_of_memory)) => event.data("exit_code", code).data("out_of_memory", out_of_memory),
            None => event,
        });
        self.read_tail(id);
    }

    /// What the planner is to know.
    pub(super) fn observed(&mut self, goal: &Goal) -> Observed {
        let now = self.parts.steady.now();
        self.forget_failures(goal, now);
        let view = self.views.borrow().clone();
        let mut observed = Observed::default();
        let mut running: Vec<Upstream> = Vec::new();
        for (id, one) in &self.replicas {
            let upstream = self.upstream(one);
            let route = upstream.as_ref().map_or(RouteState::Out, |it| view.state(&self.env, it, one.was_routed));
            running.extend(upstream);
            let Replica { set, index, state, .. } = &one.replica;
            // Made and never started by a start that was cut short: another one takes it up, or it is cleared away.
            let cut_short = *state == ReplicaState::Created && !self.starting.contains_key(set);
            let phase = if cut_short { Phase::Exited } else { one.phase };
            let seen = Seen {
                id: id.clone(),
                set: set.clone(),
                index: *index,
                phase,
                was_ready: one.ready_since.is_some(),
                since: one.since,
                route,
                stopping: one.stopping,
            };
            observed.replicas.push(seen);
        }
        observed.stale_routes = view.published(&self.env).iter().any(|upstream| !running.contains(upstream));
        observed.starting = self.starting.iter().map(|(set, launch)| (set.clone(), launch.count)).collect();
        let held = self.sets.iter().filter_map(|(set, state)| Some((set.clone(), state.backoff.until(now)?)));
        observed.held = held.collect();
        let busy = self.sets.iter().filter(|(_, state)| !state.tails.is_empty());
        observed.busy = busy.map(|(set, _)| set.clone()).collect();
        observed
    }

    /// A set is well again when all that it should have has been ready for a while: one healthy replica says nothing of another that dies
    /// whenever it is started.
    fn forget_failures(&mut self, goal: &Goal, now: Timestamp) {
        for (set, state) in self.sets.iter_mut().filter(|(_, state)| state.backoff.failures() > 0) {
            let wanted = goal.processes.values().find(|process| process.set == *set).map_or(1, |process| process.count);
            let of_set = || self.replicas.values().filter(|one| one.replica.set == *set && !one.stopping);
            let ready = |one: &Tracked| one.ready_since.filter(|_| one.phase == Phase::Ready);
            let Some(newest) = of_set().map(ready).collect::<Option<Vec<_>>>() else { continue };
            if let Some(newest) = newest.iter().max().filter(|_| newest.len() >= wanted as usize) {
                state.backoff.healthy(elapsed(*newest, now));
            }
        }
    }

    /// The replica as the routes table has it, if it runs and takes requests.
    pub(super) fn upstream(&self, one: &Tracked) -> Option<Upstream> {
        let set = &one.replica.set;
        let spec = self.releases.get(&set.release)?.processes.get(&set.process)?;
        upstream(&one.replica, spec.port).filter(|_| set.process.is_web() && one.phase != Phase::Exited)
    }
}

/// Only whether it runs.
const UNKNOWN: Health = Health {
    probe: HealthProbe::Running,
    interval: Duration::from_secs(60),
    timeout: Duration::from_secs(1),
    grace: Duration::from_secs(60),
    failures: 1,
};

fn upstream(replica: &Replica, port: u16) -> Option<Upstream> {
    let address = std::net::SocketAddr::new(replica.address?, port);
    let name = format!("{}.{}", replica.set.process, replica.index);
    Some(Upstream { address, replica: name, release: replica.set.release })
}

/// How long a replica lived that had died before this process began; its readiness then is not known.
fn lived_before(replica: &Replica, met: bool) -> Option<Duration> {
    let span = |from: Timestamp, to: Timestamp| elapsed(from, to);
    let lived = span(replica.started_at?, replica.finished_at?);
    (!met && lived >= HEALTHY_WHILE).then_some(lived)
}
