//! Deploying without git: a source archive, and an image that is there already.

use crate::{Case, commands::feed, platform::Platform, repository::Repository};

pub const CASES: &[Case] =
    &[("a_source_and_an_image_are_deployed_without_git", a_source_and_an_image_are_deployed_without_git)];

fn a_source_and_an_image_are_deployed_without_git(platform: &Platform) {
    let (app, user) = platform.new_app();
    let env = format!("{app}/dev");
    let (tenant, name) = app.split_once('/').unwrap();
    let host = format!("dev.{name}.{tenant}.localhost");
    let repository = Repository::new(platform, &user, &app);
    repository.write("index.html", "one");
    repository.commit("First");
    let archive = repository.git_command(&["archive", "--format=tar.gz", "--prefix=shop-1/", "HEAD"]).output().unwrap();
    assert!(archive.status.success(), "{archive:?}");

    let (status, text) = feed(platform, &user, &["builds", "create", &env], b"junk");
    assert!(status == 1 && text.contains("git archive") && text.contains("Nothing was changed"), "{status}: {text}");
    let (status, text) = feed(platform, &user, &["builds", "create", &env, "-m", "by-hand"], &archive.stdout);
    assert!(status == 0 && text.contains("is live: release v1"), "{status}: {text}");
    assert_eq!(platform.get(&host, "/"), (200, "one".to_owned()));
    let first = platform.ssh(&user, &["releases", "info", &env, "--json"]).ok().json();
    assert!(first["reason"].as_str().unwrap().ends_with(": by-hand"), "{first}");
    assert_eq!(repository.remote_commit("paas-dev", "main"), None, "an upload has moved a branch");

    // A push begins where pushes left off, which is nowhere yet.
    repository.write("index.html", "two");
    repository.commit("Second");
    repository.push().ok().says(&["v2"]);
    assert_eq!(platform.get(&host, "/"), (200, "two".to_owned()));

    let image = first["image"].as_str().unwrap();
    platform.ssh(&user, &["deploy", &env, image]).ok().says(&["runs v3"]);
    assert_eq!(platform.get(&host, "/"), (200, "one".to_owned()));
    platform.ssh(&user, &["deploy", &env, "berth/acme/shop:latest"]).refused(&["by its digest"]);
    // What was built last, by whichever way it came.
    platform.ssh(&user, &["redeploy", &env]).ok();
    assert_eq!(platform.get(&host, "/"), (200, "two".to_owned()));
}
