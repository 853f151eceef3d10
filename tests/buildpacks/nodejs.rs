//! The nodejs buildpack: versions, package managers, scripts, caches, and what it tells Berth.

use std::fs;
use std::time::Duration;

use crate::harness::{Case, in_build_stack, shared_cache};

/// A fixture, or an empty source, with the cache that the cases share.
fn app(fixture: &str) -> Case {
    Case::fixture(fixture).cache(&shared_cache("nodejs"))
}

fn source(manifest: &str) -> Case {
    Case::empty().file("package.json", manifest).cache(&shared_cache("nodejs"))
}

#[test]
fn express_runs_without_middlemen() {
    let build = app("express").build().succeeded();
    assert_eq!(build.meta("buildpacks"), "nodejs\tNode.js\n");
    assert_eq!(build.process("web").as_deref(), Some("node server.js"));
    assert_eq!(build.meta("layers"), "node\t.berth/node\nnode_modules\tnode_modules\n");
    let running = build.start();
    let answer = running.get("/").body;
    for part in ["\"node\":\"v22.", "\"environment\":\"production\"", "\"version\":\"1.2.3\"", "\"workers\":\"1\""] {
        assert!(answer.contains(part), "{part} is not in {answer}");
    }
    let processes = running.processes();
    assert_eq!(processes.len(), 2, "init and node, nothing else: {processes:?}");
    assert!(processes[1].starts_with("node server.js"), "{processes:?}");
    let (status, took) = running.terminate();
    assert_eq!(status, 0, "SIGTERM reaches the app, which ends by itself");
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    let (_, tools) = build.command("npm --version && ls /app/node_modules/picocolors /app/.berth/node/include");
    assert!(tools.contains("10."), "npm is there for one-off commands: {tools}");
    assert_eq!(tools.matches("No such file").count(), 2, "no development dependencies, no headers: {tools}");
}

#[test]
fn a_code_change_touches_no_input_and_reuses_dependencies() {
    let first = app("express").build().succeeded();
    let inputs: Vec<&str> = first.meta("inputs").lines().collect();
    for input in
        ["package.json", "package-lock.json", ".nvmrc", ".node-version", ".npmrc", "yarn.lock", "pnpm-lock.yaml"]
    {
        assert!(inputs.contains(&input), "{input} is not in {inputs:?}");
    }
    assert!(!inputs.iter().any(|input| ["**", "*", "server.js"].contains(input)), "{inputs:?}");
    app("express")
        .file("server.js", "// changed")
        .build()
        .succeeded()
        .says(&["Dependencies unchanged"])
        .does_not_say(&["npm ci", "Fetching"]);
}

