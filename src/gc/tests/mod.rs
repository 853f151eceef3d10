//! A collection over a store, a registry and a runtime in memory, and real repositories and logs.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::{
    build::{CompileRecord, CompileResult, LayerRecord, SlugRecord, slug::LayerRef},
    domain::*,
    logs::LogLimits,
    registry::{CONFIG_TYPE, FakeRegistry, LAYER_TYPE, MANIFEST_TYPE, Registry as _, RegistryError, RegistryRoom},
    runtime::fake::{Behaviour, FakeRuntime},
    store::{MemoryKv, StoreError},
};

mod world;
use world::*;

#[tokio::test]
async fn what_is_not_kept_goes_with_all_that_belongs_to_it_and_nothing_else() {
    let world = World::new(2);
    let images = world.environment(6, 3).await;
    let dry = world.service.collect(true).await.unwrap();
    assert_eq!(world.versions().await, [1, 2, 3, 4, 5, 6], "a dry run has deleted something");
    for image in &images {
        assert!(world.there(image).await);
    }
    let done = world.service.collect(false).await.unwrap();
    assert_eq!(done.failures, Vec::<String>::new());
    assert_eq!((&dry.gone, &dry.sums), (&done.gone, &done.sums), "a dry run foretells what goes");
    // v3 serves; v5 and v6 are the newest.
    assert_eq!(world.versions().await, [3, 5, 6]);
    for (n, image) in (1u64..).zip(&images) {
        let kept = [3, 5, 6].contains(&n);
        assert_eq!(world.there(image).await, kept, "image of v{n}");
        let layer = digest(format!("layer {n}").as_bytes());
        assert_eq!(world.registry.blob(&layer).is_some(), kept, "blob of v{n}");
        assert_eq!(world.store.get::<LayerRecord>(&layer).await.unwrap().is_some(), kept, "layer record of v{n}");
        let log = world.logs.read_build(&shop(), BuildNumber(n)).await.unwrap();
        assert_eq!(log.is_some(), kept, "log of build {n}");
    }
    assert!(world.registry.blob(&digest(b"shared")).is_some());
    let pins: Vec<u64> = world.repositories.pins(&shop()).unwrap().iter().map(|number| number.0).collect();
    assert_eq!(pins, [3, 5, 6]);
    assert_eq!(world.store.list::<SlugRecord>("").await.unwrap().len(), 3);
    assert_eq!(world.store.list::<CompileRecord>("").await.unwrap().len(), 0);
    // Again there is nothing to do.
    let again = world.service.collect(false).await.unwrap();
    assert_eq!((again.count(), again.failures.len()), (0, 0), "{again:?}");
}

/// The registry's room, whose collector fails as often as it is told to.
struct FailingRoom {
    registry: FakeRegistry,
    fails: AtomicU64,
    collected: AtomicU64,
}

#[async_trait]
impl RegistryRoom for FailingRoom {
    async fn images(&self) -> Result<Vec<ImageRef>, RegistryError> {
        self.registry.images().await
    }
    async fn collect(&self) -> Result<u64, RegistryError> {
        self.collected.fetch_add(1, Ordering::Relaxed);
        let failing = |left: u64| left.checked_sub(1);
        match self.fails.fetch_update(Ordering::Relaxed, Ordering::Relaxed, failing) {
            Ok(_) => Err(RegistryError::Unavailable { registry: "here".to_owned(), reason: "it fails".to_owned() }),
            Err(_) => self.registry.collect().await,
        }
    }
}

#[tokio::test]
async fn a_collection_of_the_registry_that_failed_is_made_up_for() {
    let mut world = World::new(1);
    let (fails, collected) = (AtomicU64::new(0), AtomicU64::new(0));
    let room = Arc::new(FailingRoom { registry: world.registry.clone(), fails, collected });
    world.service.parts.room = Some(room.clone());
    let collected = || room.collected.load(Ordering::Relaxed);
    world.service.collect(false).await.unwrap();
    world.service.collect(false).await.unwrap();
    assert_eq!(collected(), 1, "once after a start, then only when there is something");
    world.environment(3, 3).await;
    room.fails.store(1, Ordering::Relaxed);
    let failed = world.service.collect(false).await.unwrap();
    assert_eq!((failed.failures.len(), collected()), (1, 2), "{failed:?}");
    let blob = digest(b"layer 1");
    assert!(world.registry.blob(&blob).is_some());
    // Nothing else is to go by now.
    let again = world.service.collect(false).await.unwrap();
    assert_eq!((again.failures.len(), collected()), (0, 3), "{again:?}");
    assert!(world.registry.blob(&blob).is_none(), "the blobs of what went before stay for ever");
    world.service.collect(false).await.unwrap();
    assert_eq!(collected(), 3);
}

