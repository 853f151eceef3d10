//! What is remembered, as it is asked for: from, to, in steps of so long. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::point::{INTERVAL, KEPT, Point, Replicas, Requests};
use crate::{
    domain::{EnvRef, Timestamp},
    router::meter::{LATENCY_BOUNDS, LATENCY_BUCKETS},
};

/// Steps that are answered unless a length is asked for.
const STEPS: u32 = 360;
/// What is asked for unless `from` says otherwise.
const RANGE: u32 = 3600 / INTERVAL;
/// Intervals of [`MetricsView::now`]: a minute.
const NOW: u32 = 60 / INTERVAL;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsQuery {
    /// From when on; an hour before `to` unless given. What is older than 24 hours is not kept.
    pub from: Option<Timestamp>,
    /// Until when; now unless given.
    pub to: Option<Timestamp>,
    /// Seconds of one step, made a multiple of 10; unless given, such that there are at most 360.
    pub step: Option<u32>,
}

/// Metrics of one environment over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsView {
    pub env: EnvRef,
    /// Beginning of the first step and end of the last.
    pub from: Timestamp,
    pub to: Timestamp,
    /// Seconds of each step.
    pub step: u32,
    /// The last minute before `to`; its replicas are those of the last ten seconds.
    pub now: Step,
    /// All of it as one.
    pub total: Step,
    pub series: Series,
}

/// What is known of a time. `None` (null): nothing was measured, or it cannot be said (a latency without requests).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Requests that ended in it; those whose answer was of each class (1xx to 5xx; 499, a client that went away, is in 4xx).
    pub requests: Option<f64>,
    pub status_1xx: Option<f64>,
    pub status_2xx: Option<f64>,
    pub status_3xx: Option<f64>,
    pub status_4xx: Option<f64>,
    pub status_5xx: Option<f64>,
    pub requests_per_second: Option<f64>,
    /// The share of 5xx, from 0 to 1.
    pub error_share: Option<f64>,
    /// Milliseconds within which half, nine tenths, and 99 of 100 requests were answered; interpolated within buckets, at most 30,000.
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Bytes of answers' bodies.
    pub response_bytes_per_second: Option<f64>,
    /// Requests under way at a time, at the most.
    pub under_way: Option<f64>,
    /// Cores used, on average and at the most.
    pub cpu_cores: Option<f64>,
    pub cpu_cores_max: Option<f64>,
    /// Bytes of memory used, on average and at the most.
    pub memory_bytes: Option<f64>,
    pub memory_bytes_max: Option<f64>,
    /// Bytes over the replicas' networks.
    pub received_bytes_per_second: Option<f64>,
    pub sent_bytes_per_second: Option<f64>,
    /// Replicas wanted, and how many of them served, of whichever release: both of the moment when most were missing; the newest such one.
    pub replicas_wanted: Option<f64>,
    pub replicas_ready: Option<f64>,
    /// Replicas that died by themselves.
    pub crashes: Option<f64>,
}

impl Step {
    fn tell_replicas(&mut self, replicas: Option<Replicas>) {
        self.replicas_wanted = replicas.map(|replicas| replicas.wanted.into());
        self.replicas_ready = replicas.map(|replicas| replicas.ready.into());
    }
}

macro_rules! series {
    ($($name:ident),* $(,)?) => {
        /// The values of [`Step`], one after another.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        pub struct Series {
            /// When each step begins.
            pub at: Vec<Timestamp>,
            $(pub $name: Vec<Option<f64>>,)*
        }

        impl Series {
            fn push(&mut self, at: Timestamp, step: &Step) {
                self.at.push(at);
                $(self.$name.push(step.$name);)*
            }
        }
    };
}

series! {
    requests, status_1xx, status_2xx, status_3xx, status_4xx, status_5xx, requests_per_second, error_share, p50_ms, p90_ms, p99_ms,
    response_bytes_per_second, under_way, cpu_cores, cpu_cores_max, memory_bytes, memory_bytes_max, received_bytes_per_second,
    sent_bytes_per_second, replicas_wanted, replicas_ready, crashes,
}

/// A query in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// The first tick, and the one after the last.
    pub(super) from: u32,
    pub(super) to: u32,
    /// Ticks of a step.
    step: u32,
}

/// The tick at a moment.
pub(super) fn tick_at(at: Timestamp) -> u32 {
    u32::try_from(at.as_second() / i64::from(INTERVAL)).unwrap_or(0)
}

fn moment(tick: u32) -> Timestamp {
    // A tick is far from the end of time.
    Timestamp::UNIX_EPOCH + Duration::from_secs(u64::from(tick) * u64::from(INTERVAL))
}

impl MetricsQuery {
    /// What is asked for, within what is kept; the text says what is wrong with it.
    pub(super) fn range(&self, now: Timestamp) -> Result<Range, String> {
        let newest = tick_at(now);
        let to = self.to.map_or(newest, tick_at).min(newest);
        let from = self.from.map_or_else(|| to.saturating_sub(RANGE), tick_at).max(newest.saturating_sub(KEPT));
        if from >= to {
            return Err(
                "nothing is kept of that time: `from` must be before `to`, and within the last 24 hours".to_owned()
            );
        }
        let step = match self.step {
            Some(..INTERVAL) => return Err(format!("`step` must be at least {INTERVAL} seconds")),
            Some(seconds) => seconds.div_ceil(INTERVAL),
            None => (to - from).div_ceil(STEPS),
        };
        let step = step.min(KEPT);
        // Steps begin at multiples of their length, so that asking again a moment later gives the same ones.
        Ok(Range { from: from - from % step, to, step })
    }
}

