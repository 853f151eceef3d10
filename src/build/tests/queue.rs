//! The queue and the pipeline over fakes of everything around: engine, registry, deployer, log.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicU64, sync::atomic::Ordering, time::Duration};

use async_trait::async_trait;
use futures::FutureExt;

use super::*;
use crate::{
    build::{
        BuildLogs, BuildParts, BuildSettings, Delivery, Transcript,
        testing::{Files, Fixture, commit, fake_stacks},
    },
    deploy::{CancelFailure, DeployFailure, Deployed, NewRelease, Progress},
    disk::DiskFloor,
    domain::{Release, ReleaseVersion},
    git::Repositories,
    registry::{FakeRegistry, Registry},
    runtime::{
        Source,
        fake::{Behaviour, FakeRuntime, JobContext},
    },
    store::{Kv, MemoryKv},
    traces::{KeptSpans, Traces},
};

#[path = "records_kept.rs"]
mod records_kept;

#[path = "traced.rs"]
mod traced;

#[path = "world.rs"]
mod world;
use world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_push_builds_and_its_output_ends_with_release_url_and_time() {
    let world = World::new().await;
    let build = world.push("dev", &APP).await;
    assert_eq!(build.state, BuildState::Succeeded, "{}", world.log(&build));
    assert_eq!(build.release, Some(ReleaseVersion(1)));
    let log = world.log(&build);
    let mut end = log.lines().rev();
    assert!(end.next().unwrap().ends_with(" from push to live"), "{log}");
    assert_eq!(end.next().unwrap().trim(), "http://acme/shop/dev/", "{log}");
    assert_eq!(end.next().unwrap(), "=====> acme/shop/dev is live: release v1", "{log}");
    assert!(log.contains("-----> Fake app detected\n"), "{log}");
    assert!(!log.contains("hunter2"));
    // Stack, dependencies, what was built, source.
    assert_eq!(world.layers(&build).await.len(), 4);
    let stages: Vec<_> = build.timings.iter().map(|(stage, _)| stage.as_str()).collect();
    assert_eq!(stages, ["receive", "queued", "read", "compile", "layers", "source layer", "push", "release"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_says_where_scale_wins_over_the_manifest() {
    let world = World::new().await;
    let store = Store::new(Arc::new(world.kv.clone()));
    let dev = env("dev");
    let scaled = store.modify::<Environment, StoreError>(&dev, |record| {
        record.scale = [("web".parse().unwrap(), 3), ("worker".parse().unwrap(), 0)].into();
        Ok(())
    });
    scaled.await.unwrap();
    let files = app(&[("Procfile", "web: run\nworker: work\n")]);
    let log = world.log(&world.push("dev", &files).await);
    let said: Vec<_> = log.lines().filter(|line| line.contains("scale")).collect();
    let web = "       web: 3 replicas as set by scale (manifest: 1); scale acme/shop/dev --reset goes back";
    assert_eq!(said, [web], "{log}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_build_does_not_tell_what_other_tenants_have_built() {
    let world = World::new().await;
    let slug = |build: &Build| -> Vec<String> {
        let log = world.log(build);
        let told = |line: &&str| line.contains(" compressed") || line.contains("layers reused");
        log.lines().filter(told).map(str::to_owned).collect()
    };
    let first = world.push("dev", &APP).await;
    let new = world.new_build("other/app/dev", &APP);
    let second = world.builds.enqueue(new).await.unwrap();
    let second = world.end_of(&second).await;
    assert_eq!(second.state, BuildState::Succeeded, "{}", world.log(&second));
    assert!(slug(&first).len() > 2, "{}", world.log(&first));
    assert_eq!(slug(&first), slug(&second));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_only_push_starts_no_container_and_pushes_one_layer() {
    let world = World::new().await;
    let first = world.push("dev", &APP).await;
    let uploads = world.registry.uploads();
    let second = world.push("dev", &app(&[("server.js", "second")])).await;
    assert_eq!(second.state, BuildState::Succeeded, "{}", world.log(&second));
    assert_eq!(world.compiled(), 1, "{}", world.log(&second));
    assert_eq!(world.registry.uploads(), uploads + 2, "the source layer and the configuration");
    let (before, after) = (world.layers(&first).await, world.layers(&second).await);
    assert_eq!(before[..3], after[..3]);
    assert_ne!(before[3], after[3]);

    let third = world.push("dev", &app(&[("lock", "2")])).await;
    assert_eq!((third.state.clone(), world.compiled()), (BuildState::Succeeded, 2), "{}", world.log(&third));
    let after = world.layers(&third).await;
    assert_eq!((before[0] == after[0], before[1] == after[1], before[2] == after[2]), (true, false, true));

    // A file where the build put its own.
    let fourth = world.push("dev", &app(&[("lock", "2"), ("dist/out", "committed")])).await;
    assert_eq!((fourth.state.clone(), world.compiled()), (BuildState::Succeeded, 3), "{}", world.log(&fourth));
    // Back to what was there before: not even a layer.
    let fifth = world.push("dev", &APP).await;
    assert_eq!(fifth.image, first.image);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_environment_reuses_the_slug_and_no_cache_does_not() {
    let world = World::new().await;
    let dev = world.push("dev", &APP).await;
    let prod = world.push("prod", &APP).await;
    assert_eq!(prod.image, dev.image);
    assert!(
        world.log(&prod).contains("-----> Reusing the slug built for acme/shop/dev (build #1)"),
        "{}",
        world.log(&prod)
    );
    let again = NewBuild { no_cache: true, ..world.new_build("prod", &APP) };
    let build = world.builds.enqueue(again).await.unwrap();
    let build = world.end_of(&build).await;
    assert_eq!((build.state.clone(), world.compiled()), (BuildState::Succeeded, 2), "{}", world.log(&build));
    assert_eq!(build.image, dev.image, "the same content is the same image");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lost_its_content_is_filled_again() {
    let world = World::new().await;
    world.push("dev", &APP).await;
    let (directory, kv, registry) = world.stop().await;
    registry.wipe();
    let world = World::with(directory, kv, registry, false).await;
    for files in [app(&[("server.js", "second")]), APP.to_vec()] {
        let build = world.push("dev", &files).await;
        assert_eq!(build.state, BuildState::Succeeded, "{}", world.log(&build));
        assert_eq!(world.layers(&build).await.len(), 4);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_named() {
    let world = World::new().await;
    let large = "x".repeat(2_000_001);
    let rows: [(Files<'_>, &str, &str); 6] = [
        (&[("lock", "fail")], "the build failed (exit status 1)", " !     The build failed (exit status 1)"),
        (&[("lock", "none")], "no buildpack fits this app", " !     No buildpack fits this app"),
        (
            &[("lock", "1"), ("Procfile", "worker: x\n")],
            "there is no web process",
            " !     Process types found: worker.",
        ),
        (&[("lock", "1"), ("Procfile", "web: crash\n")], "release v1 was not deployed: it died", " !       boom"),
        // As after a promotion, which no push has checked.
        (
            &[("lock", "1"), ("data/large", &large)],
            "the source has 2.0 MB; at most 2.0 MB are allowed",
            "2.0 MB  data/",
        ),
        (&[("lock", "1"), ("berth.yaml", "procesess: {}")], "the manifest is not valid", "procesess"),
    ];
    for (files, reason, line) in rows {
        let build = world.push("dev", files).await;
        assert_eq!(build.state, BuildState::Failed { reason: reason.to_owned() }, "{}", world.log(&build));
        assert!(world.log(&build).contains(line), "{line}: {}", world.log(&build));
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_with_what_was_left() {
    let world = World::new().await;
    let running = world.builds.enqueue(world.new_build("dev", &[("lock", "hang")])).await.unwrap();
    let queued = world.builds.enqueue(world.new_build("prod", &APP)).await.unwrap();
    let (directory, kv, registry) = world.stop().await;
    let world = World::with(directory, kv, registry, false).await;
    let left = world.builds.active(&running.env).await.unwrap().unwrap();
    assert_eq!(left.interruptions, 0, "it was stopped in order");
    assert!(world.builds.cancel(&running.env, running.number, "enough").await.unwrap());
    assert_eq!(world.end_of(&queued).await.state, BuildState::Succeeded);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_while_deploying_deploys_the_same_release() {
    let world = World::with(tempfile::tempdir().unwrap(), MemoryKv::new(), FakeRegistry::new(), true).await;
    let build = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    let store = Store::new(Arc::new(world.kv.clone()));
    let id = (build.env.clone(), build.number);
    let deploying = async {
        while world.builds.active(&build.env).await.unwrap().is_none_or(|build| build.release.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The record says so too: it is written with the release.
        store.need::<Build>(&id).await.unwrap().record
    };
    let seen = tokio::time::timeout(Duration::from_secs(20), deploying).await.unwrap();
    let deploy = BuildState::Running { stage: Stage::Deploy };
    assert_eq!((seen.state, seen.release), (deploy, Some(ReleaseVersion(1))));
    assert!(!world.builds.cancel(&build.env, build.number, "too late").await.unwrap());
    let (directory, kv, registry) = world.stop().await;
    let world = World::with(directory, kv, registry, false).await;
    let ended = world.end_of(&build).await;
    assert_eq!(
        (ended.state.clone(), ended.release),
        (BuildState::Succeeded, Some(ReleaseVersion(1))),
        "{}",
        world.log(&ended)
    );
    assert_eq!(world.compiled(), 0);
    assert!(world.log(&ended).starts_with("-----> Going on after a restart of the server\n"), "{}", world.log(&ended));
    let path: &Path = world.directory.path();
    assert_eq!(std::fs::read_dir(path.join("tmp")).unwrap().count(), 0, "temporary files are left");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superseded_deployment_is_given_up() {
    let world = World::with(tempfile::tempdir().unwrap(), MemoryKv::new(), FakeRegistry::new(), true).await;
    let first = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    let deploying = async {
        while world.builds.active(&first.env).await.unwrap().is_none_or(|build| build.release.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), deploying).await.unwrap();
    let newer = NewBuild { supersede: true, ..world.new_build("dev", &[("lock", "none")]) };
    let newer = world.builds.enqueue(newer).await.unwrap();
    assert!(matches!(world.end_of(&first).await.state, BuildState::Cancelled { .. }));
    assert!(matches!(world.end_of(&newer).await.state, BuildState::Failed { .. }));
    assert_eq!(*world.abandoned.lock().unwrap(), [ReleaseVersion(1)]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_is_not_cancelled_before_its_deployment_is_given_up() {
    let world = World::with(tempfile::tempdir().unwrap(), MemoryKv::new(), FakeRegistry::new(), true).await;
    let build = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    let deploying = async {
        while world.builds.active(&build.env).await.unwrap().is_none_or(|build| build.release.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), deploying).await.unwrap();
    // The deployer never does while this server lives.
    world.stubborn.store(u64::MAX, Ordering::Relaxed);
    let newer = NewBuild { supersede: true, ..world.new_build("dev", &APP) };
    let builds = world.builds.clone();
    let superseding = tokio::spawn(async move { builds.enqueue(newer).await });
    let store = Store::new(Arc::new(world.kv.clone()));
    let id = (build.env.clone(), build.number);
    let intended = async {
        while store.need::<Build>(&id).await.unwrap().cancelling.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), intended).await.unwrap();
    let (directory, kv, registry) = world.stop().await;
    superseding.abort();
    let left = store.need::<Build>(&id).await.unwrap().record;
    assert!(!left.state.is_final() && left.cancelling.is_some(), "{left:?}");
    let world = World::with(directory, kv, registry, true).await;
    assert!(matches!(world.end_of(&build).await.state, BuildState::Cancelled { .. }));
    assert_eq!(*world.abandoned.lock().unwrap(), [ReleaseVersion(1)]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_build_brings_no_record_of_a_destroyed_environment_back() {
    let world = World::new().await;
    let build = world.builds.enqueue(world.new_build("dev", &[("lock", "hang")])).await.unwrap();
    let store = Store::new(Arc::new(world.kv.clone()));
    let id = (build.env.clone(), build.number);
    let record = store.need::<Build>(&id).await.unwrap();
    store.transaction().delete(&record).commit().await.unwrap();
    assert!(world.builds.cancel(&build.env, build.number, "its environment is gone").await.unwrap());
    assert!(store.get::<Build>(&id).await.unwrap().is_none(), "the record is back");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_wants_too_much_is_refused_before_anything_is_built() {
    let world = World::new().await;
    let manifest = "processes: {web: {command: x, memory: 1Ti}, job: {command: y, cpu: 4.5}}";
    let build = world.push("dev", &app(&[("berth.yaml", manifest)])).await;
    let reason = "a process wants more than this server gives".to_owned();
    assert_eq!(build.state, BuildState::Failed { reason });
    let log = world.log(&build);
    assert!(log.contains("web wants 1048576 MiB of memory; one replica may have 4096 MiB."), "{log}");
    assert!(log.contains("job wants 4.5 cores; one replica may have 4."), "{log}");
    assert_eq!(world.compiled(), 0);
    world.stop().await;
}

#[path = "held.rs"]
mod held;

#[path = "refusing.rs"]
mod refusing;

#[path = "waiting.rs"]
mod waiting;
