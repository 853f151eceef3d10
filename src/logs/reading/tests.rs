//! Reading on from a place, what many followers get, and time.

use futures::StreamExt;

use super::*;
use crate::logs::{LogLimits, Search};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

fn record(n: usize) -> LogRecord {
    let process = if n.is_multiple_of(2) { "web.1" } else { "worker.1" };
    LogRecord::berth(Timestamp::from_second(1_700_000_000 + n as i64).unwrap(), process, n.to_string())
}

fn small() -> LogLimits {
    LogLimits { segment_bytes: 20_000, segments: 4, ..LogLimits::default() }
}

async fn write(logs: &Logs, lines: std::ops::Range<usize>) {
    for n in lines {
        logs.append_when_ready(&env(), record(n)).await;
    }
    logs.flush().await;
}

/// The numbers of lines, and whether there was a gap in front of them.
fn numbers(items: &[LogItem]) -> (bool, Vec<usize>) {
    let gap = items.first() == Some(&LogItem::Gap);
    let records = items.iter().skip(usize::from(gap)).map(|item| match item {
        LogItem::Record(entry) => entry.text.parse().unwrap(),
        other => panic!("{other:?} in between"),
    });
    (gap, records.collect())
}

async fn cursor_of(logs: &Logs, n: usize) -> LogCursor {
    let all = logs.tail(&env(), MAX_TAIL, &LogFilter::all()).await.unwrap();
    all.iter().find(|entry| entry.text == n.to_string()).unwrap().cursor().unwrap()
}

#[tokio::test]
async fn a_reader_goes_on_where_it_was_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut logs = Logs::open(dir.path(), small()).unwrap();
    write(&logs, 0..300).await;
    let cursor = cursor_of(&logs, 120).await;
    for restarted in [false, true] {
        if restarted {
            drop(logs);
            logs = Logs::open(dir.path(), small()).unwrap();
        }
        let after = logs.read_after(&env(), cursor, 10, &LogFilter::all()).await.unwrap();
        assert_eq!(numbers(&after), (false, (121..131).collect()));
        let web = logs.read_after(&env(), cursor, 3, &LogFilter::process("web")).await.unwrap();
        assert_eq!(numbers(&web), (false, vec![122, 124, 126]));
        let rest = logs.read_after(&env(), cursor, usize::MAX, &LogFilter::all()).await.unwrap();
        assert_eq!(numbers(&rest), (false, (121..300).collect()));
    }
    let last = cursor_of(&logs, 299).await;
    assert!(logs.read_after(&env(), last, 10, &LogFilter::all()).await.unwrap().is_empty());
    // Rotated away: what is there comes, and that something is missing.
    write(&logs, 300..3000).await;
    let (gap, rest) = numbers(&logs.read_after(&env(), cursor, MAX_TAIL, &LogFilter::all()).await.unwrap());
    assert!(gap && rest[0] > 300 && rest == (rest[0]..3000).collect::<Vec<_>>(), "{gap} {:?}", rest.first());
    // Another log, made anew.
    logs.remove(&env()).await.unwrap();
    write(&logs, 5000..5300).await;
    let anew = logs.read_after(&env(), last, MAX_TAIL, &LogFilter::all()).await.unwrap();
    assert_eq!(numbers(&anew), (true, (5000..5300).collect()));
}

