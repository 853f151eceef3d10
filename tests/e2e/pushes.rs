//! What a push is refused for, and that nothing is half done then; push options; queueing.

use std::{fs, io::Read, process::Stdio, time::Duration};

use crate::{
    Case,
    platform::{DEADLINE, Platform, User, eventually, run},
    repository::Repository,
};

pub const CASES: &[Case] = &[
    ("manifest_mistakes_carry_line_and_column", manifest_mistakes_carry_line_and_column),
    ("other_branches_are_refused_with_the_command_to_type", other_branches_are_refused_with_the_command_to_type),
    ("the_deploy_branch_cannot_be_deleted", the_deploy_branch_cannot_be_deleted),
    ("tags_are_taken_and_not_deployed", tags_are_taken_and_not_deployed),
    ("a_force_push_is_taken", a_force_push_is_taken),
    ("submodules_and_lfs_pointers_are_refused", submodules_and_lfs_pointers_are_refused),
    ("a_symlinked_manifest_is_refused", a_symlinked_manifest_is_refused),
    ("a_shallow_push_is_told_so", a_shallow_push_is_told_so),
    ("an_unknown_remote_looks_like_one_of_others", an_unknown_remote_looks_like_one_of_others),
    ("a_push_that_is_too_large_is_refused", a_push_that_is_too_large_is_refused),
    ("small_pushes_of_huge_trees_and_files_are_refused", small_pushes_of_huge_trees_and_files_are_refused),
    ("the_manifest_must_name_this_app_and_its_token", the_manifest_must_name_this_app_and_its_token),
    ("nothing_fits_is_explained", nothing_fits_is_explained),
    (
        "a_failed_build_rejects_the_push_and_the_old_release_serves",
        a_failed_build_rejects_the_push_and_the_old_release_serves,
    ),
    ("a_failed_release_phase_rejects_the_push", a_failed_release_phase_rejects_the_push),
    ("an_unhealthy_release_rejects_the_push", an_unhealthy_release_rejects_the_push),
    ("config_that_breaks_the_app_is_taken_back_and_says_so", config_that_breaks_the_app_is_taken_back_and_says_so),
    ("listening_on_the_wrong_place_is_told", listening_on_the_wrong_place_is_told),
    ("a_second_push_while_one_builds", a_second_push_while_one_builds),
    ("a_detached_push_goes_on_alone", a_detached_push_goes_on_alone),
    ("a_dropped_connection_loses_nothing", a_dropped_connection_loses_nothing),
    ("clone_and_fetch", clone_and_fetch),
];

/// A repository with a site of one page, not pushed.
fn site(platform: &Platform, user: &User, app: &str) -> Repository {
    let repository = Repository::new(platform, user, app);
    repository.write("index.html", "hello");
    repository.commit("First");
    repository
}

fn dev_host(app: &str) -> String {
    let (tenant, app) = app.split_once('/').unwrap();
    format!("dev.{app}.{tenant}.localhost")
}

fn manifest_mistakes_carry_line_and_column(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    repository.write("berth.yaml", "processes:\n  web:\n    comand: node server.js\n");
    repository.commit("A typo");
    repository.push().refused(&["berth.yaml:3:5", "comand", "did you mean", "command"]);
    assert_eq!(repository.remote_commit("paas-dev", "main"), None, "the branch moved");
    let builds = platform.ssh(&user, &["builds", "list", &format!("{app}/dev"), "--json"]).ok().json();
    assert_eq!(builds.as_array().unwrap().len(), 0, "something was queued");
}

fn other_branches_are_refused_with_the_command_to_type(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    repository.git(&["push", "paas-dev", "HEAD:feature"]).refused(&["git push paas-dev HEAD:main"]);
    repository.push().ok();
    repository.commit("Second");
    repository.git(&["push", "paas-dev", "HEAD:feature"]).refused(&["git push paas-dev HEAD:main"]);
    repository.git(&["push", "paas-dev", "HEAD:master"]).refused(&["main"]);
}

fn the_deploy_branch_cannot_be_deleted(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    repository.push().ok();
    repository.git(&["push", "paas-dev", ":main"]).refused(&["main"]);
    assert!(repository.remote_commit("paas-dev", "main").is_some());
}

