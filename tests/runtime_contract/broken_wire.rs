//! The engine going away and coming back, by way of a wire to it that can be cut.

use std::{path::PathBuf, sync::Arc, time::Duration};

use berth::runtime::{Change, LogLine, Runtime, RuntimeError, RuntimeEvent, docker::DockerRuntime};
use futures::{StreamExt, stream::BoxStream};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use super::{
    docker_world::Engine,
    support::{Cases, DEADLINE, World, job, replicas, set},
};

type Both = (Arc<Engine>, World);

pub fn add(cases: &mut Cases<Both>) {
    cases.case("events, logs and jobs outlive a lost connection", lost_connection);
}

/// Hands connections on to the engine.
struct Wire {
    path: PathBuf,
    task: JoinSet<()>,
}

impl Wire {
    fn new(path: PathBuf) -> Self {
        let mut wire = Self { path, task: JoinSet::new() };
        wire.mend();
        wire
    }

    fn mend(&mut self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        self.task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = UnixStream::connect("/var/run/docker.sock").await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
    }

    /// Breaks all connections and takes no more.
    async fn cut(&mut self) {
        self.task.shutdown().await;
        std::fs::remove_file(&self.path).unwrap();
    }
}

async fn lost_connection((engine, world): Both) {
    let mut wire = Wire::new(engine.directory().join("wire.sock"));
    let mut settings = engine.settings.clone();
    settings.socket = wire.path.clone();
    let far = DockerRuntime::connect(settings).await.unwrap();
    let counts = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    let set = set(&world, "wire", counts, 1);
    let mut events = far.events().await.unwrap();
    far.apply(&set).await.unwrap();
    let replica = replicas(&far, &set.id).await.remove(0);
    let mut log = far.logs(&replica.id, None).await.unwrap();
    let mut job = far.job(&job(&world, "wire", &["sh", "-c", "sleep 2; exit 6"])).await.unwrap();
    job.start().await.unwrap();
    let mut numbers: Vec<u64> = Vec::new();
    while numbers.len() < 5 {
        numbers.push(next_number(&mut log).await.expect("no end"));
    }
    let waiter = tokio::spawn(async move {
        let exit = job.wait().await;
        (job, exit)
    });
    assert!(matches!(next_event(&mut events).await, RuntimeEvent::Changed { what: Change::Started, .. }));

    wire.cut().await;
    assert!(matches!(far.apply(&set).await, Err(RuntimeError::Unavailable(_))));
    assert!(matches!(far.observe().await, Err(RuntimeError::Unavailable(_))));
    wire.mend();

    while next_event(&mut events).await != RuntimeEvent::Resync {}
    let before = numbers.len();
    while numbers.len() < before + 20 {
        numbers.push(next_number(&mut log).await.expect("no end"));
    }
    let wanted: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, wanted, "lines were lost or came twice");
    let (job, exit) = waiter.await.unwrap();
    assert_eq!(exit.unwrap().code, 6);
    job.finish().await.unwrap();
    assert_eq!(replicas(&far, &set.id).await, [replica]);
    far.remove(&set.id, Duration::ZERO).await.unwrap();
    while !matches!(next_event(&mut events).await, RuntimeEvent::Changed { what: Change::Removed, .. }) {}
    while next_number(&mut log).await.is_some() {}
    far.close(DEADLINE).await;
    wire.cut().await;
}

async fn next_event(events: &mut BoxStream<'static, RuntimeEvent>) -> RuntimeEvent {
    tokio::time::timeout(DEADLINE, events.next()).await.expect("an event comes").expect("events never end")
}

async fn next_number(log: &mut BoxStream<'static, Result<LogLine, RuntimeError>>) -> Option<u64> {
    let line = tokio::time::timeout(DEADLINE, log.next()).await.expect("lines come")?.unwrap();
    Some(String::from_utf8_lossy(&line.bytes).parse().unwrap())
}
