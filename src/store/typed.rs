//! Records instead of bytes.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};

use super::{Change, Entry, Guard, Kv, KvError, Record, Revision, Write, events::EventLog};

/// Why a record operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Somebody else changed it meanwhile; read again and decide anew.
    #[error("{0} was changed by someone else meanwhile; try again")]
    Conflict(String),
    /// It does not exist.
    #[error("{0} does not exist")]
    Missing(String),
    /// The disk or the database failed.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The disk or the database failed, and what it may have written could not be taken back: it is not in force now, but may be after the
    /// next start.
    #[error("it is not known whether the change was made: {0}")]
    Unknown(String),
    /// A record cannot be read: it was written by another version, or is damaged.
    #[error("the record {key} cannot be read: {reason}")]
    Unreadable { key: String, reason: String },
}

impl From<KvError> for StoreError {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Conflict(key) => Self::Conflict(key),
            KvError::Failed(reason) => Self::Failed(reason),
            KvError::Unknown(reason) => Self::Unknown(reason),
        }
    }
}

/// A record as it was read, with the revision to guard a change by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<R> {
    pub record: R,
    pub revision: Revision,
}

impl<R> std::ops::Deref for Stored<R> {
    type Target = R;
    fn deref(&self) -> &R {
        &self.record
    }
}

/// How often [`Store::modify`] reads anew before it gives up.
const MODIFY_TRIES: usize = 32;

/// The typed face of a [`Kv`]. Clones share it.
#[derive(Clone)]
pub struct Store {
    kv: Arc<dyn Kv>,
    pub(super) events: Arc<EventLog>,
}

fn full_key<R: Record>(own: &str) -> String {
    format!("{}/{own}", R::KIND)
}

fn decode<R: Record>(entry: &Entry) -> Result<Stored<R>, StoreError> {
    let record = serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Unreadable { key: entry.key.clone(), reason: error.to_string() })?;
    Ok(Stored { record, revision: entry.revision })
}

fn encode<R: Record>(record: &R) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record)
        .map_err(|error| StoreError::Unreadable { key: full_key::<R>(&record.own_key()), reason: error.to_string() })
}

