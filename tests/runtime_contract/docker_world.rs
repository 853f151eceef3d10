//! A world on the real engine: a registry of its own on a free port, a small image made by hand, an instance id of its own.

use std::{
    io::Write,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use berth::{
    domain::ImageRef,
    runtime::docker::{DockerRuntime, DockerSettings},
};

use super::support::World;

/// The engine as the cases see it beside the port: for looking, and for breaking things.
pub struct Engine {
    pub settings: DockerSettings,
    pub runtime: DockerRuntime,
    pub restarted: DockerRuntime,
    /// Further instances that cases made: (instance, adapter).
    others: Mutex<Vec<(String, DockerRuntime)>>,
    registry: Mutex<Child>,
    directory: tempfile::TempDir,
}

const REPOSITORY: &str = "berth/contract/app";

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "env", "sleep", "ls", "id", "nc", "httpd", "stat", "grep", "head", "dd", "printf", "tr", "wc",
    "stty", "seq", "timeout", "ip", "touch", "mkdir", "true", "false", "test", "ping", "mount", "od", "yes", "awk",
    "readlink",
];

/// Runs the engine's command line and returns what it prints.
pub fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker runs");
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, owner: u64, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).unwrap();
    };
    let busybox = std::fs::read("/usr/bin/busybox").expect("busybox-static is installed");
    use tar::EntryType::{Directory, Regular};
    for directory in ["bin", "etc", "usr", "usr/local", "usr/local/bin", "home", "proc", "sys", "dev"] {
        add(directory, Directory, 0o755, 0, &[]);
    }
    add("tmp", Directory, 0o1777, 0, &[]);
    for directory in ["app", "cache", "meta", "env"] {
        add(directory, Directory, 0o755, 10_001, &[]);
    }
    add("bin/busybox", Regular, 0o755, 0, &busybox);
    add("etc/passwd", Regular, 0o644, 0, b"root:x:0:0::/:/bin/sh\napp:x:10001:10001::/app:/bin/sh\n");
    add("usr/local/bin/berth-launch", Regular, 0o755, 0, b"#!/bin/sh\nexec /bin/sh -c \"$1\"\n");
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    tar.into_inner().unwrap()
}

