//! A server in this process, with users, an environment, and the real clients to talk to it.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use berth::{
    commands::{Caller, CommandIo, Control, Door},
    control::{self, ControlServer},
    domain::{EnvRef, Environment, Role, Timestamp, Verb},
    git::{Git, Repositories, wire::WireIo},
    keys,
    receive::{HookRequest, Receive, ReceiveSettings, Verdict, install_hooks},
    ssh::{self, Access, GitRequest, SshServer, SshSettings},
    store::{MemoryKv, Store, StoreError},
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::pipeline::TestPipeline;

/// No client may take longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Largest push of the tests' server, in bytes.
pub const MAX_PUSH: u64 = 3 * 1024 * 1024;

pub struct TestBackend {
    users: Mutex<HashMap<String, (Caller, Option<Role>)>>,
    receive: Receive,
    /// Bytes that `flood` has got rid of.
    pub flooded: AtomicU64,
    /// Lets `wait` go on.
    pub go: CancellationToken,
}

impl TestBackend {
    async fn command(&self, caller: &Caller, argv: &[String], io: &mut CommandIo) -> std::io::Result<u8> {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => io.stdout.write_all(format!("Hello {}, type help\n", caller.user).as_bytes()).await?,
            ["whoami"] => io.stdout.write_all(format!("{}\n", caller.user).as_bytes()).await?,
            ["exit", status] => return Ok(status.parse().unwrap()),
            ["argv", rest @ ..] => io.stdout.write_all(format!("{rest:?}\n").as_bytes()).await?,
            ["both"] => {
                io.stdout.write_all(b"out\n").await?;
                io.stderr.write_all(b"err\n").await?;
            }
            ["cat"] => {
                tokio::io::copy(&mut io.stdin, &mut io.stdout).await?;
            }
            ["wait-then-cat"] => {
                self.go.cancelled().await;
                tokio::io::copy(&mut io.stdin, &mut io.stdout).await?;
            }
            ["flood"] => loop {
                io.stdout.write_all(&[b'x'; 32 * 1024]).await?;
                self.flooded.fetch_add(32 * 1024, Ordering::Relaxed);
            },
            ["run" | "pty"] => {
                let pty = io.pty.clone().map(|pty| format!("{} {} {}\n", pty.columns, pty.rows, pty.term));
                io.stdout.write_all(pty.unwrap_or("no pty\n".into()).as_bytes()).await?;
            }
            ["signals"] => {
                io.stdout.write_all(b"ready\n").await?;
                while let Some(control) = io.controls.recv().await {
                    io.stdout.write_all(format!("{control:?}\n").as_bytes()).await?;
                    if matches!(control, Control::Signal(_) | Control::Hangup) {
                        return Ok(130);
                    }
                }
            }
            _ => {
                io.stderr.write_all(b"unknown command\n").await?;
                return Ok(2);
            }
        }
        Ok(0)
    }
}

#[async_trait]
impl ssh::Backend for TestBackend {
    async fn authenticate(&self, fingerprint: &str) -> Result<Option<Caller>, StoreError> {
        Ok(self.users.lock().unwrap().get(fingerprint).map(|(caller, _)| caller.clone()))
    }

    async fn may(&self, caller: &Caller, verb: Verb, env: &EnvRef) -> Result<Access, StoreError> {
        let role = self.users.lock().unwrap().values().find(|(known, _)| known == caller).and_then(|(_, role)| *role);
        Ok(match role {
            Some(role) if *env == crate::harness::env() => {
                if role.may(verb) {
                    Access::Granted
                } else {
                    Access::NotPermitted
                }
            }
            _ => Access::NotFound,
        })
    }

    async fn run(&self, caller: Caller, argv: Vec<String>, mut io: CommandIo) -> u8 {
        self.command(&caller, &argv, &mut io).await.unwrap_or(1)
    }

    async fn git(&self, request: GitRequest, io: WireIo) -> u8 {
        self.receive.serve(request.service, &request.env, &request.user, request.protocol, io).await
    }
}

#[async_trait]
impl control::Backend for TestBackend {
    async fn pre_receive(&self, request: HookRequest, output: mpsc::Sender<Bytes>) -> Verdict {
        self.receive.pre_receive(request, output).await
    }

    async fn run(&self, caller: Caller, argv: Vec<String>, io: CommandIo) -> u8 {
        ssh::Backend::run(self, caller, argv, io).await
    }
}

/// The environment of the tests.
pub fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

