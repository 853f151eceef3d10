//! What runs and how it is changed: processes, config, releases, builds, logs, one-off commands.

use super::*;

#[tokio::test]
async fn ps_shows_replicas() {
    let world = World::new().await;
    let json = world.run("vera", "ps acme/shop/dev --json").await.ok().json();
    assert_eq!((&json["env"], &json["release"]), (&"acme/shop/dev".into(), &2.into()));
    assert_eq!(json["url"], "http://dev.shop.acme.localhost:8080");
    let replicas = json["replicas"].as_array().unwrap();
    assert_eq!(replicas.len(), 3);
    assert_eq!(
        (&replicas[2]["process"], &replicas[2]["index"], &replicas[2]["state"], &replicas[2]["release"]),
        (&"worker".into(), &1.into(), &"ready".into(), &2.into())
    );
    assert_eq!((&json["deployment"], &json["waiting"]), (&serde_json::Value::Null, &serde_json::json!([])));
    world.run("vera", "ps acme/shop/dev").await.ok().says("web.2").says("ready");
    world.run("vera", "ps acme/shop/prod").await.ok().says("nothing deployed");
}

#[tokio::test]
async fn ps_says_since_when_a_replica_is_what_it_is() {
    let world = World::new().await;
    // They were started two hours ago and have been ready since just now.
    let said = world.run("vera", "ps acme/shop/dev").await.ok().says("REPLICA   STATE  SINCE").says("ready  0s ago");
    assert!(!said.stdout.contains("2h"), "{said:?}");
    let json = world.run("vera", "ps acme/shop/dev --json").await.ok().json();
    let moment = |name: &str| json["replicas"][0][name].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(moment("since").duration_since(moment("started_at")).as_hours() >= 1, "{json}");
}

