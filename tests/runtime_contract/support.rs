//! What cases are made with: a world to run in, their list, waiting for conditions, reading streams.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use berth::{
    domain::{ImageRef, Limits, ReleaseVersion, Replica, ReplicaSet, ReplicaState, SetId},
    runtime::{JobKind, JobSpec, Output, Runtime, RuntimeError, Source},
};
use futures::{StreamExt, stream::BoxStream};
use libtest_mimic::Trial;
use tokio::runtime::Handle;

/// How long anything may take before a case fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// An adapter, and an image that it can run `/usr/local/bin/berth-launch` of.
#[derive(Clone)]
pub struct World {
    pub runtime: Arc<dyn Runtime>,
    /// The same Berth after a restart: another process's adapter over the same engine.
    pub restarted: Arc<dyn Runtime>,
    pub image: ImageRef,
}

/// The cases of one adapter, in their order.
pub struct Cases<W> {
    adapter: &'static str,
    world: Arc<dyn Fn() -> W + Send + Sync>,
    handle: Handle,
    trials: Vec<Trial>,
}

impl<W: 'static> Cases<W> {
    /// `world` is asked for by each case that runs, outside of the asynchronous context of `handle`.
    pub fn new(adapter: &'static str, handle: &Handle, world: impl Fn() -> W + Send + Sync + 'static) -> Self {
        Self { adapter, world: Arc::new(world), handle: handle.clone(), trials: Vec::new() }
    }

    /// Adds a case. `name` says what is so; the test is called by the adapter and its words.
    pub fn case<F: Future<Output = ()> + 'static>(&mut self, name: &str, case: impl FnOnce(W) -> F + Send + 'static) {
        let (world, handle) = (self.world.clone(), self.handle.clone());
        let words = name.replace(['\'', ','], "").replace([' ', '-'], "_");
        self.trials.push(Trial::test(format!("{}::{words}", self.adapter), move || {
            let world = world();
            let work = handle.block_on(async { tokio::time::timeout(DEADLINE * 3, case(world)).await });
            work.map_err(|_| "it took too long".into())
        }));
    }

    pub fn into_trials(self) -> Vec<Trial> {
        self.trials
    }
}

/// A set of one app named after the case, so that cases do not meet.
pub fn set(world: &World, app: &str, command: &str, count: u32) -> ReplicaSet {
    ReplicaSet {
        id: SetId {
            env: format!("acme/{app}/dev").parse().unwrap(),
            process: "web".parse().unwrap(),
            release: ReleaseVersion(1),
            restarts: 0,
        },
        image: world.image.clone(),
        command: command.to_owned(),
        environment: BTreeMap::new(),
        count,
        limits: limits(),
        stop_grace: Duration::from_secs(2),
    }
}

pub fn limits() -> Limits {
    Limits { cpu_millis: 1000, memory: 64 << 20, pids: 32 }
}

pub fn job(world: &World, name: &str, argv: &[&str]) -> JobSpec {
    JobSpec {
        kind: JobKind::OneOff,
        env: "acme/jobs/dev".parse().unwrap(),
        name: name.to_owned(),
        image: world.image.clone(),
        argv: argv.iter().map(|&text| text.to_owned()).collect(),
        environment: BTreeMap::new(),
        limits: limits(),
        cache: false,
        read_only_mounts: Vec::new(),
        tty: None,
        stdin: false,
        stop_grace: Duration::from_secs(2),
    }
}

/// Waits until `condition` gives something. Looks again whenever 20 ms have passed: this is a test's view from outside.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, condition: impl Fn() -> F) -> T {
    let wait = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// The replicas of a set, by index.
pub async fn replicas(runtime: &dyn Runtime, set: &SetId) -> Vec<Replica> {
    let mut found: Vec<_> =
        runtime.observe().await.unwrap().into_iter().filter(|replica| replica.set == *set).collect();
    found.sort_by_key(|replica| replica.index);
    found
}

/// Waits until the only replica of the set has exited.
pub async fn exited(runtime: &dyn Runtime, set: &SetId) -> Replica {
    eventually("the replica exits", async || {
        let found = replicas(runtime, set).await;
        found.into_iter().find(|replica| matches!(replica.state, ReplicaState::Exited { .. }))
    })
    .await
}

/// Standard output and standard error until the end, as text.
pub async fn read_all(mut output: BoxStream<'static, Result<Output, RuntimeError>>) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let read = async {
        while let Some(chunk) = output.next().await {
            let chunk = chunk.expect("the output ends properly");
            match chunk.source {
                Source::Stdout => out.extend_from_slice(&chunk.bytes),
                Source::Stderr => err.extend_from_slice(&chunk.bytes),
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("the output ends");
    (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned())
}

/// Runs a job from start to end: what it printed, and its exit.
pub async fn run_job(world: &World, spec: &JobSpec) -> (String, String, berth::runtime::JobExit) {
    let mut job = world.runtime.job(spec).await.unwrap();
    job.start().await.unwrap();
    let (out, err) = read_all(job.output()).await;
    let exit = job.wait().await.unwrap();
    job.finish().await.unwrap();
    (out, err, exit)
}

/// A tar stream of files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(10_001);
        header.set_gid(10_001);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The files in a tar stream.
pub fn untar(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(bytes);
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
    }
    files
}
