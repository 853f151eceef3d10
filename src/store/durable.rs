//! How what the database has written comes to the disk itself.
//!
//! sled 0.34 acknowledges a `flush` after `sync_file_range`, which a power loss does not survive; so its log and its blob files are synced
//! here.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

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

/// Syncs sled's files.
pub struct SyncedFiles {
    log: File,
    blobs: PathBuf,
    /// Names of the blob files that are durable. sled never changes one, it writes a new one.
    synced_blobs: HashSet<OsString>,
}

impl SyncedFiles {
    /// Of the database in `directory`, which is made durable as it is.
    pub fn open(directory: &Path) -> anyhow::Result<Box<dyn Durable>> {
        let log = File::open(directory.join("db")).context("cannot open the store's log")?;
        let mut files = Self { log, blobs: directory.join("blobs"), synced_blobs: HashSet::new() };
        // A store that has just been made must itself survive.
        files.sync().context("cannot sync the store")?;
        for path in [Some(directory), Some(&directory.join("conf")), directory.parent()].into_iter().flatten() {
            File::open(path)?.sync_all()?;
        }
        Ok(Box::new(files))
    }
}

impl Durable for SyncedFiles {
    /// sled keeps large pages in files of their own, and rewrites them when small values nearby change. Those files go first: a log
    /// that points to a missing one is cut off there when it is opened.
    fn sync(&mut self) -> io::Result<()> {
        let mut present = HashSet::new();
        for entry in fs::read_dir(&self.blobs)? {
            let name = entry?.file_name();
            if !self.synced_blobs.contains(&name) {
                match File::open(self.blobs.join(&name)) {
                    Ok(file) => file.sync_all()?,
                    // sled has just removed it, since nothing points to it any more.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            present.insert(name);
        }
        if present != self.synced_blobs {
            File::open(&self.blobs)?.sync_all()?;
            self.synced_blobs = present;
        }
        self.log.sync_data()
    }
}
