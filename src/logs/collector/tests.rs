//! The collector against an engine that plays back lines.

use std::{collections::BTreeMap, sync::Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::watch;

use super::*;
use crate::{
    domain::{AppRef, ImageRef, ReleaseVersion, ReplicaSet, SetId, TenantName, Timestamp},
    logs::{LogFilter, LogItem, LogLimits, MAX_TAIL},
    runtime::{Capabilities, Change, Executed, Job, JobSpec, Listener, RuntimeEvent},
};

/// What a replica has said, each line with its time.
type Said = watch::Sender<Vec<(Timestamp, String)>>;

/// A clock that goes with the test's, which may stand still.
fn clock() -> Clock {
    let (began, at) = (tokio::time::Instant::now(), Timestamp::now());
    Arc::new(move || at + began.elapsed())
}

/// An engine with replicas that have said some lines.
struct Engine {
    replicas: Mutex<BTreeMap<String, (Replica, Said)>>,
    events: tokio::sync::broadcast::Sender<RuntimeEvent>,
    /// What it was told to hold replicas to.
    holds: Mutex<Vec<Option<u32>>>,
    /// How many lines of each have been read, at the most.
    read: watch::Sender<BTreeMap<String, usize>>,
}

impl Engine {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            replicas: Mutex::default(),
            holds: Mutex::default(),
            read: watch::Sender::default(),
            events: tokio::sync::broadcast::Sender::new(64),
        })
    }

    fn set() -> SetId {
        SetId { env: env(), process: "web".parse().unwrap(), release: ReleaseVersion(1), restarts: 0 }
    }

    fn event(&self, id: &str, what: Change) {
        let _ = self.events.send(RuntimeEvent::Changed { set: Self::set(), replica: ReplicaId(id.to_owned()), what });
    }

    fn start(&self, id: &str, index: u32) {
        let replica = Replica {
            id: ReplicaId(id.to_owned()),
            set: Self::set(),
            index,
            state: ReplicaState::Running,
            address: None,
            started_at: None,
            finished_at: None,
        };
        self.replicas.lock().unwrap().insert(id.to_owned(), (replica, watch::Sender::new(Vec::new())));
        self.event(id, Change::Started);
    }

    /// Says a line at a second.
    fn say(&self, id: &str, at: i64, text: &str) {
        self.say_at(id, Timestamp::from_second(at).unwrap(), text);
    }

    fn say_at(&self, id: &str, at: Timestamp, text: &str) {
        self.replicas.lock().unwrap()[id].1.send_modify(|lines| lines.push((at, text.to_owned())));
    }

    /// Waits until so many lines have been read.
    async fn has_been_read(&self, id: &str, lines: usize) {
        let mut read = self.read.subscribe();
        read.wait_for(|read| read.get(id).is_some_and(|read| *read >= lines)).await.unwrap();
    }

    fn exit(&self, id: &str) {
        let mut replicas = self.replicas.lock().unwrap();
        let (replica, lines) = replicas.get_mut(id).unwrap();
        replica.state = ReplicaState::Exited { code: 1, out_of_memory: false };
        // Ends whoever reads; the lines stay to be read.
        let said = lines.borrow().clone();
        *lines = watch::Sender::new(said);
        drop(replicas);
        self.event(id, Change::Died);
    }
}

fn refused<T>() -> Result<T, RuntimeError> {
    Err(RuntimeError::Refused("this engine only plays back lines".to_owned()))
}

