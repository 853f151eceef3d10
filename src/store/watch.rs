//! Watches over a bounded window of recent changes, shared by the adapters that have none of their own.

use std::{collections::VecDeque, sync::Arc, sync::Mutex};

use futures::{StreamExt, stream, stream::BoxStream};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::{Change, Revision, Write};

/// How many recent changes can be replayed, and how far a watcher may lag.
const WINDOW: usize = 4096;

struct Recent {
    changes: VecDeque<Change>,
    /// Changes up to this revision may have left the window.
    lost: Revision,
}

/// The recent changes of a store and those who wait for more.
#[derive(Clone)]
pub(super) struct Watches {
    recent: Arc<Mutex<Recent>>,
    sender: broadcast::Sender<Change>,
}

impl Default for Watches {
    fn default() -> Self {
        Self::from_revision(Revision(0))
    }
}

impl Watches {
    /// Watches of a store that was opened at `revision`: what came before cannot be replayed.
    pub(super) fn from_revision(revision: Revision) -> Self {
        let recent = Recent { changes: VecDeque::new(), lost: revision };
        Self { recent: Arc::new(Mutex::new(recent)), sender: broadcast::channel(WINDOW).0 }
    }

    /// Tells of a commit. Calls must come in the order of revisions.
    pub(super) fn publish(&self, revision: Revision, writes: &[Write]) {
        // A poisoned lock only means that a panic happened while it was held; the data is plain and still whole.
        let mut recent = self.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for write in writes {
            let (key, value) = match write {
                Write::Put(key, value) => (key.clone(), Some(value.clone())),
                Write::Delete(key) => (key.clone(), None),
            };
            let change = Change::Key { key, value, revision };
            if recent.changes.len() == WINDOW
                && let Some(Change::Key { revision, .. }) = recent.changes.pop_front()
            {
                recent.lost = revision;
            }
            recent.changes.push_back(change.clone());
            // An error means that nobody watches.
            let _ = self.sender.send(change);
        }
    }

    /// The changes below `prefix` after `from`; `now` is the newest revision.
    pub(super) fn subscribe(&self, prefix: &str, from: Revision, now: Revision) -> BoxStream<'static, Change> {
        let recent = self.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let live = BroadcastStream::new(self.sender.subscribe());
        let missed: Vec<Change> = if from < recent.lost {
            vec![Change::Resync(now)]
        } else {
            let after = |change: &&Change| matches!(change, Change::Key { revision, .. } if *revision > from);
            recent.changes.iter().filter(after).cloned().collect()
        };
        drop(recent);
        let prefix = prefix.to_owned();
        let live = live.map(move |change| match change {
            Ok(change) => change,
            Err(BroadcastStreamRecvError::Lagged(_)) => Change::Resync(now),
        });
        let wanted = move |change: &Change| match change {
            Change::Key { key, .. } => key.starts_with(&prefix),
            Change::Resync(_) => true,
        };
        stream::iter(missed).chain(live).filter(move |change| std::future::ready(wanted(change))).boxed()
    }
}
