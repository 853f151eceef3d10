//! What is kept of an environment's history: what runs or may run, what work under way refers to, and the newest few for a rollback.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{
    AppRef, Build, BuildNumber, Deployment, DeploymentState, Digest, ImageRef, Release, ReleaseVersion, Timestamp,
};

/// How much is kept beside what is in use, of each environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Newest releases; at least one.
    pub releases: usize,
    /// Newest builds, failed ones too.
    pub builds: usize,
}

/// All that the records say of one environment.
#[derive(Debug, Clone, Copy)]
pub struct History<'h> {
    /// Releases that are wanted or run: target, current, those of observed replicas.
    pub in_use: &'h BTreeSet<ReleaseVersion>,
    pub releases: &'h [Release],
    pub deployments: &'h [Deployment],
    pub builds: &'h [Build],
}

/// What stays; everything else of the environment goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// Releases, and the deployments to them.
    pub releases: BTreeSet<ReleaseVersion>,
    /// Builds, and the commits that they pin.
    pub builds: BTreeSet<BuildNumber>,
    /// Images of kept releases and of builds under way.
    pub images: BTreeSet<(String, Digest)>,
}

impl Kept {
    /// Whether the image stays.
    pub fn has_image(&self, image: &ImageRef) -> bool {
        self.images.contains(&(image.repository.clone(), image.digest.clone()))
    }

    /// The images that stay.
    pub fn image_refs(&self) -> impl Iterator<Item = ImageRef> {
        self.images
            .iter()
            .map(|(repository, digest)| ImageRef { repository: repository.clone(), digest: digest.clone() })
    }
}

/// Decides what stays. Deleting the rest and deciding again keeps the same.
pub fn kept(history: History<'_>, retention: Retention) -> Kept {
    let releases = kept_releases(history, retention.releases.max(1));
    let of_kept = |build: &Build| build.release.is_some_and(|version| releases.contains(&version));
    let stays = |release: &&Release| releases.contains(&release.version);
    let mut builds: BTreeSet<BuildNumber> = history.releases.iter().filter(stays).filter_map(|r| r.build).collect();
    builds.extend(history.builds.iter().filter(|b| !b.state.is_final() || of_kept(b)).map(|build| build.number));
    let mut numbers: Vec<BuildNumber> = history.builds.iter().map(|build| build.number).collect();
    numbers.sort_unstable();
    builds.extend(numbers.iter().rev().take(retention.builds));
    let of_releases = history.releases.iter().filter(stays).map(|release| &release.image);
    let of_builds = history.builds.iter().filter(|b| !b.state.is_final()).filter_map(|build| build.image.as_ref());
    let images = of_releases.chain(of_builds).map(|image| (image.repository.clone(), image.digest.clone())).collect();
    Kept { releases, builds, images }
}

fn kept_releases(history: History<'_>, count: usize) -> BTreeSet<ReleaseVersion> {
    let mut versions: Vec<ReleaseVersion> = history.releases.iter().map(|release| release.version).collect();
    versions.sort_unstable();
    let mut kept: BTreeSet<ReleaseVersion> = versions.iter().rev().take(count).copied().collect();
    kept.extend(history.in_use);
    for deployment in history.deployments.iter().filter(|d| d.state == DeploymentState::Running) {
        kept.insert(deployment.to);
        kept.extend(deployment.from);
    }
    // What a rollback goes to, however many pushes have failed since: the newest one below what serves that has served.
    let served = history.deployments.iter().filter(|d| d.state == DeploymentState::Succeeded).map(|d| d.to);
    for used in history.in_use {
        kept.extend(served.clone().filter(|version| version < used).max());
    }
    let under_way: BTreeSet<BuildNumber> =
        history.builds.iter().filter(|build| !build.state.is_final()).map(|build| build.number).collect();
    kept.extend(history.builds.iter().filter(|build| !build.state.is_final()).filter_map(|build| build.release));
    let made_by_those = |release: &&Release| release.build.is_some_and(|number| under_way.contains(&number));
    kept.extend(history.releases.iter().filter(made_by_those).map(|release| release.version));
    kept
}

/// The images of these releases, each once: a release whose record is there has its image.
pub fn images(releases: &[Release]) -> BTreeMap<String, &ImageRef> {
    releases.iter().map(|release| (release.image.to_string(), &release.image)).collect()
}

/// The build cache of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    pub app: AppRef,
    pub bytes: u64,
    /// A build is at it: it stays.
    pub in_use: bool,
    /// When a build last was; `None` for an app that is not there any more.
    pub last_used: Option<Timestamp>,
}

