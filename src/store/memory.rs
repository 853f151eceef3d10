//! The in-memory adapter: for tests, and the heart of the disk adapter's watches.

use std::{ops::Bound, sync::Arc};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::Mutex;

use super::{Change, Entry, Guard, Kv, KvError, Revision, Write, migrations::Contents, watch::Watches};

#[derive(Default)]
struct State {
    entries: Contents,
    revision: Revision,
}

/// A [`Kv`] that forgets everything when it is dropped. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryKv {
    state: Arc<Mutex<State>>,
    watches: Watches,
}

impl MemoryKv {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

/// The key of the first guard that does not hold, given how to look up a key's revision.
pub(super) fn broken_guard(guards: &[Guard], revision_of: impl Fn(&str) -> Option<Revision>) -> Option<String> {
    guards.iter().find_map(|guard| match guard {
        Guard::Absent(key) => revision_of(key).map(|_| key.clone()),
        Guard::At(key, revision) => (revision_of(key) != Some(*revision)).then(|| key.clone()),
    })
}

/// What [`Kv::scan_after`] answers, of everything there is.
pub(super) fn entries_after(contents: &Contents, prefix: &str, after: &str, most: usize) -> Vec<Entry> {
    let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
    let found = contents.range::<str, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
    let entry = |(key, (value, revision)): (&String, &(Vec<u8>, Revision))| Entry {
        key: key.clone(),
        value: value.clone(),
        revision: *revision,
    };
    found.take(most).map(entry).collect()
}

#[async_trait]
impl Kv for MemoryKv {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        let state = self.state.lock().await;
        let entry = state.entries.get(key);
        Ok(entry.map(|(value, revision)| Entry { key: key.to_owned(), value: value.clone(), revision: *revision }))
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<Entry>, KvError> {
        self.scan_after(prefix, "", usize::MAX).await
    }

    async fn scan_after(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<Entry>, KvError> {
        Ok(entries_after(&self.state.lock().await.entries, prefix, after, most))
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Revision, KvError> {
        let mut state = self.state.lock().await;
        if let Some(key) = broken_guard(&guards, |key| state.entries.get(key).map(|(_, revision)| *revision)) {
            return Err(KvError::Conflict(key));
        }
        let revision = Revision(state.revision.0 + 1);
        state.revision = revision;
        for write in &writes {
            match write {
                Write::Put(key, value) => state.entries.insert(key.clone(), (value.clone(), revision)),
                Write::Delete(key) => state.entries.remove(key),
            };
        }
        self.watches.publish(revision, &writes);
        Ok(revision)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Change>, KvError> {
        let state = self.state.lock().await;
        Ok(self.watches.subscribe(prefix, from, state.revision))
    }

    async fn revision(&self) -> Result<Revision, KvError> {
        Ok(self.state.lock().await.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        super::super::contract::check(&MemoryKv::new()).await;
    }
}
