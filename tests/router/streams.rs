//! Bytes in both directions: streaming, WebSocket, HTTP/2, interim answers.

use std::time::Duration;

use pingora::{
    connectors::http::Connector,
    http::RequestHeader,
    protocols::http::client::HttpSession,
    upstreams::peer::{ALPN, HttpPeer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::harness::{HOST, LIMIT, Replica, Router, read_until, status};

#[tokio::test]
async fn bodies_stream_both_ways_unbuffered() {
    let mut router = Router::start(&["BERTH__ROUTER__FIRST_BYTE_TIMEOUT=1s"]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let mut stream = router.connect().await;
    let head = format!("POST /stream HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // The answer begins before the request has ended, and each piece comes back before the next is sent.
    read_until(&mut stream, "200 OK").await;
    for piece in ["one", "two", "three"] {
        stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
        read_until(&mut stream, piece).await;
        // Longer than the limit for the first byte, which no longer counts.
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut stream, "0\r\n\r\n").await;
}

#[tokio::test]
async fn a_large_body_arrives_whole() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
    let client = reqwest::Client::new();
    let url = format!("http://{}/upload", router.address);
    let answer = client.post(url).header("host", HOST).body(body.clone()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.unwrap().ends_with(&body));
}

#[tokio::test]
async fn a_slow_upload_is_not_the_replicas_fault() {
    let mut router = Router::start(&["BERTH__ROUTER__FIRST_BYTE_TIMEOUT=1s"]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let mut stream = router.connect().await;
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 6\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    for piece in ["ab", "cd", "ef"] {
        tokio::time::sleep(Duration::from_millis(600)).await;
        stream.write_all(piece.as_bytes()).await.unwrap();
    }
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(status(&answer) == 200 && answer.ends_with("abcdef"), "{answer}");
}

#[tokio::test]
async fn websocket_bytes_pass_both_ways() {
    let mut router = Router::start(&["BERTH__ROUTER__FIRST_BYTE_TIMEOUT=1s"]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let mut stream = router.connect().await;
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await.to_lowercase();
    assert!(status(&head) == 101 && head.contains("sec-websocket-accept: x"), "{head}");
    for round in 0..3 {
        let message = format!("message {round}");
        stream.write_all(message.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, &message).await, message);
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    let big = vec![b'w'; 1_000_000];
    let (mut read, mut write) = stream.split();
    let mut back = vec![0; big.len()];
    let (sent, received) = tokio::join!(write.write_all(&big), timeout(LIMIT, read.read_exact(&mut back)));
    sent.unwrap();
    received.unwrap().unwrap();
    assert!(back == big);
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let connector = Connector::new(None);
    let mut peer = HttpPeer::new(router.address, false, String::new());
    peer.options.alpn = ALPN::H2;
    peer.options.max_h2_streams = 8;
    for (host, want) in [(HOST, 200), ("nothing.localhost", 404)] {
        let (session, _) = connector.get_http_session(&peer).await.unwrap();
        let HttpSession::H2(mut session) = session else { panic!("not HTTP/2") };
        let mut request = RequestHeader::build("GET", b"/over/h2", None).unwrap();
        request.set_uri(format!("http://{host}/over/h2").parse().unwrap());
        request.set_version(http::Version::HTTP_2);
        session.write_request_header(Box::new(request), true).unwrap();
        timeout(LIMIT, session.read_response_header()).await.unwrap().unwrap();
        assert_eq!(session.response_header().unwrap().status, want);
        let mut body = Vec::new();
        while let Some(piece) = timeout(LIMIT, session.read_response_body()).await.unwrap().unwrap() {
            body.extend_from_slice(&piece);
        }
        let body = String::from_utf8(body).unwrap().to_lowercase();
        if want == 200 {
            assert!(body.contains("get /over/h2 http/1.1") && body.contains(&format!("host: {host}\r\n")), "{body}");
        }
    }
}

#[tokio::test]
async fn expect_continue_is_answered_by_the_replica() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let mut stream = router.connect().await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, "100 Continue").await;
    stream.write_all(b"hello").await.unwrap();
    let answer = read_until(&mut stream, "hello").await;
    assert!(answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn a_broken_answer_is_seen_as_broken() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let client = reqwest::Client::new();
    let url = format!("http://{}/half", router.address);
    let answer = async { client.get(url).header("host", HOST).send().await?.bytes().await };
    assert!(answer.await.is_err(), "a truncated answer must not look complete");
}

/// Chunks came with HTTP/1.1: an older client gets the bytes alone, up to the end of the connection.
#[tokio::test]
async fn an_old_client_gets_no_chunks() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    let answer = router.raw(format!("GET /chunked HTTP/1.0\r\nHost: {HOST}\r\n\r\n").as_bytes()).await;
    assert!(status(&answer) == 200 && answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(!answer.to_lowercase().contains("transfer-encoding"), "{answer}");
    assert!(router.get("/chunked").await.ends_with("5\r\nhello\r\n0\r\n\r\n"));
}