#[async_trait]
impl Runtime for Engine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { engine: "test".to_owned(), cpu_limits: false, memory_limits: false, host_isolation: false }
    }
    async fn prepare_tenant(&self, _tenant: &TenantName) -> Result<(), RuntimeError> {
        refused()
    }
    async fn forget(&self, _tenant: &TenantName, _app: Option<&AppRef>) -> Result<(), RuntimeError> {
        refused()
    }
    async fn forget_others(
        &self,
        _: &std::collections::BTreeSet<TenantName>,
        _: &std::collections::BTreeSet<AppRef>,
    ) -> Result<usize, RuntimeError> {
        refused()
    }
    async fn prepare_image(&self, _image: &ImageRef) -> Result<(), RuntimeError> {
        refused()
    }
    async fn apply(&self, _set: &ReplicaSet) -> Result<(), RuntimeError> {
        refused()
    }
    async fn observe(&self) -> Result<Vec<Replica>, RuntimeError> {
        Ok(self.replicas.lock().unwrap().values().map(|(replica, _)| replica.clone()).collect())
    }
    async fn remove(&self, _set: &SetId, _grace: Duration) -> Result<(), RuntimeError> {
        refused()
    }
    async fn stop_replica(&self, _replica: &ReplicaId, _grace: Duration) -> Result<(), RuntimeError> {
        refused()
    }
    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>, RuntimeError> {
        let receiver = self.events.subscribe();
        Ok(futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await.ok()?, receiver)))
            .boxed())
    }
    async fn logs(
        &self,
        replica: &ReplicaId,
        since: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        let replicas = self.replicas.lock().unwrap();
        let Some((state, lines)) = replicas.get(&replica.0) else { return Err(RuntimeError::Gone(replica.0.clone())) };
        let (running, receiver) = (state.state == ReplicaState::Running, lines.subscribe());
        let (read, id) = (self.read.clone(), replica.0.clone());
        let stream = futures::stream::unfold((receiver, 0), move |(mut receiver, next)| {
            let (read, id) = (read.clone(), id.clone());
            async move {
                // Whoever asks for a line has read those before it.
                read.send_modify(|read| {
                    let read = read.entry(id).or_default();
                    *read = next.max(*read);
                });
                loop {
                    let line = receiver.borrow_and_update().get(next).cloned();
                    if let Some((at, text)) = line {
                        let line = LogLine { at, source: Source::Stdout, bytes: Bytes::from(text) };
                        return Some((Ok(line), (receiver, next + 1)));
                    }
                    if !running || receiver.changed().await.is_err() {
                        return None;
                    }
                }
            }
        });
        let wanted = move |line: &Result<LogLine, RuntimeError>| {
            let wanted = line.as_ref().is_ok_and(|line| since.is_none_or(|since| line.at >= since));
            futures::future::ready(wanted)
        };
        Ok(stream.filter(wanted).boxed())
    }
    async fn listeners(&self, _replica: &ReplicaId) -> Result<Vec<Listener>, RuntimeError> {
        refused()
    }
    async fn usage(
        &self,
        _: &[ReplicaId],
    ) -> Result<std::collections::BTreeMap<ReplicaId, crate::runtime::Usage>, RuntimeError> {
        refused()
    }
    async fn refused_processes(&self, _: &ReplicaId) -> Result<BoxStream<'static, u64>, RuntimeError> {
        refused()
    }
    async fn hold(&self, _: &ReplicaId, cpu_millis: Option<u32>) -> Result<(), RuntimeError> {
        self.holds.lock().unwrap().push(cpu_millis);
        Ok(())
    }
    async fn exec(&self, _: &ReplicaId, _: &str, _: Duration) -> Result<Executed, RuntimeError> {
        unreachable!()
    }
    async fn job(&self, _spec: &JobSpec) -> Result<Box<dyn Job>, RuntimeError> {
        refused()
    }
    async fn end_orphaned_jobs(&self) -> Result<usize, RuntimeError> {
        refused()
    }
    async fn purge_cache(&self, _app: &AppRef) -> Result<(), RuntimeError> {
        refused()
    }
    async fn collect_images(&self, _keep: &[ImageRef]) -> Result<usize, RuntimeError> {
        refused()
    }
}

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