impl Store {
    /// A store over `kv`.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv, events: Arc::default() }
    }

    /// The port below, for what has no record type.
    pub fn kv(&self) -> &Arc<dyn Kv> {
        &self.kv
    }

    /// The record with this id.
    pub async fn get<R: Record>(&self, id: &R::Id) -> Result<Option<Stored<R>>, StoreError> {
        self.kv.get(&full_key::<R>(&R::id_key(id))).await?.as_ref().map(decode).transpose()
    }

    /// The record with this id, or [`StoreError::Missing`].
    pub async fn need<R: Record>(&self, id: &R::Id) -> Result<Stored<R>, StoreError> {
        self.get(id).await?.ok_or_else(|| StoreError::Missing(full_key::<R>(&R::id_key(id))))
    }

    /// All records whose key (without the kind) begins with `prefix`, in key order. Give whole parts with their slash:
    /// `acme/shop/`, not `acme/shop`, which would find `acme/shopping` too.
    pub async fn list<R: Record>(&self, prefix: &str) -> Result<Vec<Stored<R>>, StoreError> {
        self.kv.scan(&full_key::<R>(prefix)).await?.iter().map(decode).collect()
    }

    /// The first `most` of these whose key (without the kind) is after `after`.
    pub async fn list_after<R: Record>(
        &self,
        prefix: &str,
        after: &str,
        most: usize,
    ) -> Result<Vec<Stored<R>>, StoreError> {
        let (prefix, after) = (full_key::<R>(prefix), full_key::<R>(after));
        self.kv.scan_after(&prefix, &after, most).await?.iter().map(decode).collect()
    }

    /// Begins a transaction.
    pub fn transaction(&self) -> Transaction {
        Transaction { kv: self.kv.clone(), guards: Vec::new(), writes: Vec::new(), failure: None }
    }

    /// Reads, changes and writes a record, anew when somebody was faster. `change` may be called several times; an error from it ends
    /// the attempt with nothing written. Returns the record as written.
    pub async fn modify<R, E>(&self, id: &R::Id, mut change: impl FnMut(&mut R) -> Result<(), E> + Send) -> Result<R, E>
    where
        R: Record,
        R::Id: Sync,
        E: From<StoreError>,
    {
        for _ in 0..MODIFY_TRIES {
            let stored = self.need::<R>(id).await?;
            let mut record = stored.record.clone();
            change(&mut record)?;
            match self.transaction().update(&stored, &record).commit().await {
                Ok(_) => return Ok(record),
                Err(StoreError::Conflict(_)) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict(full_key::<R>(&R::id_key(id))).into())
    }

    /// Changes to records of this kind below `prefix`, from `from` on: `Some(record)` written, `None` for the key deleted. A
    /// lost-changes mark comes as `Err(revision)`: list again.
    pub async fn watch<R: Record>(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<(String, Option<R>), Revision>>, StoreError> {
        let strip = R::KIND.len() + 1;
        let changes = self.kv.watch(&full_key::<R>(prefix), from).await?;
        Ok(changes
            .filter_map(move |change| async move {
                match change {
                    Change::Resync(revision) => Some(Err(revision)),
                    Change::Key { key, value: None, .. } => Some(Ok((key[strip..].to_owned(), None))),
                    Change::Key { key, value: Some(value), .. } => {
                        let record = serde_json::from_slice(&value).ok()?;
                        Some(Ok((key[strip..].to_owned(), Some(record))))
                    }
                }
            })
            .boxed())
    }

    /// The newest revision.
    pub async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.kv.revision().await?)
    }
}

/// Several writes that happen together or not at all.
#[must_use = "nothing is written before commit()"]
pub struct Transaction {
    kv: Arc<dyn Kv>,
    guards: Vec<Guard>,
    writes: Vec<Write>,
    failure: Option<StoreError>,
}

impl Transaction {
    fn write<R: Record>(&mut self, record: &R) -> String {
        let key = full_key::<R>(&record.own_key());
        match encode(record) {
            Ok(value) => self.writes.push(Write::Put(key.clone(), value)),
            Err(error) => self.failure = Some(error),
        }
        key
    }

    /// Writes a record that must not exist.
    pub fn create<R: Record>(mut self, record: &R) -> Self {
        let key = self.write(record);
        self.guards.push(Guard::Absent(key));
        self
    }

    /// Replaces a record that must be as it was read.
    pub fn update<R: Record>(mut self, read: &Stored<R>, record: &R) -> Self {
        let key = self.write(record);
        self.guards.push(Guard::At(key, read.revision));
        self
    }

    /// Writes a record whatever was there.
    pub fn put<R: Record>(mut self, record: &R) -> Self {
        self.write(record);
        self
    }

    /// Requires that a record is as it was read, without changing it.
    pub fn expect<R: Record>(mut self, read: &Stored<R>) -> Self {
        self.guards.push(Guard::At(full_key::<R>(&read.record.own_key()), read.revision));
        self
    }

    /// Requires that no record has this id.
    pub fn expect_absent<R: Record>(mut self, id: &R::Id) -> Self {
        self.guards.push(Guard::Absent(full_key::<R>(&R::id_key(id))));
        self
    }

    /// Deletes a record that must be as it was read.
    pub fn delete<R: Record>(mut self, read: &Stored<R>) -> Self {
        let key = full_key::<R>(&read.record.own_key());
        self.guards.push(Guard::At(key.clone(), read.revision));
        self.writes.push(Write::Delete(key));
        self
    }

    /// Does it all, durably, or nothing.
    pub async fn commit(self) -> Result<Revision, StoreError> {
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self.kv.commit(self.guards, self.writes).await?),
        }
    }
}