/// A running server; everything it made goes when it is dropped.
pub struct Server {
    pub directory: tempfile::TempDir,
    pub address: SocketAddr,
    pub other_address: SocketAddr,
    pub store: Store,
    pub repositories: Repositories,
    pub pipeline: Arc<TestPipeline>,
    pub backend: Arc<TestBackend>,
    pub receive: Receive,
    pub stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(SshSettings::default(), false).await
    }

    pub async fn with(settings: SshSettings, require_manifest: bool) -> Self {
        let store = Self::new_store().await;
        Self::over(tempfile::tempdir().unwrap(), store, settings, require_manifest).await
    }

    /// With other settings of receiving.
    pub async fn receiving(change: impl FnOnce(&mut ReceiveSettings)) -> Self {
        let store = Self::new_store().await;
        Self::assemble(tempfile::tempdir().unwrap(), store, SshSettings::default(), change).await
    }

    async fn new_store() -> Store {
        let store = Store::new(Arc::new(MemoryKv::default()));
        let environment = Environment {
            name: env(),
            created_at: Timestamp::now(),
            deploy_branch: None,
            config: Default::default(),
            scale: Default::default(),
            domains: Vec::new(),
            target: None,
            current: None,
            last_release: 0,
            last_build: 0,
            restarts: 0,
        };
        store.transaction().create(&environment).commit().await.unwrap();
        store
    }

    /// Over a directory and store that a server had before.
    pub async fn over(
        directory: tempfile::TempDir,
        store: Store,
        settings: SshSettings,
        require_manifest: bool,
    ) -> Self {
        Self::assemble(directory, store, settings, |receive| receive.require_manifest = require_manifest).await
    }

    async fn assemble(
        directory: tempfile::TempDir,
        store: Store,
        settings: SshSettings,
        change: impl FnOnce(&mut ReceiveSettings),
    ) -> Self {
        let data = directory.path();
        let (hooks, socket) = (data.join("hooks"), data.join("control.sock"));
        install_hooks(&hooks).unwrap();
        let repositories = Repositories::new(data.join("repositories"));
        repositories.clean().unwrap();
        let git = Git { binary: Git::find().unwrap(), hooks, max_input: MAX_PUSH };
        let pipeline = Arc::new(TestPipeline::new(store.clone()));
        let stop = CancellationToken::new();
        let mut receive_settings = ReceiveSettings {
            disk: berth::disk::DiskFloor::none(),
            traces: berth::traces::Traces::off(),
            berth: PathBuf::from(env!("CARGO_BIN_EXE_berth")),
            control_socket: socket.clone(),
            sessions: 16,
            sessions_per_user: 8,
            patience: Duration::from_secs(1),
            idle: DEADLINE,
            require_manifest: false,
        };
        change(&mut receive_settings);
        let receive =
            Receive::new(receive_settings, git, repositories.clone(), store.clone(), pipeline.clone(), stop.clone());
        receive.recover().await.unwrap();
        let backend = Arc::new(TestBackend {
            users: Mutex::default(),
            receive: receive.clone(),
            flooded: AtomicU64::new(0),
            go: CancellationToken::new(),
        });
        let host_key = keys::host_key(&data.join("keys/host_ed25519")).unwrap();
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let server = SshServer::bind(&[anywhere; 2], settings, host_key, backend.clone()).await.unwrap();
        let control = ControlServer::bind(&socket, backend.clone()).await.unwrap();
        let [address, other_address] = server.addresses().unwrap()[..] else { panic!("it listens at two") };
        let tasks = vec![tokio::spawn(server.run(stop.clone())), tokio::spawn(control.run(stop.clone()))];
        let server =
            Self { directory, address, other_address, store, repositories, pipeline, backend, receive, stop, tasks };
        server.user("alice", Some(Role::Developer)).await;
        server
    }

    /// Stops it in order; the data stay.
    pub async fn shut_down(mut self) -> (tempfile::TempDir, Store) {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            timeout(DEADLINE, task).await.expect("the server does not stop").unwrap();
        }
        timeout(DEADLINE, self.receive.finish()).await.expect("receiving does not stop");
        (self.directory, self.store)
    }

    /// A user with a new key (`NAME` in the directory), or with the one there is.
    pub async fn user(&self, name: &str, role: Option<Role>) {
        let caller =
            Caller { user: name.parse().unwrap(), operator: false, door: Door::Ssh, rights: None, trace: None };
        let fingerprint = self.fingerprint(name).await;
        self.backend.users.lock().unwrap().insert(fingerprint, (caller, role));
    }

    /// An operator with a new key, who is a member of nothing.
    pub async fn operator(&self, name: &str) {
        let caller = Caller { user: name.parse().unwrap(), operator: true, door: Door::Ssh, rights: None, trace: None };
        let fingerprint = self.fingerprint(name).await;
        self.backend.users.lock().unwrap().insert(fingerprint, (caller, None));
    }

    /// Takes a user's key away.
    pub async fn remove_key(&self, name: &str) {
        let fingerprint = self.fingerprint(name).await;
        self.backend.users.lock().unwrap().remove(&fingerprint).unwrap();
    }

    async fn fingerprint(&self, name: &str) -> String {
        let key = self.key(name, &[]).await;
        let public = fs::read(key.with_extension("pub")).unwrap();
        keys::parse_upload(&public).unwrap().remove(0).fingerprint
    }

    /// A key file, made if need be.
    pub async fn key(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let file = self.directory.path().join(format!("key-{name}"));
        if !file.exists() {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-N", "", "-f"]).arg(&file);
            command.args(if arguments.is_empty() { &["-t", "ed25519"][..] } else { arguments });
            assert!(command.status().await.unwrap().success());
        }
        file
    }

    /// `ssh` and its options for a user; the destination and command are to be added.
    pub fn ssh_options(&self, user: &str) -> Vec<String> {
        let directory = self.directory.path().display();
        let mut options = vec!["-F".into(), "none".into(), "-p".into(), self.address.port().to_string()];
        options.extend(["-i".into(), format!("{directory}/key-{user}")]);
        for option in [
            "IdentitiesOnly=yes".into(),
            "BatchMode=yes".into(),
            "StrictHostKeyChecking=accept-new".into(),
            "LogLevel=ERROR".into(),
            format!("UserKnownHostsFile={directory}/known_hosts"),
        ] {
            options.extend(["-o".into(), option]);
        }
        options
    }

    pub fn ssh_command(&self, user: &str, options: &[&str], line: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command
            .env_remove("SSH_AUTH_SOCK")
            .args(self.ssh_options(user))
            .args(options)
            .arg("berth@127.0.0.1")
            .args(line);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs `ssh` as alice.
    pub async fn ssh(&self, line: &[&str]) -> Ran {
        Ran::of(self.ssh_command("alice", &[], line)).await
    }

    /// Runs `ssh` as alice with input.
    pub async fn ssh_with_input(&self, line: &[&str], input: Vec<u8>) -> Ran {
        let mut child = self.ssh_command("alice", &[], line).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = tokio::spawn(async move {
            let _ = stdin.write_all(&input).await;
        });
        let output = timeout(DEADLINE, child.wait_with_output()).await.expect("ssh does not end").unwrap();
        feed.await.unwrap();
        Ran(output)
    }

    /// The URL of an environment.
    pub fn url(&self, path: &str) -> String {
        format!("ssh://berth@127.0.0.1:{}/{path}", self.address.port())
    }

    /// `git` in `directory` as `user`.
    pub fn git_command(&self, user: &str, directory: &Path, arguments: &[&str]) -> Command {
        let ssh: Vec<String> = self.ssh_options(user).iter().map(|word| format!("'{word}'")).collect();
        let mut command = Command::new("git");
        command.current_dir(directory).env("GIT_SSH_COMMAND", format!("ssh {}", ssh.join(" ")));
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env_remove("SSH_AUTH_SOCK");
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "a").env(format!("GIT_{role}_EMAIL"), "a@example.com");
        }
        command.args(["-c", "protocol.file.allow=always"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub async fn git(&self, directory: &Path, arguments: &[&str]) -> Ran {
        Ran::of(self.git_command("alice", directory, arguments)).await
    }

    /// A work tree with a commit on `main` and the remote `paas-dev`.
    pub async fn work(&self, name: &str) -> PathBuf {
        let work = self.directory.path().join(name);
        fs::create_dir(&work).unwrap();
        self.git(&work, &["init", "-q", "-b", "main"]).await.ok();
        self.git(&work, &["remote", "add", "paas-dev", &self.url("acme/shop/dev")]).await.ok();
        self.commit(&work, &[("index.html", "hello")]).await;
        work
    }

    pub async fn commit(&self, work: &Path, files: &[(&str, &str)]) -> String {
        for (name, content) in files {
            fs::write(work.join(name), content).unwrap();
        }
        self.git(work, &["add", "-A"]).await.ok();
        self.git(work, &["commit", "-q", "--allow-empty", "-m", "x"]).await.ok();
        self.git(work, &["rev-parse", "HEAD"]).await.ok().trim().to_owned()
    }

    /// Where a branch of the environment is.
    pub fn branch(&self, name: &str) -> Option<String> {
        self.repositories.branch_commit(&env(), &format!("refs/heads/{name}")).unwrap()
    }
}

/// How a client ended.
pub struct Ran(pub Output);

impl Ran {
    pub async fn of(mut command: Command) -> Self {
        Self(timeout(DEADLINE, command.output()).await.unwrap_or_else(|_| panic!("{command:?} does not end")).unwrap())
    }

    pub fn status(&self) -> i32 {
        self.0.status.code().unwrap_or(-1)
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// It must have succeeded.
    pub fn ok(&self) -> String {
        assert_eq!(self.status(), 0, "{}{}", self.out(), self.err());
        self.out()
    }

    /// It must have failed and said all of these.
    pub fn refused(&self, texts: &[&str]) -> String {
        let said = format!("{}{}", self.out(), self.err());
        assert_ne!(self.status(), 0, "it was not refused: {said}");
        for text in texts {
            assert!(said.contains(text), "{text:?} is missing in: {said}");
        }
        said
    }
}

/// Waits until something holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads until the text has come.
pub async fn read_until(from: &mut (impl tokio::io::AsyncRead + Unpin), text: &str) -> String {
    let mut all = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&all).contains(text) {
            let mut buffer = [0; 4096];
            let length = from.read(&mut buffer).await.unwrap();
            assert_ne!(length, 0, "{text:?} did not come, but {:?}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&buffer[..length]);
        }
    };
    timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("{text:?} did not come"));
    String::from_utf8_lossy(&all).into_owned()
}
