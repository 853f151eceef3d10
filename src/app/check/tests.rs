//! What fits nothing is found and mended; what is explained is neither.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::{
    domain::{BuildNumber, Digest, ImageRef, Limits, ReleaseVersion, ReplicaSet, SetId, UpgradePolicy},
    logs::LogLimits,
    registry::FakeRegistry,
    runtime::fake::{Behaviour, FakeRuntime},
    store::MemoryKv,
};

/// A check over a store in memory, an engine and a registry that are fakes, and repositories and logs in a directory.
struct World {
    check: Check,
    runtime: Arc<FakeRuntime>,
    registry: Arc<FakeRegistry>,
    now: Timestamp,
    _directory: tempfile::TempDir,
}

/// Removes as the commands do.
struct Removes(Store, Repositories, Logs);

#[async_trait]
impl Remover for Removes {
    async fn remove_leftovers(&self, env: &EnvRef) -> anyhow::Result<()> {
        self.1.remove(env)?;
        self.2.remove(env).await?;
        if let Some(stone) = self.0.get::<Tombstone>(env).await? {
            self.0.transaction().delete(&stone).commit().await?;
        }
        Ok(())
    }
}

fn env(name: &str) -> EnvRef {
    format!("acme/shop/{name}").parse().unwrap()
}

fn image() -> ImageRef {
    ImageRef { repository: "berth/acme/shop".into(), digest: Digest::from_sha256([7; 32]) }
}

fn environment(name: &str, last_build: u64) -> Environment {
    Environment {
        name: env(name),
        created_at: Timestamp::now(),
        deploy_branch: None,
        config: BTreeMap::new(),
        scale: BTreeMap::new(),
        domains: Vec::new(),
        target: None,
        current: None,
        last_release: 0,
        last_build,
        restarts: 0,
    }
}

fn release(name: &str) -> Release {
    Release {
        env: env(name),
        version: ReleaseVersion(1),
        image: image(),
        commit: "1a".repeat(20),
        build: Some(BuildNumber(1)),
        config: BTreeMap::new(),
        processes: BTreeMap::new(),
        release_command: None,
        upgrade: UpgradePolicy::default(),
        domains: Vec::new(),
        cron: BTreeMap::new(),
        created_at: Timestamp::now(),
        created_by: "dan".parse().unwrap(),
        reason: "push".into(),
        release_phase_done: true,
        release_phase_attempts: 0,
        trace: None,
    }
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(Arc::new(MemoryKv::new()));
        let repositories = Repositories::new(directory.path().join("repositories"));
        std::fs::create_dir(repositories.root()).unwrap();
        let logs = Logs::open(directory.path().join("logs"), LogLimits::default()).unwrap();
        let (runtime, registry) = (Arc::new(FakeRuntime::new(Behaviour::default())), Arc::new(FakeRegistry::new()));
        let check = Check {
            remover: Arc::new(Removes(store.clone(), repositories.clone(), logs.clone())),
            store,
            repositories,
            logs,
            runtime: runtime.clone(),
            registry: registry.clone(),
        };
        Self { check, runtime, registry, now: Timestamp::now(), _directory: directory }
    }

    async fn put<R: Record>(&self, record: R) {
        self.check.store.transaction().put(&record).commit().await.unwrap();
    }

    /// A tombstone of so many minutes ago, with what is left of the environment.
    async fn destroyed(&self, name: &str, minutes: Option<i64>, left: bool) {
        let destroyed_at = minutes.map(|minutes| self.now - SignedDuration::from_mins(minutes));
        self.put(Tombstone { env: env(name), destroyed_at }).await;
        if left {
            self.leave(name).await;
        }
    }

    /// A repository and a build's log.
    async fn leave(&self, name: &str) {
        self.check.repositories.ensure(&env(name)).unwrap();
        self.check.logs.build_writer(&env(name), BuildNumber(1)).unwrap();
    }

    async fn replica(&self, name: &str) {
        let id = SetId { env: env(name), process: "web".parse().unwrap(), release: ReleaseVersion(1), restarts: 0 };
        let set = ReplicaSet {
            id,
            image: image(),
            command: "run".into(),
            environment: BTreeMap::new(),
            count: 1,
            limits: Limits { cpu_millis: 100, memory: 1 << 26, pids: 10 },
            stop_grace: Duration::ZERO,
        };
        self.runtime.apply(&set).await.unwrap();
    }

    async fn run(&self, repair: bool) -> Vec<Problem> {
        self.check.run(repair, self.now).await.unwrap()
    }

    /// Finds exactly these, which a repair mends, all of them.
    #[track_caller]
    fn finds_and_mends<'a>(&'a self, wanted: &'a [&str]) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            for repair in [false, true] {
                let found = self.run(repair).await;
                let fits = found.iter().zip(wanted).all(|(problem, text)| problem.what.contains(text));
                assert!(fits && found.len() == wanted.len(), "{caller}: {found:#?}");
                assert!(found.iter().all(|one| one.is_mended() == repair && one.how.is_some()), "{found:?}");
            }
            assert_eq!(self.run(false).await, []);
        }
    }
}

