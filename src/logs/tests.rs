//! The logs as a whole: writer, followers, restarts.

use std::{collections::BTreeSet, time::Duration};

use futures::{FutureExt, StreamExt};

use super::*;

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

fn record(n: usize) -> LogRecord {
    let at = Timestamp::from_second(1_700_000_000 + n as i64).unwrap();
    LogRecord {
        source: LogSource::App,
        replica: Some("abc".to_owned()),
        ..LogRecord::berth(at, "web.1", n.to_string())
    }
}

fn texts(records: &[LogEntry]) -> Vec<&str> {
    records.iter().map(|record| record.text.as_str()).collect()
}

fn small() -> LogLimits {
    LogLimits { segment_bytes: 20_000, segments: 4, ..LogLimits::default() }
}

#[tokio::test]
async fn tail_sees_what_was_appended_before_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), small()).unwrap();
    for n in 0..1000 {
        let process = if n % 2 == 0 { "web.1" } else { "worker.1" };
        logs.append(&env(), LogRecord { process: process.to_owned(), ..record(n) });
    }
    let all = logs.tail(&env(), 3, &LogFilter::all()).await.unwrap();
    assert_eq!(texts(&all), ["997", "998", "999"]);
    drop(logs);
    let logs = Logs::open(dir.path(), small()).unwrap();
    let web = logs.tail(&env(), 2, &LogFilter::process("web")).await.unwrap();
    assert_eq!(texts(&web), ["996", "998"]);
    assert!(logs.tail(&env(), 0, &LogFilter::all()).await.unwrap().is_empty());
    assert!(logs.tail(&"acme/shop/prod".parse().unwrap(), 5, &LogFilter::all()).await.unwrap().is_empty());
}

/// However appending and subscribing interleave, tail and follow together have every line once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_and_follow_leave_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), LogLimits { follower_lines: 100_000, ..LogLimits::default() }).unwrap();
    const LINES: usize = 20_000;
    let writer = tokio::spawn({
        let logs = logs.clone();
        async move {
            for n in 0..LINES {
                logs.append_when_ready(&env(), record(n)).await;
            }
        }
    });
    let mut readers = Vec::new();
    for _ in 0..20 {
        let (tail, stream) = logs.tail_and_follow(&env(), 50, &LogFilter::all()).await.unwrap();
        let start: usize = tail.first().map_or(0, |record| record.text.parse().unwrap());
        readers.push(tokio::spawn(async move {
            let mut next = start;
            for record in &tail {
                assert_eq!(record.text, next.to_string());
                next += 1;
            }
            let mut stream = std::pin::pin!(stream);
            while next < LINES {
                match stream.next().await {
                    Some(LogItem::Record(record)) => assert_eq!(record.text, next.to_string()),
                    other => panic!("{other:?} instead of line {next}"),
                }
                next += 1;
            }
        }));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    writer.await.unwrap();
    for reader in readers {
        tokio::time::timeout(Duration::from_secs(20), reader).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_full_queue_drops_counts_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), LogLimits { queue: 1, ..LogLimits::default() }).unwrap();
    // A line is kept or counted, so that what is there afterwards is never more than can be read at once.
    let lines = MAX_TAIL - 1;
    for n in 0..lines {
        logs.append(&env(), record(n));
    }
    logs.flush().await;
    // The count of what was dropped last follows with the next line.
    logs.append_when_ready(&env(), record(lines)).await;
    logs.flush().await;
    let all = logs.tail(&env(), MAX_TAIL, &LogFilter::all()).await.unwrap();
    let kept = all.iter().filter(|record| record.source == LogSource::App).count();
    let dropped: usize = all
        .iter()
        .filter(|record| record.source == LogSource::Berth)
        .map(|record| record.text.split(' ').next().unwrap().parse::<usize>().unwrap())
        .sum();
    assert!(dropped > 0, "nothing was dropped");
    assert_eq!(kept + dropped, MAX_TAIL);
}

