//! What goes wrong: crashes, kills, silence. What served before serves throughout.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    engine::{Behaviour, START_TIME},
    support::*,
};
use crate::{
    deploy::{world::INTERVAL, *},
    domain::*,
};

async fn serving(count: u32) -> Platform {
    let platform = Platform::new().await;
    let version = platform.create(&[("web", count)]).await;
    platform.deploy(version).await.unwrap();
    platform.settle().await;
    platform.expect(count as usize);
    platform
}

#[tokio::test(start_paused = true)]
async fn failing_releases_are_rolled_back_with_a_reason() {
    let crash = Behaviour::Crashes(Duration::from_millis(100));
    for (behaviour, within, reason) in [
        (crash, 15, "exited with status 3"),
        (Behaviour::Elsewhere(3000), 40, "`port: 3000`"),
        (Behaviour::NoImage, 15, "cannot be pulled"),
    ] {
        let platform = serving(2).await;
        platform.engine.behave(2, behaviour.clone());
        let second = platform.create(&[("web", 2)]).await;
        let (began, heard) = (Instant::now(), Heard::default());
        let failure = platform.deployer.deploy(&env(), second, &heard).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(within), "{behaviour:?} took {:?}", began.elapsed());
        assert!(heard.longest_silence() < Duration::from_secs(10));
        let DeployFailure::Failed { release, reason: told, last_log_lines } = failure else { panic!("{failure:?}") };
        assert_eq!(release, second);
        assert!(told.contains(reason), "{told}");
        assert_eq!(
            last_log_lines.first().map(String::as_str),
            match behaviour {
                Behaviour::NoImage => None,
                _ => Some("Error: no DATABASE_URL"),
            }
        );
        let record = platform.record().await;
        assert_eq!((record.target, record.current), (Some(ReleaseVersion(1)), Some(ReleaseVersion(1))));
        // Whoever asks later reads the same.
        let kept = platform.store.need::<Deployment>(&(env(), second)).await.unwrap().record;
        assert_eq!(kept.last_log_lines, last_log_lines);
        let again = platform.deploy(second).await.unwrap_err();
        assert!(matches!(again, DeployFailure::Failed { last_log_lines: lines, .. } if lines == last_log_lines));
        platform.settle().await;
        assert_eq!(platform.engine.running(), ["web.1 v1 r0", "web.2 v1 r0"]);
        assert_eq!(platform.engine.containers(), 2);
        platform.assert_no_faults();
    }
}

