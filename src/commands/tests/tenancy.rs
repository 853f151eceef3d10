//! What one tenant learns of another: nothing. Apps and environments from their making to their end.

use super::*;

#[tokio::test]
async fn lists_show_only_ones_own() {
    let world = World::new().await;
    for line in ["tenants list", "apps list", "envs list", "ps", "events -n 1000"] {
        // Something has happened in both tenants.
        world.run("olga", "apps create acme/tmp").await;
        world.run("stan", "apps create other/tmp").await;
        for json in ["", " --json"] {
            let theirs = world.run("stan", &format!("{line}{json}")).await.ok();
            assert!(!theirs.stdout.contains("acme") && theirs.stdout.contains("other"), "{line}: {theirs:?}");
            let hers = world.run("vera", &format!("{line}{json}")).await.ok();
            assert!(!hers.stdout.contains("other") && hers.stdout.contains("acme"), "{line}: {hers:?}");
            let all = world.run("opal", &format!("{line}{json}")).await.ok();
            assert!(all.stdout.contains("other") && all.stdout.contains("acme"), "{line}: {all:?}");
        }
    }
    for line in ["tenants list", "apps list", "envs list", "ps", "events"] {
        let nobody = world.run("nobody", &format!("{line} --json")).await.ok();
        assert!(matches!(nobody.stdout.trim(), "[]" | ""), "{line}: {nobody:?}");
    }
}

#[tokio::test]
async fn suggestions_come_from_what_one_may_see() {
    let world = World::new().await;
    world.run("vera", "ps acme/shop/dve").await.fails(4, "did you mean acme/shop/dev?");
    world.run("vera", "ps acme/shp/dev").await.fails(4, "did you mean acme/shop/dev?");
    world.run("vera", "apps info acme/shopp").await.fails(4, "did you mean acme/shop?");
    world.run("vera", "apps info acne/shop").await.fails(4, "did you mean acme?");
    let stranger = world.run("stan", "apps info acne/shop").await.fails(4, "");
    assert!(!stranger.stderr.contains("did you mean"), "{stranger:?}");
    world.run("dan", "config get acme/shop/dev SECRT").await.fails(4, "did you mean SECRET?");
    world.run("dan", "scale acme/shop/dev wrker=1").await.fails(4, "did you mean worker?");
    world.run("dan", "app list").await.fails(2, "apps");
}

#[tokio::test]
async fn an_app_is_made_with_all_one_needs_to_push() {
    let world = World::new().await;
    let json = world.run("olga", "apps create acme/api --json").await.ok().json();
    assert_eq!(json["remotes"]["dev"], "ssh://berth@paas.example.com:2222/acme/api/dev");
    let manifest = json["manifest"].as_str().unwrap();
    let token = manifest.lines().find_map(|line| line.strip_prefix("auth: ")).unwrap().split(' ').next().unwrap();
    let app = crate::token::verify(world.commands.tokens.public_key(), token);
    assert_eq!(app, Ok("acme/api".parse().unwrap()));
    assert_eq!(world.run("vera", "apps info acme/api --json").await.ok().json()["manifest"], manifest);
    world.run("olga", "apps create acme/api").await.fails(5, "already");
    world
        .run("olga", "apps:create acme/two")
        .await
        .ok()
        .says("git remote add paas-dev ssh://berth@paas.example.com:2222/acme/two/dev")
        .says("git push paas-dev main");
    world.run("olga", "envs create acme/api/staging").await.ok();
    world.run("olga", "envs create acme/api/staging").await.fails(5, "already");
    world.run("olga", "envs create acme/none/staging").await.fails(4, "no app");
    let envs = world.run("vera", "envs list acme/api --json").await.ok().json();
    assert_eq!(envs.as_array().unwrap().len(), 3);
    assert_eq!(envs[2]["url"], "http://staging.api.acme.localhost:8080");
    let made = futures::future::join_all((0..5).map(|_| world.run("olga", "apps create acme/race"))).await;
    assert_eq!(made.iter().filter(|said| said.status == 0).count(), 1, "{made:?}");
    assert!(made.iter().all(|said| matches!(said.status, 0 | 5)), "{made:?}");
}

