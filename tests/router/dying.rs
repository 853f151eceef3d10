//! The last replica of an app dies, and its replacement comes: what becomes of requests meanwhile.

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};

use crate::harness::{HOST, LIMIT, Replica, Router, read_answer, status};

/// How long the router tries to connect, and holds a request back when no replica is left.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A connection attempt that the kernel repeats comes a second after the first one.
const KERNEL_REPEATS: Duration = Duration::from_secs(1);

/// Waits until somebody is connecting to `address`, which does not answer.
async fn being_connected_to(address: SocketAddr) {
    let SocketAddr::V4(four) = address else { panic!("{address} is not IPv4") };
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(four.ip().octets()), four.port());
    let deadline = Instant::now() + LIMIT;
    // sl local remote state …; 02 is SYN_SENT.
    let connecting = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.get(2) == Some(&remote.as_str()) && fields.get(3) == Some(&"02")
    };
    while !std::fs::read_to_string("/proc/net/tcp").unwrap().lines().any(connecting) {
        assert!(Instant::now() < deadline, "nobody connects to {address}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A request on its way: a POST, which must not be sent twice.
async fn post(router: &Router) -> TcpStream {
    let mut stream = router.connect().await;
    let request = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbody");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn an_attempt_to_connect_ends_when_the_replica_leaves_the_table() {
    let mut router = Router::start(&[]).await;
    let (gone, next) = (Replica::silent("web.1").await, Replica::start("web.1").await);
    router.serve(&[&gone]).await;
    let mut client = post(&router).await;
    being_connected_to(gone.address).await;
    let began = Instant::now();
    router.serve(&[&next]).await;
    let answer = read_answer(&mut client).await;
    assert!(status(&answer) == 200 && answer.ends_with("body"), "{answer}");
    assert!(began.elapsed() < KERNEL_REPEATS / 2, "{:?}", began.elapsed());
    assert_eq!(next.served(), 1);
    // The attempt that was given up is no request under way; that is told a moment later, and would be only in seconds if it went on.
    assert!(router.drained(gone.address, began + KERNEL_REPEATS).await, "{:?}", router.ack());
}

#[tokio::test]
async fn requests_wait_for_the_next_replica_when_the_last_one_has_just_gone() {
    let mut router = Router::start(&[]).await;
    let (gone, next) = (Replica::silent("web.1").await, Replica::start("web.1").await);
    router.serve(&[&gone]).await;
    let mut early = post(&router).await;
    being_connected_to(gone.address).await;
    router.serve(&[]).await;
    let mut late = post(&router).await;
    let mut answers = [Vec::new(), Vec::new()];
    let nothing = Duration::from_millis(300);
    for (client, answer) in [&mut early, &mut late].into_iter().zip(&mut answers) {
        let read = tokio::time::timeout(nothing, tokio::io::AsyncReadExt::read_buf(client, answer)).await;
        assert!(read.is_err(), "answered without a replica: {}", String::from_utf8_lossy(answer));
    }
    router.serve(&[&next]).await;
    for client in [&mut early, &mut late] {
        let answer = read_answer(client).await;
        assert!(status(&answer) == 200 && answer.ends_with("body"), "{answer}");
    }
    assert_eq!(next.served(), 2);
}

#[tokio::test]
async fn a_replica_that_does_not_come_back_is_waited_for_once_and_not_for_long() {
    let mut router = Router::start(&[]).await;
    let gone = Replica::start("web.1").await;
    router.serve(&[&gone]).await;
    let left = Instant::now();
    router.serve(&[]).await;
    let answer = router.get("/").await;
    assert!(status(&answer) == 503 && answer.to_lowercase().contains("retry-after: "), "{answer}");
    let waited = left.elapsed();
    assert!((CONNECT_LIMIT..CONNECT_LIMIT * 2).contains(&waited), "{waited:?}");
    // Another table that still has none for the app is no reason to wait anew.
    router.serve(&[]).await;
    let began = Instant::now();
    assert_eq!(status(&router.get("/").await), 503);
    assert!(began.elapsed() < CONNECT_LIMIT / 3, "{:?}", began.elapsed());
}

/// Of one app, no more than a few hundred requests wait; the others are told at once.
#[tokio::test]
async fn so_many_wait_and_no_more() {
    let mut router = Router::start(&[]).await;
    let gone = Replica::start("web.1").await;
    router.serve(&[&gone]).await;
    router.serve(&[]).await;
    let began = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(post(&router).await);
    }
    let answers = clients.iter_mut().map(|client| async {
        let answer = read_answer(client).await;
        assert_eq!(status(&answer), 503, "{answer}");
        began.elapsed()
    });
    let took = futures::future::join_all(answers).await;
    let soon = took.iter().filter(|took| **took < CONNECT_LIMIT * 2 / 3).count();
    assert_eq!(soon, 300 - 256, "{took:?}");
}
