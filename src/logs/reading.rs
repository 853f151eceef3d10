//! Reading an environment's log: its last lines, those after a place, and those that come.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use futures::Stream;

use super::{
    LogCursor, LogEntry, LogFilter, LogItem, LogRecord, Logs, MAX_TAIL, PATIENCE, blocking,
    follow::Follower,
    ring::{self, Position, Stopped},
    service::{Command, env_directory},
};
use crate::domain::{EnvRef, Timestamp};

/// What is read at a time of a log that somebody reads on from a place, in lines and bytes of text.
const PAGE_LINES: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;
/// Who is no further behind than so many bytes gets the lines as they come.
const NEAR: u64 = 256 << 10;
/// Lines are nearly in the order of their times. So many in a row that are earlier by so much than what is looked for say that what is before
/// them is, too: a clock that was set back has not such a long log.
const SLACK: Duration = Duration::from_secs(600);
const EARLIER: usize = 1000;

impl Logs {
    /// The last `count` lines (at most [`MAX_TAIL`]) that match, oldest first.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn tail(&self, env: &EnvRef, count: usize, filter: &LogFilter) -> anyhow::Result<Vec<LogEntry>> {
        let position = self.ask(|reply| Command::Mark(env.clone(), reply)).await?;
        self.read_tail(env, position, count, filter).await
    }

    /// Lines as they come, from now on; ends when the environment's log is removed.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub async fn follow(
        &self,
        env: &EnvRef,
        filter: &LogFilter,
    ) -> anyhow::Result<impl Stream<Item = LogItem> + Send + use<>> {
        let (_, follower) = self.ask(|reply| Command::Follow(env.clone(), filter.clone(), reply)).await?;
        Ok(follower.into_stream())
    }

    /// The last lines, and every line after them: none is missing in between and none comes twice.
    ///
    /// # Errors
    /// As [`Self::tail`].
    pub async fn tail_and_follow(
        &self,
        env: &EnvRef,
        count: usize,
        filter: &LogFilter,
    ) -> anyhow::Result<(Vec<LogEntry>, impl Stream<Item = LogItem> + Send + use<>)> {
        let (position, follower) = self.ask(|reply| Command::Follow(env.clone(), filter.clone(), reply)).await?;
        Ok((self.read_tail(env, position, count, filter).await?, follower.into_stream()))
    }

    /// The first `count` lines (at most [`MAX_TAIL`]) after a place that match, oldest first. [`LogItem::Gap`] comes before them when the
    /// place is not there any more.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn read_after(
        &self,
        env: &EnvRef,
        after: LogCursor,
        count: usize,
        filter: &LogFilter,
    ) -> anyhow::Result<Vec<LogItem>> {
        let mut reader = Reader::new(self, env, after, filter);
        let until = self.ask(|reply| Command::Mark(env.clone(), reply)).await?;
        let mut items = Vec::new();
        let mut left = count.min(MAX_TAIL);
        while left > 0 && !reader.is_at(until) {
            reader.read_page(until, left).await?;
            left -= reader.ready.iter().filter(|item| matches!(item, LogItem::Record(_))).count();
            items.extend(reader.ready.drain(..));
        }
        Ok(items)
    }

    /// Every line after a place, and on as they come; else as [`Self::read_after`]. Ends when the environment's log is removed, and after an
    /// error.
    pub fn follow_after(
        &self,
        env: &EnvRef,
        after: LogCursor,
        filter: &LogFilter,
    ) -> impl Stream<Item = anyhow::Result<LogItem>> + Send + use<> {
        let reader = Reader::new(self, env, after, filter);
        futures::stream::unfold(Some(reader), async |reader| {
            let mut reader = reader?;
            match reader.next().await {
                Ok(item) => item.map(|item| (Ok(item), Some(reader))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn read_tail(
        &self,
        env: &EnvRef,
        position: Position,
        count: usize,
        filter: &LogFilter,
    ) -> anyhow::Result<Vec<LogEntry>> {
        let filter = filter.clone();
        self.read_files(env, move |directory| tail(&directory, position, count.min(MAX_TAIL), &filter)).await
    }

    /// Reads files when there is a place for the tenant.
    async fn read_files<T: Send + 'static>(
        &self,
        env: &EnvRef,
        read: impl FnOnce(PathBuf) -> io::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let place = self.0.reads.take(&env.tenant, PATIENCE).await;
        let place = place.ok().context("too many are reading logs at the same time")?;
        let directory = env_directory(&self.0.root, env);
        blocking(move || {
            // Held until it has been read, whether anybody still waits for it or not.
            let _place = place;
            read(directory)
        })
        .await
    }
}

fn tail(directory: &Path, until: Position, count: usize, filter: &LogFilter) -> io::Result<Vec<LogEntry>> {
    let (mut entries, mut earlier) = (Vec::new(), 0);
    if count == 0 {
        return Ok(entries);
    }
    ring::read_back(directory, until, |position, line| {
        // A line that is no record was damaged outside of Berth; the others still count.
        let Ok(record) = serde_json::from_slice::<LogRecord>(line) else { return true };
        earlier = if is_long_before(record.at, filter.since) { earlier + 1 } else { 0 };
        if filter.matches(&record) {
            entries.push(LogEntry::new(record, Some(LogCursor::after(position, line))));
        }
        entries.len() < count && earlier < EARLIER
    })?;
    entries.reverse();
    Ok(entries)
}

fn is_long_before(at: Timestamp, since: Option<Timestamp>) -> bool {
    since.is_some_and(|since| at.checked_add(SLACK).is_ok_and(|at| at < since))
}

/// Reads on from a place: from the files until it has nearly come to the end, then as lines come.
struct Reader {
    logs: Logs,
    env: EnvRef,
    filter: LogFilter,
    /// Where to begin, until it is known whether that is there.
    after: Option<LogCursor>,
    position: Position,
    /// How far the files are to be read.
    until: Position,
    /// What comes after `until`.
    follower: Option<Follower>,
    ready: VecDeque<LogItem>,
}

impl Reader {
    fn new(logs: &Logs, env: &EnvRef, after: LogCursor, filter: &LogFilter) -> Self {
        Self {
            logs: logs.clone(),
            env: env.clone(),
            filter: filter.clone(),
            after: Some(after),
            position: Position::START,
            until: Position::START,
            follower: None,
            ready: VecDeque::new(),
        }
    }

    fn is_at(&self, end: Position) -> bool {
        self.after.is_none() && self.position >= end
    }

    async fn next(&mut self) -> anyhow::Result<Option<LogItem>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            if !self.is_at(self.until) {
                if self.after.is_some() {
                    // Whoever followed has been handed lines that were not in the files yet: now they are.
                    self.logs.ask(|reply| Command::Mark(self.env.clone(), reply)).await?;
                }
                self.read_page(self.until, PAGE_LINES).await?;
                continue;
            }
            if let Some(follower) = &self.follower {
                return Ok(follower.next().await);
            }
            let end = self.logs.ask(|reply| Command::Mark(self.env.clone(), reply)).await?;
            self.until = end;
            if end < self.position {
                // It was made anew meanwhile, or lost its end.
                self.position = Position::START;
                self.ready.push_back(LogItem::Gap);
                continue;
            }
            if end.sequence == self.position.sequence && end.offset <= self.position.offset + NEAR {
                let follow = |reply| Command::Follow(self.env.clone(), self.filter.clone(), reply);
                let (until, follower) = self.logs.ask(follow).await?;
                (self.until, self.follower) = (until, Some(follower));
            }
        }
    }

    /// Puts lines up to `until` into `ready`, at most `lines` of them.
    async fn read_page(&mut self, until: Position, lines: usize) -> anyhow::Result<()> {
        if let Some(after) = self.after {
            let there = self.logs.read_files(&self.env, move |directory| ring::has(&directory, after)).await?;
            if there {
                self.position = after.position;
            } else {
                self.ready.push_back(LogItem::Gap);
            }
            self.after = None;
        }
        let (from, filter) = (self.position, self.filter.clone());
        let read = self.logs.read_files(&self.env, move |directory| page(&directory, from, until, lines, &filter));
        let (entries, stopped) = read.await?;
        // In front of the very first line there is none; why it is read from there has been said.
        if stopped.gap && from != Position::START {
            self.ready.push_back(LogItem::Gap);
        }
        self.ready.extend(entries.into_iter().map(|entry| LogItem::Record(Arc::new(entry))));
        self.position = stopped.position;
        Ok(())
    }
}

fn page(
    directory: &Path,
    from: Position,
    until: Position,
    lines: usize,
    filter: &LogFilter,
) -> io::Result<(Vec<LogEntry>, Stopped)> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    let stopped = ring::read_range(directory, from, until, |position, line| {
        if let Ok(record) = serde_json::from_slice::<LogRecord>(line)
            && filter.matches(&record)
        {
            bytes += record.text.len();
            entries.push(LogEntry::new(record, Some(LogCursor::after(position, line))));
        }
        entries.len() < lines && bytes < PAGE_BYTES
    })?;
    Ok((entries, stopped))
}

#[cfg(test)]
mod tests;
