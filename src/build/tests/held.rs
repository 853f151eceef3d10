//! Builds that wait or are refused: for their turn, for the check of their push, for room, for a collection.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_full_supersede_and_cancel() {
    let world = World::new().await;
    let hang = [("lock", "hang")];
    let running = world.builds.enqueue(world.new_build("dev", &hang)).await.unwrap();
    let busy = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap_err();
    assert!(matches!(busy, EnqueueError::Busy(other) if other.number == running.number));
    let queued = world.builds.enqueue(world.new_build("prod", &APP)).await.unwrap();
    assert_eq!(queued.state, BuildState::Queued);
    let first_in_line = Some(QueuePlace { ahead: 0, running: 1 });
    let mut place = world.builds.place(&queued.env, queued.number).unwrap();
    let moved = place.wait_for(|place| *place == first_in_line);
    tokio::time::timeout(Duration::from_secs(20), moved).await.unwrap().unwrap();
    assert_eq!(*world.builds.place(&running.env, running.number).unwrap().borrow(), None);
    let full = world.builds.enqueue(world.new_build("third", &APP)).await.unwrap_err();
    assert_eq!(
        full.to_string(),
        "1 builds of acme are waiting already, as many as one tenant may have; try again when some have ended"
    );
    let other = world.builds.enqueue(world.new_build("other/app/dev", &APP)).await.unwrap();
    assert_eq!(other.state, BuildState::Queued);
    let full = world.builds.enqueue(world.new_build("third", &APP)).await.unwrap_err();
    assert!(matches!(full, EnqueueError::Full { limit: 2 }));
    let queue = world.builds.queue();
    let numbers = |builds: &[Build]| builds.iter().map(|build| (build.env.clone(), build.number)).collect::<Vec<_>>();
    let line = vec![(other.env.clone(), other.number), (queued.env.clone(), queued.number)];
    assert_eq!((numbers(&queue.running), numbers(&queue.waiting)), (vec![(running.env.clone(), running.number)], line));
    assert_eq!((queue.places, queue.waiting_places), (1, 2));

    assert!(world.builds.cancel(&queued.env, queued.number, "not needed").await.unwrap());
    let ended = world.end_of(&queued).await;
    assert_eq!(ended.state, BuildState::Cancelled { reason: "not needed".to_owned() });
    assert!(!world.builds.cancel(&queued.env, queued.number, "twice").await.unwrap());

    let newer = NewBuild { supersede: true, ..world.new_build("dev", &APP) };
    let newer = world.builds.enqueue(newer).await.unwrap();
    let old = world.end_of(&running).await;
    assert_eq!(old.state, BuildState::Cancelled { reason: "superseded by a push of alice".to_owned() });
    assert_eq!(world.end_of(&newer).await.state, BuildState::Succeeded);
    assert_eq!(world.end_of(&other).await.state, BuildState::Succeeded);
    assert_eq!(world.builds.active(&env("dev")).await.unwrap(), None);
    let store = world.builds.shared.store.clone();
    world.stop().await;
    let of = |number: BuildNumber, env: &EnvRef, events: &[crate::store::Stored<crate::domain::Event>]| {
        let is_it = |event: &&crate::store::Stored<crate::domain::Event>| {
            event.env_ref().as_ref() == Some(env) && event.data.get("build") == Some(&number.0.into())
        };
        events.iter().filter(is_it).map(|event| event.kind.name()).collect::<Vec<_>>()
    };
    let events = store.list::<crate::domain::Event>("").await.unwrap();
    assert_eq!(of(running.number, &running.env, &events), ["build.queued", "build.started", "build.cancelled"]);
    assert_eq!(of(queued.number, &queued.env, &events), ["build.queued", "build.cancelled"]);
    assert_eq!(of(newer.number, &newer.env, &events), ["build.queued", "build.started", "build.finished"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_replicas_keeps_nobody_from_building() {
    let world = World::with(tempfile::tempdir().unwrap(), MemoryKv::new(), FakeRegistry::new(), true).await;
    for (name, lock) in [("dev", "1"), ("prod", "2"), ("other/app/dev", "3")] {
        let build = world.builds.enqueue(world.new_build(name, &[("lock", lock)])).await.unwrap();
        let deploying = async {
            while world.builds.active(&build.env).await.unwrap().is_none_or(|build| build.release.is_none()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), deploying).await.expect(name);
    }
    assert_eq!(world.compiled(), 3);
    world.stop().await;
}

/// A build of `dev` that was queued but may not begin yet.
async fn held(world: &World) -> Build {
    let new = NewBuild { held: true, ..world.new_build("dev", &APP) };
    world.builds.enqueue(new).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_build_begins_when_it_is_let() {
    let world = World::new().await;
    let build = held(&world).await;
    // One after it has its turn only when it ends, so it has its own by now.
    let wait = world.builds.wait(&build.env, build.number);
    assert!(tokio::time::timeout(Duration::from_millis(300), wait).await.is_err());
    assert_eq!((world.compiled(), world.log(&build)), (0, String::new()));
    assert!(world.builds.let_begin(&build.env, build.number).await.unwrap());
    assert_eq!(world.end_of(&build).await.state, BuildState::Succeeded);
    assert!(!world.builds.let_begin(&build.env, build.number).await.unwrap(), "it has ended");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_of_a_held_build_that_is_cancelled() {
    let world = World::new().await;
    let build = held(&world).await;
    assert!(world.builds.cancel(&build.env, build.number, "another push came first").await.unwrap());
    assert!(!world.builds.let_begin(&build.env, build.number).await.unwrap());
    let ended = world.end_of(&build).await;
    assert_eq!(ended.state, BuildState::Cancelled { reason: "another push came first".to_owned() });
    assert_eq!(world.compiled(), 0);
    // The slot is free again.
    assert_eq!(world.push("dev", &APP).await.state, BuildState::Succeeded);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_ends_what_is_held() {
    let world = World::new().await;
    let build = held(&world).await;
    let waiting = NewBuild { held: true, ..world.new_build("prod", &APP) };
    let waiting = world.builds.enqueue(waiting).await.unwrap();
    let (directory, kv, registry) = world.stop().await;
    let world = World::with(directory, kv, registry, false).await;
    for build in [build, waiting] {
        let ended = world.end_of(&build).await;
        assert!(matches!(&ended.state, BuildState::Cancelled { reason } if reason.contains("stopped")), "{ended:?}");
    }
    assert_eq!(world.compiled(), 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_floor_nothing_is_superseded() {
    let world = World::new().await;
    let running = world.builds.enqueue(world.new_build("dev", &[("lock", "hang")])).await.unwrap();
    let begun = async {
        while world.compiled() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), begun).await.unwrap();
    let full = world.directory.path().join("full");
    std::fs::create_dir(&full).unwrap();
    let newer = NewBuild { supersede: true, ..world.new_build("dev", &APP) };
    let refused = world.builds.enqueue(newer.clone()).await.unwrap_err();
    assert!(matches!(refused, EnqueueError::NoRoom(_)), "{refused}");
    let active = world.builds.active(&running.env).await.unwrap().unwrap();
    assert_eq!(active.number, running.number, "the build was cancelled for one that there is no room for");
    std::fs::remove_dir(&full).unwrap();
    let newer = world.builds.enqueue(newer).await.unwrap();
    assert_eq!(world.end_of(&newer).await.state, BuildState::Succeeded);
    assert!(matches!(world.end_of(&running).await.state, BuildState::Cancelled { .. }));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_collection_comes_between_an_image_and_its_release() {
    let world = World::new().await;
    let gate = world.builds.publishing();
    let collecting = gate.close(Duration::ZERO).await.unwrap();
    let build = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    let wait = world.builds.wait(&build.env, build.number);
    assert!(tokio::time::timeout(Duration::from_millis(500), wait).await.is_err(), "published during a collection");
    drop(collecting);
    assert_eq!(world.end_of(&build).await.state, BuildState::Succeeded);
    // Reused as a whole, then all but the source, then anew.
    world.push("prod", &APP).await;
    let files = app(&[("index.js", "other")]);
    world.push("dev", &files).await;
    world.push("dev", &app(&[("lock", "9")])).await;
    assert_eq!(world.unguarded.load(Ordering::Relaxed), 0, "a collection could have taken an image before its release");
    assert!(gate.close(Duration::from_secs(5)).await.is_some(), "the gate stays closed after the builds");
    world.stop().await;
}
