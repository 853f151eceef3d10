//! Someone who reads a log as it is written. The writer never waits for a follower; one that is too slow is told how many lines it missed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures::Stream;
use tokio::sync::Notify;

use super::{LogFilter, LogRecord};

/// What a follower reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    Record(Arc<LogRecord>),
    /// This many lines were left out here because they came faster than they were read.
    Missed(u64),
}

/// The writer's end; gone when the follower is.
#[derive(Debug)]
pub(super) struct Feed(Weak<Shared>);

#[derive(Debug)]
struct Shared {
    filter: LogFilter,
    capacity: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<LogRecord>>,
    /// Lines after the last waiting one that were left out.
    missed: u64,
    ended: bool,
}

/// Makes the two ends.
pub(super) fn channel(filter: LogFilter, capacity: usize) -> (Feed, Follower) {
    let shared = Shared { filter, capacity, state: Mutex::default(), changed: Notify::new() };
    let shared = Arc::new(shared);
    (Feed(Arc::downgrade(&shared)), Follower(shared))
}

impl Feed {
    /// Hands a record to the follower. `false` when the follower is gone.
    pub(super) fn push(&self, record: &Arc<LogRecord>) -> bool {
        let Some(shared) = self.0.upgrade() else { return false };
        if shared.filter.matches(record) {
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            // Once a line is missed all are, until the follower has read the ones before: the gap stays where it is.
            if state.missed > 0 || state.waiting.len() >= shared.capacity {
                state.missed += 1;
            } else {
                state.waiting.push_back(record.clone());
            }
            drop(state);
            shared.changed.notify_one();
        }
        true
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            shared.changed.notify_one();
        }
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Follower(Arc<Shared>);

impl Follower {
    /// The next item; `None` when the log is removed or closed.
    async fn next(&self) -> Option<LogItem> {
        loop {
            {
                let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(record) = state.waiting.pop_front() {
                    return Some(LogItem::Record(record));
                }
                if state.missed > 0 {
                    return Some(LogItem::Missed(std::mem::take(&mut state.missed)));
                }
                if state.ended {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = LogItem> + Send + 'static {
        futures::stream::unfold(self, async |follower| follower.next().await.map(|item| (item, follower)))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::domain::Timestamp;

    fn record(text: impl ToString) -> Arc<LogRecord> {
        Arc::new(LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", text.to_string()))
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_missed_and_where() {
        let (feed, follower) = channel(LogFilter::all(), 3);
        (0..10).for_each(|n| assert!(feed.push(&record(n))));
        let mut stream = Box::pin(follower.into_stream());
        let text = |item: Option<LogItem>| match item {
            Some(LogItem::Record(record)) => record.text.clone(),
            Some(LogItem::Missed(count)) => format!("missed {count}"),
            None => "end".to_owned(),
        };
        assert_eq!(text(stream.next().await), "0");
        // There is room again, but the gap comes first.
        feed.push(&record(10));
        let mut got = Vec::new();
        for _ in 0..3 {
            got.push(text(stream.next().await));
        }
        assert_eq!(got, ["1", "2", "missed 8"]);
        feed.push(&record(11));
        drop(feed);
        assert_eq!([text(stream.next().await), text(stream.next().await)], ["11", "end"]);
    }

    #[tokio::test]
    async fn filtered_lines_are_neither_sent_nor_missed() {
        let (feed, follower) = channel(LogFilter::process("worker"), 1);
        (0..10).for_each(|n| assert!(feed.push(&record(n))));
        let mut stream = Box::pin(follower.into_stream());
        assert!(stream.next().now_or_never().is_none());
        drop(stream);
        assert!(!feed.push(&record("x")), "the follower is gone");
    }
}