fn tags_are_taken_and_not_deployed(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    repository.git(&["tag", "-a", "v1.0", "-m", "one"]).ok();
    repository.git(&["push", "paas-dev", "v1.0"]).ok();
    assert!(repository.git(&["ls-remote", "paas-dev", "refs/tags/v1.0"]).ok().stdout.contains("v1.0"));
    let builds = platform.ssh(&user, &["builds", "list", &format!("{app}/dev"), "--json"]).ok().json();
    assert_eq!(builds.as_array().unwrap().len(), 0);
    // With the branch in the same push, the branch is deployed.
    repository.commit("Second");
    repository.git(&["tag", "v1.1"]).ok();
    repository.git(&["push", "paas-dev", "main", "v1.1"]).ok();
    assert_eq!(platform.get(&dev_host(&app), "/"), (200, "hello".to_owned()));
}

fn a_force_push_is_taken(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    repository.push().ok();
    repository.write("index.html", "rewritten");
    repository.git(&["add", "-A"]).ok();
    repository.git(&["commit", "-q", "--amend", "-m", "Rewritten"]).ok();
    repository.git(&["push", "--force", "paas-dev", "main"]).ok();
    assert_eq!(platform.get(&dev_host(&app), "/").1, "rewritten");
}

fn submodules_and_lfs_pointers_are_refused(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    let head = repository.git(&["rev-parse", "HEAD"]).ok().stdout;
    let entry = format!("160000,{},lib", head.trim());
    repository.git(&["update-index", "--add", "--cacheinfo", &entry]).ok();
    repository.git(&["commit", "-q", "-m", "A submodule"]).ok();
    repository.push().refused(&["submodule", "lib"]);
    repository.git(&["reset", "-q", "--hard", "HEAD~1"]).ok();
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n", "4d".repeat(32));
    repository.write("logo.png", pointer);
    repository.commit("A pointer");
    repository.push().refused(&["LFS", "logo.png"]);
    assert_eq!(repository.remote_commit("paas-dev", "main"), None);
}

fn a_symlinked_manifest_is_refused(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    std::os::unix::fs::symlink("/etc/passwd", repository.path.join("berth.yaml")).unwrap();
    repository.commit("A link");
    repository.push().refused(&["berth.yaml", "symbolic link"]);
}

fn a_shallow_push_is_told_so(platform: &Platform) {
    let (app, user) = platform.new_app();
    let origin = site(platform, &user, &app);
    origin.commit("Second");
    let shallow = Repository::new(platform, &user, &app);
    let url = format!("file://{}", origin.path.display());
    shallow.git(&["fetch", "-q", "--depth=1", &url, "main"]).ok();
    shallow.git(&["reset", "-q", "--hard", "FETCH_HEAD"]).ok();
    shallow.push().refused(&["shallow", "git fetch --unshallow"]);
}

fn an_unknown_remote_looks_like_one_of_others(platform: &Platform) {
    let (app, user) = platform.new_app();
    let (theirs, _) = platform.new_app();
    let repository = site(platform, &user, &app);
    let answer = |env: &str| {
        let url = format!("ssh://berth/{env}");
        let pushed = repository.git(&["push", &url, "main"]).refused(&[]);
        let fetched = repository.git(&["ls-remote", &url]).refused(&[]);
        format!("{}{}", pushed.all(), fetched.all())
            .replace(env, "ENV")
            .replace(env.split('/').next().unwrap(), "TENANT")
    };
    assert_eq!(answer(&format!("{theirs}/dev")), answer("nobody/app/dev"));
    let stranger = platform.user_with_key("stranger");
    let refused = platform.ssh(&stranger, &["whoami"]);
    assert_eq!(refused.status, 255, "an unknown key got in: {}", refused.all());
}

