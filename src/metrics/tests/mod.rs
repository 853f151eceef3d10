//! Metrics as their parts work together: what is remembered, over restarts too, what is answered, what is written for Prometheus.

mod exposition;
mod kept;
mod sampling;

use super::*;
use crate::router::meter::LATENCY_BUCKETS;

pub fn env(name: &str) -> EnvRef {
    name.parse().unwrap()
}

pub fn shop() -> EnvRef {
    env("acme/shop/dev")
}

/// A tick far from any boundary that matters, at the beginning of a block and of an hour.
pub const START: u32 = 180_000_000;

pub fn at(tick: u32) -> Timestamp {
    Timestamp::from_second(i64::from(tick) * i64::from(INTERVAL)).unwrap()
}

pub fn settings(directory: &std::path::Path) -> MetricsSettings {
    MetricsSettings::new(directory.join("metrics"))
}

/// So many requests that were answered well, each within 20 ms.
pub fn answered(count: u32) -> Point {
    let mut latency = [0; LATENCY_BUCKETS];
    latency[4] = count;
    let requests = Requests { classes: [0, count, 0, 0, 0], latency, bytes: u64::from(count) * 100, under_way: 1 };
    let replicas = Replicas { wanted: 2, ready: 2, crashes: 0 };
    let used = Used { cpu_millis: 500, memory: 64 << 20, received: 1000, sent: 2000 };
    Point { requests: Some(requests), used: Some(used), replicas: Some(replicas) }
}

/// All points that are remembered.
pub fn all(metrics: &Metrics, env: &EnvRef) -> Vec<(u32, Point)> {
    metrics.lock().recall(env, 0, u32::MAX - 1).points(0, u32::MAX - 1)
}