#[tokio::test]
async fn what_a_destroyed_environment_left_behind_goes() {
    let world = World::new(2);
    world.environment(2, 2).await;
    let gone: EnvRef = "acme/old/dev".parse().unwrap();
    world.repositories.ensure(&gone).unwrap();
    world.logs.build_writer(&gone, BuildNumber(1)).unwrap().finish().unwrap();
    let image = world.image("berth/acme/old", &[b"old"]).await;
    // Somebody is at the repository: it stays for now.
    let used = world.repositories.use_of(&gone).await;
    world.service.collect(false).await.unwrap();
    assert!(world.repositories.path(&gone).exists());
    drop(used);
    world.service.collect(false).await.unwrap();
    assert!(!world.repositories.path(&gone).exists() && !world.there(&image).await);
    assert_eq!(world.logs.environments().await.unwrap(), [shop()]);
    assert!(world.repositories.path(&shop()).exists());
}

#[tokio::test]
async fn promoted_commits_are_kept_as_long_as_a_build_or_a_release_is_of_them() {
    let world = World::new(2);
    world.environment(2, 2).await;
    let repositories = &world.repositories;
    let from: EnvRef = "acme/shop/test".parse().unwrap();
    let path = repositories.ensure(&from).unwrap();
    let (used, unused) = (commit_of(&path, "used"), commit_of(&path, "unused"));
    for commit in [&used, &unused] {
        repositories.share_commit(&from, &shop(), commit).unwrap();
    }
    let released = async |commit: &str| {
        let change = |release: &mut Release| {
            release.commit = commit.to_owned();
            Ok::<(), StoreError>(())
        };
        world.store.modify::<Release, StoreError>(&(shop(), ReleaseVersion(2)), change).await.unwrap();
    };
    released(&used).await;
    let dry = world.service.collect(true).await.unwrap();
    assert_eq!(repositories.promoted(&shop()).unwrap().len(), 2, "a dry run takes nothing");
    let done = world.service.collect(false).await.unwrap();
    let promoted = |report: &Report| report.sums.get(&Kind::Promoted).map_or(0, |sum| sum.count);
    assert_eq!((promoted(&dry), promoted(&done)), (1, 1));
    assert_eq!(repositories.promoted(&shop()).unwrap(), [used.clone()].into());
    // Only a build is left of it, then nothing.
    released(&unused).await;
    let mut under_way = build(3, &used);
    under_way.state = BuildState::Queued;
    world.store.transaction().create(&under_way).commit().await.unwrap();
    world.service.collect(false).await.unwrap();
    assert_eq!(repositories.promoted(&shop()).unwrap().len(), 1);
    let stored = world.store.need::<Build>(&(shop(), BuildNumber(3))).await.unwrap();
    world.store.transaction().delete(&stored).commit().await.unwrap();
    world.service.collect(false).await.unwrap();
    assert_eq!(repositories.promoted(&shop()).unwrap().len(), 0);
}

