//! A Berth of the test's own: control plane, router and registry on free loopback ports, in a temporary directory, on the machine's
//! engine. Whatever happens, `Platform::stop` leaves nothing behind.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// How long anything may take that is waited for, unless said otherwise.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `condition` until it gives something. Panics when the deadline is over.
pub fn eventually<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a command printed, and its exit status.
#[derive(Debug)]
pub struct Finished {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Everything printed.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Panics, showing everything, unless the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 0, "a command failed:\n{}", self.all());
        self
    }

    /// Panics, showing everything, unless the command failed and said each of these.
    #[track_caller]
    pub fn refused(self, texts: &[&str]) -> Self {
        assert_ne!(self.status, 0, "a command succeeded:\n{}", self.all());
        self.says(texts)
    }

    /// Panics unless each of these was printed.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.all().contains(text), "{text:?} was not said:\n{}", self.all());
        }
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.all()))
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Finished {
    Finished::from(command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// A user of the platform with a key.
#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    /// An ssh configuration with the host `berth`.
    pub ssh_config: PathBuf,
}

/// The platform under test.
pub struct Platform {
    directory: tempfile::TempDir,
    serve: Mutex<Option<Child>>,
    router: Mutex<Option<Child>>,
    ssh_port: u16,
    pub http_port: u16,
    registry_port: u16,
    pub api_port: u16,
    names: AtomicU32,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The binary under test.
pub const BERTH: &str = env!("CARGO_BIN_EXE_berth");

impl Platform {
    /// Starts everything and waits until it is ready.
    pub fn start() -> Self {
        let platform = Self {
            directory: tempfile::Builder::new().prefix("berth-e2e-").tempdir().unwrap(),
            serve: Mutex::new(None),
            router: Mutex::new(None),
            ssh_port: free_port(),
            http_port: free_port(),
            registry_port: free_port(),
            api_port: free_port(),
            names: AtomicU32::new(0),
        };
        fs::create_dir_all(platform.data_dir()).unwrap();
        platform.link_stacks();
        platform.start_router();
        platform.start_serve();
        platform.add_user("operator");
        platform
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A directory for a case's files.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let directory = self.directory.path().join(name);
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    fn link_stacks(&self) {
        let stacks =
            std::env::var_os("BERTH_STACKS_DIR").map_or_else(|| Path::new("target/stacks").into(), PathBuf::from);
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join(stacks);
        assert!(made.join("current.json").exists(), "no stack images in {}; run scripts/stacks {0}", made.display());
        let own = self.data_dir().join("stacks");
        fs::create_dir_all(&own).unwrap();
        for entry in fs::read_dir(made).unwrap() {
            let from = entry.unwrap().path();
            if from.is_file() {
                std::os::unix::fs::symlink(&from, own.join(from.file_name().unwrap())).unwrap();
            }
        }
    }

    /// A `berth` command with this platform's configuration.
    pub fn berth(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BERTH);
        command
            .args(arguments)
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/config/berth.yaml")])
            .env("BERTH__SSH__LISTEN", format!("['127.0.0.1:{}']", self.ssh_port))
            .env("BERTH__SSH__HOST", "127.0.0.1")
            .env("BERTH__API__LISTEN", format!("['127.0.0.1:{}']", self.api_port))
            .env("BERTH__ROUTER__LISTEN", format!("['127.0.0.1:{}']", self.http_port))
            .env("BERTH__REGISTRY__ADDRESS", format!("127.0.0.1:{}", self.registry_port))
            .env("BERTH__GIT__MAX_INPUT_SIZE", "20Mi")
            // How full the machine is that the tests run on is none of their business.
            .env("BERTH__DISK__MIN_FREE", "64Mi")
            .env("BERTH__DEPLOY__STOP_GRACE", "2s")
            .env("BERTH__DEPLOY__DRAIN_TIMEOUT", "5s");
        command
    }

    fn start_process(&self, name: &str, variables: &[(&str, &str)]) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file(name)).unwrap();
        let mut command = self.berth(&[name]);
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    /// Where the output of `serve` or `router` goes.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    pub fn start_router(&self) {
        *lock(&self.router) = Some(self.start_process("router", &[]));
    }

    /// Starts the control plane and waits until it is ready.
    pub fn start_serve(&self) {
        self.start_serve_with(&[]);
    }

    /// The same, with further variables.
    pub fn start_serve_with(&self, variables: &[(&str, &str)]) {
        let mut serve = lock(&self.serve);
        *serve = Some(self.start_process("serve", variables));
        eventually("berth serve is ready", Duration::from_secs(120), || {
            if let Some(status) = serve.as_mut()?.try_wait().unwrap() {
                panic!("berth serve ended ({status}):\n{}", fs::read_to_string(self.log_file("serve")).unwrap());
            }
            (run(&mut self.berth(&["status"])).status == 0).then_some(())
        });
    }

    /// Kills the control plane without warning.
    pub fn kill_serve(&self) {
        let mut serve = lock(&self.serve).take().unwrap();
        serve.kill().unwrap();
        serve.wait().unwrap();
    }

    /// Stops the control plane in order.
    pub fn stop_serve(&self) {
        end(&mut lock(&self.serve).take().unwrap()).unwrap();
    }

    /// Kills the router without warning.
    pub fn kill_router(&self) {
        let mut router = lock(&self.router).take().unwrap();
        router.kill().unwrap();
        router.wait().unwrap();
    }

    /// A name that no other case uses.
    pub fn unique(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a key for a user, registers it on the host, and gives what `ssh -F` needs.
    pub fn add_user(&self, name: &str) -> User {
        let user = self.user_with_key(name);
        let key = fs::File::open(user.ssh_config.with_file_name("key.pub")).unwrap();
        let output = self.berth(&["upload-key", name]).stdin(key).output().unwrap();
        Finished::from(output).ok();
        user
    }

    /// Makes a key that nobody knows yet.
    pub fn user_with_key(&self, name: &str) -> User {
        let directory = self.scratch(&format!("user-{name}"));
        let key = directory.join("key");
        if !key.exists() {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).ok();
        }
        let ssh_config = directory.join("ssh_config");
        let text = format!(
            "Host berth\n  HostName 127.0.0.1\n  Port {}\n  User berth\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
             IdentityAgent none\n  UserKnownHostsFile {}\n  StrictHostKeyChecking accept-new\n  BatchMode yes\n  LogLevel ERROR\n",
            self.ssh_port,
            key.display(),
            directory.join("known_hosts").display()
        );
        fs::write(&ssh_config, text).unwrap();
        User { name: name.to_owned(), ssh_config }
    }

    /// The first user, an operator.
    pub fn operator(&self) -> User {
        User { name: "operator".into(), ssh_config: self.directory.path().join("user-operator/ssh_config") }
    }

    /// A command over ssh, not yet run.
    pub fn ssh_command(&self, user: &User, words: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command.arg("-F").arg(&user.ssh_config).arg("berth").args(words);
        command
    }

    /// Runs a command over ssh.
    pub fn ssh(&self, user: &User, words: &[&str]) -> Finished {
        run(&mut self.ssh_command(user, words))
    }

    /// A new tenant owned by a new user.
    pub fn new_tenant(&self) -> (String, User) {
        let (tenant, name) = (self.unique("tenant"), self.unique("user"));
        let user = self.add_user(&name);
        self.ssh(&self.operator(), &["tenants", "create", &tenant, "--owner", &name]).ok();
        (tenant, user)
    }

    /// A new app `TENANT/app` of a new tenant, and its owner.
    pub fn new_app(&self) -> (String, User) {
        let (tenant, user) = self.new_tenant();
        let app = format!("{tenant}/app");
        self.ssh(&user, &["apps", "create", &app]).ok();
        (app, user)
    }

    /// `GET` through the router: status, and body.
    pub fn get(&self, host: &str, path: &str) -> (u16, String) {
        self.try_get(host, path).unwrap_or_else(|error| panic!("GET {host}{path}: {error}"))
    }

    /// `GET` through the router, which may not answer.
    pub fn try_get(&self, host: &str, path: &str) -> Result<(u16, String), reqwest::Error> {
        let client = reqwest::blocking::Client::builder().timeout(Duration::from_secs(35)).no_proxy().build()?;
        let url = format!("http://127.0.0.1:{}{path}", self.http_port);
        let answer = client.get(url).header("Host", host).header("Accept", "text/plain").send()?;
        let status = answer.status().as_u16();
        Ok((status, answer.text()?))
    }

    /// Ends everything and removes what it made on the engine. Returns what was wrong.
    pub fn stop(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, process) in [("serve", &self.serve), ("router", &self.router)] {
            if let Some(mut child) = lock(process).take()
                && let Err(error) = end(&mut child)
            {
                wrong.push(format!("{name}: {error}"));
            }
        }
        let teardown = run(&mut self.berth(&["teardown", "--yes"]));
        if teardown.status != 0 {
            wrong.push(format!("teardown: {}", teardown.all()));
        }
        wrong.extend(self.leftovers());
        wrong.extend(self.panics());
        wrong
    }

    /// What is still on the engine although it carries this platform's instance label.
    fn leftovers(&self) -> Vec<String> {
        let instance = fs::read_to_string(self.data_dir().join("instance")).unwrap_or_default();
        let filter = format!("label=berth.instance={}", instance.trim());
        let kinds: [&[&str]; 3] = [&["ps", "-aq"], &["network", "ls", "-q"], &["volume", "ls", "-q"]];
        let left = |words: &&[&str]| {
            let found = run(Command::new("docker").args(words.iter()).args(["--filter", &filter]));
            (!found.stdout.trim().is_empty()).then(|| format!("left on the engine by {words:?}: {}", found.stdout))
        };
        let mut all: Vec<String> = kinds.iter().filter_map(left).collect();
        let chain = format!("BERTH-{}-", berth::runtime::docker::instance_tag(instance.trim()).to_ascii_uppercase());
        let rules = run(&mut Command::new("iptables-save"));
        all.extend(rules.stdout.lines().filter(|rule| rule.contains(&chain)).map(|rule| format!("a rule: {rule}")));
        all
    }

    /// What the server and the router should never have said.
    fn panics(&self) -> Vec<String> {
        let logs = ["serve", "router"].map(|name| fs::read_to_string(self.log_file(name)).unwrap_or_default());
        let lines = logs.iter().flat_map(|log| log.lines());
        lines.filter(|line| line.contains("panicked at")).map(str::to_owned).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// SIGTERM, and an orderly end within the deadline.
fn end(child: &mut Child) -> Result<(), String> {
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).map_err(|error| error.to_string())?;
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return if status.success() { Ok(()) } else { Err(format!("ended with {status}")) };
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("did not end within {DEADLINE:?} of SIGTERM"))
}