/// However much one tenant's sources write, whether they wait or not, the lines of others are taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_tenant_does_not_fill_the_queue_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), LogLimits { queue: 64, ..LogLimits::default() }).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let line = || LogRecord { text: "x".repeat(8000), ..record(1) };
    let mut floods = tokio::task::JoinSet::new();
    for waits in [true, false].repeat(8) {
        let (logs, stop) = (logs.clone(), stop.clone());
        floods.spawn(async move {
            while !stop.is_cancelled() {
                match waits {
                    true => logs.append_when_ready(&env(), line()).await,
                    false => logs.append(&env(), line()),
                }
                tokio::task::yield_now().await;
            }
        });
    }
    let other: EnvRef = "other/app/dev".parse().unwrap();
    for n in 0..300 {
        logs.append(&other, record(n));
        // Never more of them wait than one tenant may have in the queue, however slow the disk is.
        if n % 8 == 7 {
            logs.flush().await;
        }
    }
    stop.cancel();
    while floods.join_next().await.is_some() {}
    let all = logs.tail(&other, MAX_TAIL, &LogFilter::all()).await.unwrap();
    assert_eq!(all.len(), 300, "lines were dropped: {:?}", all.last());
    let flood = logs.tail(&env(), MAX_TAIL, &LogFilter::all()).await.unwrap();
    assert!(flood.iter().any(|record| record.text.contains("dropped")), "the flood was none");
}

#[tokio::test]
async fn a_replica_is_resumed_where_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), small()).unwrap();
    let replica = ReplicaId("abc".to_owned());
    assert_eq!(logs.resume_point(&env(), &replica).await.unwrap(), None);
    logs.append(&env(), record(1));
    for _ in 0..3 {
        logs.append(&env(), record(2));
        logs.append(&env(), LogRecord { replica: Some("other".to_owned()), ..record(7) });
    }
    let point = logs.resume_point(&env(), &replica).await.unwrap().unwrap();
    assert_eq!(point, ResumePoint { at: record(2).at, lines: 3 });
    assert_eq!(logs.last_timestamp(&env(), &ReplicaId("other".to_owned())).await.unwrap(), Some(record(7).at));
    // When everything of it was rotated away, what is older than the log is not read again.
    for n in 10..5000 {
        logs.append_when_ready(&env(), LogRecord { replica: None, ..record(n) }).await;
    }
    let point = logs.resume_point(&env(), &replica).await.unwrap().unwrap();
    assert!(point.lines == 0 && point.at > record(10).at, "{point:?}");
}

#[tokio::test]
async fn removing_ends_followers_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), small()).unwrap();
    logs.append(&env(), record(1));
    logs.build_writer(&env(), BuildNumber(1)).unwrap().finish().unwrap();
    let mut stream = Box::pin(logs.follow(&env(), &LogFilter::all()).await.unwrap());
    assert!(stream.next().now_or_never().is_none());
    logs.remove(&env()).await.unwrap();
    assert_eq!(stream.next().await, None);
    assert!(logs.tail(&env(), 5, &LogFilter::all()).await.unwrap().is_empty());
    assert_eq!(logs.read_build(&env(), BuildNumber(1)).await.unwrap(), None);
}

#[tokio::test]
async fn many_environments_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), small()).unwrap();
    let envs: Vec<EnvRef> = (0..300).map(|n| format!("acme/a{n}/dev").parse().unwrap()).collect();
    for round in 0..3 {
        for (n, env) in envs.iter().enumerate() {
            logs.append_when_ready(env, record(n * 10 + round)).await;
        }
    }
    let mut seen = BTreeSet::new();
    for (n, env) in envs.iter().enumerate() {
        let all = logs.tail(env, 10, &LogFilter::all()).await.unwrap();
        assert_eq!(texts(&all), [n * 10, n * 10 + 1, n * 10 + 2].map(|n| n.to_string()));
        seen.insert(all[0].text.clone());
    }
    assert_eq!(seen.len(), envs.len());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_writes_any_more_is_not_waited_for() {
    let never = futures::stream::pending::<u8>();
    let nothing: Vec<u8> = until_ended(never, std::future::ready(())).collect().await;
    assert!(nothing.is_empty());
    // What was written last is read, though the end is known before.
    let late = futures::stream::iter([1, 2]).chain(futures::stream::once(async {
        tokio::time::sleep(LAST_OUTPUT / 2).await;
        3
    }));
    let all: Vec<u8> = until_ended(late.chain(futures::stream::pending()), std::future::ready(())).collect().await;
    assert_eq!(all, [1, 2, 3]);
    let whole: Vec<u8> = until_ended(futures::stream::iter([1, 2]), std::future::pending()).collect().await;
    assert_eq!(whole, [1, 2]);
}