#[tokio::test]
async fn ps_why_without_an_environment_tells_of_all_that_are_seen() {
    let world = World::new().await;
    world.run("dan", "ps --why").await.ok().says("Nothing is waited for in any environment\n");
    *world.deployer.waits.lock().unwrap() = vec!["web: the registry is away".into()];
    let said = world
        .run("vera", "ps --why")
        .await
        .ok()
        .says("acme/shop/dev:\n")
        .says("acme/shop/prod:\n")
        .says("registry is away");
    assert!(!said.stdout.contains("other/app"), "{said:?}");
    let json = world.run("vera", "ps --why --json").await.ok().json();
    assert_eq!((json.as_array().unwrap().len(), &json[0]["env"]), (2, &"acme/shop/dev".into()));
    assert_eq!(json[0]["waiting"], serde_json::json!(["web: the registry is away"]));
    assert!(json[0]["why"][0]["since"].is_string(), "{json}");
    // Of one alone, all there is to say.
    let one = world.run("stan", "ps --why").await.ok();
    assert_eq!(one.stdout, world.run("stan", "ps other/app/dev --why").await.ok().stdout);
    assert_eq!(world.run("stan", "ps --why --json").await.ok().json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_serves_is_ready_though_another_release_is_wanted() {
    let world = World::new().await;
    *world.deployer.waits.lock().unwrap() = vec!["web: the new one starts".into()];
    let one = world.run("vera", "ps acme/shop/dev --json").await.ok().json();
    assert_eq!(one["processes"]["web"], serde_json::json!({"wanted": 2, "ready": 2}));
    let all = world.run("vera", "ps --json").await.ok().json();
    assert_eq!(all[0]["processes"][0], serde_json::json!({"process": "web", "wanted": 2, "ready": 2}));
    let platform = world.run("opal", "status --json").await.ok().json();
    assert_eq!(platform["counts"]["replicas_healthy"], platform["counts"]["replicas_wanted"], "{platform}");
}

#[tokio::test]
async fn a_cancelled_deployment_says_what_serves() {
    let world = World::new().await;
    for (name, serves, text) in [
        ("acme/shop/dev", Some(2), "v2, the one before, goes on serving"),
        ("acme/shop/prod", None, "nothing served before, so nothing serves now"),
    ] {
        let env = env(name);
        let change = world.store.modify::<Environment, StoreError>(&env, |record| {
            record.target = Some(ReleaseVersion(9));
            Ok(())
        });
        change.await.unwrap();
        let answer = world.run("dan", &format!("deployments cancel {name} --json")).await.ok().json();
        assert_eq!((&answer["cancelled"], &answer["serving"]), (&9.into(), &serde_json::json!(serves)));
        let change = world.store.modify::<Environment, StoreError>(&env, |record| {
            record.target = Some(ReleaseVersion(10));
            Ok(())
        });
        change.await.unwrap();
        world.run("dan", &format!("deployments cancel {name}")).await.ok().says(text);
    }
}

#[tokio::test]
async fn scale_overrides_until_it_is_reset() {
    let world = World::new().await;
    let json = world.run("dan", "scale acme/shop/dev web=5 worker=0 --json").await.ok().json();
    assert_eq!(json["scale"], serde_json::json!({"web": 5, "worker": 0}));
    assert_eq!(world.shop().await.scale.into_values().collect::<Vec<_>>(), [5, 0]);
    assert_eq!(*world.deployer.nudged.lock().unwrap(), [shop()]);
    world.run("vera", "scale acme/shop/dev").await.ok().says("5");
    for (counts, status) in [("web=101", 2), ("web", 2), ("web=-1", 2), ("web=1 web=2", 2), ("cron=1", 4)] {
        assert_eq!(world.run("dan", &format!("scale acme/shop/dev {counts}")).await.status, status, "{counts}");
    }
    assert_eq!(world.shop().await.scale.len(), 2, "a refused scale changed something");
    world.run("dan", "scale acme/shop/dev --reset").await.ok();
    assert!(world.shop().await.scale.is_empty());
    world.run("dan", "scale acme/shop/prod web=1").await.fails(4, "push first");
    let events = world.events().await;
    assert!(events.contains(&"\"scale.changed\" acme/shop/dev scaled: web=5 worker=0".to_owned()), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn restart_says_what_it_waits_for_and_gives_up() {
    let world = World::new().await;
    world.run("dan", "restart acme/shop/dev").await.ok();
    assert_eq!(world.shop().await.restarts, 1);
    *world.deployer.waits.lock().unwrap() = vec!["web.2 is not ready: \x1b[2J".into()];
    let said = world.run("dan", "restart acme/shop/dev").await.fails(1, "It goes on; see `ps acme/shop/dev`");
    assert_eq!(said.stderr.matches("       web.2 is not ready: \\u{1b}[2J\n").count(), 1, "{said:?}");

    let (controls, receiver) = mpsc::channel(4);
    controls.try_send(Control::Signal("INT".into())).unwrap();
    world.control("dan", "restart acme/shop/dev", b"", receiver).await.fails(1, "not waiting any longer");
    assert_eq!(world.shop().await.restarts, 3);
}

#[tokio::test]
async fn config_that_is_the_same_is_no_change() {
    let world = World::new().await;
    world.run("dan", "config set acme/shop/dev SECRET=hunter2").await.ok().says("Nothing changed");
    let json = world.run("dan", "config set acme/shop/dev SECRET=hunter2 --json").await.ok().json();
    assert_eq!(json, serde_json::json!({"changed": false}));
    assert_eq!(world.store.list::<Release>("").await.unwrap().len(), 2);
}

#[tokio::test]
async fn config_makes_a_release_or_nothing() {
    let world = World::new().await;
    let said = world.feed("dan", "config set acme/shop/dev A=1=2 B=- --json", b"two\nlines").await.ok();
    assert_eq!((&said.json()["release"], &said.json()["changed"]), (&3.into(), &true.into()));
    assert!(said.stderr.contains("-----> Deploying v3") && said.stderr.contains("^[[2Jcleared"), "{said:?}");
    let config = world.shop().await.config;
    assert_eq!((config["A"].as_str(), config["B"].as_str(), config.len()), ("1=2", "two\nlines", 3));
    assert_eq!(world.run("dan", "config get acme/shop/dev B").await.ok().stdout, "two\nlines\n");
    assert_eq!(world.run("dan", "config list acme/shop/dev --json").await.ok().json(), serde_json::json!(config));
    world.run("dan", "config unset acme/shop/dev A B").await.ok().says("v4");
    assert_eq!(world.shop().await.config.len(), 1);

    for (words, text) in [
        ("PORT=1", "set by the platform"),
        ("BERTH_X=1", "set by the platform"),
        ("1A=1", "not a name"),
        ("hunter2", "KEY=VALUE"),
        ("A=1 A=2", "twice"),
        ("A=- B=-", "only one"),
    ] {
        let said = world.run("dan", &format!("config set acme/shop/dev {words}")).await.fails(2, text);
        assert!(!said.stderr.contains("hunter2"), "a value is quoted back: {said:?}");
    }
    world.run("dan", "config unset acme/shop/dev NONE").await.fails(4, "nothing was changed");
    assert_eq!(world.shop().await.last_release, 4);
    world.run("dan", "config set acme/shop/prod A=1").await.ok().says("first release");
    assert!(world.events().await.iter().all(|event| !event.contains("hunter2")));
}

#[tokio::test]
async fn config_waits_for_no_deployment_under_way() {
    let world = World::new().await;
    let shop = shop();
    let change = world.store.modify::<Environment, StoreError>(&shop, |record| {
        record.target = Some(ReleaseVersion(9));
        Ok(())
    });
    change.await.unwrap();
    world.run("dan", "config set acme/shop/dev A=1").await.fails(5, "v9 is being deployed");
    assert!(!world.shop().await.config.contains_key("A"));
    // What serves meanwhile is what one goes back to.
    world.run("dan", "rollback acme/shop/dev").await.ok().says("v3");
    let release = world.store.need::<Release>(&(shop, ReleaseVersion(3))).await.unwrap();
    assert_eq!(release.reason, "rollback to v2");
}

#[tokio::test]
async fn a_failed_deployment_is_told_with_its_last_lines() {
    let world = World::new().await;
    *world.deployer.fails.lock().unwrap() = Some("web.1 exited with status 3".into());
    let said = world.run("dan", "config set acme/shop/dev A=1").await.fails(1, "exited with status 3");
    for text in [
        "v3 was not deployed to acme/shop/dev: web.1 exited with status 3; v2, the one before, goes on serving\n",
        "Error: x\n",
        "logs acme/shop/dev\n",
        "deployments info acme/shop/dev v3\n",
        "The change of A was taken back with its release",
        "config set acme/shop/dev …\n",
    ] {
        assert!(said.stderr.contains(text), "{text:?} is not said: {said:?}");
    }
    assert!(!world.shop().await.config.contains_key("A"));
    let said =
        world.run("dan", "config unset acme/shop/dev SECRET").await.fails(1, "The change of SECRET was taken back");
    assert!(said.stderr.contains("config unset acme/shop/dev …") && !said.stderr.contains("hunter2"), "{said:?}");
    let info = world
        .run("vera", "deployments info acme/shop/dev v3")
        .await
        .ok()
        .says("The last lines of its log:\n  Error: x\n");
    info.says("web.1 exited with status 3");
    let json = world.run("vera", "deployments info acme/shop/dev v3 --json").await.ok().json();
    assert_eq!(json["last_log_lines"], serde_json::json!(["Error: x"]));
    let json = world.run("vera", "deployments info acme/shop/dev v2 --json").await.ok().json();
    assert_eq!(json["last_log_lines"], serde_json::json!([]));
    let json = world.run("dan", "rollback acme/shop/dev --json").await.fails(1, "exit_status");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(json.stderr.lines().last().unwrap()).unwrap()["exit_status"],
        1
    );
}

#[tokio::test]
async fn rollback_goes_to_what_was_deployed_with_success() {
    let world = World::new().await;
    world.run("dan", "rollback acme/shop/dev").await.ok().says("runs v3");
    world.run("dan", "rollback acme/shop/dev v2 --json").await.ok().says("\"release\":4");
    world.run("dan", "rollback acme/shop/dev v99").await.fails(4, "no release v99");
    world.run("dan", "rollback acme/shop/dev v4").await.fails(5, "already");
    world.run("dan", "rollback acme/shop/prod").await.fails(4, "no release yet");
    let releases = world.run("vera", "releases list acme/shop/dev --json").await.ok().json();
    let states: Vec<_> = releases.as_array().unwrap().iter().map(|release| release["state"].clone()).collect();
    assert_eq!(states, ["current", "replaced", "replaced", "replaced"]);
    assert_eq!(releases[0]["version"], 4);
    let info = world.run("vera", "releases info acme/shop/dev --json").await.ok();
    assert_eq!((&info.json()["version"], &info.json()["config_names"][0]), (&4.into(), &"SECRET".into()));
    assert!(!info.stdout.contains("hunter2"), "a viewer reads config");
    world.builds.begin(&shop(), Stage::Build);
    world.run("dan", "rollback acme/shop/dev").await.fails(5, "builds cancel acme/shop/dev");
}

#[tokio::test]
async fn builds_are_listed_followed_and_cancelled() {
    let world = World::new().await;
    let list = world.run("vera", "builds list acme/shop/dev --json").await.ok().json();
    assert_eq!((&list[0]["number"], &list[0]["state"]), (&2.into(), &"succeeded".into()));
    assert_eq!(world.run("vera", "builds info acme/shop/dev 1 --json").await.ok().json()["number"], 1);
    world.run("vera", "builds info acme/shop/dev 9").await.fails(4, "no build 9");
    assert_eq!(world.run("vera", "builds logs acme/shop/dev").await.ok().stdout, "-----> Building\n");
    world
        .run("vera", "builds logs acme/shop/dev -f --json")
        .await
        .ok()
        .says("{\"line\":\"-----> Building\",\"offset\":16}");
    world.run("vera", "builds logs acme/shop/dev 1").await.fails(4, "not kept");
    world.run("dan", "builds cancel acme/shop/dev 1").await.fails(5, "ended already: succeeded");
    world.builds.begin(&shop(), Stage::Build);
    world.run("dan", "redeploy acme/shop/dev").await.fails(5, "build 7 of dan");
    world.run("dan", "builds cancel acme/shop/dev").await.ok();
    let redeployed = world.run("dan", "redeploy acme/shop/dev --no-cache --json").await.ok();
    assert_eq!(redeployed.json()["build"], 20);
    assert!(redeployed.stderr.contains("Reusing the slug"), "{redeployed:?}");
    let build = world.store.need::<Build>(&(shop(), BuildNumber(20))).await.unwrap();
    assert!(build.no_cache && build.pushed_by.as_str() == "dan");
    *world.builds.ends.lock().unwrap() =
        BuildState::Failed { reason: "release v2 was not deployed: it crashed".into() };
    let said = world
        .run("dan", "redeploy acme/shop/dev")
        .await
        .fails(1, "build 20 succeeded, but release v2 was not deployed");
    assert!(
        said.stderr.contains("it crashed; v2, the one before") && said.stderr.contains("deployments info"),
        "{said:?}"
    );
    world.run("dan", "redeploy acme/shop/prod").await.fails(4, "no release yet");
    world.run("dan", "promote acme/shop/dev other/app/dev").await.fails(2, "one app");
}

/// Makes a commit in the environment's repository.
fn commit(world: &World) -> String {
    let path = world.commands.repositories.ensure(&shop()).unwrap();
    let repository = git2::Repository::open_bare(path).unwrap();
    let blob = repository.blob(b"hello").unwrap();
    let mut tree = repository.treebuilder(None).unwrap();
    tree.insert("index.html", blob, 0o100_644).unwrap();
    let tree = repository.find_tree(tree.write().unwrap()).unwrap();
    let author = git2::Signature::now("a", "a@example.com").unwrap();
    repository.commit(Some("refs/heads/main"), &author, &author, "First", &tree, &[]).unwrap().to_string()
}

#[tokio::test]
async fn promotion_brings_the_commit_along() {
    let world = World::new().await;
    let commit = commit(&world);
    let stored = world.store.need::<Release>(&(shop(), ReleaseVersion(2))).await.unwrap();
    let changed = Release { commit: commit.clone(), ..stored.record.clone() };
    world.store.transaction().update(&stored, &changed).commit().await.unwrap();
    world.run("dan", "promote acme/shop/prod acme/shop/dev").await.fails(4, "no release yet");
    let said = world.run("dan", "promote acme/shop/dev acme/shop/prod --json").await.ok();
    assert_eq!((&said.json()["env"], &said.json()["build"]), (&"acme/shop/prod".into(), &20.into()));
    let prod = env("acme/shop/prod");
    assert_eq!(world.store.need::<Build>(&(prod.clone(), BuildNumber(20))).await.unwrap().commit, commit);
    let repository = git2::Repository::open_bare(world.commands.repositories.path(&prod)).unwrap();
    let tree = repository.find_commit(commit.parse().unwrap()).unwrap().tree().unwrap();
    assert!(tree.get_name("index.html").unwrap().to_object(&repository).is_ok(), "an object is missing");
    world.run("dan", "redeploy acme/shop/prod").await.ok().says("Reusing the slug");
    // Without a build to go by, the branch is asked.
    for build in world.store.list::<Build>("acme/shop/dev/").await.unwrap() {
        world.store.transaction().delete(&build).commit().await.unwrap();
    }
    let env = shop();
    let branch = world.store.modify::<Environment, StoreError>(&env, |record| {
        record.deploy_branch = Some("main".into());
        Ok(())
    });
    branch.await.unwrap();
    world.run("dan", "redeploy acme/shop/dev").await.ok();
    assert_eq!(world.store.need::<Build>(&(shop(), BuildNumber(20))).await.unwrap().commit, commit);
}

#[tokio::test]
async fn logs_are_harmless_for_people_and_whole_for_programs() {
    let world = World::new().await;
    let text = world.run("vera", "logs acme/shop/dev").await.ok().stdout;
    assert!(text.ends_with("berth[web.1]: hello ^[[2J\n"), "{text:?}");
    assert_eq!(world.run("vera", "logs acme/shop/dev --json").await.ok().json()["text"], "hello \x1b[2J");
    assert_eq!(world.run("vera", "logs acme/shop/dev --process web.2").await.ok().stdout, "");
    assert_eq!(world.run("vera", "logs acme/shop/dev -n 0").await.ok().stdout, "");
    for line in ["logs acme/shop/dev -f", "events -f"] {
        let (controls, receiver) = mpsc::channel(4);
        controls.try_send(Control::Hangup).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(10), world.control("vera", line, b"", receiver)).await;
        ended.expect("a hangup ends what follows").ok();
    }
}

#[tokio::test]
async fn domains_belong_to_one_environment() {
    let world = World::new().await;
    world.run("dan", "domains add acme/shop/dev Shop.Example.com.").await.ok();
    world.run("dan", "domains add acme/shop/dev shop.example.com").await.ok().says("already");
    assert_eq!(world.shop().await.domains, ["shop.example.com"]);
    let thief = world.run("stan", "domains add other/app/dev shop.example.com").await.fails(5, "another environment");
    assert!(!thief.stderr.contains("acme"), "{thief:?}");
    world.run("dan", "domains add acme/shop/dev x.localhost").await.fails(2, "platform");
    let list = world.run("vera", "domains list acme/shop/dev --json").await.ok().json();
    let from: Vec<_> = list.as_array().unwrap().iter().map(|domain| domain["from"].clone()).collect();
    assert_eq!(from, ["platform", "manifest", "added"]);
    world.run("dan", "domains remove acme/shop/dev shop.example.co").await.fails(4, "did you mean shop.example.com?");
    world.run("dan", "domains remove acme/shop/dev shop.example.com").await.ok();
    assert!(world.shop().await.domains.is_empty());
    world.run("stan", "domains add other/app/dev shop.example.com").await.ok();
    // That of a manifest is its environment's too, until neither a release asks for it nor anybody wants to keep it.
    world.run("stan", "domains add other/app/dev manifest.example.com").await.fails(5, "another environment");
    world.run("dan", "domains remove acme/shop/dev manifest.example.com").await.fails(5, "take it out there");
    for number in [1, 2] {
        let without = Release { domains: vec![], ..release(&shop(), number) };
        world.store.transaction().put(&without).commit().await.unwrap();
    }
    let list = world.run("vera", "domains list acme/shop/dev --json").await.ok().json();
    assert_eq!(list[1], serde_json::json!({"domain": "manifest.example.com", "from": "kept"}));
    world.run("stan", "domains add other/app/dev manifest.example.com").await.fails(5, "another environment");
    world.run("dan", "domains remove acme/shop/dev manifest.example.com").await.ok();
    world.run("stan", "domains add other/app/dev manifest.example.com").await.ok();
}

#[tokio::test]
async fn two_who_add_a_domain_at_once_do_not_both_have_it() {
    let world = World::new().await;
    let (one, other) = tokio::join!(
        world.run("dan", "domains add acme/shop/dev new.example.com"),
        world.run("stan", "domains add other/app/dev new.example.com"),
    );
    assert_eq!([one.status, other.status].iter().filter(|status| **status == 0).count(), 1, "{one:?} {other:?}");
    assert!([one.status, other.status].contains(&5), "{one:?} {other:?}");
}

#[tokio::test]
async fn a_destroyed_environment_gives_up_its_domains() {
    let world = World::new().await;
    world.run("dan", "domains add acme/shop/dev new.example.com").await.ok();
    world.run("olga", "envs destroy acme/shop/dev --confirm acme/shop/dev").await.ok();
    for domain in ["new.example.com", "manifest.example.com"] {
        world.run("stan", &format!("domains add other/app/dev {domain}")).await.ok();
    }
}

#[tokio::test]
async fn one_off_commands_pass_words_streams_and_status() {
    let world = World::new().await;
    let said = world.feed("dan", "run acme/shop/dev -- node -e --json", b"input").await;
    assert_eq!(
        (said.status, said.stdout.as_str(), said.stderr.as_str()),
        (42, "node|-e|--json input", "Some(\"hunter2\")")
    );
    let events = world.events().await;
    assert!(events[0].starts_with("\"run.started\" run-") && !events[0].contains("node"), "{events:?}");
    assert!(
        events[1].starts_with("\"run.finished\" run-") && events[1].contains("exited with status 42"),
        "{events:?}"
    );
    assert!(!events[1].contains("hunter2"), "{events:?}");
    world.run("dan", "run acme/shop/prod -- true").await.fails(4, "push first");
    world.run("dan", "run acme/shop/dev true").await.fails(2, "");

    let (controls, receiver) = mpsc::channel(4);
    controls.try_send(Control::Resize { columns: 80, rows: 24 }).unwrap();
    controls.try_send(Control::Signal("TERM".into())).unwrap();
    assert_eq!(world.control("dan", "run acme/shop/dev -- sleep", b"", receiver).await.status, 143);
    let (controls, receiver) = mpsc::channel(4);
    controls.try_send(Control::Hangup).unwrap();
    world.control("dan", "run acme/shop/dev -- sleep", b"", receiver).await.fails(1, "connection is gone");
}

#[tokio::test]
async fn one_tenant_does_not_take_all_places_for_one_off_commands() {
    let world = World::new().await;
    let acme = shop().tenant;
    let taken: Vec<_> = (0..10).map(|_| world.commands.run_places.try_take(&acme).unwrap()).collect();
    let said = world.run("dan", "run acme/shop/dev -- true").await;
    said.fails(75, "10 one-off commands of acme are running already");
    assert!(world.commands.run_places.try_take(&"other".parse().unwrap()).is_ok());
    drop(taken);
    assert_eq!(world.run("dan", "run acme/shop/dev -- true").await.status, 42);
}

#[tokio::test]
async fn help_names_the_server() {
    let world = World::new().await;
    world.run("vera", "").await.ok().says("ssh -p 2222 berth@paas.example.com COMMAND").says("git push");
    world.run("host", "help").await.ok().says("berth COMMAND");
    world.run("vera", "help scale").await.ok().says("ssh -p 2222 berth@paas.example.com scale");
    world.run("opal", "").await.ok().says("Hello opal (operator)");
}

#[tokio::test]
async fn cron_jobs_are_listed_run_and_remembered() {
    let world = World::new().await;
    let listed = world.run("vera", "cron list acme/shop/dev --json").await.ok().json();
    assert_eq!((&listed[0]["job"], &listed[0]["overlap"]), (&"nightly".into(), &"skip".into()));
    assert!(listed[0]["next"].is_string() && listed[0]["last"].is_null(), "{listed}");
    world.run("dan", "cron run acme/shop/dev nightly").await.ok().says("cleaned\n").says("Run 1 of nightly succeeded");
    world.run("dan", "cron run acme/shop/dev nigthly").await.fails(4, "did you mean nightly?");
    world.run("dan", "cron run acme/shop/prod nightly").await.fails(4, "push first");
    world.run("vera", "cron history acme/shop/dev nigthly").await.fails(4, "did you mean nightly?");
    world.run("vera", "cron history acme/shop/dev").await.ok().says("by dan").says("succeeded");
    world.run("vera", "cron list acme/shop/dev").await.ok().says("@daily");
    world.logs.flush().await;
    world.run("vera", "logs acme/shop/dev --process cron.nightly").await.ok().says("cleaned");
    let events = world.events().await.join("\n");
    assert!(events.contains("\"cron.started\"") && events.contains("\"cron.finished\""), "{events}");
}
