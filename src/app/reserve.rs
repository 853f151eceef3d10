//! A little room that is kept for the day when there is none: opening the store writes, and a server whose disk is full is to start, so that
//! people can look at what there is and make room.

use std::{
    fs::{self, File},
    path::Path,
};

use rustix::fs::{FallocateFlags, fallocate};

use super::data_dir::DataDir;
use crate::{
    disk::DiskFloor,
    store::{Store, open_store},
};

/// Bytes kept: many times what opening the store takes.
const SIZE: u64 = 32 << 20;
/// The file that takes them, in the store's directory: it may be a file system of its own.
const FILE: &str = "reserve";

/// Opens the store; with a full disk, on the room that was kept. That is kept again at the next start at which `min_free` bytes are free.
///
/// # Errors
/// The store's.
pub(super) fn open(data: &DataDir, min_free: u64) -> anyhow::Result<Store> {
    // Where it was kept once.
    let _ = fs::remove_file(data.join(FILE));
    let directory = data.join("store");
    let file = directory.join(FILE);
    let store = open_store(&directory).or_else(|error| {
        let full = !has_room(&directory, SIZE / 2);
        if full && fs::remove_file(&file).is_ok() {
            tracing::warn!("the disk is full: the room that was kept for this is used to start with; make room");
            return open_store(&directory);
        }
        Err(error)
    })?;
    if !file.exists() && has_room(&directory, min_free.saturating_add(SIZE)) {
        keep(&file);
    }
    Ok(store)
}

fn has_room(directory: &Path, bytes: u64) -> bool {
    DiskFloor::new(vec![directory.to_owned()], bytes).check().is_ok()
}

/// Takes the room. Without it the server runs as well.
fn keep(file: &Path) {
    let kept = File::create(file).and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, SIZE)?));
    if let Err(error) = kept {
        tracing::debug!(%error, "no room can be kept for a full disk");
        // It holds nothing, then.
        let _ = fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_while_there_is_enough_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::open(directory.path()).unwrap();
        drop(open(&data, u64::MAX).unwrap());
        assert!(!data.join("store").join(FILE).exists(), "room was taken that is wanted for other things");
        drop(open(&data, 0).unwrap());
        assert_eq!(fs::metadata(data.join("store").join(FILE)).unwrap().len(), SIZE);
    }
}
