//! The service over a store and an engine in memory, with a clock that can be set.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    domain::*,
    logs::{LogFilter, LogLimits},
    runtime::{
        Source,
        fake::{Behaviour, FakeRuntime, JobContext},
    },
    store::{Change, Entry, Guard, Kv, KvError, MemoryKv, Revision, Write},
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: i64 = 86_400;

/// A clock that goes with the runtime's paused time and can be set besides.
struct TestClock(Instant, Mutex<i64>);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let start = Timestamp::from_second(1_767_225_590 + *self.1.lock().unwrap()).unwrap();
        start + self.0.elapsed()
    }
}

/// A store whose next commits fail, as many as it is told.
#[derive(Default)]
struct FlakyKv(MemoryKv, Arc<AtomicU32>);

#[async_trait]
impl Kv for FlakyKv {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        self.0.get(key).await
    }
    async fn scan(&self, prefix: &str) -> Result<Vec<Entry>, KvError> {
        self.0.scan(prefix).await
    }
    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Revision, KvError> {
        match self.1.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(KvError::Failed("the disk is full".into())),
            Err(_) => self.0.commit(guards, writes).await,
        }
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Change>, KvError> {
        self.0.watch(prefix, from).await
    }
    async fn revision(&self) -> Result<Revision, KvError> {
        self.0.revision().await
    }
}

struct World {
    /// How many of the next commits fail.
    fail: Arc<AtomicU32>,
    store: Store,
    runtime: Arc<FakeRuntime>,
    logs: Logs,
    clock: Arc<TestClock>,
    /// Names of the jobs that were started, with what they saw as `BERTH_PROCESS`.
    started: Arc<Mutex<Vec<String>>>,
    settings: CronSettings,
    cron: Cron,
    service: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

fn name(text: &str) -> JobName {
    text.parse().unwrap()
}

/// A job that runs every minute; its command is how many seconds it takes.
fn job(seconds: u32, overlap: Overlap) -> CronJob {
    CronJob {
        schedule: "* * * * *".into(),
        timezone: "UTC".into(),
        command: seconds.to_string(),
        overlap,
        timeout: Duration::from_secs(3600),
        cpu_millis: 250,
        memory: 64 << 20,
    }
}

impl World {
    async fn new(jobs: &[(&str, CronJob)]) -> Self {
        Self::with(jobs, CronSettings::default()).await
    }

    async fn with(jobs: &[(&str, CronJob)], settings: CronSettings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let started: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = started.clone();
        let behaviour = Behaviour::default().jobs(move |context: JobContext| {
            let process = context.spec.environment["BERTH_PROCESS"].clone();
            seen.lock().unwrap().push(format!("{} {process}", context.spec.name));
            Box::pin(async move {
                context.print(Source::Stdout, "half a ").await;
                context.print(Source::Stdout, "line\n").await;
                let seconds: u64 = context.spec.argv[1].parse().unwrap();
                sleep(Duration::from_secs(seconds)).await;
                i64::from(seconds == 13)
            })
        });
        let fail: Arc<AtomicU32> = Arc::default();
        let store = Store::new(Arc::new(FlakyKv(MemoryKv::new(), fail.clone())));
        let runtime = Arc::new(FakeRuntime::new(behaviour));
        let logs = Logs::open(directory.path(), LogLimits::default()).unwrap();
        let clock = Arc::new(TestClock(Instant::now(), Mutex::default()));
        let (cron, service) = boot(&store, &runtime, &logs, &clock, &settings);
        let world = Self { fail, store, runtime, logs, clock, started, settings, cron, service, _directory: directory };
        world.release(1, jobs).await;
        world.cron.retire(&"no/such/env".parse().unwrap()).await;
        world
    }

    /// A release with these jobs becomes the current one.
    async fn release(&self, version: u64, jobs: &[(&str, CronJob)]) {
        let mut release = crate::deploy::tests::support::release(version, &[("web", 1)]);
        release.cron = jobs.iter().map(|(text, job)| (name(text), job.clone())).collect();
        let old = self.store.get::<Environment>(&env()).await.unwrap();
        let record = Environment {
            name: env(),
            created_at: Timestamp::UNIX_EPOCH,
            deploy_branch: None,
            config: BTreeMap::new(),
            scale: BTreeMap::new(),
            domains: vec![],
            target: Some(ReleaseVersion(version)),
            current: Some(ReleaseVersion(version)),
            last_release: version,
            last_build: 0,
            restarts: 0,
        };
        let transaction = self.store.transaction().create(&release);
        let transaction = match old {
            Some(old) => transaction.update(&old, &record),
            None => transaction.create(&record),
        };
        transaction.commit().await.unwrap();
    }