/// A server's collector, ended with [`Self::stop`].
struct Server {
    logs: Logs,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(dir: &std::path::Path, engine: &Arc<Engine>) -> Self {
        Self::with(dir, engine, LogLimits::default())
    }

    fn with(dir: &std::path::Path, engine: &Arc<Engine>, limits: LogLimits) -> Self {
        let logs = Logs::open(dir, limits).unwrap();
        let stop = CancellationToken::new();
        let collector = Collector::with_clock(engine.clone(), logs.clone(), clock());
        let task = tokio::spawn(collector.run(stop.clone()));
        Self { logs, stop, task }
    }

    /// Waits until the log has exactly these lines.
    async fn has(&self, want: &[&str]) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let lines = self.logs.tail(&env(), MAX_TAIL, &LogFilter::all()).await.unwrap();
            let lines: Vec<String> = lines.iter().map(|line| format!("{} {}", line.process, line.text)).collect();
            if lines == want {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline && lines.len() <= want.len(), "{lines:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// What the log says of reading it.
struct Told(BoxStream<'static, LogItem>);

impl Told {
    async fn by(server: &Server) -> Self {
        Self(server.logs.follow(&env(), &LogFilter::process("logs")).await.unwrap().boxed())
    }

    /// The next such line, and when it was said. The writer of the log has a thread of its own, for which a clock that stands still does not
    /// wait: the deadline is one of the real clock.
    async fn next(&mut self, begin: &str) -> (String, Timestamp) {
        let (_waits, done) = std::sync::mpsc::channel::<()>();
        let (late, too_late) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            if done.recv_timeout(Duration::from_secs(120)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = late.send(());
            }
        });
        let line = async {
            loop {
                match self.0.next().await.expect("the log goes on") {
                    LogItem::Record(record) if record.text.starts_with(begin) => {
                        return (record.text.clone(), record.at);
                    }
                    _ => {}
                }
            }
        };
        tokio::select! {
            line = line => line,
            Ok(()) = too_late => panic!("nothing begins with {begin:?}"),
        }
    }
}

#[tokio::test]
async fn a_restart_neither_loses_nor_doubles_lines() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new();
    engine.start("one", 1);
    engine.say("one", 10, "first");
    let server = Server::start(dir.path(), &engine);
    server.has(&["web.1 first"]).await;
    // Three lines of the same moment, one of them while nobody collects.
    engine.say("one", 11, "same");
    engine.say("one", 11, "same");
    server.has(&["web.1 first", "web.1 same", "web.1 same"]).await;
    server.stop().await;
    engine.say("one", 11, "same");
    engine.say("one", 12, "while it was down");
    let server = Server::start(dir.path(), &engine);
    let all = ["web.1 first", "web.1 same", "web.1 same", "web.1 same", "web.1 while it was down"];
    server.has(&all).await;
    server.stop().await;
    let server = Server::start(dir.path(), &engine);
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.has(&all).await;
    server.stop().await;
}

#[tokio::test]
async fn a_clock_that_was_set_back_while_nobody_collected_loses_no_lines() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new();
    let (ahead, now) = (Timestamp::now().as_second() + 86_400, Timestamp::now().as_second());
    engine.start("one", 1);
    engine.say("one", now, "before");
    engine.say("one", ahead, "a day ahead");
    let server = Server::start(dir.path(), &engine);
    server.has(&["web.1 before", "web.1 a day ahead"]).await;
    server.stop().await;
    engine.say("one", now + 1, "set back");
    let server = Server::start(dir.path(), &engine);
    server.has(&["web.1 before", "web.1 a day ahead", "web.1 set back"]).await;
    engine.say("one", now + 2, "and on");
    let all = ["web.1 before", "web.1 a day ahead", "web.1 set back", "web.1 and on"];
    server.has(&all).await;
    server.stop().await;
    let server = Server::start(dir.path(), &engine);
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.has(&all).await;
    server.stop().await;
}

