//! A store that takes nothing for a while: what is decided and what has ended is not lost by that.

use super::{
    records_kept::{FailingKv, world},
    *,
};

const SUCCEEDED: &str = r#""state":"succeeded""#;
const CANCELLED: &str = r#""state":"cancelled""#;

impl World {
    async fn recorded(&self, build: &Build) -> Build {
        let store = Store::new(Arc::new(self.kv.clone()));
        store.need::<Build>(&(build.env.clone(), build.number)).await.unwrap().record
    }

    /// Waits until the build has ended, whether that is written or not.
    pub(super) async fn has_ended(&self, build: &Build) {
        let ended = async {
            while self.builds.active(&build.env).await.unwrap().is_some_and(|build| !build.state.is_final()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    }

    async fn compiles(&self) {
        let begun = async {
            while self.compiled() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), begun).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_the_store_refuses_is_written_later() {
    let (world, failing, _) = world().await;
    failing.fail(Some(("build/", SUCCEEDED)));
    let build = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    world.has_ended(&build).await;
    let waits = tokio::time::timeout(Duration::from_millis(600), world.builds.wait(&build.env, build.number));
    assert!(waits.await.is_err(), "it was told before it was written");
    assert!(!world.recorded(&build).await.state.is_final());
    let busy = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap_err();
    assert!(matches!(busy, EnqueueError::Busy(_)), "{busy}");
    // Others have its slot.
    let other = world.push("prod", &[("lock", "fail")]).await;
    assert!(matches!(other.state, BuildState::Failed { .. }), "{other:?}");
    failing.fail(None);
    assert_eq!(world.end_of(&build).await.state, BuildState::Succeeded);
    assert_eq!(world.recorded(&build).await.state, BuildState::Succeeded);
    assert_eq!(world.builds.active(&build.env).await.unwrap(), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_cancelled_that_the_store_does_not_know_of() {
    let (world, failing, _) = world().await;
    let build = world.builds.enqueue(world.new_build("dev", &[("lock", "hang")])).await.unwrap();
    world.compiles().await;
    failing.fail(Some(("build/", "cancelling")));
    let refused = world.builds.cancel(&build.env, build.number, "not needed").await.unwrap_err();
    assert!(matches!(refused, StoreError::Failed(_)), "{refused}");
    let active = world.builds.active(&build.env).await.unwrap().unwrap();
    assert_eq!(active.state, BuildState::Running { stage: Stage::Build });
    failing.fail(None);
    assert!(world.builds.cancel(&build.env, build.number, "not needed").await.unwrap());
    assert_eq!(world.recorded(&build).await.cancelling, None, "it has been done");
    world.stop().await;
}

/// Cancels a build whose end is refused until the server stops; the next server.
async fn cancelled_and_restarted(world: World, failing: &FailingKv, build: &Build) -> World {
    failing.fail(Some(("build/", CANCELLED)));
    let (builds, env, number) = (world.builds.clone(), build.env.clone(), build.number);
    tokio::spawn(async move { builds.cancel(&env, number, "not needed").await });
    world.has_ended(build).await;
    assert!(!world.recorded(build).await.state.is_final());
    let (directory, kv, registry) = world.stop().await;
    World::with(directory, kv, registry, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_cancelled_is_not_built_by_the_next_server() {
    let (world, failing, _) = world().await;
    let build = world.builds.enqueue(world.new_build("dev", &[("lock", "hang")])).await.unwrap();
    world.compiles().await;
    let world = cancelled_and_restarted(world, &failing, &build).await;
    let cancelled = BuildState::Cancelled { reason: "not needed".to_owned() };
    assert_eq!(world.end_of(&build).await.state, cancelled);
    assert_eq!(world.compiled(), 0);
    assert_eq!(world.builds.active(&build.env).await.unwrap(), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_let_begin_is_not_built_by_the_next_server() {
    let (world, failing, _) = world().await;
    // Not even that it is to be cancelled can be written.
    let build = world.builds.enqueue(NewBuild { held: true, ..world.new_build("dev", &APP) }).await.unwrap();
    failing.fail(Some(("build/", "cancelling")));
    let (builds, env, number) = (world.builds.clone(), build.env.clone(), build.number);
    assert!(builds.cancel(&env, number, "another push came first").await.unwrap());
    let second = NewBuild { held: true, ..world.new_build("prod", &APP) };
    let second = world.builds.enqueue(second).await.unwrap();
    failing.fail(Some(("build/", r#""held":false"#)));
    let denied = world.builds.let_begin(&second.env, second.number).await;
    assert!(matches!(denied, Err(StoreError::Failed(_))), "{denied:?}");
    let world = cancelled_and_restarted(world, &failing, &second).await;
    let ended = world.end_of(&second).await;
    assert!(matches!(ended.state, BuildState::Cancelled { .. }), "{ended:?}");
    assert_eq!((world.compiled(), ended.held), (0, true));
    world.stop().await;
}
