//! Real apps, from `git push` to an answer.

use crate::{
    Case,
    platform::{DEADLINE, Platform, eventually},
    repository::Repository,
};

pub const CASES: &[Case] = &[
    ("express_with_a_lock_file", express_with_a_lock_file),
    ("typescript_with_a_build_step", typescript_with_a_build_step),
    ("flask_under_gunicorn", flask_under_gunicorn),
    ("django_with_collectstatic", django_with_collectstatic),
    ("a_static_site", a_static_site),
    ("web_and_worker", web_and_worker),
    ("a_monorepo_subdirectory", a_monorepo_subdirectory),
    ("prod_reuses_the_slug_of_dev", prod_reuses_the_slug_of_dev),
    ("rollback_and_back", rollback_and_back),
];

fn host(app: &str, env: &str) -> String {
    let (tenant, app) = app.split_once('/').unwrap();
    if env == "prod" { format!("{app}.{tenant}.localhost") } else { format!("{env}.{app}.{tenant}.localhost") }
}

fn express_with_a_lock_file(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::of_fixture(platform, &user, &app, "buildpacks/fixtures/express");
    let pushed = repository.push().ok();
    let url = format!("http://{}:{}", host(&app, "dev"), platform.http_port);
    pushed.says(&["-----> ", "v1", &url]);
    let (status, first) = platform.get(&host(&app, "dev"), "/");
    assert_eq!(status, 200, "{first}");

    // A change of code alone: nothing is installed again, and the new version answers.
    repository.edit(
        "server.js",
        "app.get('/',",
        "app.get('/new', (_, response) => response.send('the new one'));\napp.get('/',",
    );
    repository.commit("Add a page");
    let second = repository.push().ok().says(&["v2"]);
    assert!(!second.all().contains("Installing dependencies"), "the compile step ran again:\n{}", second.all());
    assert_eq!(platform.get(&host(&app, "dev"), "/new"), (200, "the new one".to_owned()));
}

fn typescript_with_a_build_step(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::of_fixture(platform, &user, &app, "buildpacks/fixtures/typescript");
    repository.push().ok();
    assert_eq!(platform.get(&host(&app, "dev"), "/").0, 200);
}

fn flask_under_gunicorn(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::of_fixture(platform, &user, &app, "buildpacks/fixtures/flask");
    repository.push().ok();
    assert_eq!(platform.get(&host(&app, "dev"), "/").0, 200);
}

fn django_with_collectstatic(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::of_fixture(platform, &user, &app, "buildpacks/fixtures/django");
    repository.push().ok().says(&["collectstatic"]);
    assert_eq!(platform.get(&host(&app, "dev"), "/").0, 200);
}

fn a_static_site(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::of_fixture(platform, &user, &app, "buildpacks/fixtures/static-plain");
    repository.push().ok();
    assert_eq!(platform.get(&host(&app, "dev"), "/").0, 200);
    assert_eq!(platform.get(&host(&app, "dev"), "/.env").0, 404, "a dot file is served");
}

fn web_and_worker(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    repository.write(
        "Procfile",
        "web: python3 -m http.server $PORT # the web process\nworker: sh -c 'echo working; exec sleep 1000'\n",
    );
    repository.write(
        "berth.yaml",
        "processes:\n  web: {command: python3 -m http.server $PORT, replicas: 2}\n  worker: sh -c 'echo working; exec sleep 1000'\n",
    );
    repository.commit("First");
    repository.push().ok();
    let env = format!("{app}/dev");
    let running = |kind: &str| {
        let ps = platform.ssh(&user, &["ps", &env, "--json"]).ok().json();
        let replicas = ps["replicas"].as_array().unwrap().clone();
        replicas.iter().filter(|replica| replica["process"] == kind && replica["state"] == "ready").count()
    };
    eventually("two web replicas and a worker", DEADLINE, || {
        (running("web") == 2 && running("worker") == 1).then_some(())
    });
    eventually("the worker's log", DEADLINE, || {
        platform.ssh(&user, &["logs", &env, "--process", "worker"]).ok().stdout.contains("working").then_some(())
    });
    platform.ssh(&user, &["scale", &env, "worker=0", "web=1"]).ok();
    eventually("one web replica alone", DEADLINE, || (running("web") == 1 && running("worker") == 0).then_some(()));
}

fn a_monorepo_subdirectory(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    repository.add_fixture("buildpacks/fixtures/express", "services/web");
    repository.write("services/other/requirements.txt", "this-is-not-for-us\n");
    repository.write("berth.yaml", "build: {root: services/web}\n");
    repository.commit("First");
    repository.push().ok();
    assert_eq!(platform.get(&host(&app, "dev"), "/").0, 200);
}

fn prod_reuses_the_slug_of_dev(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::of_fixture(platform, &user, &app, "buildpacks/fixtures/express");
    repository
        .write("berth.yaml", "environments:\n  prod: {processes: {web: {command: node server.js, replicas: 2}}}\n");
    repository.commit("Two in production");
    repository.push().ok();
    repository.add_remote("paas-prod", &format!("{app}/prod"));
    let pushed = repository.git(&["push", "paas-prod", "main"]).ok().says(&["Reusing"]);
    assert!(!pushed.all().contains("Installing dependencies"), "it was built again:\n{}", pushed.all());
    assert_eq!(platform.get(&host(&app, "prod"), "/").0, 200);
    let image = |env: &str| {
        platform.ssh(&user, &["releases", "info", &format!("{app}/{env}"), "--json"]).ok().json()["image"].clone()
    };
    assert_eq!(image("dev"), image("prod"));

    repository.edit(
        "server.js",
        "app.get('/',",
        "app.get('/v2', (_, response) => response.send('two'));\napp.get('/',",
    );
    repository.commit("Version two");
    repository.push().ok();
    platform.ssh(&user, &["promote", &format!("{app}/dev"), &format!("{app}/prod")]).ok();
    assert_eq!(platform.get(&host(&app, "prod"), "/v2"), (200, "two".to_owned()));
    assert_eq!(image("dev"), image("prod"));
}

fn rollback_and_back(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    let env = format!("{app}/dev");
    for version in ["one", "two"] {
        repository.write("index.html", version);
        repository.commit(version);
        repository.push().ok();
        assert_eq!(platform.get(&host(&app, "dev"), "/").1, version);
    }
    platform.ssh(&user, &["rollback", &env]).ok().says(&["v3"]);
    assert_eq!(platform.get(&host(&app, "dev"), "/").1, "one");
    platform.ssh(&user, &["rollback", &env, "v2"]).ok().says(&["v4"]);
    assert_eq!(platform.get(&host(&app, "dev"), "/").1, "two");
    platform.ssh(&user, &["rollback", &env, "v99"]).refused(&["no release v99"]);
}
