//! Readings of counters → what happened between two of them. Nobody knows what happened before the first; that is told as not known.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::point::{INTERVAL, Requests, Used, grown};
use crate::{
    domain::{EnvRef, Replica, ReplicaId, Timestamp},
    router::meter::{Counts, Reading},
    runtime::Usage,
};

/// Two readings further apart than this are of no one interval.
const APART: Duration = Duration::from_secs(INTERVAL as u64 * 5 / 2);

/// Of the router.
#[derive(Debug, Default)]
pub(super) struct RouterRates {
    last: Option<(Reading, Instant)>,
}

impl RouterRates {
    /// Takes a reading; what each environment was asked since the one before. An environment that is not in it was asked nothing.
    pub(super) fn take(&mut self, reading: &Reading, at: Instant) -> Option<HashMap<EnvRef, Requests>> {
        let (before, then) = self.last.replace((reading.clone(), at))?;
        if at.duration_since(then) > APART {
            return None;
        }
        // Another process counts from zero.
        let known = if before.boot == reading.boot { before.environments } else { BTreeMap::new() };
        let none = Counts::default();
        let between = |env: &EnvRef, now: &Counts| Requests::between(known.get(env).unwrap_or(&none), now);
        Some(reading.environments.iter().map(|(env, now)| (env.clone(), between(env, now))).collect())
    }
}

/// Of the replicas.
#[derive(Debug, Default)]
pub(super) struct UsageRates {
    last: HashMap<ReplicaId, (Usage, Instant)>,
    /// When replicas were last looked at, by both clocks.
    looked: Option<(Instant, Timestamp)>,
}

impl UsageRates {
    /// Takes what running replicas use; what each environment used since. `None` the first time, and after a pause.
    pub(super) fn take<'r>(
        &mut self,
        replicas: impl Iterator<Item = &'r Replica>,
        usage: &BTreeMap<ReplicaId, Usage>,
        at: Instant,
        now: Timestamp,
    ) -> Option<HashMap<EnvRef, Used>> {
        let looked = self.looked.replace((at, now));
        let mut used: HashMap<EnvRef, Used> = HashMap::new();
        let mut kept = HashMap::new();
        for replica in replicas {
            let before = self.last.remove(&replica.id);
            let Some(usage) = usage.get(&replica.id) else {
                // It may be there again next time; then what it used meanwhile is spread over both.
                kept.extend(before.map(|before| (replica.id.clone(), before)));
                continue;
            };
            kept.insert(replica.id.clone(), (*usage, at));
            let sum = used.entry(replica.set.env.clone()).or_default();
            sum.memory = sum.memory.saturating_add(usage.memory);
            // One that has started since the last look counts from zero; of any other, nothing is known yet.
            let is_new = || looked.is_some_and(|(_, then)| replica.started_at.is_some_and(|started| started > then));
            let before = before.or_else(|| Some((Usage::default(), looked?.0)).filter(|_| is_new()));
            if let Some((before, then)) = before {
                add(sum, &before, usage, at.duration_since(then));
            }
        }
        self.last = kept;
        looked.filter(|(then, _)| at.duration_since(*then) <= APART).map(|_| used)
    }
}

fn add(sum: &mut Used, before: &Usage, now: &Usage, elapsed: Duration) {
    let micros = grown(before.cpu_micros, now.cpu_micros);
    let millis = micros.saturating_mul(1000) / u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
    sum.cpu_millis = sum.cpu_millis.saturating_add(u32::try_from(millis).unwrap_or(u32::MAX));
    sum.received = sum.received.saturating_add(grown(before.received, now.received));
    sum.sent = sum.sent.saturating_add(grown(before.sent, now.sent));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ReleaseVersion, ReplicaState, SetId};

    fn env() -> EnvRef {
        "acme/shop/dev".parse().unwrap()
    }

    fn reading(boot: u64, answered: u64) -> Reading {
        let counts = Counts { classes: [0, answered, 0, 0, 0], ..Counts::default() };
        let environments = if answered > 0 { [(env(), counts)].into() } else { BTreeMap::new() };
        Reading { boot, environments, ..Reading::default() }
    }

    #[test]
    fn requests_between_readings() {
        let (mut rates, began) = (RouterRates::default(), Instant::now());
        let mut asked = |seconds: u64, boot: u64, answered: u64| {
            let taken = rates.take(&reading(boot, answered), began + Duration::from_secs(seconds))?;
            Some(taken.get(&env()).map_or(0, |requests| requests.classes[1]))
        };
        assert_eq!(asked(0, 1, 500), None, "nobody knows when those came");
        assert_eq!(asked(10, 1, 520), Some(20));
        assert_eq!(asked(20, 1, 520), Some(0));
        // Another process has already counted more than the one before.
        assert_eq!(asked(30, 2, 600), Some(600));
        // The environment was taken out of the table and is in it again.
        assert_eq!(asked(40, 2, 7), Some(7));
        assert_eq!(asked(50, 2, 0), Some(0));
        assert_eq!(asked(60, 2, 3), Some(3));
        assert_eq!(asked(120, 2, 4), None, "that is of no one interval");
        assert_eq!(asked(130, 2, 5), Some(1));
    }

    fn replica(id: &str, started_at: Timestamp) -> Replica {
        let set = SetId { env: env(), process: "web".parse().unwrap(), release: ReleaseVersion(1), restarts: 0 };
        let (state, started_at) = (ReplicaState::Running, Some(started_at));
        Replica { id: ReplicaId(id.to_owned()), set, index: 1, state, address: None, started_at, finished_at: None }
    }

    #[test]
    fn what_is_used_between_looks() {
        let (mut rates, began, time) =
            (UsageRates::default(), Instant::now(), "2030-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        let seconds = Duration::from_secs;
        let old = replica("old", time - seconds(1000));
        let late = replica("late", time + seconds(12));
        let uses = |cpu_seconds: u64, received| Usage {
            cpu_micros: cpu_seconds * 1_000_000,
            memory: 100,
            received,
            ..Usage::default()
        };
        let mut look = |after: u64, usages: &[(&Replica, Usage)], there: &[&Replica]| {
            let usage = usages.iter().map(|(replica, usage)| (replica.id.clone(), *usage)).collect();
            let used = rates.take(there.iter().copied(), &usage, began + seconds(after), time + seconds(after))?;
            Some(used.get(&env()).map_or((0, 0, 0), |used| (used.cpu_millis, used.memory, used.received)))
        };
        assert_eq!(look(0, &[(&old, uses(5000, 9000))], &[&old]), None);
        assert_eq!(look(10, &[(&old, uses(5005, 9100))], &[&old]), Some((500, 100, 100)));
        // One that has started meanwhile is counted from its beginning.
        assert_eq!(look(20, &[(&old, uses(5005, 9100)), (&late, uses(10, 7))], &[&old, &late]), Some((1000, 200, 7)));
        // One that could not be read for once makes no spike.
        assert_eq!(look(30, &[(&late, uses(10, 7))], &[&old, &late]), Some((0, 100, 0)));
        assert_eq!(look(40, &[(&old, uses(5015, 9100)), (&late, uses(10, 7))], &[&old, &late]), Some((500, 200, 0)));
        // One that was not known and is old says nothing yet.
        let stranger = replica("stranger", time - seconds(5000));
        assert_eq!(look(50, &[(&stranger, uses(777, 777))], &[&stranger]), Some((0, 100, 0)));
    }
}
