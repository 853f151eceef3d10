use std::{
    collections::BTreeSet,
    fs, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    disk::DiskFloor,
    domain::{AppRef, BuildNumber, BuildState, Environment, QueuePlace, Tenant, Timestamp},
    git::{Git, Repositories},
    receive::{Description, Pipeline, PushedTree, QueueError, ReceiveSettings},
    store::{MemoryKv, Store, StoreError},
};

/// Queues builds in the store, and never begins any.
struct TestPipeline {
    store: Store,
    full: AtomicBool,
    begun: Mutex<Vec<BuildNumber>>,
}

#[async_trait]
impl Pipeline for TestPipeline {
    async fn describe(&self, tree: PushedTree) -> Result<Description, String> {
        let description = crate::build::check_push(
            &tree.repository,
            tree.objects.as_deref(),
            &tree.commit,
            tree.known_good.as_deref(),
            &tree.env,
            1 << 20,
        );
        let description = description.map_err(|problems| crate::manifest::render_problems(&problems))?;
        let (has_manifest, app) = (description.manifest.is_some(), description.definition.app);
        Ok(Description { has_manifest, app, auth: None })
    }

    fn token_app(&self, _: &str) -> Result<AppRef, String> {
        Err("no tokens here".to_owned())
    }

    fn manifest_template(&self, app: &AppRef) -> String {
        format!("app: {app}")
    }

    async fn active(&self, env: &EnvRef) -> Result<Option<Build>, StoreError> {
        let builds = self.store.list::<Build>(&format!("{env}/")).await?;
        Ok(builds.into_iter().map(|stored| stored.record).find(|build| !build.state.is_final()))
    }

    async fn enqueue(&self, push: NewPush) -> Result<Build, QueueError> {
        if self.full.load(Ordering::Relaxed) {
            return Err(QueueError::Full { limit: 8 });
        }
        let number = BuildNumber(self.store.list::<Build>(&format!("{}/", push.env)).await?.len() as u64 + 1);
        let build = Build {
            env: push.env,
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
            held: true,
            settled: false,
            trace: None,
        };
        self.store.transaction().create(&build).commit().await?;
        Ok(build)
    }

    async fn let_begin(&self, _: &EnvRef, number: BuildNumber) -> Result<bool, StoreError> {
        self.begun.lock().unwrap().push(number);
        Ok(true)
    }

    async fn cancel(&self, _: &EnvRef, _: BuildNumber, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn place(&self, _: &EnvRef, _: BuildNumber) -> Option<watch::Receiver<Option<QueuePlace>>> {
        None
    }

    async fn follow(&self, _: &EnvRef, _: BuildNumber) -> BoxStream<'static, Bytes> {
        Box::pin(futures::stream::empty())
    }

