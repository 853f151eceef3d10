//! Several things at once: a crash loop beside what is healthy, an end to a deployment before anything has been seen, an engine that goes.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{engine::Behaviour, support::*};
use crate::{
    deploy::{
        actor::{Address, Message},
        *,
    },
    domain::*,
};

async fn serving(count: u32) -> Platform {
    let platform = Platform::new().await;
    let version = platform.create(&[("web", count)]).await;
    platform.deploy(version).await.unwrap();
    platform.settle().await;
    platform
}

/// A worker that is well by its command, for longer than its grace.
async fn serving_worker() -> Platform {
    let platform = Platform::new().await;
    let mut new = platform.new_release(&[("worker", 1)]);
    for spec in new.processes.values_mut() {
        spec.health.probe = HealthProbe::Command { command: "bin/check".into() };
    }
    let version = platform.deployer.create_release(new).await.unwrap().version;
    platform.deploy(version).await.unwrap();
    platform.settle().await;
    sleep(Duration::from_secs(60)).await;
    platform
}

/// A deployment whose replica runs, and does not become ready.
async fn second_under_way(platform: &Platform) -> (ReleaseVersion, JoinHandle<Result<Deployed, DeployFailure>>) {
    platform.engine.behave(2, Behaviour::Elsewhere(3000));
    let second = platform.create(&[("web", 1)]).await;
    let deployer = platform.deployer.clone();
    let waiting = tokio::spawn(async move { deployer.deploy(&env(), second, &SilentProgress).await });
    platform.until("the new replica", |platform| platform.engine.containers() == 2).await;
    (second, waiting)
}

async fn health_of(platform: &Platform, index: u32) -> Option<ReplicaHealth> {
    let status = platform.deployer.status(&env()).await.unwrap();
    let replicas = status.processes.into_iter().flat_map(|process| process.replicas);
    replicas.filter(|replica| replica.index == index).map(|replica| replica.health).next()
}

