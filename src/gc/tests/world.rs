//! An environment with releases, builds, images, pins and logs, to collect from.

use super::*;

pub(super) struct NoStacks;

#[async_trait]
impl Stacks for NoStacks {
    async fn images(&self) -> anyhow::Result<Vec<ImageRef>> {
        Ok(Vec::new())
    }
}

pub(super) struct UnknownStacks;

#[async_trait]
impl Stacks for UnknownStacks {
    async fn images(&self) -> anyhow::Result<Vec<ImageRef>> {
        anyhow::bail!("no stacks are installed")
    }
}

pub(super) struct World {
    pub(super) store: Store,
    pub(super) registry: FakeRegistry,
    pub(super) repositories: Repositories,
    pub(super) logs: Logs,
    pub(super) service: GcService,
    pub(super) gate: PublishGate,
    pub(super) gc: Gc,
    pub(super) _directory: tempfile::TempDir,
}

pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes))
}

pub(super) fn shop() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

impl World {
    pub(super) fn new(releases: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        let store = Store::new(Arc::new(MemoryKv::default()));
        let (registry, gate) = (FakeRegistry::new(), PublishGate::default());
        let logs = Logs::open(place("logs"), LogLimits::default()).unwrap();
        std::fs::create_dir_all(place("repositories")).unwrap();
        let repositories = Repositories::new(place("repositories"));
        let parts = GcParts {
            store: store.clone(),
            runtime: Arc::new(FakeRuntime::new(Behaviour::default())),
            registry: Arc::new(registry.clone()),
            room: Some(Arc::new(registry.clone())),
            repositories: repositories.clone(),
            git: Git { binary: Git::find().unwrap(), hooks: place("hooks"), max_input: 1 << 20 },
            logs: logs.clone(),
            stacks: Arc::new(NoStacks),
            publishing: gate.clone(),
            disk: DiskFloor::none(),
        };
        let settings = GcSettings {
            retention: Retention { releases, builds: 1 },
            every: Duration::from_secs(3600),
            cache_per_app: 1 << 30,
            cache_total: 1 << 30,
            buildpacks: place("buildpacks"),
        };
        let (gc, service) = Gc::start(parts, settings);
        Self { store, registry, repositories, logs, service, gate, gc, _directory: directory }
    }

    pub(super) async fn image(&self, repository: &str, layers: &[&[u8]]) -> ImageRef {
        let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        for blob in layers.iter().copied().chain([b"{}".as_slice()]) {
            self.registry.push_bytes(repository, &digest(blob), blob.to_vec()).await.unwrap();
        }
        let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER_TYPE, layer)).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": descriptor(CONFIG_TYPE, b"{}"), "layers": layers,
        });
        let bytes = manifest.to_string().into_bytes();
        let name = digest(&bytes);
        self.registry.push_manifest(repository, name.as_str(), bytes).await.unwrap();
        ImageRef { repository: repository.into(), digest: name }
    }

    /// An environment with releases 1..=count, each with a build, an image of its own, a pin and a log; `current` serves.
    pub(super) async fn environment(&self, count: u64, current: u64) -> Vec<ImageRef> {
        let now = Timestamp::now();
        let environment = Environment {
            name: shop(),
            created_at: now,
            deploy_branch: None,
            config: BTreeMap::new(),
            scale: BTreeMap::new(),
            domains: vec![],
            target: Some(ReleaseVersion(current)),
            current: Some(ReleaseVersion(current)),
            last_release: count,
            last_build: count,
            restarts: 0,
        };
        self.store.transaction().create(&environment).commit().await.unwrap();
        let commit = commit_in(&self.repositories.ensure(&shop()).unwrap());
        let mut images = Vec::new();
        for n in 1..=count {
            let image = self.image("berth/acme/shop", &[b"shared", format!("layer {n}").as_bytes()]).await;
            let (release, build) = (release(n, &image, &commit), build(n, &commit));
            let slug = SlugRecord {
                app: shop().app_ref(),
                key: digest(&n.to_be_bytes()),
                image: image.clone(),
                defaults: BTreeMap::new(),
                buildpacks: vec![],
                env: shop(),
                build: BuildNumber(n),
                made_at: now,
            };
            let own = format!("layer {n}").into_bytes();
            let layer = LayerRef { diff_id: digest(&own), digest: digest(&own), size: own.len() as u64 };
            let mut layer = LayerRecord::new(layer);
            layer.add("berth/acme/shop");
            let transaction = self.store.transaction().create(&release).create(&build).create(&slug).create(&layer);
            transaction.commit().await.unwrap();
            self.repositories.pin(&shop(), BuildNumber(n), &commit).unwrap();
            let mut writer = self.logs.build_writer(&shop(), BuildNumber(n)).unwrap();
            writer.write(b"built\n");
            writer.finish().unwrap();
            images.push(image);
        }
        images
    }

    pub(super) async fn versions(&self) -> Vec<u64> {
        self.store.list::<Release>("").await.unwrap().iter().map(|release| release.version.0).collect()
    }

    pub(super) async fn there(&self, image: &ImageRef) -> bool {
        self.registry.resolve(&image.repository, image.digest.as_str()).await.unwrap().is_some()
    }
}

pub(super) fn commit_in(path: &Path) -> String {
    commit_of(path, "one")
}

pub(super) fn commit_of(path: &Path, message: &str) -> String {
    let repository = git2::Repository::open_bare(path).unwrap();
    let tree = repository.find_tree(repository.treebuilder(None).unwrap().write().unwrap()).unwrap();
    let who = git2::Signature::now("a", "a@example.com").unwrap();
    repository.commit(None, &who, &who, message, &tree, &[]).unwrap().to_string()
}

pub(super) fn release(version: u64, image: &ImageRef, commit: &str) -> Release {
    Release {
        env: shop(),
        version: ReleaseVersion(version),
        image: image.clone(),
        commit: commit.to_owned(),
        build: Some(BuildNumber(version)),
        config: BTreeMap::new(),
        processes: BTreeMap::new(),
        release_command: None,
        upgrade: UpgradePolicy::default(),
        domains: vec![],
        cron: BTreeMap::new(),
        created_at: Timestamp::now(),
        created_by: "dan".parse().unwrap(),
        reason: String::new(),
        release_phase_done: true,
        release_phase_attempts: 0,
        trace: None,
    }
}

pub(super) fn build(number: u64, commit: &str) -> Build {
    Build {
        env: shop(),
        number: BuildNumber(number),
        commit: commit.to_owned(),
        branch: None,
        old_commit: None,
        state: BuildState::Succeeded,
        queued_at: Timestamp::now(),
        started_at: None,
        finished_at: None,
        pushed_by: "dan".parse().unwrap(),
        no_cache: false,
        detached: false,
        interruptions: 0,
        cancelling: None,
        held: false,
        settled: false,
        trace: None,
        image: None,
        release: Some(ReleaseVersion(number)),
        timings: vec![],
    }
}
