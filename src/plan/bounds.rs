//! How many replicas must be healthy and how many may run while a set replaces another.

use crate::domain::UpgradePolicy;

/// The limits within which a rollout moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Replicas that must stay healthy, old and new together.
    pub min_healthy: u32,
    /// Replicas that may run, old and new together.
    pub max_running: u32,
}

impl Bounds {
    /// Marathon's upgrade arithmetic for `count` wanted replicas: keep ⌈count·min_healthy⌉ healthy, run ⌊count·(1+max_over)⌋ at the
    /// most; when both are `count`, nothing could move, so one more is allowed.
    pub fn new(count: u32, policy: &UpgradePolicy) -> Self {
        let wide = u64::from(count);
        let min_healthy = (wide * u64::from(policy.min_healthy.min(100))).div_ceil(100);
        let max_running = wide.saturating_mul(100 + u64::from(policy.max_over)) / 100;
        let max_running = if min_healthy == wide && max_running == wide { max_running + 1 } else { max_running };
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self { min_healthy: narrow(min_healthy), max_running: narrow(max_running) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marathon_arithmetic() {
        // (wanted, min_healthy %, max_over %) → (min, max)
        let rows = [
            (4, 100, 100, 4, 8),
            (4, 50, 25, 2, 5),
            (3, 50, 50, 2, 4),
            (3, 100, 0, 3, 4),
            (1, 100, 0, 1, 2),
            (1, 0, 0, 0, 1),
            (5, 90, 10, 5, 6),
            (0, 100, 100, 0, 1),
            (3, 250, 0, 3, 4),
            // Just one: half of it is one, and it cannot be replaced without another beside it.
            (1, 50, 50, 1, 2),
            (1, 1, 0, 1, 2),
            // Rounding to both n still leaves a place.
            (3, 67, 33, 3, 4),
            (3, 66, 33, 2, 3),
            (100, 99, 0, 99, 100),
            (0, 0, 0, 0, 1),
            (1000, 100, 1000, 1000, 11_000),
            (u32::MAX, 100, 100, u32::MAX, u32::MAX),
        ];
        for (count, min_healthy, max_over, min, max) in rows {
            let policy = UpgradePolicy { min_healthy, max_over, ..UpgradePolicy::default() };
            let bounds = Bounds::new(count, &policy);
            assert_eq!(
                (bounds.min_healthy, bounds.max_running),
                (min, max),
                "{count} at {min_healthy} % + {max_over} %"
            );
        }
    }
}
