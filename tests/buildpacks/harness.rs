//! Builds a fixture exactly as the buildpack contract says, and starts the result in the run stack. Everything made on the
//! engine carries the label `berth.test=1` and goes when its value is dropped, a panic included.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

const BUILD_DEADLINE: Duration = Duration::from_secs(300);
const START_DEADLINE: Duration = Duration::from_secs(30);
const CA_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The hash of the stacks, built and imported when they are not there yet.
fn stacks() -> &'static str {
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

fn assert_success(what: &str, output: &Output) {
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

fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("berth-test-{kind}-{}-{number}", std::process::id())
}

/// A volume of the engine, removed with its last owner.
pub struct Volume(String);

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
struct Container(String);

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

/// A source tree about to be built.
pub struct Case {
    source: tempfile::TempDir,
    variables: Vec<(String, String)>,
    buildpacks: Vec<String>,
    cache: Option<Arc<Volume>>,
}

impl Case {
    /// A copy of `tests/buildpacks/fixtures/NAME`.
    pub fn fixture(name: &str) -> Self {
        let case = Self::empty();
        let from = repository().join("tests/buildpacks/fixtures").join(name);
        let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(case.source.path()).output();
        assert_success("cp", &copied.unwrap());
        case
    }

    pub fn empty() -> Self {
        let source = tempfile::Builder::new().prefix("berth-test-source").tempdir().unwrap();
        Self { source, variables: Vec::new(), buildpacks: Vec::new(), cache: None }
    }

    /// Adds or replaces a file of the source.
    pub fn file(self, path: &str, content: &str) -> Self {
        let path = self.source.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Makes a file of the source executable.
    pub fn executable(self, path: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = self.source.path().join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Removes a file of the source.
    pub fn without(self, path: &str) -> Self {
        fs::remove_file(self.source.path().join(path)).unwrap();
        self
    }

    /// Sets a build variable (`build.env` of the manifest).
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Names the buildpacks instead of detecting one.
    pub fn buildpacks(mut self, names: &[&str]) -> Self {
        self.buildpacks = names.iter().map(ToString::to_string).collect();
        self
    }

    pub fn cache(mut self, cache: &Arc<Volume>) -> Self {
        self.cache = Some(Arc::clone(cache));
        self
    }

    /// Runs the build to its end.
    pub fn build(self) -> Build {
        let app = Volume::new("app");
        let cache = self.cache.clone().unwrap_or_else(|| Volume::new("cache"));
        let name = unique("build");
        let mut arguments: Vec<String> =
            ["create", "--label", "berth.test=1", "--cap-drop", "ALL"].map(String::from).into();
        arguments.extend(["--security-opt", "no-new-privileges", "--pids-limit", "2048", "--init"].map(String::from));
        for mount in [format!("{}:/app", app.0), format!("{}:/cache", cache.0)] {
            arguments.extend(["--volume".to_owned(), mount]);
        }
        arguments.extend(stack_mounts());
        for variable in ["BERTH_BUILD=1", "SOURCE_VERSION=0123456789abcdef0123456789abcdef01234567"] {
            arguments.extend(["--env".to_owned(), variable.to_owned()]);
        }
        arguments.extend(["--name".to_owned(), name.clone(), format!("berth-stack-build:{}", stacks())]);
        arguments.push("/buildpacks/bin/build".to_owned());
        arguments.extend(self.buildpacks.iter().cloned());
        docker(&arguments);
        let container = Container(name);
        copy_in(self.source.path(), &container, "/app");
        copy_in(&self.variable_files(), &container, "/env");
        let (status, output) = run_to_end(&container);
        let meta = read_meta(&container);
        Build { status, output, meta, app, _cache: cache }
    }

    fn variable_files(&self) -> PathBuf {
        let directory = self.source.path().with_extension("env");
        fs::create_dir_all(&directory).unwrap();
        for (name, value) in &self.variables {
            fs::write(directory.join(name), value).unwrap();
        }
        directory
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.source.path().with_extension("env"));
    }
}

fn host_bundle() -> PathBuf {
    std::env::var_os("SSL_CERT_FILE").map_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into(), PathBuf::from)
}