#[tokio::test]
async fn what_is_destroyed_is_gone_and_its_name_begins_anew() {
    let world = World::new().await;
    world.run("olga", "apps destroy acme/shop").await.fails(2, "--confirm acme/shop");
    world.run("olga", "apps destroy acme/shop --confirm acme/shp").await.fails(2, "nothing was destroyed");
    world.builds.begin(&shop(), Stage::Build);
    world.run("olga", "apps destroy acme/shop --confirm acme/shop").await.ok();
    assert_eq!(world.builds.active(&shop()).await.unwrap(), None, "a build goes on");
    assert!(world.deployer.retired.lock().unwrap().contains(&shop()));
    assert_eq!(*world.builds.purged.lock().unwrap(), ["acme/shop".parse().unwrap()]);
    for left in [
        world.store.list::<Build>("").await.unwrap().len(),
        world.store.list::<Release>("").await.unwrap().len(),
        world.store.list::<Deployment>("").await.unwrap().len(),
        world.store.list::<Environment>("acme/").await.unwrap().len(),
        world.store.list::<App>("acme/").await.unwrap().len(),
        world.store.list::<Tombstone>("").await.unwrap().len(),
    ] {
        assert_eq!(left, 0);
    }
    assert_eq!(world.logs.read_build(&shop(), BuildNumber(2)).await.unwrap(), None);
    world.run("olga", "apps create acme/shop").await.ok();
    assert_eq!(world.run("olga", "builds list acme/shop/dev --json").await.ok().json(), serde_json::json!([]));
    assert_eq!(world.run("olga", "logs acme/shop/dev").await.ok().stdout, "");
    let events = world.events().await;
    assert!(events.contains(&"\"app.destroyed\" app acme/shop destroyed".to_owned()), "{events:?}");
    world.run("olga", "envs destroy acme/shop/dev --confirm acme/shop/dev").await.ok();
    world.run("olga", "ps acme/shop/dev").await.fails(4, "");
}

#[tokio::test]
async fn an_app_that_was_being_destroyed_goes_at_the_next_start() {
    let world = World::new().await;
    world.run("olga", "apps create acme/api").await.ok();
    let app: AppRef = "acme/shop".parse().unwrap();
    let repository = world.commands.repositories.ensure(&shop()).unwrap();
    let begun = world.store.need::<App>(&app).await.unwrap();
    let marked = App { destroying: true, ..begun.record.clone() };
    world.store.transaction().update(&begun, &marked).commit().await.unwrap();
    world.run("olga", "envs create acme/shop/late").await.fails(5, "being destroyed");
    world.commands.finish_destroying().await.unwrap();
    assert!(world.store.get::<App>(&app).await.unwrap().is_none());
    assert_eq!(world.store.list::<Environment>("acme/shop/").await.unwrap().len(), 0);
    assert_eq!(world.store.list::<Release>("acme/shop/").await.unwrap().len(), 0);
    assert!(!repository.exists());
    let events = world.events().await;
    assert!(events.iter().any(|event| event.contains("acme/shop destroyed, after a restart")), "{events:?}");
    // Others are left alone.
    assert!(world.store.get::<App>(&"acme/api".parse().unwrap()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_destruction_that_was_cut_short_is_finished_at_the_next_start() {
    let world = World::new().await;
    let repository = world.commands.repositories.ensure(&shop()).unwrap();
    let stone = Tombstone { env: shop(), destroyed_at: None };
    let begun = world.store.need::<Environment>(&shop()).await.unwrap();
    // Made anew since, and in use: nothing of it is touched.
    let mut in_use = begun.record.clone();
    in_use.last_build = 1;
    world.store.transaction().update(&begun, &in_use).put(&stone).commit().await.unwrap();
    world.commands.finish_destroying().await.unwrap();
    assert!(repository.exists());
    let stored = world.store.need::<Environment>(&shop()).await.unwrap();
    world.store.transaction().delete(&stored).put(&stone).commit().await.unwrap();
    world.commands.finish_destroying().await.unwrap();
    assert!(!repository.exists());
    assert!(world.store.get::<Tombstone>(&shop()).await.unwrap().is_none());
}
