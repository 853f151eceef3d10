//! What stands behind receiving in these tests: builds that end when the test says so, or at once.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use berth::{
    domain::{AppRef, Build, BuildNumber, BuildState, EnvRef, QueuePlace, Timestamp},
    receive::{Description, NewPush, Pipeline, PushedTree, QueueError},
    store::{Store, StoreError},
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::sync::watch;

pub struct TestPipeline {
    store: Store,
    /// Whether builds end at once, with this state.
    automatic: Mutex<Option<BuildState>>,
    states: Mutex<HashMap<(EnvRef, BuildNumber), watch::Sender<BuildState>>>,
    full: Mutex<bool>,
    place: watch::Sender<Option<QueuePlace>>,
    /// Happens with the next push, right before its build is queued.
    meanwhile: Mutex<Option<Meanwhile>>,
    /// Builds that were let begin.
    begun: Mutex<Vec<BuildNumber>>,
    stubborn: AtomicBool,
}

type Meanwhile = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

impl TestPipeline {
    pub fn new(store: Store) -> Self {
        Self {
            store,
            automatic: Mutex::new(Some(BuildState::Succeeded)),
            states: Mutex::default(),
            full: Mutex::new(false),
            place: watch::Sender::new(None),
            meanwhile: Mutex::default(),
            begun: Mutex::default(),
            stubborn: false.into(),
        }
    }

    /// From now on builds end at once so, or (`None`) when the test says so.
    pub fn builds_end(&self, state: Option<BuildState>) {
        *self.automatic.lock().unwrap() = state;
    }

    pub fn full(&self, full: bool) {
        *self.full.lock().unwrap() = full;
    }

    /// What happens right before the next build is queued.
    pub fn meanwhile(&self, happens: impl Future<Output = ()> + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Box::new(|| happens.boxed()));
    }

    /// From now on no build can be cancelled.
    pub fn cancel_fails(&self) {
        self.stubborn.store(true, Ordering::Relaxed);
    }

    /// Builds that were let begin.
    pub fn begun(&self) -> Vec<BuildNumber> {
        self.begun.lock().unwrap().clone()
    }

    /// Where queued builds stand from now on.
    pub fn queued_at(&self, place: Option<QueuePlace>) {
        self.place.send_replace(place);
    }

    pub async fn finish(&self, env: &EnvRef, number: BuildNumber, state: BuildState) {
        end(&self.store, &self.sender(env, number, &state), &(env.clone(), number), state).await;
    }

    fn sender(&self, env: &EnvRef, number: BuildNumber, state: &BuildState) -> watch::Sender<BuildState> {
        let mut states = self.states.lock().unwrap();
        states.entry((env.clone(), number)).or_insert_with(|| watch::Sender::new(state.clone())).clone()
    }

    pub async fn builds(&self, env: &EnvRef) -> Vec<Build> {
        let stored = self.store.list::<Build>(&format!("{env}/")).await.unwrap();
        stored.into_iter().map(|stored| stored.record).collect()
    }
}

