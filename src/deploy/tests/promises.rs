//! What operators rely on: lost events, flapping probes, crash loops, cancelling, and knowing why.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{engine::Behaviour, support::*};
use crate::{deploy::*, domain::*};

async fn serving(count: u32) -> Platform {
    let platform = Platform::new().await;
    let version = platform.create(&[("web", count)]).await;
    platform.deploy(version).await.unwrap();
    platform.settle().await;
    sleep(Duration::from_secs(30)).await;
    platform
}

#[tokio::test(start_paused = true)]
async fn a_lost_nudge_costs_about_one_interval() {
    let platform = serving(1).await;
    // Written behind the deployer's back: in another process, say, whose watch has ended.
    platform
        .store
        .modify::<Environment, StoreError>(&env(), |record| {
            record.scale.insert("web".parse().unwrap(), 3);
            Ok(())
        })
        .await
        .unwrap();
    let began = Instant::now();
    platform.until("three", |platform| platform.engine.running().len() == 3).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn flapping_probes_leave_something_to_serve() {
    let platform = serving(2).await;
    for _ in 0..4 {
        platform.engine.sicken("web", 1);
        platform.engine.sicken("web", 2);
        let until = Instant::now() + Duration::from_secs(40);
        while Instant::now() < until {
            let upstreams = platform.router.table().environments[&env()].upstreams.len();
            assert!(upstreams > 0, "nothing is served");
            assert!(!platform.engine.running().is_empty());
            sleep(Duration::from_millis(50)).await;
        }
        platform.engine.heal();
        platform.settle().await;
        assert_eq!(platform.engine.running(), ["web.1 v1 r0", "web.2 v1 r0"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_replica_is_replaced_by_one_started_beside_it() {
    let platform = serving(1).await;
    platform.engine.sicken("web", 1);
    let began = Instant::now();
    platform.until("one more", |platform| platform.engine.running().len() == 2).await;
    platform.settle().await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(platform.engine.running(), ["web.1 v1 r0"]);
    assert_eq!(platform.router.table().environments[&env()].upstreams.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn crash_loops_are_named_and_forgotten_by_a_restart() {
    let platform = serving(1).await;
    platform.engine.behave(1, Behaviour::Crashes(Duration::from_secs(2)));
    platform.engine.kill("web", 1);
    sleep(Duration::from_secs(60)).await;
    let mut status = platform.deployer.status(&env()).await.unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !status.processes[0].replicas.iter().any(|replica| replica.health == ReplicaHealth::CrashLooping) {
        assert!(Instant::now() < until, "{status:?}");
        sleep(Duration::from_millis(100)).await;
        status = platform.deployer.status(&env()).await.unwrap();
    }
    let wait = &status.why[0];
    assert!(wait.why.contains("crash-looping") && wait.until.is_some(), "{wait:?}");
    let events = platform.store.list::<Event>("").await.unwrap();
    assert!(events.iter().any(|event| event.message.contains("crash-looping")), "{events:?}");
    // What is started anew is started at once.
    platform.engine.behave(1, Behaviour::Good);
    let began = Instant::now();
    platform.change(|record| record.restarts += 1).await;
    platform.settle().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_deployment_goes_back_to_what_served() {
    let platform = serving(1).await;
    let alice: UserName = "alice".parse().unwrap();
    let idle = platform.deployer.cancel(&env(), None, &alice).await;
    assert!(matches!(idle, Err(CancelFailure::Idle)), "{idle:?}");
    platform.engine.behave(2, Behaviour::Elsewhere(3000));
    let second = platform.create(&[("web", 1)]).await;
    let deployer = platform.deployer.clone();
    let waiting = tokio::spawn(async move { deployer.deploy(&env(), second, &SilentProgress).await });
    platform.until("the new replica", |platform| platform.engine.containers() == 2).await;
    let other = platform.deployer.cancel(&env(), Some(ReleaseVersion(7)), &alice).await;
    assert!(matches!(other, Err(CancelFailure::Other(version)) if version == second), "{other:?}");
    let status = platform.deployer.status(&env()).await.unwrap();
    assert!(status.why[0].why.contains("web.1") && status.why[0].until.is_some(), "{status:?}");
    sleep(Duration::from_secs(2)).await;
    let later = platform.deployer.status(&env()).await.unwrap();
    assert_eq!((later.why[0].since, later.why[0].until), (status.why[0].since, status.why[0].until));
    assert_eq!(platform.deployer.cancel(&env(), None, &alice).await.unwrap(), second);
    let failure = waiting.await.unwrap().unwrap_err();
    assert!(failure.to_string().contains("cancelled by alice"), "{failure}");
    let deployment = platform.store.need::<Deployment>(&(env(), second)).await.unwrap();
    assert_eq!(deployment.state, DeploymentState::Cancelled { by: alice });
    platform.settle().await;
    assert_eq!(platform.engine.running(), ["web.1 v1 r0"]);
    // How it ended is known for good.
    assert!(platform.deploy(second).await.unwrap_err().to_string().contains("cancelled by alice"));
}

#[tokio::test(start_paused = true)]
async fn a_command_says_how_a_replica_is() {
    let platform = Platform::new().await;
    let mut new = platform.new_release(&[("web", 1), ("worker", 1)]);
    for spec in new.processes.values_mut() {
        spec.health.probe = HealthProbe::Command { command: "bin/check".into() };
    }
    let version = platform.deployer.create_release(new).await.unwrap().version;
    platform.deploy(version).await.unwrap();
    platform.settle().await;
    platform.engine.sicken("worker", 1);
    let until = Instant::now() + Duration::from_secs(20);
    let sick = loop {
        let status = platform.deployer.status(&env()).await.unwrap();
        let mut replicas = status.processes.into_iter().flat_map(|process| process.replicas);
        if let Some(sick) = replicas.find(|replica| replica.health == ReplicaHealth::Unhealthy) {
            break sick;
        }
        assert!(Instant::now() < until, "nobody notices");
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(sick.reason.as_deref(), Some("the health command ends with status 1: no queue"));
    platform.settle().await;
    assert_eq!(platform.engine.running(), ["web.1 v1 r0", "worker.1 v1 r0"]);
}

#[tokio::test(start_paused = true)]
async fn leaps_of_the_clock_change_nothing() {
    let mut platform = serving(2).await;
    platform.expect(2);
    for years in [10, -10, 0] {
        platform.leap(years * 365 * 86_400);
        sleep(Duration::from_secs(120)).await;
        assert_eq!(platform.engine.stopped(), []);
        // A restart reads records of another time.
        platform.kill().await;
        platform.restart();
        platform.settle().await;
        sleep(Duration::from_secs(120)).await;
        assert_eq!(platform.engine.stopped(), []);
        platform.expect(0);
        platform.engine.kill("web", 2);
        let began = Instant::now();
        platform.until("gone", |platform| platform.engine.running().len() == 1).await;
        platform.until("back", |platform| platform.engine.running().len() == 2).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        platform.settle().await;
        platform.expect(2);
    }
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn what_was_found_dead_is_not_started_all_at_once() {
    let mut platform = serving(1).await;
    platform.kill().await;
    platform.engine.kill("web", 1);
    platform.restart();
    let began = Instant::now();
    platform.until("back", |platform| platform.engine.running().len() == 1).await;
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_stop_is_no_death() {
    let platform = serving(2).await;
    platform.engine.set_slow_stops(true);
    platform
        .change(|record| {
            record.scale.insert("web".parse().unwrap(), 1);
        })
        .await;
    // Longer than the deployer waits for a stop, and several looks more.
    sleep(Duration::from_secs(120)).await;
    platform.engine.set_slow_stops(false);
    let status = platform.settle().await;
    assert!(!format!("{status:?}").contains("removed from the engine"), "{status:?}");
    let events = platform.store.list::<Event>("").await.unwrap();
    assert!(events.iter().all(|event| event.kind != EventKind::ReplicaDied), "{events:?}");
}