/// The view of `points` (by tick, in order).
pub(super) fn view(env: &EnvRef, range: Range, points: &[(u32, Point)]) -> MetricsView {
    let within = |from: u32, to: u32| {
        let (first, end) =
            (points.partition_point(|(tick, _)| *tick < from), points.partition_point(|(tick, _)| *tick < to));
        &points[first..end.max(first)]
    };
    let mut series = Series::default();
    let mut from = range.from;
    while from < range.to {
        let to = (from + range.step).min(range.to);
        series.push(moment(from), &fold(within(from, to)));
        from += range.step;
    }
    MetricsView {
        env: env.clone(),
        from: moment(range.from),
        to: moment(range.to),
        step: range.step * INTERVAL,
        now: newest(within(range.to.saturating_sub(NOW), range.to)),
        total: fold(within(range.from, range.to)),
        series,
    }
}

/// The same of what is now: with the replicas of the newest point.
fn newest(points: &[(u32, Point)]) -> Step {
    let mut step = fold(points);
    step.tell_replicas(points.iter().rev().find_map(|(_, point)| point.replicas));
    step
}

/// Several points as one: counts are added, gauges averaged or the most of them taken.
fn fold(points: &[(u32, Point)]) -> Step {
    let mut step = Step::default();
    let requests: Vec<Requests> = points.iter().filter_map(|(_, point)| point.requests).collect();
    if !requests.is_empty() {
        fold_requests(&mut step, &requests);
    }
    let used: Vec<_> = points.iter().filter_map(|(_, point)| point.used).collect();
    if !used.is_empty() {
        let cores = || used.iter().map(|used| f64::from(used.cpu_millis) / 1000.0);
        let memory = || used.iter().map(|used| used.memory as f64);
        (step.cpu_cores, step.cpu_cores_max) = (mean(cores()), most(cores()));
        (step.memory_bytes, step.memory_bytes_max) = (mean(memory()).map(f64::round), most(memory()));
        step.received_bytes_per_second = rate(used.iter().map(|used| used.received as f64));
        step.sent_bytes_per_second = rate(used.iter().map(|used| used.sent as f64));
    }
    let replicas: Vec<Replicas> = points.iter().filter_map(|(_, point)| point.replicas).collect();
    if !replicas.is_empty() {
        let worst = replicas.iter().max_by_key(|replicas| replicas.wanted.saturating_sub(replicas.ready));
        step.tell_replicas(worst.copied());
        step.crashes = Some(replicas.iter().map(|replicas| f64::from(replicas.crashes)).sum());
    }
    step
}

fn fold_requests(step: &mut Step, requests: &[Requests]) {
    let class = |class: usize| requests.iter().map(|one| f64::from(one.classes[class])).sum::<f64>();
    let classes: [f64; 5] = std::array::from_fn(class);
    let all: f64 = classes.iter().sum();
    step.requests = Some(all);
    step.status_1xx = Some(classes[0]);
    step.status_2xx = Some(classes[1]);
    step.status_3xx = Some(classes[2]);
    step.status_4xx = Some(classes[3]);
    step.status_5xx = Some(classes[4]);
    step.requests_per_second = Some(rounded(all / seconds(requests.len())));
    step.error_share = (all > 0.0).then(|| rounded(classes[4] / all));
    let buckets: [u64; LATENCY_BUCKETS] =
        std::array::from_fn(|bucket| requests.iter().map(|one| u64::from(one.latency[bucket])).sum());
    [step.p50_ms, step.p90_ms, step.p99_ms] = [0.5, 0.9, 0.99].map(|share| quantile(&buckets, share));
    step.response_bytes_per_second = rate(requests.iter().map(|one| one.bytes as f64));
    step.under_way = most(requests.iter().map(|one| f64::from(one.under_way)));
}

fn seconds(points: usize) -> f64 {
    points as f64 * f64::from(INTERVAL)
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| rounded(values.sum::<f64>() / count as f64))
}

fn most(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.reduce(f64::max)
}

fn rate(counts: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let points = counts.len();
    (points > 0).then(|| rounded(counts.sum::<f64>() / seconds(points)))
}

/// To a ten-thousandth: more is not known, and takes room.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// The latency in milliseconds that `share` of the requests did not exceed, as Prometheus' `histogram_quantile` has it.
pub(super) fn quantile(buckets: &[u64; LATENCY_BUCKETS], share: f64) -> Option<f64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = share * total as f64;
    let mut below = 0.0;
    for (bucket, count) in buckets.iter().enumerate() {
        let count = *count as f64;
        let lower = bucket.checked_sub(1).map_or(0.0, |before| f64::from(LATENCY_BOUNDS[before]));
        if below + count >= rank && count > 0.0 {
            let upper = LATENCY_BOUNDS.get(bucket).map_or(lower, |bound| f64::from(*bound));
            return Some(rounded(lower + (upper - lower) * (rank - below) / count));
        }
        below += count;
    }
    None
}