#[tokio::test]
async fn replicas_that_start_later_or_die_at_once_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new();
    let server = Server::start(dir.path(), &engine);
    server.has(&[]).await;
    engine.start("late", 2);
    engine.say("late", 1, "hello");
    server.has(&["web.2 hello"]).await;
    engine.start("crash", 3);
    engine.say("crash", 2, "cannot start");
    engine.exit("crash");
    server.has(&["web.2 hello", "web.3 cannot start"]).await;
    // Further events do not read it again.
    engine.event("crash", Change::Died);
    engine.say("late", 3, "bye");
    server.has(&["web.2 hello", "web.3 cannot start", "web.2 bye"]).await;
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_fast_is_left_out_and_counted_but_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new();
    // 8 * 128 bytes at once: seven of these lines.
    let limits = LogLimits { replica_rate: 128, ..LogLimits::default() };
    engine.start("one", 1);
    (0..1000).for_each(|n| engine.say("one", n, &n.to_string()));
    engine.exit("one");
    let server = Server::with(dir.path(), &engine, limits);
    let all = server.logs.follow(&env(), &LogFilter::all()).await.unwrap();
    let lines: Vec<String> = all
        .take(7 + 2 + 100)
        .map(|item| match item {
            LogItem::Record(record) => record.text.clone(),
            other @ LogItem::Missed(_) => panic!("{other:?}"),
            LogItem::Gap => panic!("a gap without a place to go on from"),
        })
        .collect()
        .await;
    let first: Vec<String> = (0..7).map(|n| n.to_string()).collect();
    assert_eq!(lines[..7], first);
    assert!(lines[7].starts_with("web.1 writes too fast"), "{}", lines[7]);
    assert!(lines[8].starts_with("893 lines of web.1 and what the engine no longer had"), "{}", lines[8]);
    let last: Vec<String> = (900..1000).map(|n| n.to_string()).collect();
    assert_eq!(lines[9..], last);
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_writes_what_nobody_could_read_is_held_up_until_he_stops_that() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new();
    // All that is kept has a place in the queue: nobody waits for the writer of the log, for which the test's clock would not wait.
    let limits = LogLimits { queue: 1 << 18, ..LogLimits::default() };
    let server = Server::with(dir.path(), &engine, limits);
    let mut told = Told::by(&server).await;
    let line = "x".repeat(10_000);
    // Twenty megabytes: at once, and within two seconds.
    engine.start("burst", 1);
    let clock = clock();
    let now = clock().as_second();
    (0..2000).for_each(|_| engine.say("burst", now, &line));
    let (text, _) = told.next("web.1 writes too fast").await;
    assert!(!text.contains("slowed down"), "{text}");
    // One that has done so long before it was looked at.
    engine.start("old", 3);
    (0..4000).for_each(|n| engine.say("old", now - 1000 + n / 1000, &line));
    let (text, _) = told.next("web.3 writes too fast").await;
    assert!(!text.contains("slowed down"), "{text}");
    engine.start("flood", 2);
    // Ten times a second, two megabytes; however busy the machine is, they are read before the test's clock goes on.
    let writes = async {
        for turn in 1..=200 {
            (0..200).for_each(|n| engine.say_at("flood", clock() + Duration::from_micros(n * 500), &line));
            engine.has_been_read("flood", turn * 200).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending().await
    };
    let (text, held_at) = tokio::select! {
        told = told.next("web.2 writes too fast") => told,
        never = writes => never,
    };
    assert!(text.contains("it is slowed down until it stops that"), "{text}");
    let (_, let_go_at) = told.next("web.2 is not slowed down any more").await;
    assert!(let_go_at >= held_at + CALM, "{held_at} {let_go_at}");
    let holds = engine.holds.lock().unwrap().clone();
    assert_eq!((holds.first(), holds.last()), (Some(&Some(10)), Some(&None)), "{holds:?}");
    server.stop().await;
}
