//! The contract: what every adapter must do. Commands are such that a shell runs them and the in-memory adapter knows them.

use std::{collections::HashSet, time::Duration};

use berth::{
    domain::{ReleaseVersion, ReplicaId, ReplicaState},
    runtime::{Change, EXEC_OUTPUT, RuntimeError, RuntimeEvent, Source},
};
use futures::{StreamExt, future::join_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Cases, DEADLINE, World, eventually, exited, job, read_all, replicas, run_job, set, tar, untar};

const FOREVER: &str = "exec sleep 3600";
const FAILS: &str = "exit 3";
const PRINTS: &str = "echo one; echo two >&2; exec sleep 3600";
const STUBBORN: &str = "trap '' TERM; echo stubborn; while :; do sleep 1; done";
const FORKS: &str = "while :; do (sleep 30 &); done";
const NO_GRACE: Duration = Duration::ZERO;

pub fn add(cases: &mut Cases<World>) {
    cases.case("a set is made so, scaled and removed", scaling);
    cases.case("applying at once makes no duplicates", concurrent_apply);
    cases.case("sets do not mix", separate_sets);
    cases.case("an exited replica is seen and replaced", exits);
    cases.case("a stopped replica is replaced", stop_one);
    cases.case("a stubborn replica is killed after its grace", stubborn);
    cases.case("a restarted server sees the same world", restart);
    cases.case("events tell of changes", events);
    cases.case("logs have lines, sources, and an end", logs);
    cases.case("a listening socket is found", listeners);
    cases.case("a replica that is refused processes is told of", refused_processes);
    cases.case("a replica is held and let go of", hold);
    cases.case("what replicas use is told while they run", usage);
    cases.case("a command runs inside a replica, as the replica does", commands_inside);
    cases.case("an image that does not exist is named", missing_image);
    cases.case("what is gone is said to be gone", gone);
    cases.case("a job prints and exits", job_output);
    cases.case("a job takes files and gives files", job_files);
    cases.case("a job reads its standard input to the end", job_stdin);
    cases.case("a job takes signals", job_signals);
    cases.case("a dropped job is gone", job_dropped);
    cases.case("a job's output waits for its reader", job_back_pressure);
    cases.case("a restarted server ends orphaned jobs alone", orphans);
}

