//! The whole store at one moment, as lines of JSON: what a backup keeps.

use std::{collections::BTreeMap, io::BufRead, path::Path};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Entry, Revision, Store, StoreError,
    disk::{Changes, Disk, resealed},
    durable::SyncedFiles,
    migrations::{Contents, MIGRATIONS, newest},
    seal::Seal,
};

/// Records that are written at once.
const BATCH: usize = 1000;

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Shape of the records.
    pub version: u32,
    pub revision: Revision,
    pub entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    revision: Revision,
    count: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'l> {
    key: std::borrow::Cow<'l, str>,
    revision: Revision,
    value: Box<serde_json::value::RawValue>,
}

impl Store {
    /// The whole store as it is now.
    ///
    /// # Errors
    /// The store's own.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        // In this order: the revision may then be newer than the records, never older.
        let entries = self.kv().scan("").await?;
        Ok(Snapshot { version: newest(MIGRATIONS), revision: self.revision().await?, entries })
    }
}

impl Snapshot {
    /// A line that says how many follow, and one for each record.
    ///
    /// # Errors
    /// When a record is no JSON.
    pub fn to_lines(&self) -> anyhow::Result<Vec<u8>> {
        let head = Head { version: self.version, revision: self.revision, count: self.entries.len() };
        let mut lines = serde_json::to_vec(&head)?;
        lines.push(b'\n');
        for entry in &self.entries {
            let value = serde_json::from_slice(&entry.value).with_context(|| format!("{} is no JSON", entry.key))?;
            let line = Line { key: entry.key.as_str().into(), revision: entry.revision, value };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        Ok(lines)
    }

    /// And back.
    ///
    /// # Errors
    /// When lines are missing or malformed, or the version is later than this program's.
    pub fn from_lines(lines: impl BufRead) -> anyhow::Result<Self> {
        let mut lines = lines.lines();
        let head: Head = serde_json::from_str(&lines.next().context("the records are empty")??)?;
        if head.version > newest(MIGRATIONS) {
            bail!(
                "the records are of version {}, this berth knows up to {}; use a newer one",
                head.version,
                newest(MIGRATIONS)
            );
        }
        let mut entries = Vec::new();
        for line in lines {
            let line: Line = serde_json::from_str(&line?).context("a record is malformed")?;
            let value = line.value.get().as_bytes().to_vec();
            entries.push(Entry { key: line.key.into_owned(), value, revision: line.revision });
        }
        ensure!(entries.len() == head.count, "{} records should be there, and {} are", head.count, entries.len());
        Ok(Self { version: head.version, revision: head.revision, entries })
    }

    /// Writes a store with these records and revisions into an empty directory, durably.
    ///
    /// # Errors
    /// When there is something in the directory, or the disk fails.
    pub fn restore(&self, directory: &Path) -> anyhow::Result<()> {
        let (mut disk, contents) = Disk::open(directory, MIGRATIONS, SyncedFiles::open)?;
        ensure!(contents.is_empty() && disk.seal.revision == Revision(0), "{} is not empty", directory.display());
        // Of the version that the records have: whoever opens it brings them to the newest.
        let mut seal = Seal::empty(self.version);
        let nothing = Contents::new();
        for batch in self.entries.chunks(BATCH) {
            let changes: Changes =
                batch.iter().map(|entry| (entry.key.clone(), Some((entry.value.clone(), entry.revision)))).collect();
            seal = resealed(seal, &nothing, &changes, self.revision);
            disk.write(&changes, seal)?;
        }
        disk.write(&BTreeMap::new(), Seal { revision: self.revision, ..seal })?;
        disk.close();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{Kv, RedbKv, Write};

    #[tokio::test]
    async fn a_snapshot_makes_the_same_store_again() {
        let directory = tempfile::tempdir().unwrap();
        let kv = Arc::new(RedbKv::open(&directory.path().join("a")).unwrap());
        for n in 0..2500 {
            let value = format!("{{\"n\": {n}, \"text\": \"ä\\n\"}}").into_bytes();
            kv.commit(vec![], vec![Write::Put(format!("n/{}", n % 1500), value)]).await.unwrap();
        }
        let snapshot = Store::new(kv.clone()).snapshot().await.unwrap();
        assert_eq!(snapshot.entries.len(), 1500);
        let lines = snapshot.to_lines().unwrap();
        let read = Snapshot::from_lines(lines.as_slice()).unwrap();
        assert_eq!(read, snapshot);
        let copy = directory.path().join("b");
        read.restore(&copy).unwrap();
        assert!(read.restore(&copy).is_err(), "written over a store");
        let restored = RedbKv::open(&copy).unwrap();
        assert_eq!(restored.scan("").await.unwrap(), kv.scan("").await.unwrap());
        assert_eq!(restored.revision().await.unwrap(), kv.revision().await.unwrap());
        for (what, broken) in [
            ("cut", &lines[..lines.len() - 90]),
            ("a line less", &lines[..lines.len() - lines.split(|b| *b == b'\n').rev().nth(1).unwrap().len() - 1]),
            ("nothing", b"".as_slice()),
            ("newer", br#"{"version":99,"revision":1,"count":0}"#.as_slice()),
        ] {
            assert!(Snapshot::from_lines(broken).is_err(), "{what}");
        }
    }
}
