//! What a drain sends: the lines of its environment from its mark on, in batches.

use std::sync::Arc;

use tokio::time::{Duration, Instant, sleep, sleep_until, timeout_at};

use super::{
    Shared,
    state::{DrainState, DrainStatus},
};
use crate::{
    domain::{Drain, DrainCursor, DrainMark, DrainUrl, EnvRef, Timestamp},
    logs::{LogChanges, LogRecord, LogSource},
    store::{StoreError, Stored},
};

/// Who says that lines were dropped. Drains do not send what is said of drains: to refuse that would be said again.
const SPEAKER: &str = "drains";
/// Longer than anything is waited for.
const FAR: Duration = Duration::from_secs(86_400);
/// Pause after a log that was removed, or a store that fails.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest pause that a receiver may ask for.
const LONGEST_REQUEST: Duration = Duration::from_secs(300);
/// A batch stays below 1 MiB, whatever its settings say; a line takes less than the rest.
const MOST_BYTES: usize = 768 << 10;

/// Why a drain does not go on.
#[derive(Debug)]
pub(super) enum Fault {
    /// Tried again, after a pause that the receiver may have asked for.
    Failed { why: String, after: Option<Duration> },
    /// The drain is not there any more.
    Removed,
    /// The server stops.
    Stopped,
}

impl Fault {
    pub(super) fn failed(why: impl ToString) -> Self {
        Self::Failed { why: why.to_string(), after: None }
    }
}

/// How far a drain has come, or has read ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) cursor: DrainCursor,
    /// Lines dropped before it, and of how many of them the receiver knows.
    pub(super) dropped: u64,
    pub(super) told: u64,
}

/// Some lines, ready to be sent.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Empty when there is nothing to be sent, and only the place is another one.
    pub(super) body: Vec<u8>,
    pub(super) lines: u64,
    /// Before the lines, after those that were overwritten.
    pub(super) before: Place,
    pub(super) after: Place,
    /// There are more lines.
    pub(super) full: bool,
}

/// Makes what is sent of a line.
pub(super) type Encode = fn(&EnvRef, &LogRecord, &mut Vec<u8>);

/// The mark of a drain, in the store and as it is by now.
struct Book {
    shared: Arc<Shared>,
    drain: Stored<Drain>,
    mark: DrainMark,
    is_saved: bool,
    save_at: Instant,
}

impl Book {
    /// Writes the mark, unless the drain has gone.
    async fn save(&mut self) -> Result<(), Fault> {
        if self.is_saved {
            return Ok(());
        }
        self.save_at = Instant::now() + self.shared.settings.save_every;
        match self.shared.store.transaction().expect(&self.drain).put(&self.mark).commit().await {
            Ok(_) => self.is_saved = true,
            Err(StoreError::Conflict(_)) => return Err(Fault::Removed),
            Err(error) => {
                tracing::warn!(env = %self.drain.env, drain = self.drain.id, %error, "a drain's mark cannot be written; trying again");
            }
        }
        Ok(())
    }

    async fn save_if_due(&mut self) -> Result<(), Fault> {
        if Instant::now() >= self.save_at { self.save().await } else { Ok(()) }
    }

    /// Waits, and writes the mark when it is time.
    async fn wait<T>(&mut self, until: impl Future<Output = T>) -> Result<T, Fault> {
        let mut until = std::pin::pin!(until);
        loop {
            tokio::select! {
                done = &mut until => return Ok(done),
                () = sleep_until(self.save_at), if !self.is_saved => self.save().await?,
            }
        }
    }

    fn status(&self, change: impl FnOnce(&mut DrainStatus)) {
        let DrainMark { cursor, sent, dropped, .. } = self.mark;
        self.shared.states.change(&self.drain.env, self.drain.id, |status| {
            (status.sent, status.dropped, status.line) = (sent, dropped, cursor.line);
            change(status);
        });
    }
}