#[tokio::test(start_paused = true)]
async fn configuration_of_a_failed_release_goes_back() {
    let platform = Platform::new().await;
    platform.change(|record| drop(record.config.insert("A".into(), "1".into()))).await;
    let first = platform.create(&[("web", 1)]).await;
    platform.deploy(first).await.unwrap();
    platform.expect(1);
    platform.engine.behave(2, Behaviour::Crashes(Duration::from_millis(100)));
    let changes = [("A".to_owned(), None), ("B".to_owned(), Some("2".to_owned()))].into();
    let by = "alice".parse().unwrap();
    let derived = platform.deployer.derive_release(&env(), first, Derive::Config(changes), &by, "test").await.unwrap();
    assert_eq!(derived.config, [("B".to_owned(), "2".to_owned())].into());
    assert_eq!(platform.record().await.config, derived.config);
    platform.deploy(derived.version).await.unwrap_err();
    assert_eq!(platform.record().await.config, [("A".to_owned(), "1".to_owned())].into());
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn first_release_that_fails_leaves_nothing() {
    let platform = Platform::new().await;
    platform.engine.behave(1, Behaviour::Crashes(Duration::from_millis(10)));
    let version = platform.create(&[("web", 1)]).await;
    assert!(matches!(platform.deploy(version).await, Err(DeployFailure::Failed { .. })));
    platform.settle().await;
    assert_eq!((platform.engine.containers(), platform.record().await.target), (0, None));
    assert!(!platform.router.table().environments[&env()].released);
    // How it ended is known for good.
    assert!(matches!(platform.deploy(version).await, Err(DeployFailure::Failed { .. })));
}

#[tokio::test(start_paused = true)]
async fn failed_release_phase_starts_no_replica() {
    let platform = serving(1).await;
    platform.engine.phase_exits(1);
    let mut new = platform.new_release(&[("web", 1)]);
    new.release_command = Some("migrate".into());
    let version = platform.deployer.create_release(new).await.unwrap().version;
    let failure = platform.deploy(version).await.unwrap_err();
    let DeployFailure::Failed { reason, last_log_lines, .. } = failure else { panic!("{failure:?}") };
    assert_eq!(reason, "the release phase failed: it exited with status 1");
    assert_eq!(last_log_lines, ["migrating", "column missing"]);
    let kept = platform.store.need::<Deployment>(&(env(), version)).await.unwrap().record;
    assert_eq!(kept.last_log_lines, last_log_lines);
    assert_eq!(platform.engine.running(), ["web.1 v1 r0"]);
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn newer_release_supersedes() {
    let platform = serving(2).await;
    platform.engine.behave(2, Behaviour::Elsewhere(1));
    let second = platform.create(&[("web", 2)]).await;
    let waiting = tokio::spawn({
        let deployer = platform.deployer.clone();
        async move { deployer.deploy(&env(), second, &SilentProgress).await }
    });
    platform.until("v2 runs", |platform| platform.engine.running().len() == 4).await;
    let third = platform.create(&[("web", 2)]).await;
    platform.deploy(third).await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(DeployFailure::Superseded { by }) if by == third));
    assert!(matches!(platform.deploy(second).await, Err(DeployFailure::Superseded { by }) if by == third));
    platform.settle().await;
    assert_eq!(platform.engine.running(), ["web.1 v3 r0", "web.2 v3 r0"]);
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn killed_and_sick_replicas_are_replaced() {
    let platform = serving(3).await;
    sleep(Duration::from_secs(30)).await;
    platform.expect(0);
    let began = Instant::now();
    platform.engine.kill("web", 2);
    platform.until("gone", |platform| platform.engine.running().len() == 2).await;
    platform.until("back", |platform| platform.engine.running().len() == 3).await;
    assert!(began.elapsed() < Duration::from_secs(1), "a long healthy one is replaced at once: {:?}", began.elapsed());
    platform.settle().await;
    platform.engine.sicken("web", 1);
    platform.until("stopped", |platform| platform.engine.stopped().len() == 1).await;
    platform.settle().await;
    assert_eq!(platform.engine.running(), ["web.1 v1 r0", "web.2 v1 r0", "web.3 v1 r0"]);
    assert_eq!(platform.router.table().environments[&env()].upstreams.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn control_plane_killed_at_any_moment_of_a_rollout() {
    for moment in (0..1400).step_by(50) {
        let mut platform = serving(3).await;
        let second = platform.create(&[("web", 3), ("worker", 1)]).await;
        let deployer = platform.deployer.clone();
        let waiting = tokio::spawn(async move { deployer.deploy(&env(), second, &SilentProgress).await });
        sleep(Duration::from_millis(moment)).await;
        platform.kill().await;
        waiting.abort();
        sleep(Duration::from_secs(4)).await;
        platform.restart();
        let deployed = platform.deploy(second).await.unwrap();
        assert_eq!(deployed.release, second);
        platform.settle().await;
        let want = ["web.1 v2 r0", "web.2 v2 r0", "web.3 v2 r0", "worker.1 v2 r0"];
        assert_eq!(platform.engine.running(), want, "killed after {moment} ms");
        platform.assert_no_faults();
    }
}

#[tokio::test(start_paused = true)]
async fn restart_of_the_control_plane_changes_nothing() {
    let mut platform = serving(3).await;
    let generation = platform.router.table().generation;
    platform.kill().await;
    platform.restart();
    platform.settle().await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(platform.engine.stopped(), []);
    assert_eq!(platform.router.table().generation, generation);
    platform.assert_no_faults();
}

/// Seconds from one moment to the next.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn a_replica_is_told_since_when_it_is_what_it_is() {
    let platform = serving(1).await;
    let replica = async || platform.deployer.status(&env()).await.unwrap().processes[0].replicas[0].clone();
    let ready = replica().await;
    assert_eq!(ready.health, ReplicaHealth::Ready);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(replica().await.since, ready.since, "it has been ready all the time");
    platform.expect(0);
    platform.engine.behave(1, Behaviour::Crashes(Duration::from_secs(1)));
    platform.engine.kill("web", 1);
    let mut before = replica().await;
    let mut seen = std::collections::BTreeSet::new();
    let mut waited = None;
    // It comes up, dies and waits, longer each time; each of these begins when the one before ends.
    for _ in 0..600 {
        sleep(Duration::from_millis(50)).await;
        let status = platform.deployer.status(&env()).await.unwrap();
        let Some(now) = status.processes[0].replicas.first().cloned() else { continue };
        let word = format!("{:?}", now.health);
        // So does what is waited for: a pause has one beginning, which is after the death, and one end.
        if let Some(wait) = status.why.iter().find(|wait| wait.why.contains("waiting until")) {
            assert!(wait.since >= now.since && wait.until > Some(wait.since), "{wait:?} {now:?}");
            let before = waited.replace(wait.clone()).filter(|before: &WaitStatus| before.until == wait.until);
            assert!(before.is_none_or(|before| before.since == wait.since), "{wait:?}");
        }
        if now.health != before.health {
            assert!(seconds(before.since, now.since) > 0.0, "{before:?} → {now:?}");
        } else if now.health == ReplicaHealth::CrashLooping && before.state == now.state && now.since != before.since {
            assert!(seconds(before.since, now.since) > 0.9, "{before:?} → {now:?}");
        }
        seen.insert(word);
        before = now;
    }
    assert!(seen.contains("CrashLooping") && seen.contains("Starting"), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_event_costs_one_interval() {
    let platform = serving(2).await;
    sleep(Duration::from_secs(20)).await;
    platform.expect(0);
    platform.engine.set_mute();
    platform.engine.kill("web", 1);
    let began = Instant::now();
    platform.until("two replicas again", |platform| platform.engine.running().len() == 2).await;
    assert!(began.elapsed() <= INTERVAL + START_TIME + Duration::from_millis(100), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn router_that_does_not_answer_is_not_waited_for_for_ever() {
    let platform = Platform::new().await;
    *platform.router.asleep.lock().unwrap() = true;
    let version = platform.create(&[("web", 1)]).await;
    let heard = Heard::default();
    platform.deployer.deploy(&env(), version, &heard).await.unwrap();
    assert!(heard.text().contains(" !     the router does not answer"), "{}", heard.text());
    let second = platform.create(&[("web", 1)]).await;
    platform.deploy(second).await.unwrap();
    platform.settle().await;
    assert_eq!(platform.engine.running(), ["web.1 v2 r0"]);
}

#[tokio::test(start_paused = true)]
async fn engine_that_is_away_is_waited_for() {
    let platform = serving(1).await;
    platform.engine.set_down(true);
    let second = platform.create(&[("web", 1)]).await;
    let waiting = tokio::spawn({
        let deployer = platform.deployer.clone();
        async move { deployer.deploy(&env(), second, &SilentProgress).await }
    });
    sleep(Duration::from_secs(60)).await;
    let status = platform.deployer.status(&env()).await.unwrap();
    assert!(status.waits.iter().any(|wait| wait.contains("engine does not answer")), "{status:?}");
    assert!(!waiting.is_finished());
    platform.engine.set_down(false);
    waiting.await.unwrap().unwrap();
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn the_status_does_not_wait_for_an_engine_that_is_away() {
    let platform = serving(1).await;
    platform.engine.set_down(true);
    sleep(Duration::from_secs(60)).await;
    platform.change(|record| record.scale = [("web".parse().unwrap(), 2)].into()).await;
    let began = Instant::now();
    let status = platform.deployer.status(&env()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    assert!(status.waits.iter().any(|wait| wait.contains("engine does not answer")), "{status:?}");
    assert!(!status.settled, "nobody knows");
    // What was changed meanwhile is seen all the same.
    assert_eq!(status.processes[0].wanted, 2);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_answers_late_is_heard_all_the_same() {
    let platform = serving(2).await;
    platform.engine.set_late(Duration::from_secs(30));
    let second = platform.create(&[("web", 2)]).await;
    let waiting = tokio::spawn({
        let deployer = platform.deployer.clone();
        async move { deployer.deploy(&env(), second, &SilentProgress).await }
    });
    sleep(Duration::from_secs(11)).await;
    let status = platform.deployer.status(&env()).await.unwrap();
    assert!(status.waits.iter().any(|wait| wait.contains("no answer within 10 s")), "{status:?}");
    waiting.await.unwrap().unwrap();
    platform.assert_no_faults();
    assert_eq!(platform.record().await.current, Some(second));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_away_for_a_while_fails_no_deployment() {
    let platform = serving(1).await;
    platform.engine.behave(2, Behaviour::NoRegistry);
    let second = platform.create(&[("web", 1)]).await;
    let waiting = tokio::spawn({
        let deployer = platform.deployer.clone();
        async move { deployer.deploy(&env(), second, &SilentProgress).await }
    });
    sleep(Duration::from_secs(60)).await;
    let status = platform.deployer.status(&env()).await.unwrap();
    assert!(status.waits.iter().any(|wait| wait.contains("the registry does not answer")), "{status:?}");
    assert!(!waiting.is_finished());
    platform.engine.behave(2, Behaviour::Good);
    waiting.await.unwrap().unwrap();
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn slow_release_fails_at_its_progress_deadline() {
    let platform = serving(1).await;
    platform.engine.behave(2, Behaviour::Elsewhere(9));
    let mut new = platform.new_release(&[("web", 1)]);
    new.processes.values_mut().for_each(|spec| spec.health.grace = Duration::from_secs(3600));
    new.upgrade.progress_deadline = Duration::from_secs(120);
    let version = platform.deployer.create_release(new).await.unwrap().version;
    let began = Instant::now();
    let failure = platform.deploy(version).await.unwrap_err();
    assert!(failure.to_string().contains("no progress for 2 minutes: nothing listens on port 5000"), "{failure}");
    let DeployFailure::Failed { last_log_lines, .. } = failure else { panic!("{failure:?}") };
    assert_eq!(last_log_lines.first().map(String::as_str), Some("Error: no DATABASE_URL"), "what it said is told");
    assert!(began.elapsed() < Duration::from_secs(130));
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_survives_a_kill_before_it_is_deployed() {
    let mut platform = serving(2).await;
    let changes = [("A".to_owned(), Some("1".to_owned()))].into();
    let by = "alice".parse().unwrap();
    let from = ReleaseVersion(1);
    let derived = platform.deployer.derive_release(&env(), from, Derive::Config(changes), &by, "test").await.unwrap();
    platform.kill().await;
    platform.restart();
    let version = derived.version;
    platform.settle().await;
    assert_eq!(platform.record().await.current, Some(version));
    assert_eq!(platform.engine.running(), ["web.1 v2 r0", "web.2 v2 r0"]);
    let deployment = platform.store.need::<Deployment>(&(env(), version)).await.unwrap();
    assert_eq!(deployment.state, DeploymentState::Succeeded);
    // Whoever asks later is told how it ended.
    platform.deploy(version).await.unwrap();
    platform.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_is_given_up_leaves_what_served() {
    let platform = serving(1).await;
    platform.engine.behave(2, Behaviour::Elsewhere(3000));
    let second = platform.create(&[("web", 1)]).await;
    let deployer = platform.deployer.clone();
    let waiting = tokio::spawn(async move { deployer.deploy(&env(), second, &SilentProgress).await });
    platform.until("the new replica", |platform| platform.engine.containers() == 2).await;
    // Of another version: nothing happens.
    platform.deployer.abandon(&env(), ReleaseVersion(7), "not this one").await.unwrap();
    assert!(!waiting.is_finished());
    platform.deployer.abandon(&env(), second, "superseded by a push of bob").await.unwrap();
    let failure = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(&failure, DeployFailure::Failed { reason, .. } if reason == "superseded by a push of bob"),
        "{failure:?}"
    );
    platform.settle().await;
    assert_eq!(platform.engine.running(), ["web.1 v1 r0"]);
    platform.assert_no_faults();
}
