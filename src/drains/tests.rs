//! Drains with real receivers on loopback.

mod receivers;

use std::{net::SocketAddr, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::receivers::{Answers, Arrived, deaf, free_address, http, syslog};
use super::*;
use crate::{
    domain::{Drain, DrainCursor, DrainMark, Timestamp},
    logs::{LogEntry, LogFilter, LogLimits, LogRecord, LogSource, MAX_TAIL},
    outbound::OutboundSettings,
    store::MemoryKv,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

fn fast() -> DrainSettings {
    DrainSettings {
        allow_plain: true,
        linger: Duration::from_millis(20),
        settle: Duration::from_millis(200),
        first_pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(200),
        save_every: Duration::from_millis(20),
        say_every: Duration::from_millis(100),
        ..DrainSettings::default()
    }
}

/// A store and logs, and the drains of a server over them.
struct World {
    store: Store,
    logs: Logs,
    settings: DrainSettings,
    drains: Drains,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl World {
    fn new(settings: DrainSettings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(Arc::new(MemoryKv::new()));
        let limits = LogLimits { segment_bytes: 40_000, segments: 4, ..LogLimits::default() };
        let logs = Logs::open(directory.path(), limits).unwrap();
        let (drains, stop, task) = Self::serve(&store, &logs, &settings);
        Self { store, logs, settings, drains, stop, task, _directory: directory }
    }

    fn serve(store: &Store, logs: &Logs, settings: &DrainSettings) -> (Drains, CancellationToken, JoinHandle<()>) {
        let allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
        let outbound = Outbound::new(OutboundSettings { allowed_networks, ..OutboundSettings::default() }).unwrap();
        let (store, logs, settings) = (store.clone(), logs.clone(), settings.clone());
        let (drains, service) = Drains::start(DrainParts { store, logs, outbound, settings }).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(stop.clone()));
        (drains, stop, task)
    }

    /// Kills the server, or stops it in order, and starts the next.
    async fn restart(&mut self, kill: bool) {
        if kill {
            self.task.abort();
        }
        self.stop.cancel();
        let _ = (&mut self.task).await;
        (self.drains, self.stop, self.task) = Self::serve(&self.store, &self.logs, &self.settings);
    }

    async fn add(&self, id: u64, url: &str) {
        self.add_at(id, url, self.logs.end(&env()).await.unwrap()).await;
    }

    async fn add_at(&self, id: u64, url: &str, cursor: DrainCursor) {
        let env = env();
        let (created_by, created_at) = ("dan".parse().unwrap(), Timestamp::now());
        let drain = Drain { env: env.clone(), id, url: url.parse().unwrap(), created_by, created_at };
        self.drains.check(&drain.url).unwrap();
        let mark = DrainMark { env, id, cursor, sent: 0, dropped: 0, told: 0 };
        self.store.transaction().create(&drain).put(&mark).commit().await.unwrap();
    }

    async fn log(&self, numbers: std::ops::Range<usize>) {
        for n in numbers {
            let record = LogRecord { source: LogSource::App, ..line(&format!("line {n}")) };
            self.logs.append_when_ready(&env(), record).await;
        }
        self.logs.flush().await;
    }

    fn status(&self, id: u64) -> DrainStatus {
        self.drains.status(&env()).remove(&id).unwrap_or_else(DrainStatus::starting)
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not so: {what}; {:?}", self.drains.status(&env()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn line(text: &str) -> LogRecord {
    LogRecord::berth(Timestamp::now(), "web.1", text)
}

fn syslog_url(address: SocketAddr) -> String {
    format!("syslog://{address}")
}

fn http_url(address: SocketAddr) -> String {
    format!("http://ann:hunter%202@{address}/in?key=secret")
}

/// The numbers of the lines, each where it came first.
fn numbers(texts: &[String]) -> Vec<usize> {
    let mut first = Vec::new();
    for number in texts.iter().filter_map(|text| text.strip_prefix("line ")) {
        let number = number.parse().unwrap();
        if !first.contains(&number) {
            first.push(number);
        }
    }
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_syslog_receiver_that_comes_and_goes_gets_every_line_in_order() {
    let world = World::new(fast());
    let (address, arrived) = (free_address().await, Arrived::default());
    world.add(1, &syslog_url(address)).await;
    world.log(0..100).await;
    world.until("it is away", |world| matches!(world.status(1).state, DrainState::Retrying { .. })).await;
    for turn in 1..6 {
        // It closes each connection with lines in it that it has not read; then it is away.
        let receiver = syslog(address, arrived.clone(), 30).await;
        world.log(turn * 100..turn * 100 + 100).await;
        let before = arrived.texts().len();
        world.until("it has read some", |_| arrived.texts().len() >= before + 30).await;
        drop(receiver);
    }
    let _receiver = syslog(address, arrived.clone(), usize::MAX).await;
    world.until("all have come", |_| numbers(&arrived.texts()).len() == 600).await;
    assert_eq!(numbers(&arrived.texts()), (0..600).collect::<Vec<_>>());
    world.until("all are known to have come", |world| world.status(1).sent == 600).await;
    assert_eq!(world.status(1).dropped, 0);
    assert_eq!(world.status(1).state, DrainState::Connected);
}

/// However it is spoken to: what is missing is what is counted, and the receiver and the environment's log are told.
async fn exceed(http_drain: bool) {
    let world = World::new(fast());
    let (address, arrived) = (free_address().await, Arrived::default());
    let answers = Answers::default();
    let receiver = match http_drain {
        true => http(address, arrived.clone(), answers.clone()).await,
        false => syslog(address, arrived.clone(), usize::MAX).await,
    };
    world.add(1, &if http_drain { http_url(address) } else { syslog_url(address) }).await;
    world.log(0..50).await;
    world.until("the first are taken", |world| world.status(1).sent == 50).await;
    drop(receiver);
    if !http_drain {
        world.until("it is away", |world| matches!(world.status(1).state, DrainState::Retrying { .. })).await;
    } else {
        // The server's open connection outlives its task.
        *answers.lock().unwrap() = vec![(503, ""); 1_000_000];
    }
    world.log(50..6000).await;
    world.until("losses are seen while it is away", |world| world.status(1).dropped > 0).await;
    answers.lock().unwrap().clear();
    let _receiver = match http_drain {
        true => http(address, arrived.clone(), answers).await,
        false => syslog(address, arrived.clone(), usize::MAX).await,
    };
    world.until("the last has come", |_| arrived.texts().iter().any(|text| text == "line 5999")).await;
    let said = |log: &[LogEntry]| -> u64 {
        let number =
            |record: &LogEntry| record.text.split_once("has dropped ")?.1.split(' ').next()?.parse::<u64>().ok();
        log.iter().filter_map(number).sum()
    };
    let about_drains = async || world.logs.tail(&env(), MAX_TAIL, &LogFilter::process("drains")).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    // What the log says of the drain counts as lines of the log, which may be overwritten as well.
    let (status, log, end) = loop {
        let (status, log, end) = (world.status(1), about_drains().await, world.logs.end(&env()).await.unwrap().line);
        let overwritten = end - 6000 - log.len() as u64;
        if status.line == end && (said(&log) == status.dropped || overwritten > 0) {
            assert_eq!(status.sent + status.dropped, 6000 + overwritten, "{status:?}");
            break (status, log, end);
        }
        assert!(Instant::now() < deadline, "{status:?} {end} {log:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let texts = arrived.texts();
    let got = numbers(&texts);
    assert!(got.is_sorted() && got.len() > 50);
    // What is said of the drain may be overwritten as well.
    let overwritten = end - 6000 - log.len() as u64;
    assert_eq!(6000 - got.len() as u64 + overwritten, status.dropped);
    let told = texts.iter().filter_map(|text| text.strip_suffix(" lines were dropped"));
    assert_eq!(told.map(|number| number.parse::<u64>().unwrap()).sum::<u64>(), status.dropped, "{status:?}");
    assert!(overwritten > 0 || !log.is_empty());
    assert!(said(&log) <= status.dropped, "{status:?} {log:?}");
    assert!(log.iter().all(|record| record.text.starts_with("drain 1 (")), "{log:?}");
    assert!(log.iter().all(|record| !record.text.contains("secret") && !record.text.contains("hunter")));
    assert!(texts.iter().all(|text| !text.contains("has dropped")), "it is told of itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_ring_has_overwritten_is_counted_over_http() {
    exceed(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_ring_has_overwritten_is_counted_over_syslog() {
    exceed(false).await;
}

/// What is read of the log at a time may be little of what a batch takes: where there is more, it is not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_is_behind_does_not_linger() {
    let world = World::new(DrainSettings { linger: PATIENCE * 10, ..fast() });
    let begin = world.logs.end(&env()).await.unwrap();
    // Several files, each of which is read by itself.
    world.log(0..1400).await;
    let end = world.logs.end(&env()).await.unwrap();
    assert!(end.sequence > begin.sequence + 2, "{end:?}");
    let address = free_address().await;
    let receiver = http(address, Arrived::default(), Answers::default()).await;
    world.add_at(1, &http_url(address), begin).await;
    // All but what is in the last one, after which there is nothing yet.
    world.until("the full files have come", |_| receiver.arrived.texts().len() > 800).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_sent_again_and_what_is_refused_is_counted() {
    let world = World::new(fast());
    let (address, arrived, answers) = (free_address().await, Arrived::default(), Answers::default());
    *answers.lock().unwrap() = vec![(500, ""), (429, "1"), (503, "")];
    let _receiver = http(address, arrived.clone(), answers.clone()).await;
    world.add(1, &http_url(address)).await;
    let begun = Instant::now();
    world.log(0..10).await;
    world.until("all have come", |world| world.status(1).sent == 10).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "the receiver has asked for a pause");
    assert_eq!(numbers(&arrived.texts()), (0..10).collect::<Vec<_>>());
    *answers.lock().unwrap() = vec![(400, "")];
    world.log(10..11).await;
    world.until("one is given up", |world| world.status(1).dropped == 1).await;
    assert!(world.status(1).refused.unwrap().contains("400 Bad Request"));
    world.log(11..12).await;
    world.until("the next is taken", |world| world.status(1).sent == 11).await;
    assert_eq!(arrived.texts()[10..], ["1 lines were dropped", "line 11"]);
    let log = world.logs.tail(&env(), 9, &LogFilter::process("drains")).await.unwrap();
    assert!(log.iter().any(|record| record.text.contains("has dropped 1 lines (the receiver answered 400")), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_where_it_was() {
    let mut world = World::new(fast());
    let addresses = [free_address().await, free_address().await];
    let arrived = [Arrived::default(), Arrived::default()];
    let _receivers = (
        http(addresses[0], arrived[0].clone(), Answers::default()).await,
        syslog(addresses[1], arrived[1].clone(), usize::MAX).await,
    );
    world.add(1, &http_url(addresses[0])).await;
    world.add(2, &syslog_url(addresses[1])).await;
    let mut logged = 0;
    for kill in [true, false, true, false] {
        world.log(logged..logged + 200).await;
        logged += 200;
        // In the middle of it.
        world.until("some have come", |_| arrived.iter().all(|all| !all.texts().is_empty())).await;
        world.restart(kill).await;
    }
    world.log(logged..1000).await;
    for all in &arrived {
        world.until("all have come", |_| numbers(&all.texts()).len() == 1000).await;
        assert_eq!(numbers(&all.texts()), (0..1000).collect::<Vec<_>>());
    }
    world.until("nothing is left", |world| [1, 2].iter().all(|id| world.status(*id).line == 1000)).await;
    world.restart(false).await;
    let before = arrived.each_ref().map(|all| all.texts().len());
    world.log(1000..1001).await;
    for (all, before) in arrived.iter().zip(before) {
        world.until("the last has come", |_| all.texts().len() > before).await;
        assert_eq!(all.texts()[before..], ["line 1000"], "what was taken is not sent again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_read_holds_up_no_other_and_no_shutdown() {
    let world = World::new(fast());
    let (slow, quick) = (free_address().await, free_address().await);
    let _deaf = deaf(slow).await;
    let receiver = syslog(quick, Arrived::default(), usize::MAX).await;
    world.add(1, &syslog_url(slow)).await;
    world.add(2, &syslog_url(quick)).await;
    let text = "x".repeat(8000);
    // More than the kernels hold for the one that does not read.
    for n in 0..1500 {
        world.logs.append_when_ready(&env(), line(&text)).await;
        if n % 10 == 9 {
            world.logs.flush().await;
            world.until("the other has them", |_| receiver.arrived.texts().len() > n).await;
        }
    }
    assert_eq!(world.status(2).dropped, 0);
    let begun = Instant::now();
    world.stop.cancel();
    world.task.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn escapes_and_scripts_arrive_harmless() {
    let world = World::new(fast());
    let addresses = [free_address().await, free_address().await];
    let web = http(addresses[0], Arrived::default(), Answers::default()).await;
    let log = syslog(addresses[1], Arrived::default(), usize::MAX).await;
    world.add(1, &http_url(addresses[0])).await;
    world.add(2, &syslog_url(addresses[1])).await;
    world.logs.append(&env(), line("<script>alert(1)</script>\u{1b}]0;x\u{7}\u{1b}[2J\n<0>1 - - - - - - \u{202e}"));
    for receiver in [&web, &log] {
        world.until("it has come", |_| !receiver.arrived.texts().is_empty()).await;
        assert_eq!(receiver.arrived.texts(), ["<script>alert(1)</script>^[]0;x^G^[[2J^J<0>1 - - - - - - \\u{202e}"]);
        let wire = String::from_utf8(receiver.arrived.wire()).unwrap();
        assert!(!wire.trim_end().chars().any(|c| c.is_control() || c == '\u{202e}'), "{wire:?}");
    }
    assert!(!web.arrived.wire().contains(&b'<'));
}

#[tokio::test]
async fn a_drain_that_is_removed_ends() {
    let world = World::new(fast());
    let receiver = syslog(free_address().await, Arrived::default(), usize::MAX).await;
    drop(receiver);
    let address = free_address().await;
    let receiver = syslog(address, Arrived::default(), usize::MAX).await;
    world.add(1, &syslog_url(address)).await;
    world.log(0..1).await;
    world.until("it has come", |_| receiver.arrived.texts().len() == 1).await;
    let id = (env(), 1);
    loop {
        let (drain, mark) =
            (world.store.need::<Drain>(&id).await.unwrap(), world.store.need::<DrainMark>(&id).await.unwrap());
        if world.store.transaction().delete(&drain).delete(&mark).commit().await.is_ok() {
            break;
        }
    }
    world.until("it is gone", |world| world.drains.status(&env()).is_empty()).await;
    world.log(1..2).await;
    assert!(world.store.get::<DrainMark>(&id).await.unwrap().is_none(), "its mark came back");
    // One of the same number is another one.
    world.add(1, &syslog_url(address)).await;
    world.log(2..3).await;
    world.until("it has come", |_| receiver.arrived.texts().len() == 2).await;
    assert_eq!(receiver.arrived.texts(), ["line 0", "line 2"]);
}

/// A certificate for 127.0.0.1, and its authority's in a file.
fn certificate(ca_file: &Path) -> TlsAcceptor {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(ca_file, issuer.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified_against_the_operators_authority() {
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    let acceptor = certificate(&ca_file);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("syslog+tls://{}", listener.local_addr().unwrap());
    let arrived = Arrived::default();
    let all = arrived.clone();
    let receiver = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                all.read_frames(stream, usize::MAX).await;
            }
        }
    });
    let strangers = World::new(fast());
    strangers.add(1, &url).await;
    strangers.log(0..3).await;
    let refused = |world: &World| matches!(world.status(1).state, DrainState::Retrying { why, .. } if why.contains("certificate"));
    strangers.until("the certificate is not trusted", refused).await;
    assert!(arrived.texts().is_empty());
    let world = World::new(DrainSettings { ca_file: Some(ca_file), ..fast() });
    world.add(1, &url).await;
    world.log(0..100).await;
    world.until("all have come", |_| numbers(&arrived.texts()).len() == 100).await;
    assert_eq!(numbers(&arrived.texts()), (0..100).collect::<Vec<_>>());
    world.until("all are known to have come", |world| world.status(1).sent == 100).await;
    receiver.abort();
}

#[tokio::test]
async fn private_addresses_and_plain_text_are_refused() {
    let outbound = Outbound::new(OutboundSettings::default()).unwrap();
    let (store, directory) = (Store::new(Arc::new(MemoryKv::new())), tempfile::tempdir().unwrap());
    let logs = Logs::open(directory.path(), LogLimits::default()).unwrap();
    let settings = DrainSettings::default();
    let (drains, _service) = Drains::start(DrainParts { store, logs, outbound, settings }).unwrap();
    for (url, taken) in [
        ("https://logs.example.com/", true),
        ("syslog+tls://192.0.2.1:6514", false),
        ("syslog+tls://10.0.0.1:6514", false),
        ("https://[::1]/", false),
        ("http://logs.example.com/", false),
        ("syslog://logs.example.com:601", false),
    ] {
        assert_eq!(drains.check(&url.parse().unwrap()).is_ok(), taken, "{url}");
    }
}
