//! How much one user may ask.

use std::{num::NonZeroU32, time::Duration};

use axum::http::StatusCode;
use governor::{DefaultKeyedRateLimiter, Quota};

use super::problem::Problem;
use crate::{
    domain::UserName,
    places::{Place, Places},
};

/// Users whose requests are counted before those who have been quiet are forgotten.
const MANY: usize = 1000;

/// Answers that are made of many records in memory, at the same time: in all, and of one user; others wait for so long. A page of a log
/// may be as large as all that is kept of it.
const LARGE: usize = 8;
const LARGE_OF_USER: usize = 4;
const LARGE_WAIT: Duration = Duration::from_secs(30);

/// Requests of each user, in a rate that they may go beyond for a moment, and how many large answers are made at a time.
pub(super) struct Limits {
    requests: DefaultKeyedRateLimiter<UserName>,
    large: Places<UserName>,
}

impl Limits {
    /// `per_second` requests of one user, and ten times as many at once.
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(9));
        let requests = DefaultKeyedRateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst));
        Self { requests, large: Places::new(LARGE, LARGE_OF_USER) }
    }

    /// A place to make a large answer at; to be held until its records are text.
    pub(super) async fn large_answer(&self, user: &UserName) -> Result<Place, Problem> {
        self.large.take(user, LARGE_WAIT).await.map_err(|_| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many large answers are made at the same time")
                .with_hint("ask for fewer lines, or try again later")
        })
    }

    /// Refuses a request that is one too many.
    pub(super) fn may_ask(&self, user: &UserName) -> Result<(), Problem> {
        if self.requests.len() > MANY {
            self.requests.retain_recent();
        }
        self.requests.check_key(user).map_err(|_| {
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

    #[tokio::test(start_paused = true)]
    async fn large_answers_are_made_some_at_a_time() {
        let limits = Limits::new(NonZeroU32::MIN);
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let mut held = Vec::new();
        for _ in 0..LARGE_OF_USER {
            held.push(limits.large_answer(&ann).await.unwrap());
        }
        assert_eq!(limits.large_answer(&ann).await.unwrap_err().status, 503);
        limits.large_answer(&bob).await.unwrap();
        held.pop();
        limits.large_answer(&ann).await.unwrap();
    }
}
