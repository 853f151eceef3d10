//! New tables while requests are under way, and the death of either process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use berth::router::table::{AckOutcome, ROUTES_FILE};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use crate::harness::{HOST, LIMIT, Replica, Router, read_answer, read_until, status};

/// Clients that ask without a pause until they are stopped; the number of answers, and every failure.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(router: &Router, clients: usize) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = reqwest::Client::new();
        let url = format!("http://{}/sleep/2", router.address);
        let clients = (0..clients).map(|n| {
            let (client, url, stop, answers) = (client.clone(), url.clone(), stop.clone(), answers.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(SeqCst) {
                    let request = if n % 2 == 0 { client.get(&url) } else { client.post(&url).body("x") };
                    match request.header("host", HOST).timeout(LIMIT).send().await {
                        Ok(answer) if answer.status() == 200 => match answer.bytes().await {
                            Ok(_) => drop(answers.fetch_add(1, SeqCst)),
                            Err(error) => failures.push(format!("{error:?}")),
                        },
                        Ok(answer) => failures.push(format!("{}: {:?}", answer.status(), answer.text().await)),
                        Err(error) => failures.push(format!("{error:?}")),
                    }
                }
                failures
            })
        });
        Self { clients: clients.collect(), stop, answers }
    }

    /// Waits for some more answers.
    async fn more(&self, count: usize) {
        let want = self.answers.load(SeqCst) + count;
        let deadline = Instant::now() + LIMIT;
        while self.answers.load(SeqCst) < want {
            assert!(Instant::now() < deadline, "the load stands still");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn end(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.unwrap());
        }
        failures
    }
}

/// Twenty deployments under load: a replica is stopped the moment the router says it has drained, and its port is given to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_replicas_are_switched() {
    let mut router = Router::start(&[]).await;
    let mut current = vec![Replica::start("web.1").await, Replica::start("web.2").await];
    router.serve(&current.iter().collect::<Vec<_>>()).await;
    let load = Load::start(&router, 8);
    load.more(50).await;
    for round in 0..20 {
        let next = vec![Replica::start("web.1").await, Replica::start("web.2").await];
        let removed: Vec<_> = current.iter().map(|replica| replica.address).collect();
        let table = router.table(&next.iter().collect::<Vec<_>>());
        berth::router::table::publish(&router.directory(), &table).unwrap();
        let outcome = router.acks.wait_for(table.generation, &removed, Instant::now() + LIMIT).await;
        assert_eq!(outcome, AckOutcome::Acked, "round {round}");
        for replica in std::mem::replace(&mut current, next) {
            replica.stop();
        }
        load.more(20).await;
    }
    let failures = load.end().await;
    assert!(failures.is_empty(), "{} failed: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
}

#[tokio::test]
async fn a_removed_replica_drains_and_a_websocket_counts() {
    let mut router = Router::start(&[]).await;
    let (old, new) = (Replica::start("web.1").await, Replica::start("web.2").await);
    router.serve(&[&old]).await;
    let mut socket = router.connect().await;
    let upgrade = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    read_until(&mut socket, "\r\n\r\n").await;
    let mut slow = router.connect().await;
    slow.write_all(format!("GET /sleep/300 HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    while old.served() < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    router.serve(&[&new]).await;
    assert_eq!(router.ack().draining, [(old.address, 2)].into());
    // New requests go to the new replica, the old ones go on.
    assert!(router.get("/").await.contains("web.2"));
    read_answer(&mut slow).await;
    socket.write_all(b"still here").await.unwrap();
    read_until(&mut socket, "still here").await;
    let generation = router.ack().generation;
    let soon = Instant::now() + Duration::from_millis(200);
    let outcome = router.acks.wait_for(generation, &[old.address], soon).await;
    assert!(matches!(outcome, AckOutcome::TimedOut(Some(_))), "{outcome:?}");
    drop(socket);
    let outcome = router.acks.wait_for(generation, &[old.address], Instant::now() + LIMIT).await;
    assert_eq!(outcome, AckOutcome::Acked);
}

/// The next replica at an address gets a connection of its own, never the one that was opened to the last.
#[tokio::test]
async fn a_connection_is_not_reused_for_another_replica() {
    let mut router = Router::start(&[]).await;
    let first = Replica::start("web.1").await;
    router.serve(&[&first]).await;
    let mut client = router.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    for _ in 0..2 {
        client.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(status(&read_answer(&mut client).await), 200);
    }
    assert_eq!(first.connections.load(SeqCst), 1);
    // The same server under another name: the connection from before is still open and would work.
    let table = {
        let mut table = router.table(&[&first]);
        table.environments.values_mut().for_each(|route| route.upstreams[0].replica = "web.7".to_owned());
        table
    };
    router.publish(&table).await;
    client.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(status(&read_answer(&mut client).await), 200);
    assert_eq!(first.connections.load(SeqCst), 2);
}

#[tokio::test]
async fn tables_come_into_force_at_once_and_torn_ones_never() {
    let mut router = Router::start(&[]).await;
    let (one, two) = (Replica::start("web.1").await, Replica::start("web.2").await);
    router.serve(&[&one]).await;
    let file = router.directory().join(ROUTES_FILE);
    let whole = std::fs::read(&file).unwrap();
    for torn in [&whole[..whole.len() / 2], b"", b"{}", b"null", b"\xff\xff"] {
        std::fs::write(&file, torn).unwrap();
        assert!(router.get("/").await.contains("web.1"), "{torn:?}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(router.get("/").await.contains("web.1"));
    let mut times = Vec::new();
    for round in 0..20 {
        let table = router.table(&[if round % 2 == 0 { &two } else { &one }]);
        let start = Instant::now();
        router.publish(&table).await;
        times.push(start.elapsed());
        assert!(router.get("/").await.contains(if round % 2 == 0 { "web.2" } else { "web.1" }));
    }
    times.sort();
    println!("publish to acknowledged, median: {:?}", times[times.len() / 2]);
    assert!(times[times.len() / 2] < Duration::from_millis(200), "{times:?}");
}

#[tokio::test]
async fn killed_and_started_again_it_serves_the_same_table() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let before = router.ack();
    router.kill_and_restart().await;
    assert!(router.get("/").await.contains("web.1"));
    let after = router.ack();
    assert_eq!((after.generation, after.pid), (before.generation, router.pid()));
    assert_ne!(after.pid, before.pid);
}

#[tokio::test]
async fn told_to_stop_it_finishes_what_is_under_way() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut router = Router::start(&[]).await;
        let replica = Replica::start("web.1").await;
        router.serve(&[&replica]).await;
        let mut idle = router.connect().await;
        let mut slow = router.connect().await;
        slow.write_all(format!("GET /sleep/400 HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        while replica.served() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        router.signal(signal);
        let answer = read_answer(&mut slow).await.to_lowercase();
        assert!(status(&answer) == 200 && answer.contains("connection: close"), "{answer}");
        assert_eq!(timeout(LIMIT, idle.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
        assert!(router.ended().await);
    }
}

#[tokio::test]
async fn the_time_to_drain_is_limited() {
    let mut router = Router::start(&["BERTH__ROUTER__SHUTDOWN_GRACE=300ms"]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let mut slow = router.connect().await;
    slow.write_all(format!("GET /never HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    while replica.served() == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let start = Instant::now();
    router.signal(Signal::SIGTERM);
    assert!(router.ended().await);
    assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&start.elapsed()), "{:?}", start.elapsed());
}