    async fn wait(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, StoreError> {
        Ok(self.store.need::<Build>(&(env.clone(), number)).await?.record)
    }
}

struct World {
    receive: Receive,
    pipeline: Arc<TestPipeline>,
    store: Store,
    repositories: Repositories,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

impl World {
    async fn new(change: impl FnOnce(&mut ReceiveSettings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("repositories");
        fs::create_dir(&root).unwrap();
        let (repositories, store) = (Repositories::new(root), Store::new(Arc::new(MemoryKv::default())));
        let environment = Environment {
            name: env(),
            created_at: Timestamp::now(),
            deploy_branch: Some("main".to_owned()),
            config: Default::default(),
            scale: Default::default(),
            domains: Vec::new(),
            target: None,
            current: None,
            last_release: 0,
            last_build: 0,
            restarts: 0,
        };
        store.transaction().create(&environment).commit().await.unwrap();
        let mut settings = ReceiveSettings {
            berth: "/nonexistent".into(),
            control_socket: "/nonexistent".into(),
            sessions: 2,
            sessions_per_user: 1,
            patience: Duration::from_millis(50),
            idle: Duration::from_secs(60),
            require_manifest: false,
            disk: DiskFloor::none(),
            traces: crate::traces::Traces::off(),
        };
        change(&mut settings);
        let git = Git { binary: Git::find().unwrap(), hooks: "/nonexistent".into(), max_input: 200_000 };
        let pipeline = Arc::new(TestPipeline { store: store.clone(), full: false.into(), begun: Mutex::default() });
        let stop = CancellationToken::new();
        let (behind, kept) = (pipeline.clone(), repositories.clone());
        let receive = Receive::new(settings, git, repositories, store.clone(), behind, stop.clone());
        kept.ensure(&env()).unwrap();
        Self { receive, pipeline, store, repositories: kept, stop, _directory: directory }
    }

    async fn send(&self, content: impl AsyncRead + Send + Unpin + 'static) -> Result<Build, Refusal> {
        let (user, message) = ("ann".parse().unwrap(), "source upload".to_owned());
        let source = NewSource { env: env(), user, message, no_cache: true, content: Box::new(content), trace: None };
        self.receive.upload(source).await
    }

    /// Names below the repository: objects and refs.
    fn left(&self) -> BTreeSet<String> {
        let (mut found, mut left) = (BTreeSet::new(), vec![self.repositories.root().to_owned()]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                found.insert(path.display().to_string());
                if path.is_dir() {
                    left.push(path);
                }
            }
        }
        found
    }
}

fn archive(files: &[(&str, &str)]) -> io::Cursor<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    io::Cursor::new(builder.into_inner().unwrap())
}

const APP: &[(&str, &str)] = &[("berth.yaml", "app: acme/shop\n"), ("Procfile", "web: node server.js\n")];

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_queued_as_a_push_is_and_moves_no_branch() {
    let world = World::new(|_| {}).await;
    let build = world.send(archive(APP)).await.unwrap();
    assert_eq!((build.number, &build.branch, &build.old_commit), (BuildNumber(1), &None, &None));
    assert!(build.no_cache && !build.detached && build.pushed_by.as_str() == "ann");
    assert_eq!(*world.pipeline.begun.lock().unwrap(), [BuildNumber(1)]);
    assert_eq!(world.repositories.pins(&env()).unwrap(), [BuildNumber(1)].into());
    let repository = git2::Repository::open_bare(world.repositories.path(&env())).unwrap();
    let commit = repository.find_commit(build.commit.parse().unwrap()).unwrap();
    assert_eq!((commit.message(), commit.author().name()), (Ok("source upload"), Ok("ann")));
    assert_eq!(commit.tree().unwrap().len(), 2);
    let names: Vec<String> =
        repository.references().unwrap().flatten().map(|found| found.name().unwrap().to_owned()).collect();
    assert_eq!(names, ["refs/berth/builds/1"]);
    assert!(
        !world.left().iter().any(|name| name.contains("tmp_objdir") || name.contains("/.new-")),
        "{:?}",
        world.left()
    );
    // It is under way.
    let busy = world.send(archive(APP)).await.unwrap_err();
    assert!(
        busy.kind == RefusalKind::Busy && busy.text().contains("Build 1 of acme/shop/dev, pushed by ann"),
        "{busy:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_would_be_refused_for_leaves_nothing() {
    let world = World::new(|settings| settings.require_manifest = true).await;
    let before = world.left();
    let large = "x".repeat(300_000);
    let rows: [(io::Cursor<Vec<u8>>, &str); 8] = [
        (archive(&[("berth.yaml", "procceses: {}\n")]), "berth.yaml:1:1"),
        (archive(&[("berth.yaml", "app: acme/other\n")]), "berth.yaml says `app: acme/other`, but this remote is"),
        (archive(&[("Procfile", "web: x\n")]), "This server wants a berth.yaml"),
        (archive(&[("berth.yaml", "app: acme/shop\n"), ("m", "version https://git-lfs.github.com/spec/v1\n")]), "LFS"),
        (archive(&[("berth.yaml", ""), (".git/hooks/x", "")]), ".git/hooks/x belongs to git itself"),
        (archive(&[("large", &large)]), "larger than this server takes"),
        (io::Cursor::new(b"nonsense".to_vec()), "git archive --format=tar.gz"),
        (io::Cursor::new(archive(APP).into_inner()[..700].to_vec()), "cannot be read"),
    ];
    for (source, why) in rows {
        let refusal = world.send(source).await.unwrap_err();
        assert!(refusal.kind.is_unfit() && refusal.text().contains(why), "{why}: {}", refusal.text());
        assert_eq!(world.left(), before, "{why}");
    }
    let gone =
        tokio_util::io::StreamReader::new(futures::stream::iter([Err::<Bytes, _>(io::Error::other("reset by peer"))]));
    let refusal = world.send(gone).await.unwrap_err();
    assert!(refusal.text().contains("did not come to its end: reset by peer"), "{refusal:?}");
    assert_eq!(world.left(), before);
    assert!(world.pipeline.begun.lock().unwrap().is_empty() && world.store.list::<Build>("").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_go_better_later_says_so() {
    let world = World::new(|settings| settings.idle = Duration::from_millis(200)).await;
    world.pipeline.full.store(true, Ordering::Relaxed);
    let refusal = world.send(archive(APP)).await.unwrap_err();
    assert!(refusal.kind.is_passing() && refusal.text().contains("8 builds are waiting"), "{refusal:?}");
    assert!(world.repositories.pins(&env()).unwrap().is_empty());

    let (_held, silent) = tokio::io::duplex(8);
    let refusal = world.send(silent).await.unwrap_err();
    assert!(refusal.kind.is_passing() && refusal.text().contains("Nothing was sent for"), "{refusal:?}");

    let no_room = World::new(|settings| settings.disk = DiskFloor::new(vec!["/".into()], u64::MAX)).await;
    let refusal = no_room.send(archive(APP)).await.unwrap_err();
    assert!(refusal.kind.is_passing() && refusal.text().contains("too little room"), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_waits_for_no_upload() {
    let world = World::new(|_| {}).await;
    let (_held, silent) = tokio::io::duplex(8);
    let (sent, ()) = tokio::join!(world.send(silent), async {
        // Whether it has begun by then or not.
        tokio::task::yield_now().await;
        world.stop.cancel();
    });
    let refusal = sent.unwrap_err();
    assert!(refusal.kind.is_passing() && refusal.text().contains("restarting"), "{refusal:?}");
    tokio::time::timeout(Duration::from_secs(30), world.receive.finish()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_environment_that_is_gone_nothing_is_made() {
    let world = World::new(|_| {}).await;
    world.repositories.remove(&env()).unwrap();
    let stored = world.store.need::<Environment>(&env()).await.unwrap();
    world.store.transaction().delete(&stored).commit().await.unwrap();
    let refusal = world.send(archive(APP)).await.unwrap_err();
    assert!(refusal.kind == RefusalKind::Gone, "{refusal:?}");
    assert!(!world.repositories.path(&env()).exists());
    assert!(world.store.get::<Tenant>(&"acme".parse().unwrap()).await.unwrap().is_none());
}
