//! An engine that does not answer while builds are in line.

use super::*;

const WAITING: &str = "       waiting for the engine: the engine is dead\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_builds_wait_for_the_engine() {
    let world = World::new().await;
    world.runtime.set_dead(true);
    let first = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    let no_cache = NewBuild { no_cache: true, ..world.new_build("prod", &app(&[("lock", "2")])) };
    let second = world.builds.enqueue(no_cache).await.unwrap();
    world.says(&first, WAITING).await;
    assert_eq!(world.builds.active(&second.env).await.unwrap().unwrap().state, BuildState::Queued);
    world.runtime.set_dead(false);
    for build in [first, second] {
        let ended = world.end_of(&build).await;
        assert_eq!(ended.state, BuildState::Succeeded, "{}", world.log(&build));
        assert!(world.log(&build).matches(WAITING).count() <= 1, "{}", world.log(&build));
    }
    assert_eq!(world.compiled(), 2);
    // One that is to do without the cache waits before it takes that away.
    world.runtime.set_dead(true);
    let third = NewBuild { no_cache: true, ..world.new_build("dev", &APP) };
    let third = world.builds.enqueue(third).await.unwrap();
    world.says(&third, WAITING).await;
    world.runtime.set_dead(false);
    assert_eq!(world.end_of(&third).await.state, BuildState::Succeeded);
    assert!(!world.log(&third).contains("could not be removed"), "{}", world.log(&third));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_waits_can_be_cancelled_superseded_and_stopped() {
    let world = World::new().await;
    world.runtime.set_dead(true);
    for no_cache in [false, true] {
        let new = NewBuild { no_cache, ..world.new_build("dev", &APP) };
        let build = world.builds.enqueue(new).await.unwrap();
        world.says(&build, WAITING).await;
        assert!(world.builds.cancel(&build.env, build.number, "enough").await.unwrap());
        assert_eq!(world.end_of(&build).await.state, BuildState::Cancelled { reason: "enough".to_owned() });
    }
    let old = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    world.says(&old, WAITING).await;
    let newer = NewBuild { supersede: true, ..world.new_build("dev", &APP) };
    let newer = world.builds.enqueue(newer).await.unwrap();
    assert!(matches!(world.end_of(&old).await.state, BuildState::Cancelled { .. }));
    world.says(&newer, WAITING).await;
    // Its attempt is not spent on the wait: the next server begins it as if it had been in line.
    let (directory, kv, registry) = world.stop().await;
    let store = Store::new(Arc::new(kv.clone()));
    let left = store.need::<Build>(&(newer.env.clone(), newer.number)).await.unwrap();
    assert_eq!((left.state.clone(), left.interruptions), (BuildState::Queued, 0));
    let world = World::with(directory, kv, registry, false).await;
    assert_eq!(world.end_of(&newer).await.state, BuildState::Succeeded, "{}", world.log(&newer));
    world.stop().await;
}
