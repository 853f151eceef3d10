//! Wakes a task when one file of a directory is replaced or written (inotify).

use std::{ffi::OsStr, path::Path, sync::Arc};

use anyhow::Context;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::Notify;

/// Watches `name` in `directory` until it is dropped.
pub(super) struct FileWatch {
    changed: Arc<Notify>,
    /// Stops watching when dropped.
    _watcher: RecommendedWatcher,
}

impl FileWatch {
    /// Starts to watch; changes from now on are reported. The directory must exist.
    pub(super) fn new(directory: &Path, name: &'static str) -> anyhow::Result<Self> {
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| concerns(&event, name)) {
                wake.notify_waiters();
            }
        })
        .context("inotify cannot be used; raise fs.inotify.max_user_instances")?;
        watcher
            .watch(directory, RecursiveMode::NonRecursive)
            .with_context(|| format!("{} cannot be watched; raise fs.inotify.max_user_watches", directory.display()))?;
        Ok(Self { changed, _watcher: watcher })
    }

    /// Resolves when the file may have changed since this was called. Call it, then read the file, then wait: no change is missed.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + use<> {
        // Counts from the moment it is made, not from when it is first polled.
        self.changed.clone().notified_owned()
    }
}

/// Whether the event may mean new contents of the file. Reading it makes events as well, which must not count.
fn concerns(event: &notify::Event, name: &str) -> bool {
    if event.need_rescan() {
        return true;
    }
    let writes = match event.kind {
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Any => true,
        EventKind::Access(AccessKind::Close(mode)) => mode == AccessMode::Write,
        EventKind::Access(_) | EventKind::Other => false,
    };
    writes && event.paths.iter().any(|path| path.file_name() == Some(OsStr::new(name)))
}