async fn end(store: &Store, sender: &watch::Sender<BuildState>, id: &(EnvRef, BuildNumber), state: BuildState) {
    let written = store.modify::<Build, StoreError>(id, |build| {
        build.state = state.clone();
        Ok(())
    });
    written.await.unwrap();
    sender.send_replace(state);
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[async_trait]
impl Pipeline for TestPipeline {
    async fn describe(&self, tree: PushedTree) -> Result<Description, String> {
        let repository = git2::Repository::open_bare(&tree.repository).unwrap();
        if let Some(objects) = &tree.objects {
            repository.odb().unwrap().add_disk_alternate(objects.to_str().unwrap()).unwrap();
        }
        let commit = repository.find_commit(tree.commit.parse().unwrap()).unwrap();
        let files = commit.tree().unwrap();
        let Ok(entry) = files.get_path(Path::new("berth.yaml")) else { return Ok(Description::default()) };
        let blob = repository.find_blob(entry.id()).unwrap();
        let text = String::from_utf8_lossy(blob.content()).into_owned();
        if text.contains("proccesses") {
            return Err("berth.yaml:1:1: unknown key \"proccesses\"\n  did you mean \"processes\"?".to_owned());
        }
        let app = field(&text, "app:").map(|app| app.parse().unwrap());
        Ok(Description { has_manifest: true, app, auth: field(&text, "auth:").map(str::to_owned) })
    }

    fn token_app(&self, token: &str) -> Result<AppRef, String> {
        token
            .strip_prefix("token-")
            .and_then(|app| app.replace('-', "/").parse().ok())
            .ok_or("its signature is wrong".into())
    }

    fn manifest_template(&self, app: &AppRef) -> String {
        format!("app: {app}")
    }

    async fn active(&self, env: &EnvRef) -> Result<Option<Build>, StoreError> {
        Ok(self.builds(env).await.into_iter().find(|build| !build.state.is_final()))
    }

    async fn enqueue(&self, push: NewPush) -> Result<Build, QueueError> {
        if *self.full.lock().unwrap() {
            return Err(QueueError::Full { limit: 8 });
        }
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile().await;
        }
        if let Some(active) = self.active(&push.env).await? {
            if !push.options.supersede {
                return Err(QueueError::Busy(Box::new(active)));
            }
            self.cancel(&push.env, active.number, "superseded").await?;
        }
        let number = BuildNumber(self.builds(&push.env).await.len() as u64 + 1);
        let build = Build {
            env: push.env.clone(),
            number,
            commit: push.commit,
            branch: push.branch,
            old_commit: push.old_commit,
            state: BuildState::Queued,
            queued_at: Timestamp::now(),
            started_at: None,
            finished_at: None,
            pushed_by: push.pushed_by,
            no_cache: push.options.no_cache,
            detached: push.options.detach,
            image: None,
            release: None,
            timings: push.timings,
            interruptions: 0,
            cancelling: None,
            held: false,
            settled: false,
            trace: None,
        };
        self.store.transaction().create(&build).commit().await?;
        drop(self.sender(&push.env, number, &BuildState::Queued));
        Ok(build)
    }

    async fn let_begin(&self, env: &EnvRef, number: BuildNumber) -> Result<bool, StoreError> {
        self.begun.lock().unwrap().push(number);
        if let Some(state) = self.automatic.lock().unwrap().clone() {
            let (store, sender, id) =
                (self.store.clone(), self.sender(env, number, &BuildState::Queued), (env.clone(), number));
            tokio::spawn(async move { end(&store, &sender, &id, state).await });
        }
        Ok(true)
    }

    async fn cancel(&self, env: &EnvRef, number: BuildNumber, reason: &str) -> Result<(), StoreError> {
        if self.stubborn.load(Ordering::Relaxed) {
            return Err(StoreError::Failed("the store is away".to_owned()));
        }
        self.finish(env, number, BuildState::Cancelled { reason: reason.to_owned() }).await;
        Ok(())
    }

    fn place(&self, _: &EnvRef, _: BuildNumber) -> Option<watch::Receiver<Option<QueuePlace>>> {
        Some(self.place.subscribe())
    }

    async fn follow(&self, env: &EnvRef, number: BuildNumber) -> BoxStream<'static, Bytes> {
        let mut state = self.sender(env, number, &BuildState::Queued).subscribe();
        let begin = futures::stream::once(async { Bytes::from_static(b"-----> Building\n       done\n") });
        let end = futures::stream::once(async move {
            state.wait_for(BuildState::is_final).await.unwrap();
            Bytes::from_static(b"=====> https://dev.shop.acme.localhost  v1  (1.2 s)\n")
        });
        begin.chain(end).boxed()
    }

    async fn wait(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, StoreError> {
        let now = self.store.need::<Build>(&(env.clone(), number)).await?.record;
        self.sender(env, number, &now.state).subscribe().wait_for(BuildState::is_final).await.unwrap();
        Ok(self.store.need::<Build>(&(env.clone(), number)).await?.record)
    }
}
