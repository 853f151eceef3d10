//! What the router counts, as the control plane asks for it.

use std::os::unix::fs::PermissionsExt;

use berth::router::{meter, table::METER_SOCKET};
use tokio::time::Instant;

use crate::harness::{LIMIT, Replica, Router, env, read_until, status};

#[tokio::test]
async fn what_was_asked_is_counted_and_told() {
    let mut router = Router::start(&[]).await;
    let replica = Replica::start("web.1").await;
    router.serve(&[&replica]).await;
    for _ in 0..3 {
        assert_eq!(status(&router.get("/").await), 200);
    }
    assert_eq!(status(&router.get("/sleep/60").await), 200);
    assert_eq!(status(&router.get("/close").await), 502);
    let stranger = "GET / HTTP/1.1\r\nHost: nothing.localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&router.raw(stranger.as_bytes()).await), 404);

    let directory = router.directory();
    let mode = std::fs::metadata(directory.join(METER_SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A request is counted when it is over, which its client may know a moment earlier.
    let deadline = Instant::now() + LIMIT;
    let (reading, counts) = loop {
        let reading = meter::read(&directory).await.unwrap();
        let counts = reading.environments.get(&env()).copied().unwrap_or_default();
        if counts.classes.iter().sum::<u64>() == 5 && reading.unrouted == 1 && counts.under_way == 0 {
            break (reading, counts);
        }
        assert!(Instant::now() < deadline, "{reading:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(counts.classes, [0, 4, 0, 0, 1]);
    assert_eq!(counts.latency.iter().sum::<u64>(), 5);
    let slow: u64 = counts.latency[6..].iter().sum();
    assert!(slow >= 1 && counts.latency_micros >= 60_000 && counts.bytes > 0, "{counts:?}");

    // One that is under way is told of, and so is its connection.
    let mut waiting = router.connect().await;
    use tokio::io::AsyncWriteExt;
    let request = format!(
        "GET /stream HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        crate::harness::HOST
    );
    waiting.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut waiting, "hello").await;
    let now = meter::read(&directory).await.unwrap();
    assert_eq!((now.environments[&env()].under_way, now.boot), (1, reading.boot));
    assert!(now.connections >= 1);
    drop(waiting);

    // Another process counts anew, and says that it is another.
    router.kill_and_restart().await;
    let after = loop {
        match meter::read(&directory).await {
            Ok(after) if after.boot != reading.boot => break after,
            other => assert!(Instant::now() < deadline + LIMIT, "{other:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!((after.environments.len(), after.unrouted), (0, 0));
}