/// Puts a directory's content into a container, owned by the user `app`.
fn copy_in(from: &Path, container: &Container, to: &str) {
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

fn run_to_end(container: &Container) -> (i32, String) {
    let mut child = Command::new("timeout")
        .args([&BUILD_DEADLINE.as_secs().to_string(), "docker", "start", "--attach", &container.0])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    let status = child.wait().unwrap().code().unwrap_or(-1);
    let output = String::from_utf8_lossy(&output).into_owned();
    println!("{output}(exit status {status})");
    (status, output)
}

fn read_meta(container: &Container) -> BTreeMap<String, String> {
    let tar = Command::new("docker").args(["cp", &format!("{}:/meta", container.0), "-"]).output().unwrap();
    assert_success("docker cp", &tar);
    let mut archive = tar::Archive::new(tar.stdout.as_slice());
    let mut meta = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().strip_prefix("meta").unwrap().display().to_string();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        meta.insert(name, content);
    }
    meta
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
fn stack_mounts() -> Vec<String> {
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

/// A build that has ended.
pub struct Build {
    pub status: i32,
    pub output: String,
    meta: BTreeMap<String, String>,
    app: Arc<Volume>,
    _cache: Arc<Volume>,
}

impl Build {
    /// Fails the test unless the build succeeded.
    pub fn succeeded(self) -> Self {
        assert_eq!(self.status, 0, "the build failed:\n{}", self.output);
        self
    }

    /// Fails the test unless the build failed and said all of `words`.
    pub fn refused(self, words: &[&str]) -> Self {
        assert_ne!(self.status, 0, "the build succeeded:\n{}", self.output);
        self.says(words)
    }

    /// Fails the test unless the output has all of `words`.
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.output.contains(word), "{word:?} is not in the output:\n{}", self.output);
        }
        self
    }

    /// Fails the test if the output has any of `words`.
    pub fn does_not_say(self, words: &[&str]) -> Self {
        for word in words {
            assert!(!self.output.contains(word), "{word:?} is in the output:\n{}", self.output);
        }
        self
    }

    /// A file of `/meta`; empty when there is none.
    pub fn meta(&self, name: &str) -> &str {
        self.meta.get(name).map_or("", String::as_str)
    }

    /// The command of a process type in `release.yml`.
    pub fn process(&self, kind: &str) -> Option<String> {
        let release: serde_yaml::Value = serde_yaml::from_str(self.meta("release.yml")).unwrap();
        release["default_process_types"][kind].as_str().map(str::to_owned)
    }

    /// Runs a command in the run stack to its end; its exit status and output.
    pub fn command(&self, command: &str) -> (i32, String) {
        let output = Command::new("docker")
            .args(["run", "--rm", "--init", "--label", "berth.test=1", "--cap-drop", "ALL"])
            .args(["--volume", &format!("{}:/app", self.app.0)])
            .args([&format!("berth-stack-run:{}", stacks()), "berth-launch", command])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Starts the default `web` process.
    pub fn start(&self) -> Running {
        let web = self.process("web").unwrap_or_else(|| panic!("no web process in {:?}", self.meta));
        self.start_command(&web, &[])
    }

    /// Starts `command` with `PORT` and `variables`, and waits until it accepts connections.
    pub fn start_command(&self, command: &str, variables: &[(&str, &str)]) -> Running {
        let name = unique("run");
        let mut run = Command::new("docker");
        run.args(["run", "--detach", "--init", "--label", "berth.test=1", "--cap-drop", "ALL"])
            .args(["--security-opt", "no-new-privileges", "--publish", "127.0.0.1::5000", "--env", "PORT=5000"])
            .args(["--name", &name, "--volume", &format!("{}:/app", self.app.0)]);
        for (variable, value) in variables {
            run.args(["--env", &format!("{variable}={value}")]);
        }
        let started = run.args([&format!("berth-stack-run:{}", stacks()), "berth-launch", command]).output();
        let container = Container(name);
        assert_success("docker run", &started.unwrap());
        let published = docker(["port", &container.0, "5000/tcp"]);
        let running = Running { container, address: published.lines().next().unwrap_or_default().to_owned() };
        running.wait_until_it_answers();
        running
    }
}

/// A process of the app, serving.
pub struct Running {
    container: Container,
    address: String,
}

/// An HTTP answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Running {
    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + START_DEADLINE;
        while self.request("GET", "/", "").is_err() {
            let running = docker(["inspect", "--format", "{{.State.Running}}", &self.container.0]);
            assert!(running == "true", "the process ended:\n{}", self.logs());
            assert!(Instant::now() < deadline, "no answer in {START_DEADLINE:?}:\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "").unwrap()
    }

    /// A request with further header lines, each ending in `\r\n`.
    pub fn request(&self, method: &str, path: &str, headers: &str) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: app.test\r\n{headers}\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let malformed = || std::io::Error::other(format!("not an HTTP answer: {answer:?}"));
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
        Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }

    pub fn logs(&self) -> String {
        let logs = Command::new("docker").args(["logs", &self.container.0]).output().unwrap();
        String::from_utf8_lossy(&[logs.stdout, logs.stderr].concat()).into_owned()
    }

    /// The command lines of all processes, the init included.
    pub fn processes(&self) -> Vec<String> {
        let listing = docker(["top", &self.container.0, "-eo", "pid,args"]);
        listing
            .lines()
            .skip(1)
            .filter_map(|line| line.trim().split_once(' '))
            .map(|(_, command)| command.trim().to_owned())
            .collect()
    }

    /// Sends SIGTERM and waits; the exit status, and how long the end took.
    pub fn terminate(&self) -> (i32, Duration) {
        let asked = Instant::now();
        docker(["stop", "--time", "10", &self.container.0]);
        let status = docker(["inspect", "--format", "{{.State.ExitCode}}", &self.container.0]);
        (status.parse().unwrap(), asked.elapsed())
    }
}
