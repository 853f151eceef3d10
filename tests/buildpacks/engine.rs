//! What the harness asks of the container engine: the stacks, containers and volumes that go when their value is dropped, a panic
//! included. Everything made carries the label `berth.test=1`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

const CA_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The hash of the stacks, built and imported when they are not there yet.
pub fn stacks() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        let directory =
            std::env::var_os("BERTH_STACKS_DIR").map_or_else(|| repository().join("target/stacks"), PathBuf::from);
        let made = Command::new(repository().join("scripts/stacks")).arg("--load").arg(&directory).output();
        assert_success("scripts/stacks --load", &made.unwrap());
        let current = fs::read(directory.join("current.json")).unwrap();
        let current: serde_json::Value = serde_json::from_slice(&current).unwrap();
        current["hash"].as_str().unwrap().to_owned()
    })
}

pub fn assert_success(what: &str, output: &Output) {
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `docker ARGUMENTS`, which must succeed; its standard output, trimmed.
pub fn docker<I, S>(arguments: I) -> String
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert_success("docker", &output);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("berth-test-{kind}-{}-{number}", std::process::id())
}

/// A volume of the engine, removed with its last owner.
pub struct Volume(pub String);

impl Volume {
    pub fn new(kind: &str) -> Arc<Self> {
        let name = unique(kind);
        docker(["volume", "create", "--label", "berth.test=1", &name]);
        Arc::new(Self(name))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        remove(&["volume", "rm", "--force", &self.0]);
    }
}

/// A container of the engine, removed with its owner.
pub struct Container(pub String);

impl Drop for Container {
    fn drop(&mut self) {
        remove(&["rm", "--force", "--volumes", &self.0]);
    }
}

fn remove(arguments: &[&str]) {
    let done = Command::new("docker").args(arguments).output();
    if !done.is_ok_and(|output| output.status.success()) {
        eprintln!("could not run docker {}", arguments.join(" "));
    }
}

/// The build cache that cases of one buildpack share while any of them runs.
pub fn shared_cache(buildpack: &'static str) -> Arc<Volume> {
    static CACHES: Mutex<BTreeMap<&str, Weak<Volume>>> = Mutex::new(BTreeMap::new());
    let mut caches = CACHES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(cache) = caches.get(buildpack).and_then(Weak::upgrade) {
        return cache;
    }
    let cache = Volume::new("cache");
    caches.insert(buildpack, Arc::downgrade(&cache));
    cache
}

fn host_bundle() -> PathBuf {
    std::env::var_os("SSL_CERT_FILE").map_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into(), PathBuf::from)
}

/// Puts a directory's content into a container, owned by the user `app`.
pub fn copy_in(from: &Path, container: &Container, to: &str) {
    let mut tar = Command::new("tar")
        .args(["--owner=10001", "--group=10001", "-cf", "-", "-C"])
        .arg(from)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let copied = Command::new("docker")
        .args(["cp", "-", &format!("{}:{to}", container.0)])
        .stdin(tar.stdout.take().unwrap())
        .output();
    assert!(tar.wait().unwrap().success());
    assert_success("docker cp", &copied.unwrap());
}

/// Runs a bash script in the build stack, with a volume at `/cache`.
pub fn in_volume(volume: &Volume, script: &str) {
    let mount = format!("{}:/cache", volume.0);
    let image = format!("berth-stack-build:{}", stacks());
    docker(["run", "--rm", "--label", "berth.test=1", "--volume", &mount, &image, "bash", "-c", script]);
}

/// Runs a bash script in the build stack, with the buildpacks at `/buildpacks` and `directory` at `/work`; its output.
pub fn in_build_stack(directory: &Path, script: &str) -> String {
    let mut run = Command::new("docker");
    run.args(["run", "--rm", "--init", "--label", "berth.test=1"]);
    run.args(stack_mounts());
    run.args(["--volume", &format!("{}:/work:ro", directory.display())]);
    run.args([&format!("berth-stack-build:{}", stacks()), "bash", "-c", script]);
    let output = run.output().unwrap();
    assert_success("docker run", &output);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The buildpacks and the host's CA bundle, as every build has them.
pub fn stack_mounts() -> Vec<String> {
    let mut arguments = Vec::new();
    for mount in [
        format!("{}:/buildpacks:ro", repository().join("buildpacks").display()),
        format!("{}:/etc/berth/ca.crt:ro", host_bundle().display()),
    ] {
        arguments.extend(["--volume".to_owned(), mount]);
    }
    for variable in CA_VARIABLES {
        arguments.extend(["--env".to_owned(), format!("{variable}=/etc/berth/ca.crt")]);
    }
    arguments
}
