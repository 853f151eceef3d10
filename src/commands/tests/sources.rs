//! Deploying without git: sources and images.

use sha2::{Digest as _, Sha256};

use super::*;
use crate::registry::{CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, Registry};

#[tokio::test]
async fn a_source_on_standard_input_is_built() {
    let world = World::new().await;
    let line = "builds create acme/shop/dev --message hello --no-cache";
    world.feed("dan", line, b"archive").await.ok().says("-----> Reusing the slug");
    let built = world.commands.build(&shop(), Some(BuildNumber(20))).await.unwrap().record;
    assert_eq!((built.commit, built.no_cache, built.pushed_by.as_str()), ("5c".repeat(20), true, "dan"));
    let detached = world.feed("dan", "builds create acme/shop/dev --detach --json", b"archive").await.ok().json();
    assert_eq!((&detached["build"], &detached["env"]), (&20.into(), &"acme/shop/dev".into()));
    // What is built again is what was last built with success, whichever way it came.
    world.run("dan", "redeploy acme/shop/dev").await.ok();
    assert_eq!(world.commands.build(&shop(), None).await.unwrap().record.commit, "5c".repeat(20));
}

#[tokio::test]
async fn a_source_that_is_refused_says_what_to_make_of_it() {
    let world = World::new().await;
    for (input, status) in [(&b"unfit"[..], 1), (b"later", 75), (b"gone", 4)] {
        world
            .feed("dan", "builds create acme/shop/dev", input)
            .await
            .fails(status, "refused: ")
            .fails(status, "do better");
    }
    world.builds.begin(&shop(), Stage::Build);
    world.feed("dan", "builds create acme/shop/dev", b"archive").await.fails(5, "is not finished");
    let long = SourceOptions { message: Some("x".repeat(20_000)), no_cache: false };
    let source = tokio::io::empty();
    let error = world.commands.build_from_tarball(&caller("dan"), &shop(), source, long).await.unwrap_err();
    assert_eq!(error.exit_status(), 2, "{error}");
}

impl World {
    /// An image in the registry; its digest.
    async fn image(&self, repository: &str, architecture: &str) -> String {
        let digest = |bytes: &[u8]| Digest::from_sha256(Sha256::digest(bytes));
        let labels = serde_json::json!({"org.opencontainers.image.revision": "3d".repeat(20)});
        let config = serde_json::json!({"architecture": architecture, "os": "linux", "config": {"Labels": labels}, "for": repository});
        let (config, layer) = (config.to_string().into_bytes(), b"layer".to_vec());
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": LAYER_TYPE, "digest": digest(&layer), "size": layer.len()}],
        });
        for blob in [config, layer] {
            self.registry.push_bytes(repository, &digest(&blob), blob).await.unwrap();
        }
        let pushed = self.registry.push_manifest(repository, "v1", manifest.to_string().into_bytes()).await;
        format!("{repository}@{}", pushed.unwrap())
    }

    async fn release_of(&self, version: u64) -> Release {
        self.store.need::<Release>(&(shop(), ReleaseVersion(version))).await.unwrap().record
    }
}

fn here() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