fn a_push_that_is_too_large_is_refused(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    let mut noise = vec![0; 24 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    repository.write("noise.bin", noise);
    repository.commit("Too much");
    repository.push().refused(&["20"]);
    assert_eq!(repository.remote_commit("paas-dev", "main"), None);
}

fn small_pushes_of_huge_trees_and_files_are_refused(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    let first = repository.git(&["rev-parse", "HEAD"]).ok().stdout.trim().to_owned();
    // Ten to the tenth files, in ten trees.
    let mut tree = repository.git(&["rev-parse", "HEAD^{tree}"]).ok().stdout.trim().to_owned();
    let entries = platform.scratch("bomb").join("entries");
    for _ in 0..10 {
        let text: String = (0..10).map(|name| format!("040000 tree {tree}\t{name}\n")).collect();
        fs::write(&entries, text).unwrap();
        let mut made = repository.git_command(&["mktree"]);
        let made = made.stdin(fs::File::open(&entries).unwrap()).output().unwrap();
        tree = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    }
    let bomb = repository.git(&["commit-tree", &tree, "-m", "Bomb"]).ok().stdout.trim().to_owned();
    let pushed = repository.git(&["push", "paas-dev", &format!("{bomb}:refs/heads/main")]);
    pushed.refused(&["more than 200000 files", ".gitignore", "Nothing was changed"]);

    let zeros = fs::File::create(repository.path.join("zeros.bin")).unwrap();
    zeros.set_len(600 << 20).unwrap();
    repository.commit("Zeros");
    repository.push().refused(&["the source has 629.1 MB", "zeros.bin", ".slugignore", "Nothing was changed"]);
    repository.git(&["reset", "-q", "--hard", &first]).ok();
    repository.push().ok();
}

fn the_manifest_must_name_this_app_and_its_token(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    repository.write("berth.yaml", "app: somebody/else\n");
    repository.commit("Another app");
    repository.push().refused(&["somebody/else", &app]);

    let (tenant, _) = app.split_once('/').unwrap();
    let created = platform.ssh(&user, &["apps", "create", &format!("{tenant}/second"), "--json"]).ok().json();
    let manifest = created["manifest"].as_str().unwrap();
    let token =
        manifest.lines().find_map(|line| line.strip_prefix("auth: ")).unwrap().split_whitespace().next().unwrap();
    repository.write("berth.yaml", format!("app: {app}\nauth: {token}\n"));
    repository.commit("The token of another app");
    repository.push().refused(&["auth"]);
    repository.git(&["remote", "set-url", "paas-dev", &format!("ssh://berth/{tenant}/second/dev")]).ok();
    repository.write("berth.yaml", manifest);
    repository.commit("As printed");
    repository.push().ok();
}

fn nothing_fits_is_explained(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    repository.write("main.cobol", "DISPLAY 'hello'.");
    repository.commit("First");
    repository.push().refused(&["package.json", "requirements.txt", "index.html", "Procfile"]);
}

/// A node app without dependencies.
fn node_app(platform: &Platform, user: &User, app: &str, server: &str, manifest: &str) -> Repository {
    let repository = Repository::new(platform, user, app);
    repository.write(
        "package.json",
        r#"{"name": "case", "version": "1.0.0", "engines": {"node": "22.x"}, "scripts": {"start": "node server.js"}}"#,
    );
    repository.write("server.js", server);
    if !manifest.is_empty() {
        repository.write("berth.yaml", manifest);
    }
    repository.commit("First");
    repository
}

const SERVER: &str = "require('http').createServer((q, s) => s.end('version one')).listen(process.env.PORT);\n";

fn a_failed_build_rejects_the_push_and_the_old_release_serves(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = node_app(platform, &user, &app, SERVER, "");
    repository.push().ok();
    let before = repository.remote_commit("paas-dev", "main");
    repository.edit(
        "package.json",
        r#""scripts": {"#,
        r#""scripts": {"build": "echo building; echo it broke >&2; exit 3", "#,
    );
    repository.commit("Break the build");
    repository.push().refused(&["it broke"]);
    assert_eq!(repository.remote_commit("paas-dev", "main"), before, "the branch moved");
    assert_eq!(platform.get(&dev_host(&app), "/").1, "version one");
    let info = platform.ssh(&user, &["builds", "info", &format!("{app}/dev"), "--json"]).ok().json();
    assert_eq!(info["state"], "failed");
    platform.ssh(&user, &["builds", "logs", &format!("{app}/dev")]).ok().says(&["it broke"]);
}

fn a_failed_release_phase_rejects_the_push(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = node_app(platform, &user, &app, SERVER, "release: echo migrating\n");
    repository.push().ok().says(&["migrating"]);
    repository.write("berth.yaml", "release: echo no database >&2; exit 1\n");
    repository.commit("Break the migration");
    repository
        .push()
        .refused(&["no database", "build 2 succeeded, but the release phase of its release v2 failed; v1"]);
    assert_eq!(platform.get(&dev_host(&app), "/").1, "version one");
}

fn an_unhealthy_release_rejects_the_push(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = node_app(platform, &user, &app, SERVER, "upgrade: {progress_deadline: 90s}\n");
    repository.push().ok();
    repository.write("server.js", CRASH);
    repository.commit("Crash");
    let said = repository.push().refused(&[
        "cannot find the database",
        "build 2 succeeded, but its release v2 did not become ready; v1, the one before, goes on serving",
        &format!("deployments info {app}/dev v2"),
    ]);
    assert!(!said.all().contains("[31m") && !said.all().contains("u{1b}"), "colours are left: {}", said.all());
    assert_eq!(platform.get(&dev_host(&app), "/").1, "version one");
    // Both streams, in their order, and for good.
    let info = platform.ssh(&user, &["deployments", "info", &format!("{app}/dev"), "v2", "--json"]).ok().json();
    let lines: Vec<&str> =
        info["last_log_lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    // Of one stream, that is: the engine reads each by itself, and stamps a line when it has read it.
    for wanted in [["out 0", "out 2", "out 4", ""], ["err 1", "err 3", "err 5", "cannot find the database"]] {
        let stream: Vec<&&str> = lines[lines.len() - 7..].iter().filter(|line| wanted.contains(line)).collect();
        let wanted: Vec<&&str> = wanted.iter().filter(|line| !line.is_empty()).collect();
        assert_eq!(stream, wanted, "{lines:?}");
    }
    let current = platform.ssh(&user, &["releases", "list", &format!("{app}/dev"), "--json"]).ok().json();
    let current = current.as_array().unwrap().iter().find(|release| release["state"] == "current").unwrap().clone();
    assert_eq!(current["version"], 1);
}

/// Writes to both streams in turn, and ends.
const CRASH: &str = "const fs = require('fs'); const pause = new Int32Array(new SharedArrayBuffer(4));
for (let n = 0; n < 6; n++) { fs.writeSync(1 + n % 2, `\\u001b[31m${n % 2 ? 'err' : 'out'} ${n}\\u001b[0m\\n`); Atomics.wait(pause, 0, 0, 5); }
fs.writeSync(2, 'cannot find the database\\n'); process.exit(7);\n";

fn config_that_breaks_the_app_is_taken_back_and_says_so(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = node_app(platform, &user, &app, &format!("if (process.env.BREAK) process.exit(9);\n{SERVER}"), "");
    repository.push().ok();
    let env = format!("{app}/dev");
    platform.ssh(&user, &["config", "set", &env, "BREAK=1"]).refused(&[
        "exited with status 9",
        "v1, the one before, goes on serving",
        "The change of BREAK was taken back with its release",
        &format!("deployments info {env} v2"),
    ]);
    platform.ssh(&user, &["config", "get", &env, "BREAK"]).refused(&["not set"]);
    platform.ssh(&user, &["config", "set", &env, "OTHER=1"]).ok();
    assert_eq!(platform.get(&dev_host(&app), "/").1, "version one");
}

fn listening_on_the_wrong_place_is_told(platform: &Platform) {
    let (app, user) = platform.new_app();
    let manifest = "upgrade: {progress_deadline: 12s}\n";
    let loopback = "require('http').createServer((q, s) => s.end('hi')).listen(process.env.PORT, '127.0.0.1');\n";
    let repository = node_app(platform, &user, &app, loopback, manifest);
    repository.push().refused(&["127.0.0.1", "0.0.0.0"]);
    repository.write("server.js", "require('http').createServer((q, s) => s.end('hi')).listen(4567);\n");
    repository.commit("Another port");
    repository.push().refused(&["4567", "PORT"]);
    repository.write("berth.yaml", "processes: {web: {command: node server.js, port: 4567}}\n");
    repository.commit("Say which");
    repository.push().ok();
    assert_eq!(platform.get(&dev_host(&app), "/").1, "hi");
}

/// An app whose build waits for minutes.
fn slow_app(platform: &Platform, user: &User, app: &str) -> Repository {
    let repository = node_app(platform, user, app, SERVER, "");
    repository.edit("package.json", r#""scripts": {"#, r#""scripts": {"build": "sleep 120", "#);
    repository.commit("Build slowly");
    repository
}

fn wait_for_build(platform: &Platform, user: &User, env: &str, state: &str) -> serde_json::Value {
    eventually(&format!("a build of {env} is {state}"), Duration::from_secs(120), || {
        let info = platform.ssh(user, &["builds", "info", env, "--json"]);
        let info = (info.status == 0).then(|| info.json())?;
        (info["state"] == state).then_some(info)
    })
}

fn a_second_push_while_one_builds(platform: &Platform) {
    let (app, user) = platform.new_app();
    let env = format!("{app}/dev");
    let repository = slow_app(platform, &user, &app);
    let mut first = repository
        .git_command(&["push", "paas-dev", "main"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_build(platform, &user, &env, "building");
    repository.write(
        "package.json",
        r#"{"name": "case", "version": "1.0.0", "engines": {"node": "22.x"}, "scripts": {"start": "node server.js"}}"#,
    );
    repository.commit("Build quickly");
    repository.push().refused(&["Build 1", &user.name, "supersede"]);
    repository.git(&["push", "-o", "supersede", "paas-dev", "main"]).ok();
    assert!(!first.wait().unwrap().success(), "the superseded push was accepted");
    assert_eq!(platform.get(&dev_host(&app), "/").1, "version one");
    let builds = platform.ssh(&user, &["builds", "list", &env, "--json"]).ok().json();
    assert_eq!(builds[1]["state"], "cancelled");
    repository.commit("Again");
    repository.git(&["push", "-o", "no-such", "paas-dev", "main"]).refused(&["no-such", "detach", "no-cache"]);
}

fn a_detached_push_goes_on_alone(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = node_app(platform, &user, &app, SERVER, "");
    repository.git(&["push", "-o", "detach", "paas-dev", "main"]).ok().says(&["builds logs"]);
    wait_for_build(platform, &user, &format!("{app}/dev"), "succeeded");
    assert_eq!(platform.get(&dev_host(&app), "/").1, "version one");
}

fn a_dropped_connection_loses_nothing(platform: &Platform) {
    let (app, user) = platform.new_app();
    let env = format!("{app}/dev");
    let repository = node_app(platform, &user, &app, SERVER, "");
    repository.edit("package.json", r#""scripts": {"#, r#""scripts": {"build": "sleep 5", "#);
    let commit = repository.commit("Take five seconds");
    // In a process group of its own, so that git and its ssh can be ended together.
    let mut command = repository.git_command(&["push", "paas-dev", "main"]);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut push = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_build(platform, &user, &env, "building");
    let group = nix::unistd::Pid::from_raw(push.id().try_into().unwrap());
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
    push.wait().unwrap();
    platform.ssh(&user, &["builds", "logs", &env, "-f"]).ok();
    wait_for_build(platform, &user, &env, "succeeded");
    eventually("the branch moves", DEADLINE, || {
        (repository.remote_commit("paas-dev", "main") == Some(commit.clone())).then_some(())
    });
    assert_eq!(platform.get(&dev_host(&app), "/").1, "version one");
}

fn clone_and_fetch(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = site(platform, &user, &app);
    repository.push().ok();
    for version in ["0", "2"] {
        let clone = platform.scratch(&platform.unique("clone"));
        let protocol = format!("protocol.version={version}");
        let url = format!("ssh://berth/{app}/dev");
        let target = clone.join("it");
        let mut command = repository.git_command(&["-c", &protocol, "clone", "-q", &url, target.to_str().unwrap()]);
        run(&mut command).ok();
        assert_eq!(fs::read_to_string(target.join("index.html")).unwrap(), "hello");
        let refs = run(repository.git_command(&["-c", &protocol, "ls-remote", &url]).current_dir(&clone)).ok().stdout;
        assert!(!refs.contains("refs/berth"), "hidden refs are shown: {refs}");
    }
}
