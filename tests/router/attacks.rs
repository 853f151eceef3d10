//! Requests that are meant to be misunderstood, or never to end.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::harness::{HOST, LIMIT, Replica, Router, read_answer, status};

/// Framing that a replica could understand differently: refused, and nothing after it is read as a request.
#[tokio::test]
async fn smuggling_is_refused() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    for framing in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\ncontent-length : 6\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        "Content-Length: 6\r\nContent-Length: 7\r\n",
        "Content-Length: +6\r\n",
        "Content-Length: 0x6\r\n",
        "Content-Length: 6, 7\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "X: a\r\n Transfer-Encoding: chunked\r\n",
        "Host: other.localhost\r\n",
        "Bad\x00Name: x\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n0\r\n\r\n{smuggled}");
        let answer = router.raw(request.as_bytes()).await;
        assert!(status(&answer) == 400, "{framing:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{framing:?}: {answer}");
        assert_eq!(replica.served(), 0, "{framing:?} reached the replica");
    }
}

#[tokio::test]
async fn odd_targets_and_hosts_are_refused() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    for (request, want) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: {HOST}/x\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nHost: user@{HOST}\r\n\r\n"), 400),
        (format!("GET http://other.localhost/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), 400),
        (format!("CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}:80\r\n\r\n"), 405),
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close, X-Forwarded-For\r\n\r\n"), 400),
        ("\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".to_owned(), 400),
    ] {
        let answer = router.raw(request.as_bytes()).await;
        assert_eq!(status(&answer), want, "{request:?}: {answer}");
    }
    assert_eq!(replica.served(), 0);
}

#[tokio::test]
async fn large_heads_are_refused() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    for (size, want) in [(8_000, 200), (70_000, 431)] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nCookie: {}\r\nConnection: close\r\n\r\n", "c".repeat(size));
        assert_eq!(status(&router.raw(request.as_bytes()).await), want, "{size}");
    }
    let many: String = (0..300).map(|n| format!("X-{n}: 1\r\n")).collect();
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{many}\r\n");
    assert_eq!(status(&router.raw(request.as_bytes()).await), 400);
    assert_eq!(replica.served(), 1);
}

/// Requests that come all at once are answered one after the other.
#[tokio::test]
async fn pipelined_requests_do_not_mix() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let mut stream = router.connect().await;
    let paths = ["/first", "/second", "/third"];
    let request = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbody");
    stream.write_all(paths.map(request).concat().as_bytes()).await.unwrap();
    for path in paths {
        let answer = read_answer(&mut stream).await;
        assert!(answer.contains(&format!("POST {path} ")) && answer.ends_with("body"), "{answer}");
    }
}

/// However a client dawdles with its head, the connection ends in time.
#[tokio::test]
async fn a_slow_head_is_not_waited_for() {
    let mut router = Router::start(&["BERTH__ROUTER__HEAD_TIMEOUT=500ms"]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let first = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(10_000));
    // Nothing at all, a head byte by byte, half a preface, and a head byte by byte after a request that was in order.
    for (before, drip) in [("", ""), ("", endless.as_str()), ("", "PRI * HTTP"), (first.as_str(), endless.as_str())] {
        let mut stream = router.connect().await;
        if !before.is_empty() {
            stream.write_all(before.as_bytes()).await.unwrap();
            read_answer(&mut stream).await;
        }
        let start = Instant::now();
        let (mut read, mut write) = stream.split();
        let dripping = async {
            for byte in drip.as_bytes().chunks(1) {
                write.write_all(byte).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::future::pending::<std::io::Result<()>>().await
        };
        let mut byte = [0];
        let ended = tokio::select! {
            read = read.read(&mut byte) => read.unwrap_or(0),
            _refused = dripping => 0,
            () = tokio::time::sleep(LIMIT) => panic!("the connection is kept"),
        };
        assert_eq!(ended, 0, "it was answered");
        assert!(
            (Duration::from_millis(400)..Duration::from_secs(3)).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );
    }
    assert_eq!(status(&router.get("/").await), 200);
}

#[tokio::test]
async fn one_client_does_not_take_all_connections() {
    let mut router = Router::start(&["BERTH__ROUTER__MAX_CONNECTIONS_PER_CLIENT=2"]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let ask = async || {
        let mut stream = router.connect().await;
        // It may be closed before it has said anything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut first = [0; 4];
        let answered =
            timeout(LIMIT, stream.read_exact(&mut first)).await.expect("neither answered nor closed").is_ok();
        answered.then_some(stream)
    };
    let until = async |wanted: bool| {
        timeout(LIMIT, async {
            loop {
                let stream = ask().await;
                if stream.is_some() == wanted {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the connections of the client are not counted")
    };
    let first = until(true).await;
    let _second = until(true).await;
    until(false).await;
    drop(first);
    until(true).await;
}
