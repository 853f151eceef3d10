//! What events say of deployments and of health, how much of it, and that it is no secret.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{engine::Behaviour, support::*};
use crate::{deploy::*, domain::*};

const SECRET: &str = "hunter2-correct-horse";

async fn events(platform: &Platform) -> Vec<Event> {
    // What was told is written by a task beside.
    sleep(Duration::from_secs(1)).await;
    let events: Vec<_> =
        platform.store.list::<Event>("").await.unwrap().into_iter().map(|stored| stored.record).collect();
    let all = serde_json::to_string(&events).unwrap();
    assert!(!all.contains(SECRET), "{all}");
    events
}

fn of(events: &[Event], kind: EventKind) -> Vec<&Event> {
    events.iter().filter(|event| event.kind == kind).collect()
}

async fn serving() -> Platform {
    let platform = Platform::new().await;
    platform.change(|record| drop(record.config.insert("PASSWORD".into(), SECRET.into()))).await;
    let version = platform.create(&[("web", 2)]).await;
    platform.deploy(version).await.unwrap();
    platform.settle().await;
    platform
}

#[tokio::test(start_paused = true)]
async fn a_deployment_is_told_step_by_step() {
    let platform = serving().await;
    let events = events(&platform).await;
    let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
    let place = |kind| kinds.iter().position(|one| *one == kind).unwrap_or_else(|| panic!("no {kind}: {kinds:?}"));
    let order = [
        EventKind::ReleaseCreated,
        EventKind::DeploymentStarted,
        EventKind::DeploymentStep,
        EventKind::ReplicaStarted,
        EventKind::ReplicaHealthy,
        EventKind::DeploymentFinished,
    ];
    assert!(order.map(place).is_sorted(), "{kinds:?}");
    let finished = of(&events, EventKind::DeploymentFinished)[0];
    assert_eq!(
        (finished.data.get("outcome"), finished.data.get("release")),
        (Some(&json!("succeeded")), Some(&json!(1)))
    );
    let step = of(&events, EventKind::DeploymentStep)[0].data.get("waits").unwrap();
    assert_eq!((&step[0]["process"], &step[0]["wanted"]), (&json!("web"), &json!(2)));
    let mut healthy: Vec<_> =
        of(&events, EventKind::ReplicaHealthy).iter().map(|event| event.data.get("replica").cloned()).collect();
    healthy.sort_by_key(|name| name.as_ref().map(ToString::to_string));
    assert_eq!(healthy, [Some(json!("web.1")), Some(json!("web.2"))]);
}

#[tokio::test(start_paused = true)]
async fn how_a_deployment_failed_is_told_and_what_serves() {
    let platform = serving().await;
    platform.engine.behave(2, Behaviour::Crashes(Duration::from_millis(200)));
    let second = platform.create(&[("web", 2)]).await;
    platform.deploy(second).await.unwrap_err();
    platform.engine.behave(3, Behaviour::Elsewhere(3000));
    let third = platform.create(&[("web", 1)]).await;
    let deployer = platform.deployer.clone();
    let waiting = tokio::spawn(async move { deployer.deploy(&env(), third, &SilentProgress).await });
    platform.until("the new replica", |platform| platform.engine.containers() > 2).await;
    platform.deployer.cancel(&env(), None, &"alice".parse().unwrap()).await.unwrap();
    waiting.await.unwrap().unwrap_err();
    let events = events(&platform).await;
    let failed = of(&events, EventKind::DeploymentFinished)[1];
    assert_eq!((failed.data.get("outcome"), failed.data.get("serving")), (Some(&json!("failed")), Some(&json!(1))));
    let back = of(&events, EventKind::DeploymentRolledBack);
    assert!(back.len() == 1 && back[0].message == "v2 was rolled back: v1 goes on serving", "{back:?}");
    let died = of(&events, EventKind::ReplicaDied)[0];
    assert!(died.data.get("exit_code").is_some() && died.data.get("replica").is_some(), "{died:?}");
    let cancelled = of(&events, EventKind::DeploymentCancelled);
    assert_eq!(cancelled[0].actor, Some("alice".parse().unwrap()));
    assert_eq!(cancelled[0].data.get("release"), Some(&json!(3)));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_flaps_is_not_told_of_all_the_time() {
    let platform = serving().await;
    let began = Instant::now();
    for _ in 0..60 {
        platform.engine.sicken("web", 1);
        sleep(Duration::from_secs(18)).await;
        platform.engine.heal();
        platform.settle().await;
    }
    let most = 7 + usize::try_from(began.elapsed().as_secs() / 60).unwrap();
    let events = events(&platform).await;
    let health: Vec<_> = events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::ReplicaHealthy | EventKind::ReplicaUnhealthy))
        .collect();
    for index in 1..=3 {
        let told = health.iter().filter(|event| event.data.get("index") == Some(&json!(index))).count();
        assert!(told <= most, "{told} of web.{index}, more than {most}");
    }
    assert!(health.iter().any(|event| event.kind == EventKind::ReplicaUnhealthy));
    assert!(health.iter().any(|event| event.data.get("suppressed").is_some_and(|count| *count != json!(0))));
}

#[tokio::test(start_paused = true)]
async fn an_engine_and_a_router_that_are_away_are_told_once() {
    let platform = serving().await;
    platform.engine.set_down(true);
    sleep(Duration::from_secs(60)).await;
    platform.engine.set_down(false);
    sleep(Duration::from_secs(30)).await;
    *platform.router.asleep.lock().unwrap() = true;
    platform.change(|record| record.scale.extend([("web".parse().unwrap(), 3)])).await;
    sleep(Duration::from_secs(120)).await;
    let events = events(&platform).await;
    let count = |kind| of(&events, kind).len();
    assert_eq!((count(EventKind::EngineLost), count(EventKind::EngineBack)), (1, 1));
    assert_eq!((count(EventKind::RouterLost), count(EventKind::RouterBack)), (1, 0));
    assert!(of(&events, EventKind::EngineLost)[0].tenant.is_none());
}
