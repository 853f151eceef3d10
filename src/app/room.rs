//! Room, as the configuration says.

use std::path::{Path, PathBuf};

use super::{config::Config, data_dir::DataDir};
use crate::{disk::DiskFloor, gc::GcSettings, plan::retention::Retention};

/// Parts of the data directory that may be file systems of their own.
const PLACES: [&str; 7] = ["", "store", "repositories", "registry", "logs", "tmp", "router"];

/// What is to be looked at of the data directory.
pub(super) fn places(data: &Path) -> Vec<PathBuf> {
    PLACES.iter().map(|name| data.join(name)).collect()
}

/// The free space wanted of the data directory, with whatever is mounted in it.
pub(super) fn disk_floor(config: &Config, data: &DataDir) -> DiskFloor {
    DiskFloor::new(places(&data.join("")), config.disk.min_free.0)
}

pub(super) fn gc_settings(config: &Config, data: &DataDir) -> GcSettings {
    GcSettings {
        retention: Retention { releases: config.gc.releases, builds: config.logs.builds },
        every: config.gc.every.max(std::time::Duration::from_secs(60)),
        cache_per_app: config.gc.cache_per_app.0,
        cache_total: config.gc.cache_total.0,
        buildpacks: data.join("buildpacks"),
    }
}
