//! What does not get through: tried again, given up, disabled, refused.

use super::*;

#[tokio::test]
async fn what_fails_is_tried_again_before_the_next() {
    let (world, target) = (World::new(settings()), Target::new([500, 302].map(Does::Answers)).await);
    let id = world.hook("one", target.port, &[]).await;
    world.queued("first").await;
    world.queued("second").await;
    let got = target.until(4).await;
    assert_eq!(target.messages(), ["first", "first", "first", "second"]);
    assert_eq!(got[0].header("berth-delivery"), got[2].header("berth-delivery"));
    assert_ne!(got[2].header("berth-delivery"), got[3].header("berth-delivery"));
    let log = world.until_logged(&id, 4).await;
    let attempts: Vec<_> = log.iter().map(|delivery| (delivery.attempt, delivery.status)).collect();
    assert_eq!(attempts, [(1, Some(500)), (2, Some(302)), (3, Some(200)), (1, Some(200))]);
    assert_eq!(log[0].error.as_deref(), Some("it answered 500"));
    assert_eq!(world.mark(&id).await.unwrap().failing_since, None);
    world.stop().await;
}

#[tokio::test]
async fn a_target_that_is_away_is_told_when_it_is_back() {
    let port = {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        gone.local_addr().unwrap().port()
    };
    let world = World::new(settings());
    let id = world.hook("one", port, &[]).await;
    world.queued("first").await;
    world.queued("second").await;
    let log = world.until_logged(&id, 2).await;
    assert!(log[0].status.is_none() && log[0].error.as_ref().unwrap().contains("refused"), "{log:?}");
    assert!(!log[0].error.as_ref().unwrap().contains("hidden"), "the URL's secret is in the log: {log:?}");
    let target = Target::at(TcpListener::bind(("127.0.0.1", port)).await.unwrap(), []);
    target.until(2).await;
    assert_eq!(target.messages(), ["first", "second"]);
    world.stop().await;
}

#[tokio::test]
async fn a_redirect_inside_is_refused_and_in_the_delivery_log() {
    let inside = "http://169.254.169.254/latest/meta-data/";
    let settings =
        WebhookSettings { first_retry: Duration::from_secs(600), longest_retry: DEADLINE * 10, ..settings() };
    let (world, target) = (World::new(settings), Target::new([Does::Redirects(307, inside.into())]).await);
    let id = world.hook("one", target.port, &[]).await;
    world.queued("first").await;
    let log = world.until_logged(&id, 1).await;
    let error = log[0].error.as_deref().unwrap();
    assert!(error.starts_with("169.254.169.254 is a link-local address"), "{error}");
    assert!(error.contains("outbound.allowed_networks"), "{error}");
    // The nudge tries again at once what would wait for minutes; a redirect to what may be is followed.
    let other = Target::new([]).await;
    let there = format!("http://127.0.0.1:{}/", other.port);
    target.does.lock().unwrap().push_back(Does::Redirects(308, there));
    world.webhooks.nudge(&acme(), &id);
    assert_eq!(other.until(1).await[0].message(), "first");
    world.stop().await;
}

#[tokio::test]
async fn gone_disables_it_and_says_so() {
    let (world, target) = (World::new(settings()), Target::new([Does::Answers(410)]).await);
    let id = world.hook("one", target.port, &[]).await;
    world.queued("first").await;
    until("it to be disabled", async || !world.webhook(&id).await.enabled).await;
    assert_eq!(world.webhook(&id).await.disabled_reason.as_deref(), Some("it answered 410 Gone"));
    let said = async || world.store.list::<Event>("").await.unwrap();
    let disabled = async || said().await.iter().any(|event| event.kind == EventKind::WebhookDisabled);
    until("the event", disabled).await;
    world.queued("second").await;
    // Enabled again, it is told of what comes from then on.
    let stored = world.store.need::<Webhook>(&(acme(), id.clone())).await.unwrap();
    let from = newest_event(&world.store).await.unwrap();
    let enabled = Webhook { enabled: true, from, generation: 2, ..stored.record.clone() };
    world.store.transaction().update(&stored, &enabled).commit().await.unwrap();
    world.queued("third").await;
    target.until(2).await;
    assert_eq!(target.messages(), ["first", "third"]);
    world.stop().await;
}

#[tokio::test]
async fn what_fails_for_days_is_disabled() {
    let settings = WebhookSettings { disable_after: Duration::from_millis(200), ..settings() };
    let (world, target) = (World::new(settings), Target::new(vec![Does::Answers(500); 1000]).await);
    let id = world.hook("one", target.port, &[]).await;
    world.queued("first").await;
    until("it to be disabled", async || !world.webhook(&id).await.enabled).await;
    let reason = world.webhook(&id).await.disabled_reason.unwrap();
    assert!(reason.starts_with("nothing has got through since") && reason.ends_with("it answered 500"), "{reason}");
    assert!(world.log(&id).await.len() > 1);
    world.stop().await;
}

#[tokio::test]
async fn what_is_given_up_is_told_with_the_next() {
    let settings = WebhookSettings { give_up_after: Duration::from_millis(200), ..settings() };
    let world = World::new(settings);
    let target = Target::new(vec![Does::Answers(500); 1000]).await;
    let id = world.hook("one", target.port, &[]).await;
    world.queued("first").await;
    until("it to be given up", async || world.mark(&id).await.is_some_and(|mark| mark.missed == 1)).await;
    target.does.lock().unwrap().clear();
    let log = world.log(&id).await;
    assert!(log.last().unwrap().error.as_ref().unwrap().contains("given up after"), "{log:?}");
    world.queued("second").await;
    until("the next to be told", async || target.messages().last().unwrap() == "second").await;
    assert_eq!(target.got().last().unwrap().header("berth-missed"), Some("1"));
    until("that to be written", async || world.mark(&id).await.unwrap().missed == 0).await;
    world.stop().await;
}

#[tokio::test]
async fn events_that_the_log_has_dropped_are_counted() {
    let settings = WebhookSettings { first_retry: DEADLINE * 10, longest_retry: DEADLINE * 10, ..settings() };
    let (world, target) = (World::new(settings), Target::new([Does::Answers(500)]).await);
    let id = world.hook("one", target.port, &[]).await;
    world.queued("first").await;
    world.until_logged(&id, 1).await;
    world.queued("second").await;
    world.queued("third").await;
    for event in world.store.list::<Event>("").await.unwrap().iter().take(2) {
        world.store.transaction().delete(event).commit().await.unwrap();
    }
    until("the third to be told", async || target.messages().last().unwrap() == "third").await;
    assert_eq!(target.got().last().unwrap().header("berth-missed"), Some("2"));
    world.stop().await;
}

#[tokio::test]
async fn the_delivery_log_is_a_ring() {
    let (world, target) = (World::new(settings()), Target::new([]).await);
    let id = world.hook("one", target.port, &[]).await;
    for n in 0..105 {
        world.queued(&format!("number {n}")).await;
    }
    target.until(105).await;
    until("all to be written", async || world.mark(&id).await.is_some_and(|mark| mark.deliveries == 105)).await;
    let log = world.log(&id).await;
    assert_eq!((log.len(), log[0].number, log[99].number), (100, 6, 105));
    world.stop().await;
}
