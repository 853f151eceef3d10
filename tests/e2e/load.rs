//! Requests at a steady rate while the platform changes what serves them: none may fail.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    Case,
    platform::{DEADLINE, Platform, User, eventually},
    repository::Repository,
};

pub const CASES: &[Case] =
    &[("no_request_fails_while_what_serves_it_changes", no_request_fails_while_what_serves_it_changes)];

/// 50 requests a second, whatever the answers do.
const INTERVAL: Duration = Duration::from_millis(20);
/// Should the test hang, the load ends by itself.
const MOST_REQUESTS: u32 = 50 * 180;
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// An app that knows nothing of SIGTERM, and takes a moment for its answers, so that some are always under way.
const SERVER: &str = "require('http').createServer((q, s) =>
  setTimeout(() => s.end('release ' + process.env.BERTH_RELEASE), 30)).listen(process.env.PORT);\n";

/// Requests on their way, each in its turn by the clock and not by the answers.
struct Load {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Report>,
}

#[derive(Default)]
struct Report {
    times: Vec<Duration>,
    failures: Vec<String>,
}

impl Report {
    fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort();
        times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl Load {
    fn start(platform: &Platform, host: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (format!("http://127.0.0.1:{}/", platform.http_port), stop.clone());
        let worker = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(send(&url, &host, &stopped))
        });
        Self { stop, worker }
    }

    fn end(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().unwrap()
    }
}

async fn send(url: &str, host: &str, stop: &AtomicBool) -> Report {
    let client = |idle| reqwest::Client::builder().no_proxy().pool_max_idle_per_host(idle).timeout(REQUEST_DEADLINE);
    // Every other request comes on a connection that was kept, the others on new ones.
    let clients = [client(50).build().unwrap(), client(0).build().unwrap()];
    let report = Arc::new(Mutex::new(Report::default()));
    let mut requests = tokio::task::JoinSet::new();
    let mut turns = tokio::time::interval(INTERVAL);
    let began = Instant::now();
    for (turn, client) in (0..MOST_REQUESTS).zip(clients.iter().cycle()) {
        turns.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (request, report) = (client.get(url).header("Host", host), report.clone());
        let asked = began.elapsed();
        requests.spawn(async move {
            let sent = Instant::now();
            let answer = async {
                let answer = request.send().await?;
                Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.text().await?))
            };
            let answer = answer.await;
            let mut report = report.lock().unwrap();
            match answer {
                Ok((200, body)) if body.starts_with("release v") => report.times.push(sent.elapsed()),
                answer => report.failures.push(format!("request {turn} at {asked:?}: {answer:?}")),
            }
        });
    }
    while requests.join_next().await.is_some() {}
    std::mem::take(&mut *report.lock().unwrap())
}

fn ready_replicas(platform: &Platform, user: &User, env: &str) -> usize {
    let ps = platform.ssh(user, &["ps", env, "--json"]).ok().json();
    let replicas = ps["replicas"].as_array().unwrap();
    replicas.iter().filter(|replica| replica["state"] == "ready").count()
}

fn no_request_fails_while_what_serves_it_changes(platform: &Platform) {
    let (app, user) = platform.new_app();
    let env = format!("{app}/dev");
    let (tenant, name) = app.split_once('/').unwrap();
    let host = format!("dev.{name}.{tenant}.localhost");
    let repository = Repository::new(platform, &user, &app);
    repository.write("package.json", r#"{"name": "load", "version": "1.0.0", "engines": {"node": "22.x"}}"#);
    repository.write("server.js", SERVER);
    repository.write("berth.yaml", "processes: {web: {command: node server.js, replicas: 3, cpu: 0.2}}\n");
    repository.commit("First");
    repository.push().ok();

    let load = Load::start(platform, host);
    for round in 0..3 {
        repository.write("server.js", format!("{SERVER}// changed {round}\n"));
        repository.commit("Change");
        repository.push().ok();
        platform.ssh(&user, &["scale", &env, "web=1"]).ok();
        platform.ssh(&user, &["scale", &env, "web=5"]).ok();
        eventually("five replicas", DEADLINE, || (ready_replicas(platform, &user, &env) == 5).then_some(()));
        platform.ssh(&user, &["rollback", &env]).ok();
        platform.kill_serve();
        platform.start_serve();
        eventually("all are adopted", DEADLINE, || (ready_replicas(platform, &user, &env) == 5).then_some(()));
        platform.ssh(&user, &["scale", &env, "web=3"]).ok();
    }
    let report = load.end();

    let (asked, failed) = (report.times.len() + report.failures.len(), report.failures.len());
    println!("{asked} requests, {failed} failed, p50 {:?}, p99 {:?}", report.percentile(50), report.percentile(99));
    assert!(failed == 0, "{failed} of {asked} requests failed:\n{}", report.failures.join("\n"));
    assert!(asked > 500, "only {asked} requests were made");
}
