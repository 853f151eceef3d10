//! A server that is killed, or a store that fails, while a build keeps its record: what is answered is true, and nothing is half done.

use std::sync::atomic::Ordering::SeqCst;

use futures::stream::BoxStream;

use super::*;
use crate::store::{Change, Entry, Guard, KvError, Revision, Write};

/// Fails commits that write such a key with such a text in its value, while it is told to.
#[derive(Clone)]
pub(super) struct FailingKv {
    kv: MemoryKv,
    fails: Arc<Mutex<Option<(&'static str, &'static str)>>>,
    failed: Arc<AtomicU64>,
}

impl FailingKv {
    fn new(kv: MemoryKv) -> Self {
        Self { kv, fails: Arc::default(), failed: Arc::default() }
    }

    pub(super) fn fail(&self, what: Option<(&'static str, &'static str)>) {
        *self.fails.lock().unwrap() = what;
    }

    /// Waits until a commit has failed.
    async fn has_failed(&self) {
        let failed = async {
            while self.failed.load(SeqCst) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), failed).await.unwrap();
    }
}

#[async_trait]
impl Kv for FailingKv {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        self.kv.get(key).await
    }
    async fn scan(&self, prefix: &str) -> Result<Vec<Entry>, KvError> {
        self.kv.scan(prefix).await
    }
    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Revision, KvError> {
        let fails = *self.fails.lock().unwrap();
        let hit = |(kind, text): (&str, &str)| {
            writes.iter().any(|write| match write {
                Write::Put(key, value) => key.starts_with(kind) && String::from_utf8_lossy(value).contains(text),
                Write::Delete(_) => false,
            })
        };
        if fails.is_some_and(hit) {
            self.failed.fetch_add(1, SeqCst);
            return Err(KvError::Failed("the disk is broken".into()));
        }
        self.kv.commit(guards, writes).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Change>, KvError> {
        self.kv.watch(prefix, from).await
    }
    async fn revision(&self) -> Result<Revision, KvError> {
        self.kv.revision().await
    }
}

pub(super) async fn world() -> (World, FailingKv, Store) {
    let kv = MemoryKv::new();
    let failing = FailingKv::new(kv.clone());
    let directory = tempfile::tempdir().unwrap();
    let world = World::over(directory, kv, Arc::new(failing.clone()), FakeRegistry::new(), false).await;
    let store = Store::new(Arc::new(world.kv.clone()));
    (world, failing, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_cannot_be_written_down_is_refused_and_leaves_nothing() {
    let (world, failing, store) = world().await;
    failing.fail(Some(("build/", "")));
    let error = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap_err();
    assert!(error.to_string().contains("the disk is broken"), "{error}");
    assert_eq!(world.builds.active(&env("dev")).await.unwrap(), None);
    assert!(store.list::<Build>("").await.unwrap().is_empty());
    assert_eq!(store.need::<Environment>(&env("dev")).await.unwrap().last_build, 0);
    failing.fail(None);
    let build = world.push("dev", &APP).await;
    assert_eq!((build.number, build.state), (BuildNumber(1), BuildState::Succeeded));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_cannot_be_written_down_fails_its_build_alone() {
    let (world, failing, store) = world().await;
    failing.fail(Some(("release/", "")));
    let build = world.push("dev", &APP).await;
    assert!(
        matches!(&build.state, BuildState::Failed { reason } if reason.contains("the disk is broken")),
        "{build:?}"
    );
    assert!(world.log(&build).contains("The platform failed, not your app"), "{}", world.log(&build));
    assert!(store.list::<Release>("").await.unwrap().is_empty());
    let written = store.need::<Build>(&(build.env.clone(), build.number)).await.unwrap().record;
    assert_eq!((written.state, written.release, written.image), (build.state, None, None));
    failing.fail(None);
    assert_eq!(world.push("dev", &APP).await.state, BuildState::Succeeded);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_cannot_be_written_down_is_written_by_the_next_server() {
    let (world, failing, store) = world().await;
    failing.fail(Some(("build/", "succeeded")));
    let build = world.builds.enqueue(world.new_build("dev", &APP)).await.unwrap();
    failing.has_failed().await;
    let id = (build.env.clone(), build.number);
    let written = store.need::<Build>(&id).await.unwrap().record;
    let deploying = BuildState::Running { stage: Stage::Deploy };
    assert_eq!((written.state, written.release), (deploying, Some(ReleaseVersion(1))));
    let (directory, kv, registry) = world.stop().await;
    let world = World::with(directory, kv, registry, false).await;
    assert_eq!(world.end_of(&build).await.state, BuildState::Succeeded);
    let written = store.need::<Build>(&id).await.unwrap().record;
    assert_eq!((written.state, written.release), (BuildState::Succeeded, Some(ReleaseVersion(1))));
    assert_eq!((store.list::<Release>("").await.unwrap().len(), world.compiled()), (1, 0), "it was built again");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_a_killed_server_was_at_is_tried_once_more() {
    let world = World::new().await;
    let store = Store::new(Arc::new(world.kv.clone()));
    let build = world.push("dev", &APP).await;
    let (directory, kv, registry) = world.stop().await;
    let id = (build.env.clone(), build.number);
    let killed = |interruptions| {
        let change = move |record: &mut Build| {
            record.state = BuildState::Running { stage: Stage::Build };
            (record.release, record.interruptions) = (None, interruptions);
            Ok::<(), StoreError>(())
        };
        store.modify(&id, change)
    };
    killed(0).await.unwrap();
    let world = World::with(directory, kv, registry, false).await;
    let ended = world.end_of(&build).await;
    assert_eq!((ended.state.clone(), ended.interruptions), (BuildState::Succeeded, 1), "{}", world.log(&ended));
    assert!(world.log(&ended).starts_with("-----> The server was restarted; trying again\n"), "{}", world.log(&ended));
    let (directory, kv, registry) = world.stop().await;
    killed(1).await.unwrap();
    let world = World::with(directory, kv, registry, false).await;
    let ended = world.end_of(&build).await;
    assert!(matches!(&ended.state, BuildState::Failed { reason } if reason.contains("twice")), "{:?}", ended.state);
    assert!(ended.finished_at.is_some() && world.log(&ended).contains("went down twice"), "{}", world.log(&ended));
    assert_eq!((world.compiled(), world.builds.active(&build.env).await.unwrap()), (0, None));
    world.stop().await;
}
