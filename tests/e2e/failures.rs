//! Processes that die: replicas, the control plane, the router. These run alone, since they restart what the other cases use.

use std::{
    io,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    process::Stdio,
    time::Duration,
};

use crate::{
    Case,
    platform::{DEADLINE, Platform, User, eventually, run},
    repository::Repository,
};

pub const CASES: &[Case] = &[
    ("a_killed_replica_is_replaced", a_killed_replica_is_replaced),
    ("apps_answer_while_the_control_plane_is_dead", apps_answer_while_the_control_plane_is_dead),
    ("a_build_survives_the_death_of_the_control_plane", a_build_survives_the_death_of_the_control_plane),
    ("the_router_comes_back", the_router_comes_back),
    ("a_server_starts_before_the_engine_is_there", a_server_starts_before_the_engine_is_there),
];

const SERVER: &str = "require('http').createServer((q, s) => s.end('alive')).listen(process.env.PORT);\n";

fn deployed(platform: &Platform, scripts: &str) -> (String, User, Repository) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    let package =
        format!(r#"{{"name": "case", "version": "1.0.0", "engines": {{"node": "22.x"}}, "scripts": {{{scripts}}}}}"#);
    repository.write("package.json", package);
    repository.write("server.js", SERVER);
    repository.write("berth.yaml", "processes: {web: {command: node server.js, replicas: 2}}\n");
    repository.commit("First");
    (app, user, repository)
}

fn dev_host(app: &str) -> String {
    let (tenant, app) = app.split_once('/').unwrap();
    format!("dev.{app}.{tenant}.localhost")
}

/// Ids of the running containers of an app's dev environment.
fn containers(app: &str) -> Vec<String> {
    let (tenant, app) = app.split_once('/').unwrap();
    let mut docker = Command::new("docker");
    docker.args(["ps", "-q", "--no-trunc"]);
    for (label, value) in [("tenant", tenant), ("app", app), ("env", "dev"), ("process", "web")] {
        docker.args(["--filter", &format!("label=berth.{label}={value}")]);
    }
    run(&mut docker).ok().stdout.lines().map(str::to_owned).collect()
}

fn a_killed_replica_is_replaced(platform: &Platform) {
    let (app, user, repository) = deployed(platform, "");
    repository.push().ok();
    let before = containers(&app);
    assert_eq!(before.len(), 2);
    run(Command::new("docker").args(["kill", &before[0]])).ok();
    eventually("two replicas again", DEADLINE, || {
        let now = containers(&app);
        (now.len() == 2 && !now.contains(&before[0])).then_some(())
    });
    assert!(containers(&app).contains(&before[1]), "the healthy replica was replaced too");
    eventually("both are ready", DEADLINE, || {
        let ps = platform.ssh(&user, &["ps", &format!("{app}/dev"), "--json"]).ok().json();
        let ready = ps["replicas"].as_array().unwrap().iter().filter(|replica| replica["state"] == "ready").count();
        (ready == 2).then_some(())
    });
    assert_eq!(platform.get(&dev_host(&app), "/").1, "alive");
}

fn apps_answer_while_the_control_plane_is_dead(platform: &Platform) {
    let (app, user, repository) = deployed(platform, "");
    repository.push().ok();
    let before = containers(&app);
    platform.kill_serve();
    for _ in 0..50 {
        assert_eq!(platform.get(&dev_host(&app), "/").1, "alive");
    }
    // What dies meanwhile is replaced afterwards, and what lives is adopted.
    run(Command::new("docker").args(["kill", &before[0]])).ok();
    platform.start_serve();
    for _ in 0..50 {
        assert_eq!(platform.get(&dev_host(&app), "/").1, "alive");
    }
    eventually("two replicas again", DEADLINE, || (containers(&app).len() == 2).then_some(()));
    assert!(containers(&app).contains(&before[1]), "the replica that lived was not adopted");
    platform.ssh(&user, &["whoami"]).ok();
}

