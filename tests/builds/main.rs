//! Builds with everything real but the deployer: git, the engine, the stacks, the buildpacks, a registry, the store on disk. In place of
//! a deployment, the image is run once, and what it prints is looked at.

mod platform;

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use berth::domain::{Build, BuildState};
use platform::{Files, Platform, fixture};

/// What the image is asked for instead of being deployed: does the dependency load, what is the source, who runs it.
const QUESTION: &str = "node -e 'require(\"express\"); console.log(require(\"fs\").readFileSync(\"server.js\", \"utf8\").length)' && id -u && pwd";

async fn succeeded(platform: &Platform, build: &Build) {
    assert_eq!(build.state, BuildState::Succeeded, "{}", platform.log(build).await);
}

fn stage(build: &Build, name: &str) -> Option<u64> {
    build.timings.iter().find(|(stage, _)| stage == name).map(|(_, millis)| *millis)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn express_from_first_push_to_code_only_push() {
    let platform = Platform::start(QUESTION).await;
    let mut files = fixture("express");
    let first = platform.push("dev", &files).await;
    succeeded(&platform, &first).await;
    let length = files["server.js"].len();
    assert_eq!(platform.answer(&first), format!("{length}\n10001\n/app\n"), "{}", platform.log(&first).await);

    for round in 0..3 {
        files.insert("server.js".to_owned(), [files["server.js"].as_slice(), b"// changed\n"].concat());
        let second = platform.push("dev", &files).await;
        succeeded(&platform, &second).await;
        let log = platform.log(&second).await;
        assert_eq!(stage(&second, "compile"), None, "a container was started: {log}");
        assert_eq!(platform.answer(&second), format!("{}\n10001\n/app\n", files["server.js"].len()), "{log}");
        println!("code-only push {round}: {:?}\n{log}", second.timings);
    }
    let prod = platform.push("prod", &files).await;
    succeeded(&platform, &prod).await;
    assert!(
        platform.log(&prod).await.contains("Reusing the slug built for acme/shop/dev"),
        "{}",
        platform.log(&prod).await
    );

    let package = String::from_utf8(files["package.json"].clone()).unwrap();
    files.insert("package.json".to_owned(), package.replace("1.2.3", "1.2.4").into_bytes());
    let dependency = platform.push("dev", &files).await;
    println!("other package.json: {:?}\n{}", dependency.timings, platform.log(&dependency).await);
    succeeded(&platform, &dependency).await;
    assert!(stage(&dependency, "compile").is_some());
    println!("first push: {:?}\n{}", first.timings, platform.log(&first).await);
    platform.stop().await;
}

/// An app whose build script is this.
fn app(script: &str) -> Files {
    let package = format!(r#"{{"name":"x","version":"1.0.0","scripts":{{"build":"{script}"}}}}"#);
    let lock = r#"{"name":"x","version":"1.0.0","lockfileVersion":3,"requires":true,"packages":{"":{"name":"x","version":"1.0.0"}}}"#;
    let files = [("Procfile", "web: x\n"), ("package.json", &package), ("package-lock.json", lock)];
    files.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into()
}

async fn fails(platform: &Platform, files: Files, reason: &str) {
    let build = platform.push("dev", &files).await;
    let log = platform.log(&build).await;
    let BuildState::Failed { reason: found } = &build.state else { panic!("{:?}: {log}", build.state) };
    assert!(found.contains(reason), "{found}: {log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_buildpack_and_no_time_are_named() {
    let limit = std::time::Duration::from_secs(6);
    let platform = Platform::with(QUESTION, |settings| settings.time_limit = limit).await;
    fails(&platform, [("README".to_owned(), b"nothing".to_vec())].into(), "no buildpack fits this app").await;
    fails(&platform, app("sleep 60"), "the build took longer than 6.0 s").await;
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_memory_is_named() {
    let platform = Platform::with(QUESTION, |settings| settings.limits.memory = 256 << 20).await;
    fails(&platform, app("tail /dev/zero"), "the build ran out of memory: it may use 256 MiB").await;
    platform.stop().await;
}

/// A buildpack in a git repository of its own, as somebody else publishes it.
fn publish_buildpack(directory: &Path) {
    let compile = "#!/usr/bin/env bash\nset -euo pipefail\necho '-----> Greeting'\n\
        printf '%s with node %s' \"$(cat \"$3/GREETING\")\" \"$(node --version | cut -c1-3)\" >\"$1/greeting.txt\"\n";
    let release = "#!/usr/bin/env bash\nprintf 'default_process_types:\\n  web: cat greeting.txt\\n'\n";
    let files = [("detect", "#!/bin/sh\necho greeting\n"), ("compile", compile), ("release", release)];
    std::fs::create_dir_all(directory.join("bin")).unwrap();
    for (name, text) in files {
        let path = directory.join("bin").join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for arguments in [&["init", "--quiet", "-b", "main"][..], &["add", "-A"], &["commit", "--quiet", "-m", "Greet"]] {
        platform::git(directory, arguments, b"");
    }
}

/// Serves git repositories over https; ends when dropped.
struct GitServer {
    child: Child,
    port: u16,
    /// The host's certificates and the server's own.
    ca_bundle: PathBuf,
}

impl GitServer {
    fn start(home: &Path, repositories: &Path) -> Self {
        let (key, certificate, ca_bundle) = (home.join("key.pem"), home.join("cert.pem"), home.join("ca.pem"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=berth test"]);
        openssl.args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
        assert!(openssl.stderr(Stdio::null()).status().unwrap().success());
        let known = std::fs::read("/etc/ssl/certs/ca-certificates.crt").unwrap();
        std::fs::write(&ca_bundle, [known, std::fs::read(&certificate).unwrap()].concat()).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/builds/git_server.py");
        let mut server = Command::new("python3");
        server.arg(script).args([repositories, &certificate, &key]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = server.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, port: port.trim().parse().unwrap(), ca_bundle }
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_buildpack_runs_after_another() {
    let (home, repositories) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish_buildpack(&repositories.path().join("greeting"));
    let server = GitServer::start(home.path(), repositories.path());
    let base = format!("https://127.0.0.1:{}/", server.port);
    let platform = Platform::with("cat greeting.txt", |settings| {
        settings.custom_buildpacks.allow = vec![base.clone()];
        settings.custom_buildpacks.ca_bundle = Some(server.ca_bundle.clone());
        settings.ca_bundle = Some(server.ca_bundle.clone());
    })
    .await;
    let manifest =
        |url: &str| format!("build:\n  buildpacks: [nodejs, \"{url}\"]\n  env: {{GREETING: good day}}\n").into_bytes();
    let mut files = fixture("express");
    let elsewhere = "https://elsewhere.example/pack.git";
    files.insert("berth.yaml".to_owned(), manifest(elsewhere));
    fails(&platform, files.clone(), &format!("the buildpack {elsewhere} is not allowed on this server")).await;
    files.insert("berth.yaml".to_owned(), manifest(&format!("{base}missing")));
    fails(&platform, files.clone(), "the buildpack cannot be fetched").await;
    files.insert("berth.yaml".to_owned(), manifest(&format!("{base}greeting#main")));
    let build = platform.push("dev", &files).await;
    succeeded(&platform, &build).await;
    assert_eq!(platform.answer(&build), "good day with node v22", "{}", platform.log(&build).await);
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchanged_dependencies_are_the_same_layer_though_the_step_runs_again() {
    for (app, input) in [("flask", "runtime.txt"), ("express", ".npmrc")] {
        let platform = Platform::start("true").await;
        let mut files = fixture(app);
        let first = platform.push("dev", &files).await;
        succeeded(&platform, &first).await;
        let text: &[u8] = if app == "flask" { b"python-3.11\n" } else { b"fund=false\n" };
        files.insert(input.to_owned(), text.to_vec());
        let second = platform.push("dev", &files).await;
        succeeded(&platform, &second).await;
        let log = platform.log(&second).await;
        assert!(stage(&second, "compile").is_some(), "{app}: the step did not run: {log}");
        // The run stack, the runtime, the dependencies, what else was built.
        let reused = log.lines().find(|line| line.contains("layers reused")).unwrap_or_default();
        let (of, all) = reused.rsplit_once("pushed, ").and_then(|(_, counts)| counts.split_once(" of ")).unwrap();
        let all = all.trim_end_matches(" layers reused");
        assert_eq!(of.parse::<u32>().unwrap() + 1, all.parse::<u32>().unwrap(), "{app}: {log}");
        platform.stop().await;
    }
}
