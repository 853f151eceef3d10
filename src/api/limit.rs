//! How much one user may ask.

use std::{io, num::NonZeroU32, time::Duration};

use axum::{body::Body, http::StatusCode};
use bytes::Bytes;
use governor::{DefaultKeyedRateLimiter, Quota};
use tokio::{sync::mpsc, time::timeout};

use super::problem::Problem;
use crate::{
    domain::UserName,
    places::{NoPlace, Place, Places},
};

/// Users whose requests are counted before those who have been quiet are forgotten.
const MANY: usize = 1000;

/// Answers that are made of many records in memory, at the same time: in all, and of one user; others wait for so long. A page of a log
/// may be as large as all that is kept of it.
const LARGE: usize = 8;
const LARGE_OF_USER: usize = 4;
const LARGE_WAIT: Duration = Duration::from_secs(30);
/// How long the client may take to read one, and the pieces in bytes that it is sent in.
const LARGE_SENDING: Duration = Duration::from_secs(60);
const PIECE: usize = 64 << 10;

/// Streams that one user may follow, where a quarter of all would be less.
const STREAMS_OF_USER: usize = 100;

/// Requests of each user, in a rate that they may go beyond for a moment; how many large answers are made, and streams followed, at a time.
pub(super) struct Limits {
    requests: DefaultKeyedRateLimiter<UserName>,
    large: Places<UserName>,
    streams: Places<UserName>,
}

impl Limits {
    /// `per_second` requests of one user, and ten times as many at once. Streams take three quarters of `connections`, so that there are
    /// always some for whoever asks; and those of one user a quarter of these.
    pub(super) fn new(per_second: NonZeroU32, connections: usize) -> Self {
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(9));
        let requests = DefaultKeyedRateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst));
        let streams = (connections - connections / 4).max(1);
        let of_user = (streams / 4).max(STREAMS_OF_USER).min(streams);
        Self { requests, large: Places::new(LARGE, LARGE_OF_USER), streams: Places::new(streams, of_user) }
    }

    /// A place to make a large answer at; to be held until it is sent: see [`sent`].
    pub(super) async fn large_answer(&self, user: &UserName) -> Result<Place, Problem> {
        self.large.take(user, LARGE_WAIT).await.map_err(|_| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many large answers are made at the same time")
                .with_hint("ask for fewer lines, or try again later")
        })
    }

    /// A place among those who follow streams, of events and logs alike; to be held as long as the stream is.
    pub(super) fn stream(&self, user: &UserName) -> Result<Place, Problem> {
        self.streams.try_take(user).map_err(|reason| {
            let (text, hint) = match reason {
                NoPlace::All => (
                    "as many streams as api.max_connections leaves room for are followed already".into(),
                    "try again later",
                ),
                NoPlace::Share(most) => (
                    format!("you follow {most} streams already, which is the most of one user"),
                    "end one of them first; one stream can tell of all tenants",
                ),
            };
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).with_hint(hint)
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

/// A large answer that holds its place until the client has read it. Whoever takes longer than a minute for that is cut off: what is left of
/// the text, and the place, are not kept for them.
pub(super) fn sent(text: String, place: Place) -> Body {
    let (sender, pieces) = mpsc::channel::<Bytes>(1);
    let left = text.len();
    let send = async move {
        for piece in text.as_bytes().chunks(PIECE) {
            // A copy, as a part would keep all of the text.
            if sender.send(Bytes::copy_from_slice(piece)).await.is_err() {
                return;
            }
        }
    };
    // It ends by itself: with the text, the client or the minute.
    tokio::spawn(async move {
        if timeout(LARGE_SENDING, send).await.is_err() {
            tracing::debug!("a client took too long to read a large answer and is cut off");
        }
        drop(place);
    });
    Body::from_stream(futures::stream::unfold((pieces, left), async |(mut pieces, left)| match pieces.recv().await {
        Some(piece) => {
            let left = left.saturating_sub(piece.len());
            Some((Ok(piece), (pieces, left)))
        }
        None if left > 0 => Some((Err(io::Error::from(io::ErrorKind::TimedOut)), (pieces, 0))),
        None => None,
    }))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn one_user_does_not_use_up_what_another_may() {
        let limits = Limits::new(NonZeroU32::MIN, 100);
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let taken = (0..100).filter(|_| limits.may_ask(&ann).is_ok()).count();
        assert!((10..100).contains(&taken), "{taken}");
        assert!(limits.may_ask(&bob).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn large_answers_are_made_some_at_a_time() {
        let limits = Limits::new(NonZeroU32::MIN, 100);
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

    #[test]
    fn streams_leave_connections_to_others() {
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let limits = Limits::new(NonZeroU32::MIN, 2000);
        let of_ann: Vec<_> = (0..2000).map_while(|_| limits.stream(&ann).ok()).collect();
        assert_eq!(of_ann.len(), 375);
        let refused = limits.stream(&ann).unwrap_err();
        assert_eq!(refused.status, 503);
        limits.stream(&bob).unwrap();
        // Few connections: no user has fewer than a hundred of them, and some are left all the same.
        let limits = Limits::new(NonZeroU32::MIN, 120);
        let of_ann: Vec<_> = (0..2000).map_while(|_| limits.stream(&ann).ok()).collect();
        assert_eq!((of_ann.len(), limits.stream(&bob).unwrap_err().status), (90, 503));
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_holds_its_place_until_it_is_sent() {
        let limits = Limits::new(NonZeroU32::MIN, 100);
        let ann = "ann".parse().unwrap();
        let text = "a line\n".repeat(PIECE);
        let mut bodies = Vec::new();
        for _ in 0..LARGE_OF_USER {
            bodies.push(sent(text.clone(), limits.large_answer(&ann).await.unwrap()));
        }
        // Nobody reads them, and nobody waits as long as they may take.
        assert_eq!(limits.large_answer(&ann).await.unwrap_err().status, 503);
        let read = bodies.remove(0).collect().await.unwrap().to_bytes();
        assert_eq!(read, text.as_bytes());
        let place = limits.large_answer(&ann).await.unwrap();
        bodies.push(sent(String::new(), place));
        tokio::time::sleep(LARGE_SENDING).await;
        limits.large_answer(&ann).await.unwrap();
        assert!(bodies.remove(0).collect().await.is_err(), "a text that is cut off is not told from a whole one");
    }
}