/// The lines of one drain.
pub(super) struct Source {
    book: Book,
    changes: LogChanges,
    encode: Encode,
    /// Between two batches that are not full.
    linger: Duration,
    last_batch: Option<Instant>,
    /// Losses that the log does not tell of yet, and since when it may be told of them.
    unsaid: u64,
    say_at: Instant,
    pause: Duration,
}

impl Source {
    /// From the drain's mark on.
    pub(super) async fn open(
        shared: Arc<Shared>,
        drain: Stored<Drain>,
        encode: Encode,
        linger: Duration,
    ) -> anyhow::Result<Self> {
        let changes = shared.logs.changes(&drain.env).await?;
        let id = (drain.env.clone(), drain.id);
        let mark = match shared.store.get::<DrainMark>(&id).await? {
            Some(mark) => mark.record,
            None => {
                let cursor = shared.logs.end(&drain.env).await?;
                DrainMark { env: id.0, id: id.1, cursor, sent: 0, dropped: 0, told: 0 }
            }
        };
        let pause = shared.settings.first_pause;
        let now = Instant::now();
        let book = Book { shared, drain, mark, is_saved: true, save_at: now };
        book.status(|_| {});
        Ok(Self { book, changes, encode, linger, last_batch: None, unsaid: 0, say_at: now, pause })
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.book.shared.clone()
    }

    pub(super) fn url(&self) -> &DrainUrl {
        &self.book.drain.url
    }

    /// What the receiver is known to have.
    pub(super) fn place(&self) -> Place {
        let DrainMark { cursor, dropped, told, .. } = self.book.mark;
        Place { cursor, dropped, told }
    }

    /// The next lines from a place on; waits for them. May be given up and begun again.
    pub(super) async fn next(&mut self, mut from: Place) -> Result<Batch, Fault> {
        loop {
            self.say_losses(0, "");
            self.changes.seen();
            let batch = self.read(from).await?;
            if batch.after != from {
                let earliest = self.last_batch.map(|at| at + self.linger).filter(|at| *at > Instant::now());
                if let (Some(earliest), false) = (earliest, batch.full) {
                    self.book.wait(sleep_until(earliest)).await?;
                    continue;
                }
                self.last_batch = Some(Instant::now());
                return Ok(batch);
            }
            let say_at = if self.unsaid > 0 { self.say_at } else { Instant::now() + FAR };
            // Else it is time to say what was lost.
            let changed = self.book.wait(timeout_at(say_at, self.changes.wait())).await?;
            if changed == Ok(false) {
                self.book.wait(sleep(AGAIN)).await?;
                self.changes = self.book.shared.logs.changes(&self.book.drain.env).await.map_err(unreadable)?;
                from = self.place();
            }
        }
    }

    async fn read(&self, from: Place) -> Result<Batch, Fault> {
        let Shared { logs, readers, settings, .. } = &*self.book.shared;
        let env = &self.book.drain.env;
        let _reader = readers.acquire().await.map_err(Fault::failed)?;
        let bytes = settings.batch_bytes.min(MOST_BYTES);
        let page = logs.read_from(env, from.cursor, bytes as u64).await.map_err(unreadable)?;
        let before = Place { cursor: page.start, dropped: from.dropped + page.lost, told: from.told };
        let mut batch = Batch { before, after: before, full: page.more, ..Batch::default() };
        let mut records = page.records.into_iter().filter(|(_, record)| !is_about_drains(record)).peekable();
        if before.dropped > before.told && (records.peek().is_some() || page.lost > 0) {
            let text = format!("{} lines were dropped", before.dropped - before.told);
            (self.encode)(env, &LogRecord::berth(Timestamp::now(), SPEAKER, text), &mut batch.body);
            batch.after.told = before.dropped;
        }
        for (cursor, record) in records {
            let length = batch.body.len();
            (self.encode)(env, &record, &mut batch.body);
            if batch.body.len() > bytes && batch.lines > 0 {
                batch.body.truncate(length);
                batch.full = true;
                return Ok(batch);
            }
            batch.lines += 1;
            batch.after.cursor = cursor;
        }
        batch.after.cursor = page.next;
        Ok(batch)
    }

