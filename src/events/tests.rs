//! The hub over a store in memory: nothing is missed, nothing comes twice, and nobody gathers anything.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    domain::{EventKind, Tenant, TenantName, Timestamp},
    store::{KEPT_EVENTS, MemoryKv, NewEvent, Store},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn event(tenant: &str, message: impl Into<String>) -> NewEvent {
    NewEvent::new(EventKind::ReplicaStarted, Timestamp::UNIX_EPOCH, message).tenant(&tenant.parse().unwrap())
}

fn everything(_: Option<(&TenantName, Option<&Tenant>)>) -> bool {
    true
}

async fn hub() -> (Store, EventHub, CancellationToken) {
    let store = Store::new(Arc::new(MemoryKv::new()));
    let (hub, service) = EventHub::start(store.clone(), "https://berth.example.com").await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(service.run(stop.clone()));
    (store, hub, stop)
}

/// Reads until `wanted` events have come.
async fn read(follower: &mut Follower, wanted: usize) -> Vec<Arc<Published>> {
    let mut events = Vec::new();
    let all = async {
        while events.len() < wanted {
            let page = follower.page(&everything).await.unwrap();
            assert!(page.missed.is_none(), "{:?}", page.missed);
            match page.events.is_empty() {
                true => follower.changed().await.unwrap(),
                false => events.extend(page.events),
            }
        }
    };
    timeout(PATIENCE, all).await.expect("all events in time");
    events
}

async fn until_known(hub: &EventHub, last: u64) {
    let mut follower = hub.follow(EventFilter::default(), None);
    let known = async {
        while hub.last() < last {
            follower.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, known).await.expect("the hub in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_kept_and_what_comes_join_without_gap_or_doubling() {
    const WRITERS: u64 = 6;
    const EACH: u64 = 120;
    let (store, hub, _stop) = hub().await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    store.record(event("acme", format!("{writer} {n}"))).await.unwrap();
                }
            })
        })
        .collect();
    let readers: Vec<_> = (0..8)
        .map(|n| {
            let hub = hub.clone();
            tokio::spawn(async move {
                // They come while it is written, and begin somewhere.
                tokio::time::sleep(Duration::from_millis(n)).await;
                let after = (n * 7).min(hub.last());
                let mut follower = hub.follow(EventFilter::default(), Some(after));
                let wanted = usize::try_from(WRITERS * EACH - after).unwrap();
                (after, read(&mut follower, wanted).await)
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    for reader in readers {
        let (after, events) = reader.await.unwrap();
        let ids: Vec<u64> = events.iter().map(|event| event.id).collect();
        assert_eq!(ids, (after + 1..=WRITERS * EACH).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn an_event_is_made_text_once_for_all() {
    let (store, hub, _stop) = hub().await;
    let mut followers: Vec<_> = (0..100).map(|_| hub.follow(EventFilter::default(), None)).collect();
    store.record(event("acme", "hello")).await.unwrap();
    let mut texts = Vec::new();
    for follower in &mut followers {
        let events = read(follower, 1).await;
        texts.push(events[0].cloud_event().as_ptr());
        assert!(events[0].cloud_event().contains(r#""source":"https://berth.example.com/tenants/acme""#));
    }
    assert!(texts.iter().all(|text| *text == texts[0]));
}

#[tokio::test]
async fn a_slow_reader_is_told_where_it_stands() {
    let (store, hub, _stop) = hub().await;
    store.record(event("acme", "first")).await.unwrap();
    until_known(&hub, 1).await;
    let other = EventFilter::parse(Some("other"), None, None, []).unwrap();
    let (mut slow, mut narrow) = (hub.follow(EventFilter::default(), None), hub.follow(other, None));
    let events = (0..MAX_LAG).map(|n| event("acme", n.to_string())).collect();
    assert_eq!(store.record_all(events).await, 0);
    until_known(&hub, 1 + MAX_LAG as u64).await;
    let page = slow.page(&everything).await.unwrap();
    assert_eq!(page.events.first().map(|event| event.id), Some(2), "as far behind as may be");
    let had = slow.cursor();
    store.record_all((0..MAX_LAG).map(|n| event("acme", n.to_string())).collect()).await;
    until_known(&hub, 1 + 2 * MAX_LAG as u64).await;
    assert_eq!(slow.page(&everything).await.err(), Some(StreamEnd::TooSlow { last_id: had }));
    // What was there before it came does not count, and what is not for it neither.
    let mut replay = hub.follow(EventFilter::default(), Some(had));
    assert_eq!(read(&mut replay, 2 * MAX_LAG + 1 - usize::try_from(had).unwrap()).await[0].id, had + 1);
    assert!(narrow.page(&everything).await.unwrap().events.is_empty());
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_told_to_those_whom_it_concerns() {
    let (store, hub, _stop) = hub().await;
    store.record_all((0..10).map(|n| event("quiet", n.to_string())).collect()).await;
    store.record_all((0..KEPT_EVENTS + 300).map(|n| event("loud", n.to_string())).collect()).await;
    // Written once the sweep is over, which the last of them may have begun.
    let last = store.record(event("quiet", "last")).await.unwrap().id;
    until_known(&hub, last).await;
    let follow = |tenant: Option<&str>, after| hub.follow(EventFilter::parse(tenant, None, None, []).unwrap(), after);
    let mut loud = follow(Some("loud"), Some(5));
    let page = loud.page(&everything).await.unwrap();
    let (from, to) = page.missed.expect("some of the loud one's are gone");
    assert!(from == 6 && to > 200, "{from} {to}");
    assert_eq!(page.events.first().map(|event| event.id), Some(to + 1), "the rest follows");
    assert!(loud.page(&everything).await.unwrap().missed.is_none(), "told once");
    let mut quiet = follow(Some("quiet"), Some(0));
    // None is missing, which reading asserts.
    assert_eq!(read(&mut quiet, 11).await.last().map(|event| event.id), Some(last));
    let mut all = follow(None, Some(0));
    assert_eq!(all.page(&everything).await.unwrap().missed, Some((1, to)));
    // A server that starts anew knows as much.
    let (again, _service) = EventHub::start(store.clone(), "").await.unwrap();
    let mut all = again.follow(EventFilter::default(), Some(0));
    assert_eq!(all.page(&everything).await.unwrap().missed, Some((1, to)));
}

#[tokio::test]
async fn readers_are_told_that_the_server_stops() {
    let (store, hub, stop) = hub().await;
    let last = store.record(event("acme", "last")).await.unwrap().id;
    until_known(&hub, last).await;
    let mut follower = hub.follow(EventFilter::default(), None);
    assert!(follower.page(&everything).await.unwrap().events.is_empty());
    stop.cancel();
    let end = timeout(PATIENCE, follower.changed()).await.unwrap();
    assert_eq!(end, Err(StreamEnd::Stopping { last_id: last }));
}
