//! The writing end of one build's log.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::Write,
    sync::Arc,
};

use anyhow::Context;
use tokio::sync::watch;

use super::{Paths, Progress, TAIL};

/// Writes one build's log. Dropping it leaves the log open, to be taken up again; [`Self::finish`] closes it.
///
/// A disk that cannot be written to does not fail the build: the log then lacks what could not be written.
#[derive(Debug)]
pub struct BuildLogWriter {
    pub(super) paths: Paths,
    pub(super) file: File,
    pub(super) length: u64,
    /// Size from which on only the end is kept.
    pub(super) head_limit: u64,
    pub(super) tail: VecDeque<u8>,
    pub(super) left_out: u64,
    pub(super) failed: bool,
    pub(super) progress: Arc<watch::Sender<Progress>>,
}

impl BuildLogWriter {
    /// Adds bytes as they were sent to the pusher.
    pub fn write(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.head_limit.saturating_sub(self.length)).unwrap_or(usize::MAX);
        let (head, rest) = bytes.split_at(bytes.len().min(if self.tail.is_empty() { room } else { 0 }));
        self.put(head);
        self.tail.extend(rest);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
        self.left_out += surplus as u64;
    }

    fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                let length = self.length;
                self.progress.send_modify(|progress| progress.length = length);
            }
            Err(error) if !self.failed => {
                tracing::error!(%error, path = %self.paths.live.display(), "the build log cannot be written; is the disk full?");
                self.failed = true;
            }
            Err(_) => {}
        }
    }

    /// Writes what was held back, and what was left out.
    fn put_tail(&mut self) {
        if self.left_out > 0 {
            let notice = format!("\n !     {} bytes of this log were left out here: it is too long.\n", self.left_out);
            self.put(notice.as_bytes());
            self.left_out = 0;
        }
        let tail = std::mem::take(&mut self.tail);
        self.put(&Vec::from(tail));
    }

    /// Closes the log: nothing more will come, and followers end.
    ///
    /// # Errors
    /// When the file cannot be given its final name; the log itself is whole.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.put_tail();
        let renamed = fs::rename(&self.paths.live, &self.paths.finished);
        self.progress.send_modify(|progress| progress.finished = true);
        renamed.with_context(|| format!("{} cannot be renamed", self.paths.live.display()))
    }
}

impl Drop for BuildLogWriter {
    fn drop(&mut self) {
        self.put_tail();
    }
}
