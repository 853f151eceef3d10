//! What is told, in which order, and over restarts.

use ring::hmac;

use super::*;

#[tokio::test]
async fn requests_are_signed_cloud_events_in_order() {
    let (world, target) = (World::new(settings()), Target::new([]).await);
    let id = world.hook("one", target.port, &["build.", "release.created"]).await;
    let first = world.queued("first").await;
    world.event(EventKind::ReplicaDied, "not wanted").await;
    let theirs = NewEvent::new(EventKind::BuildQueued, Timestamp::now(), "somebody else's");
    world.store.record(theirs.tenant(&"other".parse().unwrap())).await.unwrap();
    for n in 2..=5 {
        world.event(EventKind::ReleaseCreated, &format!("number {n}")).await;
    }
    let got = target.until(5).await;
    assert_eq!(target.messages(), ["first", "number 2", "number 3", "number 4", "number 5"]);
    for request in &got {
        assert_eq!(request.header("content-type"), Some("application/cloudevents+json"));
        assert!(request.header("user-agent").unwrap().starts_with("berth/"));
        // As a receiver does it.
        let timestamp = request.header("berth-timestamp").unwrap();
        assert!(Timestamp::now().as_second() - timestamp.parse::<i64>().unwrap() < 120);
        let signed = [timestamp.as_bytes(), b".", &request.body].concat();
        let signature = request.header("berth-signature").unwrap().strip_prefix("v1=").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        hmac::verify(&key, &signed, &hex::decode(signature).unwrap()).unwrap();
    }
    let event = got[0].json();
    assert_eq!((&event["specversion"], &event["type"]), (&"1.0".into(), &"dev.berth.build.queued".into()));
    let source = "https://berth.example.com/tenants/acme";
    assert_eq!((&event["id"], &event["source"]), (&first.to_string().into(), &source.into()));
    assert_eq!(got[0].header("berth-delivery"), Some(format!("one-{first}").as_str()));
    let log = world.until_logged(&id, 5).await;
    assert!(log.iter().all(|delivery| delivery.status == Some(200) && delivery.error.is_none()), "{log:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_restart_goes_on_where_the_last_one_was() {
    let failing = std::iter::once(Does::Answers(200)).chain(std::iter::repeat_n(Does::Answers(503), 3));
    let (world, target) = (World::new(settings()), Target::new(failing).await);
    let id = world.hook("one", target.port, &[]).await;
    world.queued("first").await;
    world.queued("second").await;
    let third = world.queued("third").await;
    world.until_logged(&id, 2).await;
    let world = world.killed(settings()).await;
    until("all to be told", async || target.messages().contains(&"third".to_owned())).await;
    let mut messages = target.messages();
    assert_eq!(messages.iter().filter(|message| *message == "first").count(), 1, "{messages:?}");
    messages.dedup();
    assert_eq!(messages, ["first", "second", "third"]);
    // What was told before the restart counts, and the name of the delivery stays.
    until("the third to be written", async || world.mark(&id).await.unwrap().handled == third).await;
    // The attempt that was under way when the server was killed is not in it.
    let log = world.log(&id).await;
    let second: Vec<_> = log.iter().filter(|delivery| delivery.delivery == log[1].delivery).collect();
    assert!(second.last().unwrap().attempt >= 3, "{log:?}");
    // Everything is told: nothing comes again.
    let before = target.got().len();
    let world = world.killed(settings()).await;
    world.queued("fourth").await;
    target.until(before + 1).await;
    assert_eq!(target.messages().last().unwrap(), "fourth");
    world.stop().await;
}

#[tokio::test]
async fn a_slow_target_holds_up_nobody_else() {
    let world = World::new(settings());
    let (slow, quick) = (Target::new([Does::Hangs]).await, Target::new([]).await);
    world.hook("a", slow.port, &[]).await;
    world.hook("b", quick.port, &[]).await;
    for n in 0..10 {
        world.queued(&format!("number {n}")).await;
    }
    quick.until(10).await;
    // It has one request under way, which has not timed out yet.
    assert_eq!(slow.got().len(), 1);
    world.service.abort();
}

#[tokio::test]
async fn the_share_of_a_tenant_is_taken_in_turns() {
    let settings = WebhookSettings { concurrency_per_tenant: 1, ..settings() };
    let (world, targets) = (World::new(settings), [Target::new([]).await, Target::new([]).await]);
    world.hook("a", targets[0].port, &[]).await;
    world.hook("b", targets[1].port, &[]).await;
    for n in 0..5 {
        world.queued(&format!("number {n}")).await;
    }
    for target in &targets {
        target.until(5).await;
    }
    world.stop().await;
}

#[tokio::test]
async fn a_test_is_sent_though_the_webhook_is_disabled() {
    let (world, target) = (World::new(settings()), Target::new([Does::Answers(200), Does::Answers(404)]).await);
    let id = world.hook("one", target.port, &["build."]).await;
    let stored = world.store.need::<Webhook>(&(acme(), id.clone())).await.unwrap();
    let disabled = Webhook { enabled: false, ..stored.record.clone() };
    world.store.transaction().update(&stored, &disabled).commit().await.unwrap();
    let tested = world.webhooks.test(&acme(), &id).await.unwrap();
    assert_eq!((tested.status, tested.error), (Some(200), None));
    let tested = world.webhooks.test(&acme(), &id).await.unwrap();
    assert_eq!(tested.error.as_deref(), Some("it answered 404"));
    assert_eq!(target.got()[0].json()["type"], "dev.berth.webhook.ping");
    assert_eq!(world.until_logged(&id, 2).await.len(), 2);
    let unknown = world.webhooks.test(&acme(), &"none".parse().unwrap()).await;
    assert_eq!(unknown.unwrap_err(), TestRefusal::Unknown);
    world.stop().await;
}

#[tokio::test]
async fn a_removed_webhook_leaves_nothing() {
    let (world, target) = (World::new(settings()), Target::new([]).await);
    let id = world.hook("one", target.port, &[]).await;
    world.queued("first").await;
    world.until_logged(&id, 1).await;
    let stored = world.store.need::<Webhook>(&(acme(), id.clone())).await.unwrap();
    world.store.transaction().delete(&stored).commit().await.unwrap();
    until("its records to go", async || world.mark(&id).await.is_none()).await;
    assert_eq!(world.log(&id).await, []);
    world.stop().await;
}