#[tokio::test]
async fn what_could_be_reused_from_the_registry_of_others_is_forgotten_when_it_is_old_and_unused() {
    let mut world = World::new(1);
    world.service.parts.room = None;
    world.environment(2, 2).await;
    let layer = |n: u64| digest(format!("layer {n}").as_bytes());
    let spare = |name: &str| LayerRef { diff_id: digest(name.as_bytes()), digest: digest(name.as_bytes()), size: 1 };
    let result = |made_at: Timestamp, layers: Vec<LayerRef>| CompileResult {
        made_at,
        inputs: vec![made_at.to_string()],
        shadow: vec![],
        digest: digest(b"inputs"),
        layers,
        files_size: 0,
        defaults: BTreeMap::new(),
        buildpacks: vec![],
    };
    let (now, old) = (Timestamp::now(), Timestamp::UNIX_EPOCH);
    let used = LayerRef { diff_id: layer(2), digest: layer(2), size: 7 };
    let mut compile = CompileRecord { app: shop().app_ref(), key: digest(b"key"), results: vec![] };
    for result in [
        result(old, vec![used.clone()]),
        result(now, vec![spare("young")]),
        result(old, vec![spare("old")]),
        result(now, vec![]),
    ] {
        compile.results.push(result);
    }
    let forgotten = CompileRecord { key: digest(b"other"), results: vec![result(old, vec![])], ..compile.clone() };
    let mut transaction = world.store.transaction().create(&compile).create(&forgotten);
    for (name, made_at) in [("young", now), ("old", old)] {
        transaction = transaction.create(&LayerRecord { made_at, ..LayerRecord::new(spare(name)) });
    }
    transaction.commit().await.unwrap();
    // Old, but of the release that is kept; and of one that goes.
    for n in [1, 2] {
        let change = |record: &mut LayerRecord| {
            record.made_at = old;
            Ok::<(), StoreError>(())
        };
        world.store.modify::<LayerRecord, StoreError>(&layer(n), change).await.unwrap();
    }
    let dry = world.service.collect(true).await.unwrap();
    let done = world.service.collect(false).await.unwrap();
    assert_eq!((&dry.gone, done.failures.len()), (&done.gone, 0), "a dry run foretells what goes");
    let there = async |id: Digest| world.store.get::<LayerRecord>(&id).await.unwrap().is_some();
    let left =
        [there(layer(1)).await, there(layer(2)).await, there(digest(b"young")).await, there(digest(b"old")).await];
    assert_eq!(left, [false, true, true, false]);
    let compiles = world.store.list::<CompileRecord>("").await.unwrap();
    assert_eq!(compiles.len(), 1);
    let left: Vec<_> = compiles[0].results.iter().map(|result| (result.made_at == now, result.layers.len())).collect();
    assert_eq!(left, [(false, 1), (true, 1), (true, 0)]);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_being_published_is_waited_for() {
    let world = World::new(1);
    let publishing = world.gate.enter().await;
    let image = world.image("berth/acme/shop", &[b"just pushed"]).await;
    let report = world.service.collect(false).await.unwrap();
    assert_eq!(report.failures.len(), 1, "{report:?}");
    assert!(world.there(&image).await, "an image went before its release was recorded");
    drop(publishing);
    world.service.collect(false).await.unwrap();
    assert!(!world.there(&image).await);
}

#[tokio::test]
async fn a_step_that_fails_is_reported_and_the_others_are_done() {
    let mut world = World::new(2);
    world.environment(4, 4).await;
    world.service.parts.stacks = Arc::new(UnknownStacks);
    let report = world.service.collect(false).await.unwrap();
    assert!(matches!(&report.failures[..], [one] if one.contains("stacks")), "{report:?}");
    assert_eq!(world.repositories.pins(&shop()).unwrap().len(), 2, "the files were not looked at");
}

#[tokio::test(start_paused = true)]
async fn a_backup_keeps_collections_away() {
    let World { gc, .. } = World::new(1);
    let held = gc.hold(Duration::from_secs(1)).await.unwrap();
    assert!(matches!(gc.run(false).await, Err(GcError::Running)));
    assert!(matches!(gc.hold(Duration::from_secs(1)).await, Err(GcError::Running)));
    drop(held);
    assert!(gc.hold(Duration::from_secs(1)).await.is_ok());
}

#[tokio::test]
async fn a_second_collection_is_told_of_the_first() {
    let World { gc, service, .. } = World::new(1);
    let first = tokio::spawn({
        let gc = gc.clone();
        async move { gc.run(true).await }
    });
    while gc.turns.0.available_permits() == 1 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(gc.run(false).await, Err(GcError::Running)));
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(service.run(stop.clone()));
    assert!(first.await.unwrap().unwrap().dry_run);
    stop.cancel();
    running.await.unwrap();
    assert!(matches!(gc.run(false).await, Err(GcError::Stopping)));
}
