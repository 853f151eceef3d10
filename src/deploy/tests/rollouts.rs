//! Deployments that work out, and what people change in between.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    engine::{Behaviour, READY_TIME, START_TIME},
    support::*,
};
use crate::{deploy::*, domain::*, logs::LogFilter};

#[tokio::test(start_paused = true)]
async fn first_deployment_serves_as_soon_as_it_can() {
    let platform = Platform::new().await;
    let version = platform.create(&[("web", 2)]).await;
    let began = Instant::now();
    let deployed = platform.deploy(version).await.unwrap();
    let own = began.elapsed().checked_sub(START_TIME + READY_TIME).unwrap();
    assert!(own < Duration::from_millis(30), "the deployer itself took {own:?}");
    assert_eq!(deployed.url, "http://dev.shop.acme.localhost:8080");
    assert_eq!(deployed.healthy, [("web".parse().unwrap(), 2)]);
    let stages: Vec<&str> = deployed.timings.iter().map(|(stage, _)| stage.as_str()).collect();
    assert_eq!(stages, ["start", "ready", "route"]);
    let table = platform.router.table();
    assert_eq!(table.hosts.keys().collect::<Vec<_>>(), ["dev.shop.acme.localhost", "shop.example.com"]);
    assert!(table.environments[&env()].released);
    let status = platform.settle().await;
    assert_eq!((status.current, status.target), (Some(version), Some(version)));
    assert_eq!(status.processes[0].ready, 2);
    let deployment = platform.store.need::<Deployment>(&(env(), version)).await.unwrap();
    assert_eq!(deployment.state, DeploymentState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn rolling_switch_never_stops_serving() {
    let platform = Platform::new().await;
    let first = platform.create(&[("web", 3), ("worker", 1), ("clock", 1)]).await;
    platform.deploy(first).await.unwrap();
    platform.settle().await;
    platform.expect(3);
    let second = platform.create(&[("web", 3), ("worker", 2)]).await;
    let heard = Heard::default();
    platform.deployer.deploy(&env(), second, &heard).await.unwrap();
    assert!(heard.text().starts_with("-----> Deploying v2\n"), "{}", heard.text());
    assert!(heard.text().contains("       web: 3/3 ready, worker: 2/2 ready"), "{}", heard.text());
    platform.settle().await;
    let want = ["web.1 v2 r0", "web.2 v2 r0", "web.3 v2 r0", "worker.1 v2 r0", "worker.2 v2 r0"];
    assert_eq!(platform.engine.running(), want);
    platform.assert_no_faults();
    let again = platform.deploy(second).await.unwrap();
    assert_eq!(again.release, second);
}

#[tokio::test(start_paused = true)]
async fn scale_restart_and_domains_follow_the_record() {
    let platform = Platform::new().await;
    let version = platform.create(&[("web", 1)]).await;
    platform.deploy(version).await.unwrap();
    platform.expect(1);
    let web: ProcessType = "web".parse().unwrap();
    for count in [3, 5, 1] {
        platform.change(|record| record.scale.extend([(web.clone(), count)])).await;
        platform.settle().await;
        assert_eq!(platform.engine.running().len(), count as usize);
    }
    let scaled_down: Vec<u32> = platform.engine.stopped().iter().map(|(_, index)| *index).collect();
    assert_eq!(scaled_down, [5, 4, 3, 2].map(|_| 0).iter().zip([2, 3, 4, 5]).map(|(_, i)| i).collect::<Vec<u32>>());
    platform.change(|record| record.restarts += 1).await;
    platform.claim("www.example.com", &env()).await;
    platform.change(|record| record.domains.push("www.example.com".into())).await;
    platform.settle().await;
    assert_eq!(platform.engine.running(), ["web.1 v1 r1"]);
    platform.assert_no_faults();
    assert!(platform.router.table().hosts.contains_key("www.example.com"));
    platform.expect(0);
    platform.change(|record| record.scale.extend([(web.clone(), 0)])).await;
    platform.settle().await;
    assert_eq!(platform.engine.running().len(), 0);
    assert_eq!(platform.router.table().environments[&env()].upstreams, []);
}

#[tokio::test(start_paused = true)]
async fn rollback_and_configuration_make_releases() {
    let platform = Platform::new().await;
    platform.change(|record| drop(record.config.insert("A".into(), "1".into()))).await;
    let first = platform.create(&[("web", 1)]).await;
    platform.deploy(first).await.unwrap();
    platform.expect(1);
    let by = "alice".parse().unwrap();
    let deployer = &platform.deployer;
    let derive = async |from, change| deployer.derive_release(&env(), from, change, &by, "test").await.unwrap();
    let second = derive(first, Derive::Config([("A".into(), Some("2".into()))].into())).await;
    assert_eq!((second.version, second.config["A"].as_str()), (ReleaseVersion(2), "2"));
    platform.deploy(second.version).await.unwrap();
    let third = derive(first, Derive::Everything).await;
    assert_eq!((third.version, third.config["A"].as_str()), (ReleaseVersion(3), "1"));
    assert_eq!(platform.record().await.config["A"], "1");
    platform.deploy(third.version).await.unwrap();
    platform.settle().await;
    assert_eq!(platform.engine.running(), ["web.1 v3 r0"]);
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn release_phase_runs_once_before_any_replica_and_speaks() {
    let platform = Platform::new().await;
    let mut new = platform.new_release(&[("web", 1)]);
    new.release_command = Some("node migrate.js".into());
    let release = platform.deployer.create_release(new).await.unwrap();
    assert!(!release.release_phase_done);
    let heard = Heard::default();
    let deployed = platform.deployer.deploy(&env(), release.version, &heard).await.unwrap();
    assert_eq!(platform.engine.phases(), ["release-v1 node migrate.js 40"]);
    assert!(heard.text().contains("-----> Running release phase: node migrate.js"), "{}", heard.text());
    assert!(heard.text().contains("migrating\n"), "{}", heard.text());
    assert!(heard.longest_silence() < Duration::from_secs(10), "{:?}", heard.longest_silence());
    assert_eq!(deployed.timings[0].0, "release phase");
    platform.change(|record| record.restarts += 1).await;
    platform.settle().await;
    platform.logs.flush().await;
    let lines = platform.logs.tail(&env(), 10, &LogFilter::process("release")).await.unwrap();
    let lines: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!((lines[0], lines[1]), ("release phase of v1 started: node migrate.js", "migrating"), "{lines:?}");
    let by = "alice".parse().unwrap();
    let derived = platform.deployer.derive_release(&env(), release.version, Derive::Everything, &by, "rollback").await;
    platform.deploy(derived.unwrap().version).await.unwrap();
    assert_eq!(platform.engine.phases().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_made_the_target_is_deployed_although_nobody_waits_for_it() {
    let platform = Platform::new().await;
    let mut new = platform.new_release(&[("web", 1)]);
    new.release_command = Some("node migrate.js".into());
    let version = platform.deployer.create_target(new).await.unwrap().version;
    assert_eq!(platform.record().await.target, Some(version));
    platform.deployer.nudge(&env());
    platform.until("the release to serve", |platform| platform.engine.running() == ["web.1 v1 r0"]).await;
    platform.settle().await;
    assert_eq!(platform.record().await.current, Some(version));
    assert_eq!(platform.engine.phases(), ["release-v1 node migrate.js 40"]);
    // Who asks afterwards hears how it went.
    assert_eq!(platform.deploy(version).await.unwrap().release, version);
}

#[tokio::test(start_paused = true)]
async fn a_release_phase_that_a_dying_server_left_half_done_says_that_it_runs_again() {
    let platform = Platform::new().await;
    let mut new = platform.new_release(&[("web", 1)]);
    new.release_command = Some("node migrate.js".into());
    let version = platform.deployer.create_release(new).await.unwrap().version;
    let begun = |release: &mut Release| {
        release.release_phase_attempts = 1;
        Ok(())
    };
    platform.store.modify::<Release, StoreError>(&(env(), version), begun).await.unwrap();
    let heard = Heard::default();
    platform.deployer.deploy(&env(), version, &heard).await.unwrap();
    assert!(heard.text().contains("it runs again (attempt 2 of 2)"), "{}", heard.text());
    let release = platform.store.need::<Release>(&(env(), version)).await.unwrap();
    assert_eq!(release.release_phase_attempts, 2);
}

/// A platform with a release whose release phase has just begun.
async fn in_release_phase() -> (Platform, ReleaseVersion) {
    let platform = Platform::new().await;
    let mut new = platform.new_release(&[("web", 1)]);
    new.release_command = Some("node migrate.js".into());
    let version = platform.deployer.create_release(new).await.unwrap().version;
    let deployer = platform.deployer.clone();
    tokio::spawn(async move { deployer.deploy(&env(), version, &SilentProgress).await });
    platform.until("a release phase", |platform| !platform.engine.phases().is_empty()).await;
    (platform, version)
}

#[tokio::test(start_paused = true)]
async fn a_planned_stop_asks_a_release_phase_to_end_and_one_more_attempt_is_made() {
    let (mut platform, version) = in_release_phase().await;
    sleep(Duration::from_secs(5)).await;
    platform.stop().await;
    assert_eq!(platform.engine.signals(), ["TERM"]);
    let release = || async { platform.store.need::<Release>(&(env(), version)).await.unwrap().record };
    assert_eq!((release().await.release_phase_attempts, release().await.release_phase_done), (1, false));
    platform.restart();
    platform.until("another attempt", |platform| platform.engine.phases().len() == 2).await;
    sleep(Duration::from_secs(5)).await;
    platform.stop().await;
    assert_eq!(platform.engine.signals().len(), 2);
    // Not a third time.
    platform.restart();
    let failure = platform.deploy(version).await.unwrap_err().to_string();
    assert!(failure.contains("went down twice while it ran") && failure.contains("push again"), "{failure}");
    assert_eq!(platform.engine.phases().len(), 2);
    assert_eq!(platform.record().await.target, None);
}

#[tokio::test(start_paused = true)]
async fn the_success_of_a_release_phase_is_written_once_there_is_room() {
    let (mut platform, version) = in_release_phase().await;
    platform.full.store(true, Ordering::SeqCst);
    // It ends well, what it did cannot be written down, and the replicas are started all the same.
    platform.until("a replica", |platform| !platform.engine.running().is_empty()).await;
    assert!(!platform.store.need::<Release>(&(env(), version)).await.unwrap().release_phase_done);
    platform.full.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(3)).await;
    assert!(platform.store.need::<Release>(&(env(), version)).await.unwrap().release_phase_done);
    platform.kill().await;
    platform.restart();
    platform.deploy(version).await.unwrap();
    assert_eq!(platform.engine.phases().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_restarted_again_and_again_still_ends_a_stuck_rollout() {
    let mut platform = Platform::new().await;
    platform.engine.behave(1, Behaviour::NoRegistry);
    let version = platform.create(&[("web", 1)]).await;
    let (deployer, env) = (platform.deployer.clone(), env());
    tokio::spawn(async move { deployer.deploy(&env, version, &SilentProgress).await });
    // The deadline is ten minutes, and each server lives for nine.
    for lives in 1..=2 {
        sleep(Duration::from_secs(540)).await;
        platform.kill().await;
        platform.leap(540 * lives);
        platform.restart();
    }
    let state = platform.store.need::<Deployment>(&(self::env(), version)).await.unwrap().record.state;
    assert!(matches!(&state, DeploymentState::Failed { reason } if reason.contains("no progress")), "{state:?}");
}

#[tokio::test(start_paused = true)]
async fn destroyed_environment_leaves_nothing() {
    let platform = Platform::new().await;
    let version = platform.create(&[("web", 2), ("worker", 1)]).await;
    platform.deploy(version).await.unwrap();
    let record = platform.store.need::<Environment>(&env()).await.unwrap();
    platform.store.transaction().delete(&record).commit().await.unwrap();
    platform.deployer.retire(&env()).await.unwrap();
    assert_eq!(platform.engine.containers(), 0);
    platform.until("no routes", |platform| platform.router.table().environments.is_empty()).await;
    assert!(platform.router.table().hosts.is_empty());
    assert!(matches!(platform.deployer.status(&env()).await, Err(crate::store::StoreError::Missing(_))));
}
