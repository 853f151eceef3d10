//! What every [`Kv`] must do; run by the tests of each adapter.

use std::time::Duration;

use futures::StreamExt;

use super::{Change, Guard, Kv, KvError, Revision, Write};

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.to_owned(), value.as_bytes().to_vec())
}

/// Runs the whole suite against an empty store.
///
/// # Panics
/// When the adapter breaks the contract.
pub async fn check(kv: &dyn Kv) {
    reads_what_was_written(kv).await;
    scans_in_parts(kv).await;
    guards_hold_or_nothing_happens(kv).await;
    watches_replay_then_follow(kv).await;
    concurrent_increments_lose_nothing(kv).await;
}

async fn reads_what_was_written(kv: &dyn Kv) {
    assert_eq!(kv.get("a/1").await.expect("get"), None);
    let first = kv.commit(vec![], vec![put("a/1", "x"), put("a/2", "y"), put("b/1", "z")]).await.expect("commit");
    let second = kv.commit(vec![], vec![put("a/2", "y2"), Write::Delete("nowhere".into())]).await.expect("commit");
    assert!(second > first);
    let found = kv.scan("a/").await.expect("scan");
    let found: Vec<_> = found.iter().map(|e| (e.key.as_str(), e.value.as_slice(), e.revision)).collect();
    assert_eq!(found, [("a/1", b"x".as_slice(), first), ("a/2", b"y2".as_slice(), second)]);
    kv.commit(vec![], vec![Write::Delete("a/1".into())]).await.expect("commit");
    assert_eq!(kv.get("a/1").await.expect("get"), None);
    assert_eq!(kv.scan("c").await.expect("scan"), vec![]);
}

async fn scans_in_parts(kv: &dyn Kv) {
    let keys = ["p-/0", "p/1", "p/2", "p/3", "q/1"];
    kv.commit(vec![], keys.iter().map(|key| put(key, "x")).collect()).await.expect("commit");
    for (after, most, found) in [
        ("", 2, &["p/1", "p/2"][..]),
        ("p/1", usize::MAX, &["p/2", "p/3"]),
        // One that is not there any more.
        ("p/15", 1, &["p/2"]),
        ("p/3", 9, &[]),
        ("q", 9, &[]),
        ("a", 0, &[]),
    ] {
        let entries = kv.scan_after("p/", after, most).await.expect("scan");
        assert_eq!(entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), found, "{most} after {after}");
    }
}

async fn guards_hold_or_nothing_happens(kv: &dyn Kv) {
    let at = kv.commit(vec![Guard::Absent("g/1".into())], vec![put("g/1", "1")]).await.expect("commit");
    let again = kv.commit(vec![Guard::Absent("g/1".into())], vec![put("g/1", "2"), put("g/2", "2")]).await;
    assert!(matches!(again, Err(KvError::Conflict(key)) if key == "g/1"));
    assert_eq!(kv.get("g/2").await.expect("get"), None, "half of a refused commit was written");
    let stale = Guard::At("g/1".into(), Revision(at.0.saturating_sub(1)));
    assert!(matches!(kv.commit(vec![stale], vec![put("g/1", "3")]).await, Err(KvError::Conflict(_))));
    kv.commit(vec![Guard::At("g/1".into(), at), Guard::Absent("g/2".into())], vec![put("g/1", "4")])
        .await
        .expect("commit");
}

async fn watches_replay_then_follow(kv: &dyn Kv) {
    let from = kv.revision().await.expect("revision");
    kv.commit(vec![], vec![put("w/1", "old"), put("x/1", "other")]).await.expect("commit");
    let mut changes = kv.watch("w/", from).await.expect("watch");
    kv.commit(vec![], vec![Write::Delete("w/1".into())]).await.expect("commit");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let next = tokio::time::timeout(Duration::from_secs(5), changes.next()).await.expect("a change in time");
        match next.expect("the watch goes on") {
            Change::Key { key, value, .. } => seen.push((key, value)),
            Change::Resync(_) => panic!("nothing was lost"),
        }
    }
    assert_eq!(seen, [("w/1".to_owned(), Some(b"old".to_vec())), ("w/1".to_owned(), None)]);
}

async fn concurrent_increments_lose_nothing(kv: &dyn Kv) {
    kv.commit(vec![], vec![put("n", "0")]).await.expect("commit");
    let increment = async || {
        for _ in 0..10 {
            loop {
                let entry = kv.get("n").await.expect("get").expect("there");
                let number: u64 = String::from_utf8_lossy(&entry.value).parse().expect("a number");
                let guard = Guard::At("n".into(), entry.revision);
                match kv.commit(vec![guard], vec![put("n", &(number + 1).to_string())]).await {
                    Ok(_) => break,
                    Err(KvError::Conflict(_)) => continue,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    futures::future::join_all((0..8).map(|_| increment())).await;
    assert_eq!(kv.get("n").await.expect("get").expect("there").value, b"80");
}
