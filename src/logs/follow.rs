//! Someone who reads a log as it is written. The writer never waits for a follower; one that is too slow is told how many lines it missed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures::Stream;
use tokio::sync::Notify;

use super::{LogEntry, LogFilter};

/// What a follower may be behind, in bytes of text.
const MAX_BEHIND: usize = 4 << 20;

/// What a follower reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    Record(Arc<LogEntry>),
    /// This many lines were left out here because they came faster than they were read. Not all of them need have had the text or the level
    /// that is wanted.
    Missed(u64),
    /// The place to go on from is not in the log any more: lines may be missing here, nobody knows how many, and all that is there follows.
    Gap,
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
    waiting: VecDeque<Arc<LogEntry>>,
    /// Of their text.
    bytes: usize,
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
    /// Whether the follower is there.
    pub(super) fn is_read(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Hands a record to the follower. `false` when the follower is gone.
    pub(super) fn push(&self, record: &Arc<LogEntry>) -> bool {
        let Some(shared) = self.0.upgrade() else { return false };
        // To search the text is the follower's own work: the writer is there for everybody.
        if shared.filter.matches_origin(record) {
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            // Once a line is missed all are, until the follower has read the ones before: the gap stays where it is.
            if state.missed > 0 || state.waiting.len() >= shared.capacity || state.bytes >= MAX_BEHIND {
                state.missed += 1;
            } else {
                state.bytes += record.text.len();
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
    pub(super) async fn next(&self) -> Option<LogItem> {
        loop {
            // What is not wanted must not keep others from running.
            tokio::task::consume_budget().await;
            match self.take() {
                Some(Some(LogItem::Record(record))) if !self.0.filter.matches_text(&record) => {}
                Some(next) => return next,
                None => self.0.changed.notified().await,
            }
        }
    }

    /// What is there: `None` when nothing is, and `Some(None)` when nothing will be.
    fn take(&self) -> Option<Option<LogItem>> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = state.waiting.pop_front() {
            state.bytes -= record.text.len();
            return Some(Some(LogItem::Record(record)));
        }
        if state.missed > 0 {
            return Some(Some(LogItem::Missed(std::mem::take(&mut state.missed))));
        }
        state.ended.then_some(None)
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = LogItem> + Send + 'static {
        futures::stream::unfold(self, async |follower| follower.next().await.map(|item| (item, follower)))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::{
        domain::Timestamp,
        logs::{LogRecord, Search},
    };

    fn record(text: impl ToString) -> Arc<LogEntry> {
        Arc::new(LogEntry::new(LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", text.to_string()), None))
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_missed_and_where() {
        let (feed, follower) = channel(LogFilter::all(), 3);
        (0..10).for_each(|n| assert!(feed.push(&record(n))));
        let mut stream = Box::pin(follower.into_stream());
        let text = |item: Option<LogItem>| match item {
            Some(LogItem::Record(record)) => record.text.clone(),
            Some(LogItem::Missed(count)) => format!("missed {count}"),
            Some(LogItem::Gap) => "gap".to_owned(),
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
    #[tokio::test]
    async fn texts_are_searched_and_long_lines_bounded_while_they_wait() {
        let filter = LogFilter { search: Some(Search::new("x", false).unwrap()), ..LogFilter::all() };
        let (feed, follower) = channel(filter, 100_000);
        let long = "x".repeat(MAX_BEHIND / 10);
        for _ in 0..20 {
            feed.push(&record("y"));
            feed.push(&record(&long));
        }
        drop(feed);
        let items: Vec<LogItem> = follower.into_stream().collect().await;
        let records =
            items.iter().filter(|item| matches!(item, LogItem::Record(record) if record.text == long)).count();
        assert!((10..=11).contains(&records) && items.len() == records + 1, "{records} of {}", items.len());
        assert!(matches!(items.last(), Some(LogItem::Missed(18..=20))), "{:?}", items.last());
    }
}