#[tokio::test]
async fn an_image_is_deployed_with_what_is_known_of_it() {
    let world = World::new().await;
    let image = world.image("berth/acme/shop", here()).await;
    world.run("dan", &format!("deploy acme/shop/dev memory/{image}")).await.ok().says("acme/shop/dev runs v3");
    let (made, before) = (world.release_of(3).await, world.release_of(2).await);
    assert_eq!(
        (made.image.to_string(), &made.processes, &made.config),
        (image.clone(), &before.processes, &before.config)
    );
    assert_eq!(
        (made.commit, made.build, made.domains, made.created_by.as_str()),
        ("3d".repeat(20), None, before.domains, "dan")
    );
    assert!(made.reason.starts_with("image ") && made.reason.len() == "image ".len() + 12, "{}", made.reason);
    assert_eq!(world.shop().await.current, Some(ReleaseVersion(3)));

    let map = "{web: {command: node other.js, replicas: 4}}";
    let made = world.commands.deploy_image(&caller("dan"), &shop(), &image, Some(map)).await.unwrap();
    let web = &made.processes[&"web".parse().unwrap()];
    assert_eq!(
        (made.version, made.processes.len(), web.command.as_str(), web.replicas),
        (ReleaseVersion(4), 1, "node other.js", 4)
    );
    assert_eq!(*world.deployer.nudged.lock().unwrap(), [shop(), shop()]);
    assert_eq!(world.shop().await.target, Some(ReleaseVersion(4)));

    // Another environment takes over what runs with the image, but not the host names.
    let prod = env("acme/shop/prod");
    let made = world.commands.deploy_image(&caller("dan"), &prod, &image, None).await.unwrap();
    assert_eq!((made.processes[&"web".parse().unwrap()].replicas, made.domains.len()), (4, 0));
    let detached = world.run("dan", &format!("deploy acme/shop/prod {image} --detach --json")).await.ok().json();
    assert_eq!((&detached["env"], &detached["release"]), (&"acme/shop/prod".into(), &2.into()));
}

#[tokio::test]
async fn the_release_phase_runs_where_the_image_is_new() {
    let world = World::new().await;
    let image = world.image("berth/acme/shop", here()).await;
    let migrate = |record: &mut Release| {
        record.release_command = Some("migrate".to_owned());
        Ok::<(), StoreError>(())
    };
    world.store.modify(&(shop(), ReleaseVersion(2)), migrate).await.unwrap();
    let deploy = async || world.commands.deploy_image(&caller("dan"), &shop(), &image, None).await.unwrap();
    let first = deploy().await;
    assert_eq!((first.release_command.as_deref(), first.release_phase_done), (Some("migrate"), false));
    let done = |record: &mut Release| {
        record.release_phase_done = true;
        Ok::<(), StoreError>(())
    };
    world.store.modify(&(shop(), first.version), done).await.unwrap();
    assert!(deploy().await.release_phase_done);
}

#[tokio::test]
async fn images_that_cannot_be_deployed() {
    let world = World::new().await;
    let theirs = world.image("berth/other/app", here()).await;
    let foreign = world.image("berth/acme/shop", "riscv64").await;
    let stack = world.image("berth/run", here()).await;
    let fine = world.image("berth/acme/shop", here()).await;
    let deploy = async |image: &str, processes: Option<&str>| {
        let error = world.commands.deploy_image(&caller("dan"), &shop(), image, processes).await.unwrap_err();
        (error.exit_status(), error.to_string())
    };
    let nowhere = theirs.replace("other", "acme");
    let (one, other) = (deploy(&theirs, None).await, deploy(&nowhere, None).await);
    assert_eq!((one.0, one.1.replace("berth/other", "berth/acme")), other, "whether another tenant has it is told");
    assert_eq!(one.0, 4);
    assert_eq!(deploy(&stack, None).await.0, 4);
    let (status, text) = deploy(&foreign, None).await;
    assert!(status == 1 && text.contains("linux/riscv64"), "{text}");
    assert_eq!(deploy("berth/acme/shop:v1", None).await.0, 2);
    for (processes, status, why) in [
        ("web: x", 2, "braces"),
        ("{web: {comand: x}}", 1, "command"),
        ("{worker: {command: x}}", 1, "no `web`"),
        ("{web: {command: x, cpu: 64}}", 1, "64 cores"),
    ] {
        let found = deploy(&fine, Some(processes)).await;
        assert!(found.0 == status && found.1.contains(why), "{processes}: {found:?}");
    }
    let prod = env("acme/shop/prod");
    let unknown = world.commands.deploy_image(&caller("dan"), &prod, &fine, None).await.unwrap_err();
    assert!(unknown.to_string().contains("nothing is known of what runs in"), "{unknown}");
    world.builds.begin(&shop(), Stage::Build);
    assert_eq!(deploy(&fine, None).await.0, 5);
    assert_eq!(world.shop().await.last_release, 2);
}
