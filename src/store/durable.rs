//! How what was written comes to the disk itself.

use std::{fs::File, io, path::Path};

use anyhow::Context;

/// Makes what the database has written durable.
pub trait Durable: Send {
    /// Returns when everything that was written before is on the disk itself.
    fn sync(&mut self) -> io::Result<()>;

    /// Returns when what was written to this file of the journal is on the disk itself.
    fn sync_journal(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// How the [`Durable`] of a database in a directory is made.
pub type MakeDurable = fn(&Path) -> anyhow::Result<Box<dyn Durable>>;

/// redb syncs its own file with every commit; its directory is synced here, once.
pub struct SyncedFiles;

impl SyncedFiles {
    /// Of the database in `directory`, which is made durable as it is.
    pub fn open(directory: &Path) -> anyhow::Result<Box<dyn Durable>> {
        // A store that has just been made must itself survive.
        for path in [Some(directory), directory.parent()].into_iter().flatten() {
            File::open(path)?.sync_all().context("cannot sync the store's directory")?;
        }
        Ok(Box::new(Self))
    }
}

impl Durable for SyncedFiles {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