    async fn destroy(&self) {
        let old = self.store.need::<Environment>(&env()).await.unwrap();
        self.store.transaction().delete(&old).commit().await.unwrap();
    }

    /// `kill -9` of the server; its containers are ended by the next one.
    async fn kill(&mut self) {
        self.service.abort();
        let _ = (&mut self.service).await;
    }

    fn restart(&mut self) {
        self.runtime = Arc::new(self.runtime.restarted());
        (self.cron, self.service) = boot(&self.store, &self.runtime, &self.logs, &self.clock, &self.settings);
    }

    fn set_clock(&self, by: i64) {
        *self.clock.1.lock().unwrap() += by;
    }

    fn started(&self) -> Vec<String> {
        self.started.lock().unwrap().clone()
    }

    async fn runs(&self) -> Vec<CronRun> {
        let runs = self.store.list::<CronRun>("").await.unwrap();
        runs.into_iter().map(|run| run.record).collect()
    }

    async fn words(&self) -> Vec<&'static str> {
        self.runs().await.iter().map(|run| run.state.word()).collect()
    }

    async fn events(&self) -> Vec<String> {
        let events = self.store.list::<Event>("").await.unwrap();
        events.iter().map(|event| event.message.clone()).collect()
    }
}

fn boot(
    store: &Store,
    runtime: &Arc<FakeRuntime>,
    logs: &Logs,
    clock: &Arc<TestClock>,
    settings: &CronSettings,
) -> (Cron, JoinHandle<()>) {
    let (cron, service) = Cron::start(CronParts {
        store: store.clone(),
        runtime: runtime.clone(),
        logs: logs.clone(),
        clock: clock.clone(),
        settings: settings.clone(),
    });
    (cron, tokio::spawn(service.run(CancellationToken::new())))
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_at_the_moments_of_its_schedule() {
    let world = World::new(&[("tick", job(1, Overlap::Skip))]).await;
    sleep(MINUTE * 3).await;
    assert_eq!(world.started(), ["cron-tick-1 cron.tick", "cron-tick-2 cron.tick", "cron-tick-3 cron.tick"]);
    let runs = world.runs().await;
    let due: Vec<String> = runs.iter().map(|run| run.scheduled_at.unwrap().to_string()).collect();
    assert_eq!(due, ["2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"]);
    assert!(runs.iter().all(|run| run.state == CronState::Succeeded && run.tail == ["half a line"]), "{runs:?}");
    world.logs.flush().await;
    let lines = world.logs.tail(&env(), 100, &LogFilter::process("cron.tick")).await.unwrap();
    let lines: Vec<&str> = lines.iter().take(3).map(|line| line.text.as_str()).collect();
    assert_eq!(lines, ["run 1 of v1 started", "half a line", "run 1 succeeded"]);
    // Nothing happened that anybody would want to be told of.
    assert_eq!(world.events().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn failures_are_told_when_they_begin() {
    let world = World::new(&[("tick", job(13, Overlap::Skip))]).await;
    sleep(MINUTE * 4).await;
    assert_eq!(world.words().await, ["failed"; 4]);
    assert_eq!(world.events().await, ["run 1 of tick failed: it exited with status 1"]);
    world.release(2, &[("tick", job(1, Overlap::Skip))]).await;
    sleep(MINUTE * 2).await;
    assert_eq!(world.events().await.last().unwrap(), "run 5 of tick succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_killed_server_runs_nothing_twice() {
    let mut world = World::new(&[("tick", job(30, Overlap::Skip))]).await;
    sleep(Duration::from_secs(15)).await;
    assert_eq!(world.words().await, ["running"]);
    world.kill().await;
    world.restart();
    sleep(Duration::from_secs(20)).await;
    let runs = world.runs().await;
    assert_eq!(runs[0].state.reason(), Some("the server was restarted while it ran"));
    assert_eq!(world.started().len(), 1, "the moment was dealt with twice");
    // Down for three hours: one run is made up for, the newest.
    world.kill().await;
    sleep(Duration::from_secs(3 * 3600)).await;
    world.restart();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.started().len(), 2);
    sleep(MINUTE).await;
    assert_eq!(world.started().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_comes_due_while_the_engine_is_away_waits_for_it() {
    let daily = CronJob { schedule: "@daily".into(), ..job(1, Overlap::Skip) };
    let world = World::new(&[("nightly", daily.clone())]).await;
    world.runtime.set_dead(true);
    sleep(MINUTE * 30).await;
    assert_eq!(world.words().await, ["running"]);
    world.set_clock(-10 * DAY);
    world.runtime.set_dead(false);
    sleep(MINUTE).await;
    assert_eq!((world.words().await, world.started()), (vec!["succeeded"], vec!["cron-nightly-1 cron.nightly".into()]));
    world.logs.flush().await;
    let lines = world.logs.tail(&env(), 100, &LogFilter::process("cron.nightly")).await.unwrap();
    let waits = "run 1 is waiting for the engine: the engine is dead";
    assert_eq!(lines.iter().filter(|line| line.text == waits).count(), 1, "{lines:?}");
    // Not for longer than it may be late, nor when it is to end.
    let settings = CronSettings { starting_deadline: MINUTE * 10, ..CronSettings::default() };
    let world = World::with(&[("nightly", daily.clone())], settings).await;
    world.runtime.set_dead(true);
    sleep(MINUTE * 9).await;
    assert_eq!(world.words().await, ["running"]);
    sleep(MINUTE * 2).await;
    assert_eq!(world.words().await, ["failed"]);
    let world = World::new(&[("tick", job(1, Overlap::Replace))]).await;
    world.runtime.set_dead(true);
    sleep(MINUTE * 3).await;
    assert_eq!(world.words().await, ["stopped", "stopped", "running"]);
    // One by hand: somebody waits for it.
    let world = World::new(&[("nightly", daily)]).await;
    world.runtime.set_dead(true);
    let begun = world.cron.run_now(&env(), &name("nightly"), &"dan".parse().unwrap()).await.unwrap();
    let asked = Instant::now();
    assert!(matches!(begun.ended.await.unwrap().state, CronState::Failed { .. }));
    assert_eq!(asked.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn overlapping_runs_are_left_out_replaced_or_allowed() {
    let jobs = [
        ("skip", job(210, Overlap::Skip)),
        ("replace", job(210, Overlap::Replace)),
        ("allow", job(210, Overlap::Allow)),
    ];
    // One, one and four.
    let world = World::with(&jobs, CronSettings { per_tenant: 6, ..CronSettings::default() }).await;
    sleep(Duration::from_secs(195)).await;
    let of = |runs: &[CronRun], job: &str| -> Vec<(&'static str, u64)> {
        runs.iter().filter(|run| run.job == name(job)).map(|run| (run.state.word(), run.repeats)).collect()
    };
    let runs = world.runs().await;
    assert_eq!(of(&runs, "skip"), [("running", 0), ("skipped", 2)]);
    assert_eq!(of(&runs, "replace"), [("stopped", 0), ("stopped", 0), ("stopped", 0), ("running", 0)]);
    let replaced = runs.iter().find(|run| run.job == name("replace")).unwrap();
    assert!(replaced.state.reason().unwrap().starts_with("replaced by the run of 2026"), "{replaced:?}");
    assert_eq!(of(&runs, "allow"), [("running", 0); 4]);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_so_many_runs_and_no_more() {
    let settings = CronSettings { per_tenant: 2, ..CronSettings::default() };
    let world = World::with(&[("long", job(400, Overlap::Allow))], settings).await;
    sleep(MINUTE * 5).await;
    assert_eq!(world.words().await, ["running"; 2]);
    let refused = world.cron.run_now(&env(), &name("long"), &"dan".parse().unwrap()).await;
    assert!(matches!(refused, Err(CronRefusal::NoPlace(NoPlace::Share(2)))), "{refused:?}");
    // The first place that is free is taken by what is due, once.
    sleep(MINUTE * 2).await;
    assert_eq!(world.words().await, ["succeeded", "running", "running"]);
}

#[tokio::test(start_paused = true)]
async fn history_is_bounded_and_goes_with_its_job() {
    let settings = CronSettings { history: 5, ..CronSettings::default() };
    let world = World::with(&[("tick", job(1, Overlap::Skip)), ("slow", job(1500, Overlap::Skip))], settings).await;
    sleep(MINUTE * 40).await;
    let numbers = async |job: &str| -> Vec<u64> {
        world.runs().await.iter().filter(|run| run.job == name(job)).map(|run| run.number).collect()
    };
    let tick = numbers("tick").await;
    assert!(tick.len() == 5 && tick[0] > 20, "{tick:?}");
    assert_eq!(numbers("slow").await, [1, 2, 3, 4]);
    world.release(2, &[("slow", job(1, Overlap::Skip))]).await;
    sleep(MINUTE).await;
    assert_eq!(numbers("tick").await, Vec::<u64>::new());
    assert_eq!(world.store.list::<CronMark>("").await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_causes_no_storm_and_no_standstill() {
    let world = World::new(&[("tick", job(1, Overlap::Skip))]).await;
    sleep(MINUTE * 2).await;
    let mut before = world.started().len();
    for jump in [DAY, -DAY, 3650 * DAY, -3650 * DAY, -3650 * DAY, 3650 * DAY] {
        world.set_clock(jump);
        sleep(MINUTE * 5).await;
        let runs = world.started().len() - before;
        assert!((4..=6).contains(&runs), "{runs} runs in five minutes after the clock was set by {jump} s");
        before += runs;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_runs_without_a_release_or_after_the_end() {
    let world = World::new(&[("tick", job(100, Overlap::Allow))]).await;
    sleep(MINUTE * 2).await;
    assert!(world.words().await.contains(&"running"));
    world.destroy().await;
    world.cron.retire(&env()).await;
    assert_eq!(world.runs().await, []);
    assert!(world.store.list::<CronMark>("").await.unwrap().is_empty());
    let before = world.started().len();
    sleep(MINUTE * 5).await;
    assert_eq!(world.started().len(), before);
    assert!(matches!(
        world.cron.run_now(&env(), &name("tick"), &"dan".parse().unwrap()).await,
        Err(CronRefusal::NoJob { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn runs_by_hand_obey_the_overlap_policy() {
    let mut yearly = job(50, Overlap::Skip);
    yearly.schedule = "@yearly".into();
    let replaced = CronJob { overlap: Overlap::Replace, ..yearly.clone() };
    let late = CronJob { timeout: Duration::from_secs(7), ..yearly.clone() };
    let world = World::new(&[("skip", yearly), ("replace", replaced), ("late", late)]).await;
    let dan: UserName = "dan".parse().unwrap();
    // Past the turn of the year.
    sleep(MINUTE * 2).await;
    let first = world.cron.run_now(&env(), &name("skip"), &dan).await.unwrap();
    let again = world.cron.run_now(&env(), &name("skip"), &dan).await;
    assert!(matches!(again, Err(CronRefusal::Busy { number }) if number == first.run.number));
    assert_eq!(first.ended.await.unwrap().state, CronState::Succeeded);

    let first = world.cron.run_now(&env(), &name("replace"), &dan).await.unwrap();
    let mut second = world.cron.run_now(&env(), &name("replace"), &dan).await.unwrap();
    let first = first.ended.await.unwrap();
    assert_eq!(first.state.reason(), Some("replaced by a run that dan asked for"));
    assert_eq!(second.output.recv().await.unwrap(), "half a ");
    assert_eq!(second.ended.await.unwrap().state, CronState::Succeeded);

    let late = world.cron.run_now(&env(), &name("late"), &dan).await.unwrap().ended.await.unwrap();
    assert_eq!(late.state.reason(), Some("it took longer than 7 s"));
    assert!(world.events().await.contains(&"run 2 of late failed: it took longer than 7 s".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_delays_a_run_and_its_end_but_loses_neither() {
    let world = World::new(&[("tick", job(1, Overlap::Skip))]).await;
    world.fail.store(3, SeqCst);
    sleep(Duration::from_millis(13_500)).await;
    assert_eq!(world.started(), ["cron-tick-1 cron.tick"]);
    world.fail.store(2, SeqCst);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(world.words().await, ["succeeded"]);
}

#[test]
fn releases_from_before_there_were_jobs_are_read() {
    let mut old = serde_json::json!(crate::deploy::tests::support::release(1, &[("web", 1)]));
    let fields = old.as_object_mut().unwrap();
    assert!(fields.remove("cron").is_some() && fields.remove("release_phase_attempts").is_some());
    let read: Release = serde_json::from_value(old).unwrap();
    assert!(read.cron.is_empty() && read.release_phase_attempts == 0);
}