async fn scaling(world: World) {
    let runtime = &*world.runtime;
    let mut set = set(&world, "scaling", FOREVER, 3);
    runtime.apply(&set).await.unwrap();
    let first = replicas(runtime, &set.id).await;
    assert_eq!(first.iter().map(|replica| replica.index).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(first.iter().all(|replica| replica.state == ReplicaState::Running && replica.started_at.is_some()));
    let addresses: HashSet<_> = first.iter().map(|replica| replica.address.expect("an address")).collect();
    assert_eq!(addresses.len(), 3);
    runtime.apply(&set).await.unwrap();
    assert_eq!(replicas(runtime, &set.id).await, first, "applying again changes nothing");
    set.count = 1;
    runtime.apply(&set).await.unwrap();
    assert_eq!(replicas(runtime, &set.id).await, first[..1], "those being stopped are not counted");
    set.count = 2;
    runtime.apply(&set).await.unwrap();
    let again = replicas(runtime, &set.id).await;
    assert_eq!(again.len(), 2, "a new one starts while the old one is still stopping");
    assert_eq!(again[0], first[0]);
    assert_ne!(again[1].id, first[1].id);
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
    assert_eq!(replicas(runtime, &set.id).await, []);
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
}

async fn concurrent_apply(world: World) {
    let set = set(&world, "concurrent", FOREVER, 2);
    let applies = [&world.runtime, &world.restarted, &world.runtime, &world.restarted];
    for result in join_all(applies.map(|runtime| runtime.apply(&set))).await {
        result.unwrap();
    }
    let found = replicas(&*world.runtime, &set.id).await;
    assert_eq!(found.iter().map(|replica| replica.index).collect::<Vec<_>>(), [1, 2]);
    assert!(found.iter().all(|replica| replica.state == ReplicaState::Running), "{found:?}");
    world.runtime.remove(&set.id, NO_GRACE).await.unwrap();
}

async fn separate_sets(world: World) {
    let runtime = &*world.runtime;
    let old = set(&world, "separate", FOREVER, 1);
    let mut new = old.clone();
    new.id.release = ReleaseVersion(11);
    let mut restarted = old.clone();
    restarted.id.restarts = 1;
    for set in [&old, &new, &restarted] {
        runtime.apply(set).await.unwrap();
    }
    runtime.remove(&old.id, NO_GRACE).await.unwrap();
    assert_eq!(replicas(runtime, &old.id).await, []);
    for set in [&new, &restarted] {
        assert_eq!(replicas(runtime, &set.id).await.len(), 1);
        runtime.remove(&set.id, NO_GRACE).await.unwrap();
    }
}

async fn exits(world: World) {
    let runtime = &*world.runtime;
    let set = set(&world, "exits", FAILS, 1);
    runtime.apply(&set).await.unwrap();
    let dead = exited(runtime, &set.id).await;
    assert_eq!(dead.state, ReplicaState::Exited { code: 3, out_of_memory: false });
    assert!(dead.address.is_none() && dead.finished_at >= dead.started_at);
    runtime.apply(&set).await.unwrap();
    let next = replicas(runtime, &set.id).await;
    assert_eq!(next.len(), 1, "the dead one is gone");
    assert_ne!(next[0].id, dead.id);
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
}

async fn stop_one(world: World) {
    let runtime = &*world.runtime;
    let set = set(&world, "stops", FOREVER, 2);
    runtime.apply(&set).await.unwrap();
    let before = replicas(runtime, &set.id).await;
    runtime.stop_replica(&before[0].id, Duration::from_secs(1)).await.unwrap();
    runtime.stop_replica(&before[0].id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(replicas(runtime, &set.id).await, before[1..]);
    runtime.apply(&set).await.unwrap();
    let after = replicas(runtime, &set.id).await;
    assert_eq!((after.len(), &after[1]), (2, &before[1]));
    assert_ne!(after[0].id, before[0].id);
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
}

async fn stubborn(world: World) {
    let set = set(&world, "stubborn", STUBBORN, 1);
    world.runtime.apply(&set).await.unwrap();
    let replica = replicas(&*world.runtime, &set.id).await.remove(0).id;
    let mut log = world.runtime.logs(&replica, None).await.unwrap();
    // Before that, it would die of being told to stop.
    tokio::time::timeout(DEADLINE, log.next()).await.expect("a line comes").expect("a line").unwrap();
    let grace = Duration::from_secs(2);
    let clock = std::time::Instant::now();
    let (runtime, id) = (world.runtime.clone(), set.id.clone());
    let removal = tokio::spawn(async move { runtime.remove(&id, grace).await });
    eventually("it is not shown any more", async || replicas(&*world.runtime, &set.id).await.is_empty().then_some(()))
        .await;
    assert!(!removal.is_finished() || clock.elapsed() >= grace, "it is only told to stop");
    removal.await.unwrap().unwrap();
    assert!(clock.elapsed() >= grace, "killed after {:?}", clock.elapsed());
}

async fn restart(world: World) {
    let set = set(&world, "restart", FOREVER, 2);
    world.runtime.apply(&set).await.unwrap();
    let before = replicas(&*world.runtime, &set.id).await;
    assert_eq!(replicas(&*world.restarted, &set.id).await, before);
    world.restarted.apply(&set).await.unwrap();
    assert_eq!(replicas(&*world.runtime, &set.id).await, before, "what runs is not touched by a restart");
    world.restarted.remove(&set.id, NO_GRACE).await.unwrap();
    assert_eq!(replicas(&*world.runtime, &set.id).await, []);
}

async fn events(world: World) {
    let runtime = &*world.runtime;
    let set = set(&world, "events", FOREVER, 1);
    let mut events = runtime.events().await.unwrap();
    runtime.apply(&set).await.unwrap();
    let replica = replicas(runtime, &set.id).await.remove(0).id;
    runtime.stop_replica(&replica, NO_GRACE).await.unwrap();
    let mut seen = Vec::new();
    let read = async {
        while seen.last() != Some(&Change::Removed) {
            match events.next().await.expect("events never end") {
                RuntimeEvent::Changed { set: of, replica: who, what } if of == set.id => {
                    assert_eq!(who, replica);
                    seen.push(what);
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("all events come");
    assert_eq!(seen, [Change::Started, Change::Died, Change::Removed]);
}

async fn logs(world: World) {
    let runtime = &*world.runtime;
    let set = set(&world, "logs", PRINTS, 1);
    runtime.apply(&set).await.unwrap();
    let replica = replicas(runtime, &set.id).await.remove(0).id;
    let mut all = runtime.logs(&replica, None).await.unwrap();
    let mut lines = Vec::new();
    for _ in 0..2 {
        let line = tokio::time::timeout(DEADLINE, all.next()).await.expect("a line comes");
        lines.push(line.expect("a line").unwrap());
    }
    let mut texts: Vec<_> = lines.iter().map(|line| (line.source, &line.bytes[..])).collect();
    texts.sort_by_key(|(_, text)| *text);
    assert_eq!(texts, [(Source::Stdout, &b"one"[..]), (Source::Stderr, b"two")]);
    let last = lines.iter().map(|line| line.at).max().unwrap();
    let later = last + jiff::SignedDuration::from_nanos(1);
    let mut rest = runtime.logs(&replica, Some(later)).await.unwrap();
    runtime.stop_replica(&replica, NO_GRACE).await.unwrap();
    let end = tokio::time::timeout(DEADLINE, all.next()).await.expect("the log ends");
    assert!(end.is_none(), "{end:?}");
    let end = tokio::time::timeout(DEADLINE, rest.next()).await.expect("the log ends");
    assert!(end.is_none(), "nothing is newer: {end:?}");
}

async fn listeners(world: World) {
    let runtime = &*world.runtime;
    let set = set(&world, "listeners", "exec httpd -f -p 127.0.0.1:5000", 1);
    runtime.apply(&set).await.unwrap();
    let replica = replicas(runtime, &set.id).await.remove(0).id;
    let found = eventually("it listens", async || {
        let found = runtime.listeners(&replica).await.unwrap();
        if found.is_empty() { None } else { Some(found) }
    })
    .await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].address.to_string().as_str(), found[0].port), ("127.0.0.1", 5000));
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
}

async fn refused_processes(world: World) {
    let runtime = &*world.runtime;
    let (forks, calm) = (set(&world, "forks", FORKS, 1), set(&world, "calm", FOREVER, 1));
    for set in [&forks, &calm] {
        runtime.apply(set).await.unwrap();
    }
    let (forking, calm_one) =
        (replicas(runtime, &forks.id).await.remove(0).id, replicas(runtime, &calm.id).await.remove(0).id);
    let mut refused = runtime.refused_processes(&forking).await.unwrap();
    let mut count = tokio::time::timeout(DEADLINE, refused.next()).await.expect("it is told").expect("it goes on");
    while count < 100 {
        let next = tokio::time::timeout(DEADLINE, refused.next()).await.expect("it is told").expect("it goes on");
        assert!(next > count, "{next} after {count}");
        count = next;
    }
    let mut none = runtime.refused_processes(&calm_one).await.unwrap();
    assert_eq!(none.next().await, Some(0), "how many it were is told at once");
    for set in [&forks, &calm] {
        runtime.remove(&set.id, NO_GRACE).await.unwrap();
    }
    let end = async { while refused.next().await.is_some() {} };
    tokio::time::timeout(DEADLINE, end).await.expect("it ends with the replica");
    let end = tokio::time::timeout(DEADLINE, none.next()).await.expect("it ends with the replica");
    assert_eq!(end, None, "it was refused nothing");
    assert!(matches!(runtime.refused_processes(&forking).await.err(), Some(RuntimeError::Gone(_))));
}

async fn hold(world: World) {
    let runtime = &*world.runtime;
    let set = set(&world, "hold", FOREVER, 1);
    runtime.apply(&set).await.unwrap();
    let before = replicas(runtime, &set.id).await;
    for to in [Some(20), Some(100), None, None, Some(1)] {
        runtime.hold(&before[0].id, to).await.unwrap();
        assert_eq!(replicas(runtime, &set.id).await, before, "it is the same, and runs");
    }
    // Being held is no reason to make it anew.
    runtime.apply(&set).await.unwrap();
    assert_eq!(replicas(runtime, &set.id).await, before);
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
    for to in [Some(20), None] {
        assert!(matches!(runtime.hold(&before[0].id, to).await, Err(RuntimeError::Gone(_))));
    }
}

async fn usage(world: World) {
    let runtime = &*world.runtime;
    let set = set(&world, "usage", FOREVER, 2);
    runtime.apply(&set).await.unwrap();
    let mut ids: Vec<_> = replicas(runtime, &set.id).await.into_iter().map(|replica| replica.id).collect();
    ids.push(ReplicaId("no-such-replica".to_owned()));
    let first = runtime.usage(&ids).await.unwrap();
    assert_eq!(first.keys().collect::<HashSet<_>>(), ids[..2].iter().collect());
    assert!(first.values().all(|usage| usage.memory > 0 && usage.cpu_micros > 0), "{first:?}");
    assert!(first.values().all(|usage| usage.memory_limit == Some(set.limits.memory)), "{first:?}");
    // A process that has not observed anything yet knows as much.
    let again = world.restarted.usage(&ids).await.unwrap();
    assert!(again.iter().all(|(id, usage)| usage.cpu_micros >= first[id].cpu_micros), "{first:?} {again:?}");
    assert_eq!(runtime.usage(&[]).await.unwrap().len(), 0);
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
    assert_eq!(runtime.usage(&ids).await.unwrap().len(), 0);
}

async fn commands_inside(world: World) {
    let runtime = &*world.runtime;
    let mut set = set(&world, "inside", FOREVER, 1);
    set.environment.insert("GREETING".to_owned(), "hello".to_owned());
    runtime.apply(&set).await.unwrap();
    let replica = replicas(runtime, &set.id).await.remove(0).id;
    let second = Duration::from_secs(1);
    let ran = runtime.exec(&replica, "echo $GREETING $BERTH_REPLICA; exit 3", 30 * second).await.unwrap();
    assert_eq!((ran.code, &ran.output[..]), (Some(3), &b"hello 1\n"[..]));
    let ran = runtime.exec(&replica, "yes | head -c 20000; true", 30 * second).await.unwrap();
    assert_eq!((ran.code, ran.output.len()), (Some(0), EXEC_OUTPUT));
    let ran = runtime.exec(&replica, "no-such-program", 30 * second).await.unwrap();
    assert_eq!(ran.code, Some(127), "{ran:?}");
    let began = std::time::Instant::now();
    let ran = runtime.exec(&replica, "sleep 60", second).await.unwrap();
    assert_eq!(ran.code, None, "it was not ended in time: {ran:?}");
    assert!(began.elapsed() < 20 * second);
    assert_eq!(replicas(runtime, &set.id).await.remove(0).id, replica, "the replica itself goes on");
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
    assert!(matches!(runtime.exec(&replica, "true", second).await, Err(RuntimeError::Gone(_))));
}

async fn missing_image(world: World) {
    let mut set = set(&world, "missing", FOREVER, 1);
    set.image.digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    for result in [world.runtime.apply(&set).await, world.runtime.prepare_image(&set.image).await] {
        match result {
            Err(RuntimeError::Image { image, .. }) => assert!(image.contains(set.image.digest.as_str())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(replicas(&*world.runtime, &set.id).await, []);
    world.runtime.prepare_image(&world.image).await.unwrap();
}

async fn gone(world: World) {
    let runtime = &*world.runtime;
    let set = set(&world, "gone", FOREVER, 1);
    runtime.apply(&set).await.unwrap();
    let replica = replicas(runtime, &set.id).await.remove(0).id;
    runtime.remove(&set.id, NO_GRACE).await.unwrap();
    runtime.stop_replica(&replica, NO_GRACE).await.unwrap();
    assert!(matches!(runtime.logs(&replica, None).await.err(), Some(RuntimeError::Gone(_))));
    assert!(matches!(runtime.listeners(&replica).await, Err(RuntimeError::Gone(_))));
}

async fn job_output(world: World) {
    let spec = job(&world, "output", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let (out, err, exit) = run_job(&world, &spec).await;
    assert_eq!((out.as_str(), err.as_str(), exit.code, exit.out_of_memory), ("out\n", "err\n", 7, false));
    let (out, ..) = run_job(&world, &spec).await;
    assert_eq!(out, "out\n", "a finished job's name is free");
}

async fn job_files(world: World) {
    let spec = job(&world, "files", &["sh", "-c", "cat in/a > out; exit 0"]);
    let mut made = world.runtime.job(&spec).await.unwrap();
    let big = vec![b'x'; 3 << 20];
    let archive = tar(&[("in/a", b"hello"), ("in/big", &big)]);
    made.upload("/app", Box::new(std::io::Cursor::new(archive))).await.unwrap();
    made.start().await.unwrap();
    assert_eq!(read_all(made.output()).await, (String::new(), String::new()));
    assert_eq!(made.wait().await.unwrap().code, 0);
    for (path, want) in
        [("/app/out", &[("out", &b"hello"[..])][..]), ("/app/in", &[("in/a", b"hello"), ("in/big", &big)])]
    {
        let mut bytes = Vec::new();
        made.download(path).await.unwrap().read_to_end(&mut bytes).await.unwrap();
        let want = want.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect();
        assert!(untar(&bytes) == want, "{path}: {:?}", untar(&bytes).keys());
    }
    assert!(matches!(made.download("/app/nothing").await.err(), Some(RuntimeError::Gone(_))));
    made.finish().await.unwrap();
}

async fn job_stdin(world: World) {
    let mut spec = job(&world, "stdin", &["cat"]);
    spec.stdin = true;
    let mut made = world.runtime.job(&spec).await.unwrap();
    made.start().await.unwrap();
    let mut stdin = made.stdin().expect("standard input");
    assert!(made.stdin().is_none(), "only once");
    let reader = tokio::spawn(read_all(made.output()));
    let text = "line\n".repeat(100_000);
    stdin.write_all(text.as_bytes()).await.unwrap();
    stdin.shutdown().await.unwrap();
    let exit = tokio::time::timeout(DEADLINE, made.wait()).await.expect("it ends at the end of its input").unwrap();
    let (out, _) = reader.await.unwrap();
    assert!(out == text, "{} of {} bytes", out.len(), text.len());
    assert_eq!(exit.code, 0);
    made.finish().await.unwrap();
    // One that does not read its input ends all the same.
    let mut spec = job(&world, "stdin", &["sh", "-c", "exit 4"]);
    spec.stdin = true;
    let mut made = world.runtime.job(&spec).await.unwrap();
    made.start().await.unwrap();
    let _held_open = made.stdin();
    assert_eq!(made.wait().await.unwrap().code, 4);
    assert_eq!(read_all(made.output()).await, (String::new(), String::new()));
    made.finish().await.unwrap();
}

async fn job_signals(world: World) {
    let mut made = world.runtime.job(&job(&world, "signals", &["sleep", "3600"])).await.unwrap();
    let control = made.control();
    made.start().await.unwrap();
    control.signal("INT").await.unwrap();
    let exit = tokio::time::timeout(DEADLINE, made.wait()).await.expect("the signal arrives").unwrap();
    assert_eq!(exit.code, 130);
    assert!(matches!(control.signal("TERM").await, Err(RuntimeError::Gone(_))));
    made.finish().await.unwrap();
    assert!(matches!(control.signal("TERM").await, Err(RuntimeError::Gone(_))));
}

async fn job_dropped(world: World) {
    let spec = job(&world, "dropped", &["sleep", "3600"]);
    let mut made = world.runtime.job(&spec).await.unwrap();
    made.start().await.unwrap();
    let output = made.output();
    assert!(matches!(world.runtime.job(&spec).await.err(), Some(RuntimeError::Refused(_))), "its name is taken");
    drop(made);
    read_all(output).await;
    let again = eventually("its name is free again", async || world.runtime.job(&spec).await.ok()).await;
    again.finish().await.unwrap();
}

async fn job_back_pressure(world: World) {
    let mut made = world.runtime.job(&job(&world, "pressure", &["sh", "-c", "yes | head -c 20000000"])).await.unwrap();
    made.start().await.unwrap();
    let output = made.output();
    let early = tokio::time::timeout(Duration::from_secs(2), made.wait()).await;
    assert!(early.is_err(), "it ended though nobody read: {early:?}");
    let (out, _) = read_all(output).await;
    assert_eq!(out.len(), 20_000_000);
    assert_eq!(made.wait().await.unwrap().code, 0);
    made.finish().await.unwrap();
}

async fn orphans(world: World) {
    let mut lost = world.runtime.job(&job(&world, "lost", &["sleep", "3600"])).await.unwrap();
    lost.start().await.unwrap();
    let mut own = world.restarted.job(&job(&world, "own", &["sleep", "3600"])).await.unwrap();
    own.start().await.unwrap();
    assert_eq!(world.restarted.end_orphaned_jobs().await.unwrap(), 1);
    assert_eq!(world.restarted.end_orphaned_jobs().await.unwrap(), 0);
    tokio::time::timeout(DEADLINE, read_all(lost.output())).await.expect("it ended");
    own.control().signal("KILL").await.unwrap();
    assert_eq!(own.wait().await.unwrap().code, 137);
    own.finish().await.unwrap();
    lost.finish().await.unwrap();
}
