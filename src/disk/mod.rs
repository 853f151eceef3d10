//! The disk floor: below so much free space, what would need room is refused, so that what runs can go on.
//!
//! [`DiskFloor`] is asked before a push is taken and before a build is queued or begun. It looks each time, which costs microseconds:
//! it recovers by itself as soon as there is space, and has no state that could be stale.

mod size;

use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::Notify;

pub use self::size::size_of;

/// Fewer free inodes than this count as no room either.
const MIN_INODES: u64 = 1000;
/// Below so many times the floor, space is low: something is to be done before anything has to be refused.
const LOW: u64 = 2;

/// There is too little room on a file system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server has too little room on disk: {} free at {}, {} are needed; what runs goes on. Try again later; \
     the operator can make room with `gc`, a larger disk, or a lower disk.min_free", human(*.free), .path.display(), human(*.needed)
)]
pub struct NoRoom {
    pub path: PathBuf,
    /// Bytes; 0 also when there are no inodes left.
    pub free: u64,
    pub needed: u64,
}

/// Free space at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Free {
    pub path: PathBuf,
    /// Bytes that can be written; 0 also when there are no inodes left.
    pub free: u64,
    /// Bytes of the file system.
    pub total: u64,
}

struct Inner {
    places: RwLock<Vec<PathBuf>>,
    min_free: u64,
    low: Notify,
}

/// Says whether there is room. Clones share it.
#[derive(Clone)]
pub struct DiskFloor(Arc<Inner>);

impl std::fmt::Debug for DiskFloor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskFloor").field("places", &self.0.places).field("min_free", &self.0.min_free).finish()
    }
}

impl DiskFloor {
    /// Wants `min_free` bytes at each of `places`. A place that does not exist (an engine on another host) is not looked at.
    pub fn new(places: Vec<PathBuf>, min_free: u64) -> Self {
        Self(Arc::new(Inner { places: RwLock::new(places), min_free, low: Notify::new() }))
    }

    /// Wants nothing.
    pub fn none() -> Self {
        Self::new(Vec::new(), 0)
    }

    /// Wants them at one more place.
    pub fn add(&self, place: PathBuf) {
        self.0.places.write().unwrap_or_else(PoisonError::into_inner).push(place);
    }

    /// Bytes wanted.
    pub fn min_free(&self) -> u64 {
        self.0.min_free
    }

    /// Fails with the first place that has too little room.
    ///
    /// # Errors
    /// [`NoRoom`]; whoever waits in [`Self::refused`] is woken.
    pub fn check(&self) -> Result<(), NoRoom> {
        let needed = self.0.min_free;
        match self.look().into_iter().find(|place| place.free < needed) {
            None => Ok(()),
            Some(Free { path, free, .. }) => {
                self.0.low.notify_one();
                Err(NoRoom { path, free, needed })
            }
        }
    }

    /// Whether the floor is near.
    pub fn is_low(&self) -> bool {
        self.look().iter().any(|place| place.free < self.0.min_free.saturating_mul(LOW))
    }

    /// Returns when something was refused for want of room.
    pub async fn refused(&self) {
        self.0.low.notified().await;
    }

    /// Free space, once for each file system.
    pub fn look(&self) -> Vec<Free> {
        let mut seen = BTreeSet::new();
        let fresh = |path: &PathBuf| path.metadata().is_ok_and(|metadata| seen.insert(metadata.dev()));
        let mut places = self.0.places.read().unwrap_or_else(PoisonError::into_inner).clone();
        places.retain(fresh);
        places.into_iter().filter_map(space_at).collect()
    }
}

fn space_at(path: PathBuf) -> Option<Free> {
    let space = rustix::fs::statvfs(&path).ok()?;
    // Some file systems have no fixed number of inodes and say 0.
    let out_of_inodes = space.f_files > 0 && space.f_favail < MIN_INODES.min(space.f_files / 100);
    let free = if out_of_inodes { 0 } else { space.f_bavail.saturating_mul(space.f_frsize) };
    Some(Free { path, free, total: space.f_blocks.saturating_mul(space.f_frsize) })
}

/// Bytes for people.
pub fn human(bytes: u64) -> String {
    match bytes {
        b if b >= 10 << 30 => format!("{} GiB", b >> 30),
        b if b >= 1 << 30 => format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64),
        b if b >= 1 << 20 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn too_little_is_refused_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("none");
        let floor = DiskFloor::new(vec![nowhere, directory.path().to_owned(), directory.path().to_owned()], u64::MAX);
        let looked = floor.look();
        assert_eq!(looked.len(), 1, "one file system is looked at once");
        assert!(looked[0].total >= looked[0].free && looked[0].total > 0, "{looked:?}");
        let refused = floor.check().unwrap_err();
        assert_eq!(refused.path, directory.path());
        let text = refused.to_string();
        assert!(text.contains("free at") && text.contains("disk.min_free") && text.contains("gc"), "{text}");
        floor.refused().await;
        assert!(floor.is_low());
        assert!(DiskFloor::new(vec![directory.path().to_owned()], 1).check().is_ok());
        assert!(DiskFloor::none().check().is_ok() && !DiskFloor::none().is_low());
    }

    #[test]
    fn sizes() {
        let cases = [(5, "5 B"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (3 << 29, "1.5 GiB"), (40 << 30, "40 GiB")];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }
}