fn a_build_survives_the_death_of_the_control_plane(platform: &Platform) {
    let (app, user, repository) = deployed(platform, r#""build": "sleep 4""#);
    let env = format!("{app}/dev");
    let commit = repository.git(&["rev-parse", "HEAD"]).ok().stdout.trim().to_owned();
    let mut push = repository
        .git_command(&["push", "paas-dev", "main"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let state = || {
        let info = platform.ssh(&user, &["builds", "info", &env, "--json"]);
        (info.status == 0).then(|| info.json()["state"].clone())
    };
    // Until the push was checked to its end, its build may not begin, and goes with the server.
    eventually("the build runs", DEADLINE, || {
        let output = platform.ssh(&user, &["builds", "logs", &env]);
        output.all().contains("sleep 4").then_some(())
    });
    platform.kill_serve();
    assert!(!push.wait().unwrap().success());
    platform.start_serve();
    let ended = |state: &serde_json::Value| ["succeeded", "failed", "cancelled"].iter().any(|end| state == end);
    let end = eventually("the build has ended", Duration::from_secs(120), || state().filter(ended));
    assert_eq!(end, "succeeded", "{}", platform.ssh(&user, &["builds", "info", &env]).all());
    eventually("the branch moves", DEADLINE, || {
        (repository.remote_commit("paas-dev", "main") == Some(commit.clone())).then_some(())
    });
    assert_eq!(platform.get(&dev_host(&app), "/").1, "alive");
}

fn the_router_comes_back(platform: &Platform) {
    let (app, _user, repository) = deployed(platform, "");
    repository.push().ok();
    platform.kill_router();
    assert!(platform.try_get(&dev_host(&app), "/").is_err());
    platform.start_router();
    eventually("the router answers", DEADLINE, || {
        platform.try_get(&dev_host(&app), "/").ok().filter(|(status, _)| *status == 200)
    });
}

/// Where the machine's engine listens.
const ENGINE: &str = "/var/run/docker.sock";

/// Makes the machine's engine answer at `socket` too, for as long as the tests run.
fn proxy(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), UnixStream::connect(ENGINE).unwrap());
            pump(near.try_clone().unwrap(), far.try_clone().unwrap());
            pump(far, near);
        }
    });
}

fn pump(mut from: UnixStream, mut to: UnixStream) {
    std::thread::spawn(move || {
        // Either end may break off: that is how a killed server leaves.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

fn a_server_starts_before_the_engine_is_there(platform: &Platform) {
    let (app, user, repository) = deployed(platform, "");
    repository.push().ok();
    let (env, before) = (format!("{app}/dev"), containers(&app));
    assert_eq!(before.len(), 2);
    platform.kill_serve();
    let socket = platform.scratch("late-engine").join("engine.sock");
    platform.start_serve_with(&[("BERTH__RUNTIME__SOCKET", socket.to_str().unwrap())]);
    run(&mut platform.berth(&["status"])).ok().says(&["running, but:", "engine", "engine.sock"]);
    let missing = run(&mut platform.berth(&["status", "--json"])).ok().json();
    assert_eq!(missing[0]["what"], "engine", "{missing}");
    platform.ssh(&user, &["ps", &env, "--why"]).ok().says(&["engine.sock"]);
    platform.ssh(&user, &["logs", &env, "-n", "5"]).ok();
    assert_eq!(platform.get(&dev_host(&app), "/").0, 200);
    run(Command::new("docker").args(["kill", &before[0]])).ok();
    proxy(&socket);
    eventually("nothing is missing", DEADLINE, || {
        run(&mut platform.berth(&["status"])).stdout.contains("nothing is missing").then_some(())
    });
    eventually("two replicas again", DEADLINE, || {
        let now = containers(&app);
        (now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1])).then_some(())
    });
    repository.write("server.js", SERVER.replace("alive", "new"));
    repository.commit("Second");
    repository.push().ok();
    eventually("the new release", DEADLINE, || (platform.get(&dev_host(&app), "/").1 == "new").then_some(()));
    platform.kill_serve();
    platform.start_serve();
}