/// The caches that go: of apps that are gone, larger than `per_app`, and then the least recently used until the rest is within `total`
/// bytes.
pub fn evicted(caches: &[Cache], per_app: u64, total: u64) -> Vec<&Cache> {
    let idle = |cache: &&Cache| !cache.in_use;
    let over = |cache: &Cache| cache.last_used.is_none() || cache.bytes > per_app;
    let mut gone: Vec<&Cache> = caches.iter().filter(idle).filter(|cache| over(cache)).collect();
    let mut left: u64 = caches.iter().map(|cache| cache.bytes).sum::<u64>() - gone.iter().map(|c| c.bytes).sum::<u64>();
    let mut oldest_first: Vec<&Cache> = caches.iter().filter(idle).filter(|cache| !over(cache)).collect();
    oldest_first.sort_by_key(|cache| (cache.last_used, cache.app.clone()));
    for cache in oldest_first {
        if left <= total {
            break;
        }
        left -= cache.bytes;
        gone.push(cache);
    }
    gone
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::{BuildState, Stage, UpgradePolicy};

    fn image(byte: u8) -> ImageRef {
        ImageRef { repository: "berth/acme/shop".into(), digest: Digest::from_sha256([byte; 32]) }
    }

    fn release(version: u64, image_byte: u8, build: Option<u64>) -> Release {
        Release {
            env: "acme/shop/dev".parse().unwrap(),
            version: ReleaseVersion(version),
            image: image(image_byte),
            commit: "0".repeat(40),
            build: build.map(BuildNumber),
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
            trace: None,
        }
    }

    fn deployment(to: u64, from: Option<u64>, state: u8) -> Deployment {
        let state = match state {
            0 => DeploymentState::Running,
            1 => DeploymentState::Failed { reason: "x".into() },
            _ => DeploymentState::Succeeded,
        };
        let (to, from) = (ReleaseVersion(to), from.map(ReleaseVersion));
        let env = "acme/shop/dev".parse().unwrap();
        let (started_at, last_log_lines) = (Timestamp::UNIX_EPOCH, Vec::new());
        Deployment { env, to, from, state, started_at, finished_at: None, progress: None, last_log_lines, trace: None }
    }

    fn build(number: u64, state: u8, release: Option<u64>, image_byte: Option<u8>) -> Build {
        let state = match state {
            0 => BuildState::Queued,
            1 => BuildState::Running { stage: Stage::Deploy },
            2 => BuildState::Failed { reason: "x".into() },
            _ => BuildState::Succeeded,
        };
        Build {
            env: "acme/shop/dev".parse().unwrap(),
            number: BuildNumber(number),
            commit: "0".repeat(40),
            branch: None,
            old_commit: None,
            state,
            queued_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            pushed_by: "alice".parse().unwrap(),
            no_cache: false,
            detached: false,
            interruptions: 0,
            cancelling: None,
            held: false,
            settled: false,
            trace: None,
            image: image_byte.map(image),
            release: release.map(ReleaseVersion),
            timings: vec![],
        }
    }

    #[derive(Debug, Clone)]
    struct Records {
        in_use: BTreeSet<ReleaseVersion>,
        releases: Vec<Release>,
        deployments: Vec<Deployment>,
        builds: Vec<Build>,
    }

    impl Records {
        fn history(&self) -> History<'_> {
            History {
                in_use: &self.in_use,
                releases: &self.releases,
                deployments: &self.deployments,
                builds: &self.builds,
            }
        }

        fn without_the_rest(&self, kept: &Kept) -> Self {
            let mut left = self.clone();
            left.releases.retain(|release| kept.releases.contains(&release.version));
            left.deployments.retain(|deployment| kept.releases.contains(&deployment.to));
            left.builds.retain(|build| kept.builds.contains(&build.number));
            left
        }
    }

    fn some_records() -> impl Strategy<Value = Records> {
        let builds =
            proptest::collection::vec((0u8..12, proptest::option::of(1u64..30), proptest::option::of(0u8..6)), 0..30);
        let releases = proptest::collection::vec((0u8..6, proptest::option::of(1u64..31), any::<bool>()), 1..30);
        let deployments = proptest::collection::vec((proptest::option::of(1u64..30), 0u8..8), 0..30);
        let used = proptest::collection::btree_set(1u64..30, 0..4);
        (builds, releases, deployments, used).prop_map(|(builds, releases, deployments, used)| {
            let numbered = (1u64..).zip(releases).filter(|(_, (.., there))| *there);
            let releases: Vec<Release> = numbered.map(|(n, (image, build, _))| release(n, image, build)).collect();
            let there: BTreeSet<u64> = releases.iter().map(|release| release.version.0).collect();
            let known = |version: Option<u64>| version.filter(|version| there.contains(version));
            Records {
                in_use: used.into_iter().filter(|version| there.contains(version)).map(ReleaseVersion).collect(),
                builds: (1u64..).zip(builds).map(|(n, (s, r, i))| build(n, s, known(r), i)).collect(),
                deployments: (1u64..)
                    .zip(deployments)
                    .filter(|(to, _)| there.contains(to))
                    .map(|(to, (from, state))| deployment(to, known(from), state))
                    .collect(),
                releases,
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn what_is_needed_stays(records in some_records(), count in 0usize..12, builds in 0usize..12) {
            let retention = Retention { releases: count, builds };
            let kept = kept(records.history(), retention);
            let mut needed = records.in_use.clone();
            for deployment in records.deployments.iter().filter(|d| d.state == DeploymentState::Running) {
                needed.insert(deployment.to);
                needed.extend(deployment.from);
            }
            let under_way = || records.builds.iter().filter(|build| !build.state.is_final());
            needed.extend(under_way().filter_map(|build| build.release));
            prop_assert!(needed.is_subset(&kept.releases), "{needed:?} of {kept:?}");
            for build in under_way() {
                prop_assert!(kept.builds.contains(&build.number), "the running build {} goes", build.number);
                prop_assert!(build.image.as_ref().is_none_or(|image| kept.has_image(image)), "its image goes");
                // A server that was killed finds the release of its build by the build's number.
                for release in records.releases.iter().filter(|release| release.build == Some(build.number)) {
                    prop_assert!(kept.releases.contains(&release.version));
                }
            }
            // No release that stays loses its image, or the build whose pin keeps its commit.
            for release in records.releases.iter().filter(|release| kept.releases.contains(&release.version)) {
                prop_assert!(kept.has_image(&release.image));
                prop_assert!(release.build.is_none_or(|number| kept.builds.contains(&number)));
            }
        }

        #[test]
        fn the_newest_stay_and_the_rest_is_bounded(records in some_records(), count in 1usize..12, builds in 0usize..12) {
            let kept = kept(records.history(), Retention { releases: count, builds });
            for release in records.releases.iter().rev().take(count) {
                prop_assert!(kept.releases.contains(&release.version));
            }
            let running = records.deployments.iter().filter(|d| d.state == DeploymentState::Running).count();
            let under_way = records.builds.iter().filter(|build| !build.state.is_final()).count();
            let made = records.releases.iter().filter(|r| r.build.is_some_and(|n| {
                records.builds.iter().any(|b| b.number == n && !b.state.is_final())
            })).count();
            let most = count + 2 * records.in_use.len() + 2 * running + under_way + made;
            prop_assert!(kept.releases.len() <= most, "{} > {most}", kept.releases.len());
        }

        #[test]
        fn deciding_again_keeps_the_same(records in some_records(), count in 0usize..12, builds in 0usize..12) {
            let retention = Retention { releases: count, builds };
            let first = kept(records.history(), retention);
            let left = records.without_the_rest(&first);
            let second = kept(left.history(), retention);
            prop_assert_eq!(&left.without_the_rest(&second).releases, &left.releases);
            prop_assert_eq!(&left.without_the_rest(&second).builds, &left.builds);
            prop_assert_eq!(first.images, second.images);
        }
    }

    #[test]
    fn newest_and_used_releases_stay() {
        let releases: Vec<Release> = (1..=8).map(|v| release(v, v as u8, Some(v))).collect();
        let deployments: Vec<Deployment> = (1..=8).map(|v| deployment(v, None, if v > 3 { 1 } else { 2 })).collect();
        let builds: Vec<Build> = (1..=8).map(|v| build(v, 3, Some(v), Some(v as u8))).collect();
        let in_use = BTreeSet::from([ReleaseVersion(3)]);
        let history = History { in_use: &in_use, releases: &releases, deployments: &deployments, builds: &builds };
        let kept = kept(history, Retention { releases: 2, builds: 1 });
        // v3 serves, v2 is what a rollback would go to, v7 and v8 are the newest.
        let versions: Vec<u64> = kept.releases.iter().map(|version| version.0).collect();
        assert_eq!(versions, [2, 3, 7, 8]);
        let numbers: Vec<u64> = kept.builds.iter().map(|number| number.0).collect();
        assert_eq!(numbers, [2, 3, 7, 8]);
        assert_eq!(kept.images.len(), 4);
    }

    #[test]
    fn the_least_recently_used_caches_go() {
        let cache = |app: &str, bytes, used: Option<i64>, in_use| Cache {
            app: app.parse().unwrap(),
            bytes,
            in_use,
            last_used: used.map(|second| Timestamp::from_second(second).unwrap()),
        };
        let caches = [
            cache("a/new", 40, Some(9), false),
            cache("a/old", 40, Some(1), false),
            cache("a/busy", 90, Some(0), true),
            cache("a/huge", 101, Some(9), false),
            cache("a/gone", 1, None, false),
        ];
        let names = |total| evicted(&caches, 100, total).iter().map(|c| c.app.to_string()).collect::<Vec<_>>();
        assert_eq!(names(1000), ["a/huge", "a/gone"]);
        assert_eq!(names(130), ["a/huge", "a/gone", "a/old"]);
        assert_eq!(names(0), ["a/huge", "a/gone", "a/old", "a/new"]);
    }
}
