//! How much one user may ask.

use std::num::NonZeroU32;

use axum::http::StatusCode;
use governor::{DefaultKeyedRateLimiter, Quota};

use super::problem::Problem;
use crate::domain::UserName;

/// Users whose requests are counted before those who have been quiet are forgotten.
const MANY: usize = 1000;

/// Requests of each user, in a rate that they may go beyond for a moment.
pub(super) struct Limits(DefaultKeyedRateLimiter<UserName>);

impl Limits {
    /// `per_second` requests of one user, and ten times as many at once.
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(9));
        Self(DefaultKeyedRateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)))
    }

    /// Refuses a request that is one too many.
    pub(super) fn may_ask(&self, user: &UserName) -> Result<(), Problem> {
        if self.0.len() > MANY {
            self.0.retain_recent();
        }
        self.0.check_key(user).map_err(|_| {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "you ask more often than api.rate_per_user allows")
                .with_hint("wait a moment; to follow something, use its stream instead of asking again and again")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_does_not_use_up_what_another_may() {
        let limits = Limits::new(NonZeroU32::MIN);
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let taken = (0..100).filter(|_| limits.may_ask(&ann).is_ok()).count();
        assert!((10..100).contains(&taken), "{taken}");
        assert!(limits.may_ask(&bob).is_ok());
    }
}
