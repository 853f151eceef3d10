//! How long a rollout may go without coming closer to its end, when servers come and go meanwhile.

use std::time::Duration;

/// Whoever takes a rollout up has at least this long to bring it on.
pub const LEAST: Duration = Duration::from_secs(10);

/// What is left of the progress deadline for a server that took the rollout up `idle` after it last came closer to its end, as the
/// `adoptions`-th since then (0: the one that began it, or that brought it on).
///
/// Time counts on, though nobody worked on the rollout while there was no server: what is left is therefore never less than half of the
/// deadline for the first to take it up, a quarter for the second, and so on. A server that is restarted again and again thus still ends a
/// rollout that is stuck, however short its lives are.
pub fn allowance(deadline: Duration, idle: Duration, adoptions: u32) -> Duration {
    let fair = deadline.checked_div(1_u32.checked_shl(adoptions).unwrap_or(u32::MAX)).unwrap_or_default();
    deadline.saturating_sub(idle).max(fair).max(LEAST).min(deadline.max(LEAST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_left() {
        for (idle, adoptions, left) in
            [(0, 0, 600), (60, 1, 540), (540, 1, 300), (86_400, 1, 300), (840, 2, 150), (9_000, 40, 10)]
        {
            let allowed = allowance(10 * MINUTE, Duration::from_secs(idle), adoptions);
            assert_eq!(allowed.as_secs(), left, "{idle} {adoptions}");
        }
        assert_eq!(allowance(Duration::from_secs(3), Duration::ZERO, 0), LEAST);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// However often the server is restarted, a rollout that is stuck ends: it outlives the deadline by one life of a server, or by
        /// what a server has at least to bring it on.
        #[test]
        fn a_stuck_rollout_ends(deadline in 10_u64..7200, life in 11_u64..7200, away in 0_u64..100_000) {
            let (deadline, life) = (Duration::from_secs(deadline), Duration::from_secs(life));
            let (mut idle, mut worked) = (Duration::ZERO, Duration::ZERO);
            for adoptions in 0_u32.. {
                let allowed = allowance(deadline, idle, adoptions);
                prop_assert!(allowed <= deadline.max(LEAST));
                if allowed <= life {
                    prop_assert!(worked + allowed <= 3 * deadline.max(LEAST) + life);
                    return Ok(());
                }
                worked += life;
                idle += life + Duration::from_secs(away);
            }
        }
    }
}
