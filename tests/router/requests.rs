//! Which replica answers what, and what the router says when none can.

use std::time::{Duration, Instant};

use berth::router::table::{AccessRecord, Route};
use tokio::{io::AsyncWriteExt, net::UnixDatagram, time::timeout};

use crate::harness::{HOST, LIMIT, Replica, Router, env, read_answer, status};

#[tokio::test]
async fn hosts_find_their_app() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let port = router.address.port();
    for host in
        [HOST.to_owned(), format!("{HOST}:{port}"), format!("{HOST}."), format!("{HOST}.:{port}"), HOST.to_uppercase()]
    {
        let answer =
            router.raw(format!("GET /a?b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(status(&answer) == 200 && answer.contains("web.1\nGET /a?b HTTP/1.1"), "{host}: {answer}");
    }
    let absolute = format!("GET http://{HOST}/a?b HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let answer = router.raw(absolute.as_bytes()).await;
    assert!(answer.contains("web.1\nGET /a?b HTTP/1.1"), "{answer}");
    let answer = router.raw(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n").as_bytes()).await;
    assert_eq!(status(&answer), 200, "{answer}");
}

#[tokio::test]
async fn replicas_take_turns_over_kept_connections() {
    let mut router = Router::start(&[]).await;
    let replicas = [Replica::start("web.1").await, Replica::start("web.2").await, Replica::start("web.3").await];
    router.serve(&replicas.each_ref()).await;
    let mut stream = router.connect().await;
    for _ in 0..30 {
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        read_answer(&mut stream).await;
    }
    for replica in &replicas {
        assert_eq!(replica.served(), 10, "{}", replica.name);
        // Kept open between requests, on both sides.
        assert_eq!(replica.connections.load(std::sync::atomic::Ordering::SeqCst), 1, "{}", replica.name);
    }
}

#[tokio::test]
async fn what_replicas_are_told_about_the_client() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let request = |extra: &str| format!("GET / HTTP/1.1\r\nHost: {HOST}:80\r\nConnection: close\r\n{extra}\r\n");
    let forged = "X-Forwarded-For: 1.1.1.1\r\nX_Forwarded_For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=1.1.1.1\r\n\
                  X-Real-IP: 1.1.1.1\r\nX-Request-Id: short\r\nTE: trailers\r\nKeep-Alive: 5\r\nProxy-Authorization: x\r\n";
    let answer = router.raw(request(forged).as_bytes()).await.to_lowercase();
    assert!(!answer.contains("1.1.1.1") && !answer.contains("https"), "{answer}");
    for gone in ["\r\nte: ", "keep-alive: 5", "proxy-authorization", "x-request-id: short", "forwarded: for"] {
        assert!(!answer.contains(gone), "{gone} in {answer}");
    }
    for told in [
        "x-forwarded-for: 127.0.0.1\r\n".to_owned(),
        "x-forwarded-proto: http\r\n".to_owned(),
        format!("x-forwarded-host: {HOST}:80\r\n"),
        format!("x-forwarded-port: {}\r\n", router.address.port()),
        format!("host: {HOST}:80\r\n"),
    ] {
        assert!(answer.contains(&told), "no {told} in {answer}");
    }
    // The replica's own header passes, its connection's headers do not.
    assert!(answer.contains("x-own: yes") && !answer.contains("keep-alive: timeout"), "{answer}");
    let kept = router.raw(request("X-Request-Id: 0123456789-abcdef-0123\r\n").as_bytes()).await.to_lowercase();
    assert!(kept.contains("x-request-id: 0123456789-abcdef-0123\r\n"), "{kept}");
}

#[tokio::test]
async fn pages_when_nothing_answers() {
    let mut router = Router::start(&[]).await;
    let unknown = "GET / HTTP/1.1\r\nHost: <b>.localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&router.raw(unknown.as_bytes()).await), 400);
    let unknown = "GET / HTTP/1.1\r\nHost: nothing.localhost\r\nConnection: close\r\n\r\n";
    let answer = router.raw(unknown.as_bytes()).await;
    assert!(
        status(&answer) == 404 && answer.contains("text/plain") && answer.contains("nothing.localhost"),
        "{answer}"
    );

    let mut table = router.table(&[]);
    table.environments.insert(env(), Route { released: false, upstreams: vec![] });
    router.publish(&table).await;
    let answer = router.get("/").await;
    assert!(
        status(&answer) == 503 && answer.contains("git push paas-dev") && answer.contains("acme/shop/dev"),
        "{answer}"
    );

    router.serve(&[]).await;
    let browser = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/html,*/*\r\nConnection: close\r\n\r\n");
    let answer = router.raw(browser.as_bytes()).await;
    assert!(
        status(&answer) == 503 && answer.contains("text/html") && answer.to_lowercase().contains("retry-after: "),
        "{answer}"
    );
    let head = format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let answer = router.raw(head.as_bytes()).await;
    assert!(status(&answer) == 503 && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_refused_connection_goes_to_another_replica() {
    let mut router = Router::start(&[]).await;
    let (dead, alive) = (Replica::dead("web.1").await, Replica::start("web.2").await);
    router.serve(&[&dead, &alive]).await;
    for _ in 0..10 {
        // Not even a POST with a body was sent anywhere before.
        let post = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody");
        let answer = router.raw(post.as_bytes()).await;
        assert!(status(&answer) == 200 && answer.contains("web.2\n") && answer.ends_with("body"), "{answer}");
    }
    router.serve(&[&dead]).await;
    let answer = router.get("/").await;
    assert!(status(&answer) == 503 && answer.contains("took the connection"), "{answer}");
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_goes_to_another_replica_soon() {
    let mut router = Router::start(&[]).await;
    let (silent, alive) = (Replica::silent("web.1").await, Replica::start("web.2").await);
    router.serve(&[&silent, &alive]).await;
    let began = std::time::Instant::now();
    for _ in 0..2 {
        let answer = router.get("/").await;
        assert!(status(&answer) == 200 && answer.contains("web.2"), "{answer}");
    }
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn only_what_may_be_repeated_is_repeated() {
    let mut router = Router::start(&[]).await;
    let replicas = [Replica::start("web.1").await, Replica::start("web.2").await];
    router.serve(&replicas.each_ref()).await;
    let served = || replicas.iter().map(Replica::served).sum::<usize>();
    let answer = router.get("/close").await;
    assert!(status(&answer) == 502 && served() == 2, "{} tries: {answer}", served());
    let post = format!("POST /close HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx");
    let answer = router.raw(post.as_bytes()).await;
    assert!(status(&answer) == 502 && served() == 3, "{} tries: {answer}", served());
}

#[tokio::test]
async fn a_late_first_byte_is_an_answer_in_time() {
    let mut router = Router::start(&["BERTH__ROUTER__FIRST_BYTE_TIMEOUT=1s"]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let start = Instant::now();
    let answer = router.get("/never").await;
    assert!(status(&answer) == 504 && answer.contains("took too long"), "{answer}");
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(replica.served(), 1, "a request that may be running is not repeated");
    assert_eq!(status(&router.get("/sleep/100").await), 200);
}

#[tokio::test]
async fn every_request_of_an_app_is_recorded() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    assert_eq!(status(&router.get("/nobody-listens").await), 200);
    let path = router.directory().join("access.sock");
    for round in 0..2 {
        let socket = UnixDatagram::bind(&path).unwrap();
        let target = format!("/round/{round}?q=1");
        let record = record_of(&router, &socket, &target).await;
        assert_eq!((record.env, record.status, record.method.as_str()), (env(), 200, "GET"));
        assert_eq!(
            (record.replica.as_str(), record.client.as_str(), record.host.as_str()),
            ("web.1", "127.0.0.1", HOST)
        );
        assert!(record.bytes > 0 && record.error.is_none());
        std::fs::remove_file(&path).unwrap();
    }
    let socket = UnixDatagram::bind(&path).unwrap();
    router.serve(&[]).await;
    let record = record_of(&router, &socket, "/none").await;
    assert_eq!(
        (record.status, record.error.as_deref(), record.replica.as_str()),
        (503, Some("no-healthy-replica"), "")
    );
}

/// The record of a request for `target`, which is made until the router has found the socket.
async fn record_of(router: &Router, socket: &UnixDatagram, target: &str) -> AccessRecord {
    let mut buffer = vec![0; 65536];
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        router.get(target).await;
        let Ok(length) = timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await else { continue };
        for line in buffer[..length.unwrap()].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record: AccessRecord = serde_json::from_slice(line).unwrap();
            if record.path == target {
                return record;
            }
        }
    }
    panic!("no record of {target}");
}
