//! Builds with everything real but the deployer: git, the engine, the stacks, the buildpacks, a registry, the store on disk. In place of
//! a deployment, the image is run once, and what it prints is looked at.

mod platform;

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