/// However far behind, whoever comes back has every line once while the log is written, and goes on with what comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_has_no_gap_and_nothing_twice() {
    const LINES: usize = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { segment_bytes: 300_000, segments: 100, follower_lines: LINES, ..LogLimits::default() };
    let logs = Logs::open(dir.path(), limits).unwrap();
    write(&logs, 0..5000).await;
    let mut cursor = cursor_of(&logs, 17).await;
    let writer = tokio::spawn({
        let logs = logs.clone();
        async move { write(&logs, 5000..LINES).await }
    });
    let mut next = 18;
    let read = async {
        while next < LINES {
            // Cut off now and then, before the end of the files and after it.
            let stream = logs.follow_after(&env(), cursor, &LogFilter::all()).take(2500 + next % 1000);
            let mut stream = std::pin::pin!(stream);
            while next < LINES
                && let Some(item) = stream.next().await
            {
                let LogItem::Record(entry) = item.unwrap() else { panic!("a gap at {next}") };
                assert_eq!(entry.text, next.to_string());
                (cursor, next) = (entry.cursor().unwrap(), next + 1);
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap();
    writer.await.unwrap();
    // What has not been written yet is waited for.
    let mut stream = std::pin::pin!(logs.follow_after(&env(), cursor, &LogFilter::all()));
    write(&logs, LINES..LINES + 1).await;
    let item = tokio::time::timeout(DEADLINE, stream.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(numbers(&[item]), (false, vec![LINES]));
    logs.remove(&env()).await.unwrap();
    assert!(tokio::time::timeout(DEADLINE, stream.next()).await.unwrap().is_none());
}

/// Fast or slow, a follower has each line or is told that it has not, and all share one copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_followers_lose_nothing_silently() {
    const LINES: usize = 50_000;
    const FOLLOWERS: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), LogLimits { follower_lines: 500, ..LogLimits::default() }).unwrap();
    let mut followers = tokio::task::JoinSet::new();
    let (all_written, written) = tokio::sync::watch::channel(false);
    for number in 0..FOLLOWERS {
        let stream = logs.follow(&env(), &LogFilter::all()).await.unwrap();
        let mut written = written.clone();
        followers.spawn(async move {
            if number % 4 == 0 {
                // As slow as can be.
                written.wait_for(|all| *all).await.unwrap();
            }
            let mut stream = std::pin::pin!(stream);
            let (mut next, mut received, mut missed) = (0, 0, 0);
            while next < LINES {
                match stream.next().await {
                    Some(LogItem::Record(entry)) => {
                        assert_eq!(entry.text, next.to_string());
                        (received, next) = (received + 1, next + 1);
                    }
                    Some(LogItem::Missed(count)) => (missed, next) = (missed + count as usize, next + count as usize),
                    other => panic!("{other:?}"),
                }
            }
            (received, missed)
        });
    }
    write(&logs, 0..LINES).await;
    all_written.send(true).unwrap();
    let counted = tokio::time::timeout(DEADLINE, followers.join_all()).await.unwrap();
    assert_eq!(counted.len(), FOLLOWERS);
    assert!(counted.iter().all(|(received, missed)| received + missed == LINES), "{counted:?}");
    let slow = counted.iter().filter(|counts| **counts == (500, LINES - 500)).count();
    assert!(slow >= FOLLOWERS / 4, "{counted:?}");
}

#[tokio::test]
async fn followers_share_a_line_and_its_json() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), small()).unwrap();
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(Box::pin(logs.follow(&env(), &LogFilter::all()).await.unwrap()));
    }
    write(&logs, 7..8).await;
    let mut entries = Vec::new();
    for stream in &mut streams {
        let Some(LogItem::Record(entry)) = stream.next().await else { panic!("no line") };
        entries.push(entry);
    }
    assert!(entries.iter().all(|entry| Arc::ptr_eq(entry, &entries[0])));
    // The same place as when it is read from the file.
    let tail = logs.tail(&env(), 1, &LogFilter::all()).await.unwrap();
    assert_eq!((&tail[0], tail[0].json()), (&*entries[0], entries[1].json()));
}

#[tokio::test]
async fn time_bounds_what_is_read_though_clocks_leap() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), LogLimits::default()).unwrap();
    write(&logs, 0..2000).await;
    // The clock is set back for a while.
    write(&logs, 100..200).await;
    write(&logs, 2000..2100).await;
    let since = Some(record(1990).at);
    let filter = LogFilter { since, ..LogFilter::all() };
    let found = logs.tail(&env(), MAX_TAIL, &filter).await.unwrap();
    assert_eq!(found.len(), 110);
    let filter = LogFilter { until: Some(record(1995).at), ..filter };
    let found = logs.tail(&env(), MAX_TAIL, &filter).await.unwrap();
    assert_eq!(
        found.iter().map(|entry| entry.text.as_str()).collect::<Vec<_>>(),
        ["1990", "1991", "1992", "1993", "1994"]
    );
    // Whoever looks for the newest does not read what is long before.
    write(&logs, 10_000..10_001).await;
    let path = dir.path().join("acme/shop/dev/log.1");
    let bytes = std::fs::read(&path).unwrap();
    let position = Position { sequence: 1, offset: bytes.len() as u64 };
    let mut read = 0;
    let filter = LogFilter { since: Some(record(10_000).at), ..LogFilter::all() };
    ring::read_back(&dir.path().join("acme/shop/dev"), position, |_, _| {
        read += 1;
        true
    })
    .unwrap();
    assert_eq!((read, tail(&dir.path().join("acme/shop/dev"), position, 5, &filter).unwrap().len()), (2201, 1));
    assert!(is_long_before(record(0).at, filter.since) && !is_long_before(record(9_990).at, filter.since));
}

#[tokio::test]
async fn what_is_searched_for_is_found_far_back_and_as_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), LogLimits::default()).unwrap();
    write(&logs, 0..3000).await;
    let filter = LogFilter { search: Some(Search::new("77", false).unwrap()), ..LogFilter::process("worker") };
    let found = logs.tail(&env(), 2, &filter).await.unwrap();
    assert_eq!(found.iter().map(|entry| entry.text.as_str()).collect::<Vec<_>>(), ["2877", "2977"]);
    let (_, stream) = logs.tail_and_follow(&env(), 0, &filter).await.unwrap();
    write(&logs, 3000..3100).await;
    let first = std::pin::pin!(stream).next().await.unwrap();
    assert_eq!(numbers(&[first]), (false, vec![3077]));
}
