//! Which releases' images are kept: what runs or may run, and the newest few for a rollback.

use std::collections::BTreeSet;

use crate::domain::{ImageRef, Release, ReleaseVersion};

/// Releases per environment whose images are kept beside those in use.
pub const KEPT_RELEASES: usize = 10;

/// The images to keep for one environment: of the newest `keep` releases and of those `in_use` (current, target), each image once.
pub fn images_to_keep(releases: &[Release], in_use: &[ReleaseVersion], keep: usize) -> Vec<ImageRef> {
    let mut newest: Vec<&Release> = releases.iter().collect();
    newest.sort_by_key(|release| std::cmp::Reverse(release.version));
    let kept = newest.iter().enumerate().filter(|(place, release)| *place < keep || in_use.contains(&release.version));
    let mut seen = BTreeSet::new();
    kept.map(|(_, release)| &release.image).filter(|image| seen.insert(image.to_string())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::{Digest, Timestamp, UpgradePolicy};

    fn release(version: u64, image: u8) -> Release {
        Release {
            env: "acme/shop/dev".parse().unwrap(),
            version: ReleaseVersion(version),
            image: ImageRef { repository: "berth/acme/shop".into(), digest: Digest::from_sha256([image; 32]) },
            commit: "0".repeat(40),
            build: None,
            config: BTreeMap::new(),
            processes: BTreeMap::new(),
            release_command: None,
            upgrade: UpgradePolicy::default(),
            domains: vec![],
            cron: BTreeMap::new(),
            created_at: Timestamp::UNIX_EPOCH,
            created_by: "alice".parse().unwrap(),
            reason: String::new(),
            release_phase_done: true,
            release_phase_attempts: 0,
        }
    }

    #[test]
    fn newest_and_used_images_stay() {
        let releases: Vec<Release> = (1..=5).map(|v| release(v, if v >= 4 { 9 } else { v as u8 })).collect();
        let kept = images_to_keep(&releases, &[ReleaseVersion(1)], 3);
        let first_bytes: Vec<&str> = kept.iter().map(|image| &image.digest.hex()[..2]).collect();
        assert_eq!(first_bytes, ["09", "03", "01"]);
    }
}