#[tokio::test]
async fn what_fits_is_no_problem() {
    let world = World::new();
    world.finds_and_mends(&[]).await;
    // Its repository is made by the first push.
    world.put(environment("dev", 0)).await;
    world.finds_and_mends(&[]).await;
}

#[tokio::test]
async fn records_repositories_logs_and_replicas_of_nothing_go() {
    let world = World::new();
    world.put(release("gone")).await;
    world.finds_and_mends(&["1 release records of acme/shop/gone, which does not exist"]).await;
    world.leave("gone").await;
    world.replica("gone").await;
    let wanted =
        ["repository and logs of acme/shop/gone, which does not exist", "1 replicas of acme/shop/gone web v1 r0"];
    world.finds_and_mends(&wanted).await;
    assert!(world.runtime.observe().await.unwrap().is_empty());
    // What belongs to an environment stays.
    world.put(environment("dev", 1)).await;
    world.leave("dev").await;
    world.replica("dev").await;
    world.finds_and_mends(&[]).await;
    assert_eq!(world.runtime.observe().await.unwrap().len(), 1);
}

#[tokio::test]
async fn without_the_engine_the_rest_is_mended_all_the_same() {
    let mut world = World::new();
    world.check.runtime = Arc::new(crate::runtime::LateRuntime::<FakeRuntime>::new("it is away"));
    world.put(release("gone")).await;
    let problems = world.check.run(true, world.now).await.unwrap();
    let told: Vec<(&str, bool)> = problems.iter().map(|problem| (problem.what.as_str(), problem.is_mended())).collect();
    let engine = "what runs cannot be compared with the records: the engine does not answer";
    assert_eq!(told, [("1 release records of acme/shop/gone, which does not exist", true), (engine, false)]);
}