fn start_registry(directory: &std::path::Path, port: u16) -> Child {
    let config = directory.join("registry.yml");
    let data: PathBuf = directory.join("registry");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
        data.display()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .args(["serve", &config.display().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is installed");
    let started = std::time::Instant::now();
    while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(started.elapsed() < Duration::from_secs(20), "the registry does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

/// Makes the image, pushes it, and takes it off the engine again, so that the adapter has to pull it.
fn push_image(registry: &str) -> ImageRef {
    let tag = format!("{registry}/{REPOSITORY}:contract");
    let mut import = Command::new("docker")
        .args(["import", "--change", "ENV PATH=/bin:/usr/local/bin", "--change", "WORKDIR /app", "-", &tag])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    import.stdin.take().unwrap().write_all(&layer()).unwrap();
    assert!(import.wait().unwrap().success());
    docker(&["push", "--quiet", &tag]);
    let digest = docker(&["image", "inspect", "--format", "{{index .RepoDigests 0}}", &tag]);
    docker(&["rmi", &tag]);
    let (_, digest) = digest.split_once('@').unwrap();
    ImageRef { repository: REPOSITORY.to_owned(), digest: digest.parse().unwrap() }
}

/// Starts everything.
pub async fn start() -> (Arc<Engine>, World) {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let registry = format!("127.0.0.1:{port}");
    let child = Mutex::new(start_registry(directory.path(), port));
    let image = push_image(&registry);
    let instance = format!("contract-{}-{port}", std::process::id());
    let settings = DockerSettings {
        name_prefix: "berth-contract".to_owned(),
        host_ports: vec![free_port()],
        network_pool: "10.204.0.0/16".to_owned(),
        ..DockerSettings::new(registry, instance)
    };
    let runtime = DockerRuntime::connect(settings.clone()).await.unwrap();
    let restarted = DockerRuntime::connect(settings.clone()).await.unwrap();
    let world = World { runtime: Arc::new(runtime.clone()), restarted: Arc::new(restarted.clone()), image };
    (Arc::new(Engine { others: Mutex::default(), settings, runtime, restarted, registry: child, directory }), world)
}

impl Engine {
    /// Another Berth on the same engine, which is cleaned away with this one.
    pub async fn other(&self) -> DockerRuntime {
        let instance = format!("{}-other", self.settings.instance);
        let settings = DockerSettings { instance: instance.clone(), ..self.settings.clone() };
        let other = DockerRuntime::connect(settings).await.unwrap();
        self.others.lock().unwrap().push((instance, other.clone()));
        other
    }

    /// This instance and the others.
    pub fn instances(&self) -> Vec<String> {
        let others = self.others.lock().unwrap();
        std::iter::once(&self.settings.instance).chain(others.iter().map(|(name, _)| name)).cloned().collect()
    }

    /// A place for files.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    fn images(&self) -> Vec<String> {
        let all = docker(&["images", "--digests", "--format", "{{.Repository}}@{{.Digest}}"]);
        all.lines().filter(|line| line.starts_with(&self.settings.registry)).map(str::to_owned).collect()
    }

    /// What is on the engine and in the packet filter because of this world.
    fn traces(&self) -> Vec<String> {
        let mut found: Vec<String> = self.images().into_iter().map(|image| format!("image {image}")).collect();
        for instance in self.instances() {
            let filter = format!("label=berth.instance={instance}");
            for (kind, arguments) in [
                ("container", ["ps", "-aq", "--filter", &filter].as_slice()),
                ("network", &["network", "ls", "-q", "--filter", &filter]),
                ("volume", &["volume", "ls", "-q", "--filter", &filter]),
            ] {
                found.extend(docker(arguments).lines().map(|id| format!("{kind} {id}")));
            }
            let tag = berth::runtime::docker::instance_tag(&instance);
            let (bridge, chain) = (format!("bth-{tag}-"), format!("BERTH-{}-", tag.to_uppercase()));
            for tool in ["iptables-save", "ip6tables-save"] {
                let output = Command::new(tool).output().expect("iptables is installed");
                let rules = String::from_utf8_lossy(&output.stdout).into_owned();
                let ours = rules.lines().filter(|rule| rule.contains(&bridge) || rule.contains(&chain));
                found.extend(ours.map(|rule| format!("rule {rule}")));
            }
        }
        found
    }

    /// Names of this instance's bridges, as iptables knows them.
    pub fn bridges(&self) -> String {
        format!("bth-{}-", self.tag())
    }

    /// How the names of this instance's chains begin.
    pub fn chain(&self) -> String {
        format!("BERTH-{}-", self.tag().to_uppercase())
    }

    fn tag(&self) -> String {
        berth::runtime::docker::instance_tag(&self.settings.instance)
    }

    /// Cases must have removed their containers; what belongs to tenants and images is removed here, through the port. Says what is left.
    pub async fn clean_up(&self) -> Option<String> {
        use berth::runtime::Runtime;
        let mut left: Vec<String> = Vec::new();
        self.runtime.close(Duration::from_secs(60)).await;
        self.restarted.close(Duration::from_secs(60)).await;
        for tenant in ["acme", "rival"] {
            if let Err(error) = self.runtime.forget(&tenant.parse().unwrap(), None).await {
                left.push(error.to_string());
            }
        }
        if let Err(error) = self.runtime.collect_images(&[]).await {
            left.push(error.to_string());
        }
        self.runtime.teardown().await;
        let others: Vec<DockerRuntime> = self.others.lock().unwrap().iter().map(|(_, other)| other.clone()).collect();
        for other in others {
            other.close(Duration::from_secs(60)).await;
            other.teardown().await;
        }
        left.extend(self.traces());
        self.sweep();
        if left.is_empty() {
            None
        } else {
            Some(format!("{} things: {}", left.len(), left[..left.len().min(20)].join(", ")))
        }
    }

    /// Removes everything by hand.
    fn sweep(&self) {
        let quiet = |arguments: &[&str]| {
            let _ = Command::new("docker").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        };
        for instance in self.instances() {
            let filter = format!("label=berth.instance={instance}");
            for (list, remove) in [
                (["ps", "-aq"].as_slice(), ["rm", "-fv"].as_slice()),
                (&["network", "ls", "-q"], &["network", "rm"]),
                (&["volume", "ls", "-q"], &["volume", "rm"]),
            ] {
                let list = [list, &["--filter", &filter]].concat();
                for id in docker(&list).lines() {
                    quiet(&[remove, &[id]].concat());
                }
            }
        }
        for image in self.images() {
            quiet(&["rmi", &image]);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.sweep();
        let mut registry = self.registry.lock().unwrap();
        let _ = registry.kill();
        let _ = registry.wait();
    }
}