    /// Counts the lines that have been overwritten since the receiver took some.
    pub(super) async fn count_losses(&mut self) -> Result<(), Fault> {
        let batch = self.read(self.place()).await?;
        self.lose(&batch).await
    }

    /// Counts the lines that were overwritten before a batch that was read from the mark on.
    pub(super) async fn lose(&mut self, batch: &Batch) -> Result<(), Fault> {
        if batch.before != self.place() {
            self.advance(batch.before, 0, "it had been overwritten before the receiver took it").await?;
        }
        Ok(())
    }

    /// The receiver has the batch.
    pub(super) async fn taken(&mut self, batch: &Batch) -> Result<(), Fault> {
        if batch.lines > 0 {
            self.pause = self.book.shared.settings.first_pause;
        }
        self.advance(batch.after, batch.lines, "it had been overwritten before it could be sent").await
    }

    /// The receiver will never take the batch.
    pub(super) async fn refused(&mut self, batch: &Batch, why: &str) -> Result<(), Fault> {
        let Place { cursor, dropped, .. } = batch.after;
        // The one of the batch was not told either.
        let after = Place { cursor, dropped: dropped + batch.lines, told: batch.before.told };
        self.book.status(|status| status.refused = Some(why.to_owned()));
        self.advance(after, 0, why).await
    }

    async fn advance(&mut self, to: Place, sent: u64, why: &str) -> Result<(), Fault> {
        let mark = &mut self.book.mark;
        let lost = to.dropped.saturating_sub(mark.dropped);
        (mark.cursor, mark.dropped, mark.told) = (to.cursor, to.dropped, to.told);
        mark.sent += sent;
        self.book.is_saved = false;
        self.book.status(|_| {});
        self.say_losses(lost, why);
        self.book.save_if_due().await
    }

    /// Says in the environment's log what was lost, now and then.
    fn say_losses(&mut self, lost: u64, why: &str) {
        self.unsaid += lost;
        if self.unsaid == 0 || Instant::now() < self.say_at {
            return;
        }
        let Drain { env, id, url, .. } = &self.book.drain.record;
        let reason = if why.is_empty() { String::new() } else { format!(" ({why})") };
        let text = format!("drain {id} ({url}) has dropped {} lines{reason}", self.unsaid);
        self.book.shared.logs.append(env, LogRecord::berth(Timestamp::now(), SPEAKER, text));
        (self.unsaid, self.say_at) = (0, Instant::now() + self.book.shared.settings.say_every);
    }

    /// The receiver is there.
    pub(super) fn connected(&self) {
        self.book.status(|status| status.enter(DrainState::Connected));
    }

    /// Waits before the next attempt: each time longer, and for what the receiver asks for.
    pub(super) async fn pause(&mut self, why: String, after: Option<Duration>) -> Result<(), Fault> {
        // Not all at the same time.
        let jittered = self.pause.mul_f64(0.75 + rand::random::<f64>() / 2.0);
        let pause = jittered.max(after.unwrap_or_default().min(LONGEST_REQUEST));
        self.pause = (self.pause * 2).min(self.book.shared.settings.longest_pause);
        self.book.status(|status| status.enter(DrainState::Retrying { why, next: Timestamp::now() + pause }));
        self.book.wait(sleep(pause)).await
    }

    /// Writes down how far the drain has come, as it ends.
    pub(super) async fn close(&mut self) {
        // Gone: nothing to be written.
        let _ = self.book.save().await;
    }
}

fn is_about_drains(record: &LogRecord) -> bool {
    record.source == LogSource::Berth && record.process == SPEAKER
}

fn unreadable(error: anyhow::Error) -> Fault {
    tracing::warn!(error = %format!("{error:#}"), "a drain cannot read its log; trying again");
    Fault::failed("the log cannot be read; the server's log says why")
}