#[test]
fn a_torn_cache_does_no_harm() {
    let cache = crate::harness::Volume::new("torn");
    Case::fixture("express").cache(&cache).build().succeeded();
    let tear = "for f in /cache/nodejs/dependencies/* /cache/nodejs/versions/*; do head -c 100 $f > /tmp/t; cat /tmp/t > $f; done;
        for d in /cache/nodejs/tools/*; do rm $d/package.json; done";
    crate::harness::in_volume(&cache, tear);
    let build = Case::fixture("express").cache(&cache).build().succeeded().says(&["npm ci"]);
    assert!(build.start().get("/").body.contains("v22."));
}

#[test]
fn typescript_is_built_with_development_dependencies_then_pruned() {
    let build = app("typescript").build().succeeded().says(&["Running heroku-prebuild", "Running build", "Pruning"]);
    assert!(build.output.contains("Node 22."), ">=20 <23 is 22:\n{}", build.output);
    assert_eq!(build.meta("inputs"), "**\n");
    assert_eq!(build.start().get("/").body, "{\"minute\":60000}");
    let (_, listing) = build.command("ls node_modules; cat prebuild.txt");
    assert_eq!(listing, "ms\nprebuild-ran");
}

#[test]
fn heroku_postbuild_replaces_build() {
    let manifest =
        r#"{"scripts": {"build": "echo BUILT-A", "heroku-postbuild": "bin/postbuild", "start": "node x.js"}}"#;
    source(manifest)
        .file("bin/postbuild", "#!/bin/sh\necho BUILT-B\n")
        .executable("bin/postbuild")
        .build()
        .succeeded()
        .says(&["BUILT-B"])
        .does_not_say(&["BUILT-A"]);
}

#[test]
fn a_failing_build_script_fails_the_build() {
    let manifest = r#"{"scripts": {"build": "echo out-of-luck && exit 3", "start": "node x.js"}}"#;
    source(manifest).build().refused(&["out-of-luck", "The script \"build\" of package.json failed"]);
}

#[test]
fn build_scripts_see_the_variables_and_binaries() {
    let manifest = r#"{"scripts": {"build": "which node; echo is:$GREETING:$NODE_ENV", "start": "node x.js"}}"#;
    source(manifest)
        .variable("GREETING", "hello there")
        .variable("PATH", "/nowhere")
        .build()
        .succeeded()
        .says(&["/app/.berth/node/bin/node", "is:hello there:production"]);
}

#[test]
fn native_modules_compile_against_the_headers_of_their_node() {
    let build = app("native").build().succeeded();
    assert_eq!(build.process("web").as_deref(), Some("npm start"), "there is a prestart script");
    let running = build.start();
    let answer = running.get("/").body;
    assert!(answer.starts_with("compiled for 20, running on v20."), "{answer}");
    assert!(running.logs().contains("prestart-ran"));
}

#[test]
fn yarn_classic_installs_from_its_lock() {
    let build = app("yarn-classic").build().succeeded().says(&["yarn 1.22."]);
    assert_eq!(build.start().get("/").body, "a minute is 60000");
    assert_eq!(build.command("ls node_modules").1, "ms");
}

#[test]
fn without_a_lock_file_dependencies_are_installed_with_a_warning() {
    let build =
        app("yarn-classic").without("yarn.lock").build().succeeded().says(&["There is no lock file", "npm install"]);
    assert_eq!(build.command("ls node_modules").1, "ms");
}

#[test]
fn layers_are_the_same_whenever_and_wherever_they_are_built() {
    let sum = "find .berth node_modules -type f -o -type l | LC_ALL=C sort | while read -r f; do echo \"$f $(readlink $f)\"; cat $f; done | sha256sum";
    let fresh =
        || app("pnpm-workspace").variable("NODE_MODULES_CACHE", "false").build().succeeded().says(&["pnpm install"]);
    let (one, other) = (fresh(), fresh());
    assert_eq!(one.command(sum), other.command(sum));
}

#[test]
fn yarn_berry_with_node_modules_is_pruned() {
    let build = app("yarn-berry").build().succeeded().says(&["yarn 4.9.2", "Pruning"]);
    assert_eq!(build.start().get("/").body, "a minute is 60000");
    assert_eq!(build.command("ls node_modules").1, "ms");
}

#[test]
fn yarn_plug_and_play_runs_from_the_slug() {
    let build = app("yarn-pnp").build().succeeded().says(&["yarn 3.8.7"]);
    assert_eq!(build.meta("layers"), "node\t.berth/node\nnode_modules\t.yarn\n");
    assert_eq!(build.start().get("/").body, "a minute is 60000");
    assert_eq!(build.command("ls -d node_modules").0, 2, "Plug'n'Play makes no node_modules");
    assert_eq!(build.command("npm --version").0, 0);
}

#[test]
fn pnpm_workspaces_are_linked_and_pruned() {
    let build = app("pnpm-workspace").build().succeeded().says(&["pnpm 9.", "lockfileVersion 9.0"]);
    assert_eq!(build.start().get("/").body, "a minute is 60000");
    let (_, listing) = build.command("ls node_modules node_modules/.pnpm packages/greet/node_modules");
    for development in ["picocolors", "is-number"] {
        assert!(!listing.contains(development), "{listing}");
    }
}

#[test]
fn package_manager_is_exactly_the_pinned_one() {
    let manifest = r#"{"packageManager": "npm@10.5.0", "scripts": {"build": "npm --version", "start": "node x.js"}}"#;
    source(manifest).build().succeeded().says(&["npm 10.5.0 (packageManager in package.json)", "\n       10.5.0\n"]);
    // What corepack writes: a hash of the archive, and for yarn berry of the program in it.
    for pin in [
        "yarn@1.22.22+sha512.a6b2f7906b721bba3d67d4aff083df04dad64c399707841b7acf00f6b133b7ac24255f2652fa22ae3534329dc6180534e98d17432037ff6fd140556e2bb3137e",
        "yarn@4.9.2+sha512.1fc009bc09d13cfd0e19efa44cbfc2b9cf6ca61482725eb35bbc5e257e093ebf4130db6dfe15d604ff4b79efd8e1e8e99b25fa7d0a6197c9f9826358d4d65c3c",
    ] {
        Case::empty()
            .file("package.json", &format!(r#"{{"packageManager": "{pin}", "scripts": {{"start": "node x.js"}}}}"#))
            .build()
            .succeeded();
    }
    let wrong = r#"{"packageManager": "npm@10.5.0+sha1.00", "scripts": {"start": "node x.js"}}"#;
    Case::empty().file("package.json", wrong).build().refused(&["npm@10.5.0 is not what packageManager"]);
}

#[test]
fn a_lock_that_does_not_match_fails() {
    let manifest = r#"{"name": "express-app", "scripts": {"start": "node server.js"}, "dependencies": {"express": "^4.21.0", "is-number": "7.0.0"}}"#;
    app("express")
        .file("package.json", manifest)
        .build()
        .refused(&["exactly as package-lock.json says", "commit package-lock.json"]);
}

#[test]
fn without_a_start_script_or_anything_to_serve_there_is_no_web_process() {
    let build =
        source(r#"{"name": "nothing"}"#).build().succeeded().says(&["There is no start script in package.json"]);
    assert_eq!(build.process("web"), None);
    let build = source("{}").file("server.js", "").build().succeeded();
    assert_eq!(build.process("web").as_deref(), Some("node server.js"));
}

#[test]
fn a_built_folder_without_a_start_script_is_served_as_a_static_site() {
    let manifest = r#"{"scripts": {"build": "mkdir -p dist && echo '<h1>built</h1>' > dist/index.html"}}"#;
    let build = source(manifest).build().succeeded().says(&["Serving the folder dist"]);
    let answer = build.start().get("/");
    assert_eq!((answer.status, answer.body.as_str()), (200, "<h1>built</h1>\n"));
    assert!(answer.head.contains("text/html"), "{}", answer.head);
    assert_eq!(build.start().get("/package.json").status, 404);
}

#[test]
fn no_buildpack_fits() {
    let build = Case::empty().file("main.rs", "").file("Cargo.toml", "").build();
    assert_eq!(build.status, 10);
    build.says(&["No buildpack fits", "nodejs: package.json", "Cargo.toml main.rs"]);
    Case::empty().file("x", "").buildpacks(&["ruby"]).build().refused(&["no buildpack named \"ruby\"", "nodejs"]);
}

/// Files of an app (path, content), and what the plan or the refusal says of them.
type Plan = (&'static [(&'static str, &'static str)], &'static [&'static str]);

/// Decided without a build.
const PLANS: &[Plan] = &[
    (
        &[("package.json", r#"{"engines": {"node": "20.18.0"}}"#)],
        &["PLAN_NODE_VERSION='20.18.0'", "PLAN_NPM_VERSION='10.8.2'"],
    ),
    (&[("package.json", r#"{"engines": {"node": ">=20 <23"}}"#)], &["PLAN_NODE_VERSION='22."]),
    (&[("package.json", r#"{"engines": {"node": ">=18"}}"#)], &["PLAN_NODE_VERSION='24."]),
    (&[("package.json", r#"{"engines": {"node": "23"}}"#)], &["PLAN_NODE_VERSION='23."]),
    (&[("package.json", r#"{"engines": {"node": "18 || 20.x"}}"#)], &["PLAN_NODE_VERSION='20."]),
    (&[("package.json", "{}")], &["PLAN_NODE_VERSION='24."]),
    (&[("package.json", "{}"), (".nvmrc", "lts/*\n")], &["PLAN_NODE_VERSION='24."]),
    (&[("package.json", "{}"), (".nvmrc", "lts/Jod\n")], &["PLAN_NODE_VERSION='22."]),
    (&[("package.json", "{}"), (".nvmrc", "lts/-2\n")], &["PLAN_NODE_VERSION='20."]),
    (&[("package.json", "{}"), (".nvmrc", "# ours\r\nv22.11.0\r\n")], &["PLAN_NODE_VERSION='22.11.0'"]),
    (&[("package.json", "{}"), (".node-version", "22.11.0"), (".nvmrc", "20")], &["PLAN_NODE_VERSION='22.11.0'"]),
    (&[("package.json", r#"{"engines": {"node": "20"}}"#), (".nvmrc", "22")], &["PLAN_NODE_VERSION='20."]),
    (
        &[("package.json", r#"{"engines": {"node": "stable"}}"#)],
        &["\"stable\" (engines.node in package.json) is not a version", "Nearby: 24."],
    ),
    (&[("package.json", r#"{"engines": {"node": "22.99.0"}}"#)], &["\"22.99.0\"", "does not exist", "Nearby: 22."]),
    (&[("package.json", "{}"), (".nvmrc", "99")], &["\"99\" (.nvmrc)", "Nearby:"]),
    (&[("package.json", "{}"), (".nvmrc", "lts/unknown")], &["\"lts/unknown\""]),
    (&[("package.json", "{}"), (".nvmrc", "$(touch /tmp/x)'")], &["is not a version"]),
    (&[("package.json", "{} {")], &["package.json cannot be read"]),
    (&[("package.json", "[]")], &["it is not a JSON object"]),
    (
        &[("package.json", "{}"), ("yarn.lock", ""), ("package-lock.json", "{}")],
        &["several package managers: package-lock.json, yarn.lock"],
    ),
    (&[("package.json", "{}"), ("bun.lock", "{}")], &["bun.lock belongs to bun"]),
    (
        &[("package.json", r#"{"packageManager": "pnpm@9.1.0"}"#), ("yarn.lock", "")],
        &["asks for pnpm, but the lock file is yarn.lock"],
    ),
    (&[("package.json", r#"{"packageManager": "pnpm@9"}"#)], &["an exact version"]),
    (&[("package.json", r#"{"packageManager": "pnpm@9.15.9+md5.00"}"#)], &["\"md5.00\", is none"]),
    (
        &[("package.json", r#"{"packageManager": "pnpm@9.99.99"}"#)],
        &["\"9.99.99\" (packageManager in package.json) does not exist", "Nearby: 9.15.9"],
    ),
    (
        &[("package.json", r#"{"packageManager": "yarn@4.1.0"}"#), ("yarn.lock", "# yarn lockfile v1\n")],
        &["asks for yarn 4.1.0, but yarn.lock was written by yarn 1"],
    ),
    (&[("package.json", "{}"), ("pnpm-lock.yaml", "lockfileVersion: '6.0'\n")], &["PLAN_MANAGER_VERSION='8."]),
    (&[("package.json", "{}"), ("pnpm-lock.yaml", "lockfileVersion: 5.4\n")], &["PLAN_MANAGER_VERSION='7."]),
    (
        &[
            ("package.json", "{}"),
            ("pnpm-lock.yaml", "lockfileVersion: '9.0'\n"),
            ("pnpm-workspace.yaml", "onlyBuiltDependencies: [x]\n"),
        ],
        &["PLAN_MANAGER_VERSION='10."],
    ),
    (
        &[("package.json", "{}"), ("yarn.lock", "__metadata:\n  version: 6\n")],
        &["PLAN_MANAGER_VERSION='3.", "PLAN_PNP='1'"],
    ),
    (
        &[
            ("package.json", "{}"),
            ("yarn.lock", "__metadata:\n  version: 8\n"),
            (".yarnrc.yml", "nodeLinker: node-modules\n"),
        ],
        &["PLAN_MANAGER_VERSION='4.", "PLAN_PNP=''"],
    ),
    (&[("package.json", r#"{"engines": {"npm": "9.x"}}"#)], &["PLAN_MANAGER_VERSION='9.9."]),
    (
        &[("package.json", r#"{"engines": {"npm": "88.x"}}"#)],
        &["npm version \"88.x\" (engines.npm in package.json) does not exist"],
    ),
    (
        &[("package.json", r#"{"dependencies": {"x": "file:./x"}, "scripts": {"start": "node ."}}"#)],
        &["PLAN_INPUTS='**'"],
    ),
    (&[("package.json", r#"{"scripts": {"postinstall": "x", "start": "node ."}}"#)], &["PLAN_INPUTS='**'"]),
];

#[test]
fn versions_and_managers_are_chosen_or_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    for (number, (files, _)) in PLANS.iter().enumerate() {
        let app = directory.path().join(number.to_string());
        fs::create_dir(&app).unwrap();
        for (name, content) in *files {
            fs::write(app.join(name), content).unwrap();
        }
    }
    let script = format!(
        "for n in $(seq 0 {}); do echo \"=== $n\"; /opt/node/bin/node /buildpacks/nodejs/lib/plan.js /work/$n /tmp/cache /tmp/plan 2>&1 && cat /tmp/plan; done",
        PLANS.len() - 1
    );
    let output = in_build_stack(directory.path(), &script);
    let answers: Vec<&str> = output.split("=== ").skip(1).collect();
    assert_eq!(answers.len(), PLANS.len(), "{output}");
    for ((files, expected), answer) in PLANS.iter().zip(answers) {
        for part in *expected {
            assert!(answer.contains(part), "{files:?}: {part} is not in\n{answer}");
        }
    }
}