#[tokio::test]
async fn a_tombstone_explains_what_is_left_for_a_while() {
    let world = World::new();
    world.destroyed("going", Some(1), true).await;
    world.replica("going").await;
    world.destroyed("nearly", Some(14), false).await;
    world.finds_and_mends(&[]).await;
    assert!(world.check.repositories.path(&env("going")).exists(), "what is being destroyed is left to its destroyer");
    assert_eq!(world.check.store.list::<Tombstone>("").await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_tombstone_that_explains_nothing_more_is_stale() {
    for minutes in [Some(16), Some(-5), None] {
        let world = World::new();
        world.destroyed("empty", minutes, false).await;
        world.destroyed("stuck", minutes, true).await;
        world.destroyed("again", minutes, false).await;
        world.put(environment("again", 1)).await;
        world.leave("again").await;
        world.destroyed("fresh", minutes, false).await;
        // Made anew, and not begun: the next start removes what the old one left.
        world.put(environment("fresh", 0)).await;
        let wanted = [
            "repository and logs of acme/shop/stuck, which was destroyed and should be gone",
            "a tombstone of acme/shop/again, which was made anew since",
            "a tombstone of acme/shop/empty, of which nothing is left",
        ];
        world.finds_and_mends(&wanted).await;
        assert!(!world.check.repositories.path(&env("stuck")).exists());
        assert!(world.check.repositories.path(&env("again")).exists());
        let left = world.check.store.list::<Tombstone>("").await.unwrap();
        assert_eq!(left.iter().map(|stone| &stone.env).collect::<Vec<_>>(), [&env("fresh")]);
    }
}

#[tokio::test]
async fn a_lost_repository_is_made_and_a_lost_image_is_told() {
    let world = World::new();
    let mut dev = environment("dev", 1);
    world.put(dev.clone()).await;
    world.finds_and_mends(&["the repository of acme/shop/dev is missing"]).await;
    dev.current = Some(ReleaseVersion(1));
    world.put(dev).await;
    world.put(release("dev")).await;
    // Nobody can bring these back.
    let found = world.run(true).await;
    let wanted = ["which runs, is not in the repository", "image of acme/shop/dev v1 is not in the registry"];
    assert!(found.iter().zip(wanted).all(|(problem, text)| problem.what.contains(text)), "{found:#?}");
    assert!(found.len() == 2 && !found.iter().any(Problem::is_mended), "{found:#?}");
    assert!(found[1].next.as_ref().unwrap().contains("redeploy acme/shop/dev"), "{found:#?}");
    let config = Digest::from_sha256(Sha256::digest(b"{}"));
    let manifest = serde_json::json!({"config": {"digest": config}, "layers": []}).to_string().into_bytes();
    world.registry.push_bytes(&image().repository, &config, b"{}".to_vec()).await.unwrap();
    let digest = world.registry.push_manifest(&image().repository, "latest", manifest).await.unwrap();
    world.put(Release { image: ImageRef { digest, ..image() }, ..release("dev") }).await;
    let left = world.run(false).await;
    assert!(left.len() == 1 && left[0].what.contains("not in the repository"), "{left:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_repair_finds_what_it_brings_to_light_and_says_what_it_could_not_mend() {
    let world = World::new();
    let mut dev = environment("dev", 1);
    dev.current = Some(ReleaseVersion(1));
    world.put(dev).await;
    world.put(release("dev")).await;
    let found = world.run(false).await;
    assert!(found.len() == 2 && found[0].what.contains("the repository of acme/shop/dev is missing"), "{found:#?}");
    let found = world.run(true).await;
    let told: Vec<(&str, bool)> = found.iter().map(|problem| (problem.what.as_str(), problem.is_mended())).collect();
    let [(missing, true), (commit, false), (image, false)] = told[..] else { panic!("{found:#?}") };
    assert!(missing.contains("the repository of acme/shop/dev is missing"), "{found:#?}");
    assert!(commit.contains("v1, which runs, is not in the repository"), "{found:#?}");
    assert!(image.contains("is not in the registry"), "{found:#?}");
}

/// Says that it has removed what it has not.
struct Pretends;

#[async_trait]
impl Remover for Pretends {
    async fn remove_leftovers(&self, _: &EnvRef) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Cannot remove anything.
struct Fails;

#[async_trait]
impl Remover for Fails {
    async fn remove_leftovers(&self, _: &EnvRef) -> anyhow::Result<()> {
        anyhow::bail!("read-only file system")
    }
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_does_not_hold_ends_and_is_told() {
    for (remover, want) in [
        (Arc::new(Pretends) as Arc<dyn Remover>, MendState::Back),
        (Arc::new(Fails), MendState::Failed("read-only file system".to_owned())),
    ] {
        let mut world = World::new();
        world.check.remover = remover;
        world.leave("gone").await;
        let found = world.run(true).await;
        assert!(found.len() == 1 && found[0].state == want, "{found:#?}");
    }
}