#[tokio::test(start_paused = true)]
async fn one_healthy_replica_does_not_hide_that_another_crash_loops() {
    let platform = serving(2).await;
    sleep(Duration::from_secs(30)).await;
    platform.engine.behave(1, Behaviour::OneCrashes(2, Duration::from_millis(200)));
    platform.engine.kill("web", 2);
    sleep(Duration::from_secs(300)).await;
    let died = |event: &&crate::store::Stored<Event>| event.kind == EventKind::ReplicaDied;
    let deaths = platform.store.list::<Event>("").await.unwrap().iter().filter(died).count();
    // 1 s × 1.15ⁿ adds up to 300 s after some 27.
    assert!((10..35).contains(&deaths), "{deaths} deaths in 300 s");
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let status = platform.deployer.status(&env()).await.unwrap();
        // It may just be starting.
        if status.why.iter().any(|wait| wait.why.contains("crash-looping")) {
            break;
        }
        assert!(Instant::now() < until, "{status:?}");
        sleep(Duration::from_millis(100)).await;
    }
    platform.engine.behave(1, Behaviour::Good);
    platform.settle().await;
    sleep(Duration::from_secs(30)).await;
    // All well for a while: the past is forgotten, and the next death is made up for at once.
    platform.engine.kill("web", 2);
    let began = Instant::now();
    platform.until("back", |platform| platform.engine.running().len() == 2).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_ne!(health_of(&platform, 2).await, Some(ReplicaHealth::CrashLooping));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_goes_on_to_be_held_back_by_the_next_server() {
    let mut platform = serving(1).await;
    platform.engine.behave(1, Behaviour::Crashes(Duration::from_millis(200)));
    platform.engine.kill("web", 1);
    sleep(Duration::from_secs(200)).await;
    platform.kill().await;
    let died = |event: &&crate::store::Stored<Event>| event.kind == EventKind::ReplicaDied;
    let before = platform.store.list::<Event>("").await.unwrap().iter().filter(died).count();
    platform.restart();
    sleep(Duration::from_secs(100)).await;
    let after = platform.store.list::<Event>("").await.unwrap().iter().filter(died).count();
    assert!(after - before < 8, "{} deaths in 100 s", after - before);
    let kept = platform.store.need::<CrashLoops>(&env()).await.unwrap();
    assert!(kept.loops.len() == 1 && kept.loops[0].failures > 20, "{kept:?}");
    // Well again: nothing of it is kept.
    platform.engine.behave(1, Behaviour::Good);
    platform.change(|record| record.restarts += 1).await;
    platform.settle().await;
    sleep(Duration::from_secs(60)).await;
    assert!(platform.store.get::<CrashLoops>(&env()).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_deployment_is_ended_before_anything_that_runs_has_been_seen() {
    for by_a_person in [false, true] {
        let mut platform = serving(1).await;
        let (second, waiting) = second_under_way(&platform).await;
        platform.kill().await;
        waiting.abort();
        platform.engine.set_down(true);
        platform.restart();
        match by_a_person {
            true => {
                assert_eq!(platform.deployer.cancel(&env(), None, &"alice".parse().unwrap()).await.unwrap(), second)
            }
            false => platform.deployer.abandon(&env(), second, "superseded by a push of bob").await.unwrap(),
        }
        platform.engine.behave(2, Behaviour::Good);
        platform.engine.set_down(false);
        platform.settle().await;
        assert_eq!(platform.engine.running(), ["web.1 v1 r0"]);
        let record = platform.record().await;
        assert_eq!((record.target, record.current), (Some(ReleaseVersion(1)), Some(ReleaseVersion(1))));
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_written_is_not_said_to_be_one() {
    let platform = serving(1).await;
    let (second, waiting) = second_under_way(&platform).await;
    platform.full.store(true, std::sync::atomic::Ordering::SeqCst);
    let refused = platform.deployer.abandon(&env(), second, "superseded").await;
    assert!(matches!(refused, Err(CancelFailure::Store(_))), "{refused:?}");
    platform.full.store(false, std::sync::atomic::Ordering::SeqCst);
    platform.deployer.abandon(&env(), second, "superseded").await.unwrap();
    assert!(waiting.await.unwrap().is_err());
    // Of what does not exist, there is nothing to give up.
    let gone = "acme/shop/gone".parse().unwrap();
    platform.deployer.abandon(&gone, second, "superseded").await.unwrap();
}

/// A sender that had its place before the actor ended leaves its message where nobody reads it, or drops it.
#[tokio::test(start_paused = true)]
async fn an_answer_of_an_actor_that_has_ended_is_not_waited_for() {
    let (inbox, receiver) = mpsc::channel(1);
    let (_, status) = watch::channel(Arc::new(EnvStatus::unknown(env(), "test")));
    let address = Address { inbox, nudge: Arc::default(), status };
    let place = address.inbox.clone().reserve_owned().await.unwrap();
    drop(receiver);
    let (done, gone) = oneshot::channel();
    place.send(Message::Retire(done));
    let answer = timeout(Duration::from_secs(3600), address.answer(gone)).await;
    assert_eq!(answer, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_sick_after_a_restart_gets_another_beside_it_first() {
    let mut platform = serving_worker().await;
    platform.kill().await;
    platform.engine.sicken("worker", 1);
    platform.restart();
    let mut most = 0;
    let until = Instant::now() + Duration::from_secs(120);
    while Instant::now() < until {
        let running = platform.engine.running();
        assert!(!running.is_empty(), "the last one is stopped with nothing beside it");
        most = most.max(running.len());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(most, 2);
    platform.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_serves_outlives_a_restart_of_both_it_and_the_server() {
    let mut platform = serving_worker().await;
    // What is started from now on does not become ready.
    platform.engine.behave(1, Behaviour::Elsewhere(1));
    platform.change(|record| record.restarts += 1).await;
    let both = ["worker.1 v1 r0", "worker.1 v1 r1"];
    platform.until("both", |platform| platform.engine.running() == both).await;
    platform.kill().await;
    sleep(Duration::from_secs(40)).await;
    platform.restart();
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        assert!(platform.engine.running().contains(&both[0].to_owned()), "{:?}", platform.engine.running());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_phase_that_has_not_begun_does_not_once_its_deployment_is_over() {
    let platform = serving(1).await;
    let mut new = platform.new_release(&[("web", 1)]);
    new.release_command = Some("migrate".into());
    let version = platform.deployer.create_release(new).await.unwrap().version;
    platform.engine.set_jobs_down(true);
    let deployer = platform.deployer.clone();
    let waiting = tokio::spawn(async move { deployer.deploy(&env(), version, &SilentProgress).await });
    sleep(Duration::from_secs(30)).await;
    assert!(!waiting.is_finished(), "it does not wait for the engine");
    platform.deployer.cancel(&env(), None, &"alice".parse().unwrap()).await.unwrap();
    assert!(waiting.await.unwrap().is_err());
    platform.engine.set_jobs_down(false);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(platform.engine.phases(), Vec::<String>::new(), "it has run all the same");
    let release = platform.store.need::<Release>(&(env(), version)).await.unwrap();
    assert_eq!(release.release_phase_attempts, 0, "that was no attempt");
    // The next one has its turn.
    let third = platform.create(&[("web", 1)]).await;
    platform.deploy(third).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_no_crash_loop_and_is_over_when_it_is_over() {
    let platform = serving(1).await;
    platform.engine.behave(2, Behaviour::NoRegistry);
    let second = platform.create(&[("web", 1)]).await;
    let deployer = platform.deployer.clone();
    let waiting = tokio::spawn(async move { deployer.deploy(&env(), second, &SilentProgress).await });
    sleep(Duration::from_secs(300)).await;
    let status = platform.deployer.status(&env()).await.unwrap();
    assert!(!format!("{status:?}").contains("crash-looping"), "{status:?}");
    platform.engine.behave(2, Behaviour::Good);
    let began = Instant::now();
    waiting.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_release_phase_that_failed_ends_its_deployment_without_the_engine_too() {
    let platform = serving(1).await;
    platform.engine.phase_exits(1);
    let mut new = platform.new_release(&[("web", 1)]);
    new.release_command = Some("migrate".into());
    let version = platform.deployer.create_release(new).await.unwrap().version;
    let deployer = platform.deployer.clone();
    let waiting = tokio::spawn(async move { deployer.deploy(&env(), version, &SilentProgress).await });
    platform.until("the phase", |platform| !platform.engine.phases().is_empty()).await;
    platform.engine.set_down(true);
    let began = Instant::now();
    let failure = waiting.await.unwrap().unwrap_err();
    assert!(failure.to_string().contains("it exited with status 1"), "{failure}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
