//! The platform on one page.

use super::*;

#[tokio::test]
async fn everything_is_on_one_page() {
    let world = World::new().await;
    world.builds.begin(&shop(), Stage::Build);
    world.builds.begin(&env("other/app/dev"), Stage::Deploy);
    let page = world.run("opal", "status").await.ok();
    for text in [
        "Berth 0.1.0, up for",
        " !     engine: connection \\u{1b}[2J refused\n       → start it\n",
        "platform  2 tenants, 2 apps, 3 environments, 3 of 3 replicas healthy\n",
        "engine    Fake 1: does not answer: connection",
        "registry  127.0.0.1:5000 (managed): answers, 3.0 GiB on disk\n",
        "router    runs (process 7); routes 40 of 41 in force\n",
        "disk      40 GiB of 100 GiB free at /var/lib/berth; 2.0 GiB have to be\n",
        "builds    1 of 2 running, 0 of 100 waiting\n",
        "jobs      0 of 50 one-off commands, 0 of 20 cron runs\n",
        "acme/shop/dev  7      building",
    ] {
        assert!(page.stdout.contains(text), "{text:?} is not in\n{}", page.stdout);
    }
    let json = world.run("host", "status --json").await.ok().json();
    let running: Vec<_> = json["queue"]["running"].as_array().unwrap().iter().map(|build| &build["state"]).collect();
    assert_eq!(running, ["building", "deploying"]);
    assert_eq!((&json["queue"]["building"], &json["queue"]["places"]), (&1.into(), &2.into()));
}
