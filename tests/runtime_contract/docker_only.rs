//! What only the real engine can show: what a crash leaves, who owns what, terminals, caches, images.

use std::{
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use berth::{
    domain::ReplicaState,
    runtime::{Change, Runtime, RuntimeError, RuntimeEvent, docker::DockerRuntime},
};
use futures::{StreamExt, future::join_all};
use tokio::io::AsyncWriteExt;

use super::{
    docker_world::{Engine, docker},
    support::{Cases, DEADLINE, World, eventually, job, replicas, run_job, set},
};

type Both = (Arc<Engine>, World);

pub fn add(cases: &mut Cases<Both>) {
    cases.case("a start cut short is taken up", half_made);
    cases.case("a stop cut short is taken up", half_stopped);
    cases.case("another instance's things are not touched", other_instance);
    cases.case("a terminal has a size and all bytes", terminal);
    cases.case("a terminal has its Ctrl-P at once", control_p);
    cases.case("the build cache is kept and purged", cache);
    cases.case("a removed network comes back", network_removed);
    cases.case("networks and caches of who is gone are removed", others_forgotten);
    cases.case("a job given up while it is made leaves nothing", job_given_up);
    cases.case("images are pulled once and collected", images);
    cases.case("an engine that is not there is said so", no_engine);
    cases.case("mounts are read-only", mounts);
    cases.case("there is room for many tenants", many_tenants);
    cases.case("logs outlive rotation", rotation);
    cases.case("what a held replica has of the processor", held);
    cases.case("who hears of a death sees it", death_is_seen);
    cases.case("what a busy replica uses grows, and costs the engine nothing", busy);
}

async fn held((_, world): Both) {
    let stubborn = "trap '' TERM; while :; do sleep 1; done";
    let set = set(&world, "held", stubborn, 1);
    world.runtime.apply(&set).await.unwrap();
    let replica = replicas(&*world.runtime, &set.id).await.remove(0).id;
    let has = || docker(&["inspect", "--format", "{{.HostConfig.NanoCpus}}", &replica.0]);
    let full = has();
    assert_eq!(full, "1000000000");
    for (to, want) in [(Some(20), "20000000"), (Some(1), "10000000"), (Some(5000), &*full), (None, &*full)] {
        world.runtime.hold(&replica, to).await.unwrap();
        assert_eq!(has(), want, "{to:?}");
    }
    world.runtime.hold(&replica, Some(20)).await.unwrap();
    replicas(&*world.restarted, &set.id).await;
    assert_eq!(has(), full, "the next server does not let go of it");
    // As long as it has to come to its end, it has what it needs for that.
    world.runtime.hold(&replica, Some(20)).await.unwrap();
    let (runtime, id) = (world.runtime.clone(), set.id.clone());
    let removal = tokio::spawn(async move { runtime.remove(&id, Duration::from_secs(5)).await });
    eventually("it is let go of", async || (has() == full).then_some(())).await;
    assert!(matches!(world.runtime.hold(&replica, Some(20)).await, Err(RuntimeError::Gone(_))));
    removal.await.unwrap().unwrap();
}

async fn busy((_, world): Both) {
    let runtime = &*world.runtime;
    let set = set(&world, "busy", "while :; do :; done", 1);
    runtime.apply(&set).await.unwrap();
    let replica = replicas(runtime, &set.id).await.remove(0);
    let ids = [replica.id.clone()];
    let used = async || runtime.usage(&ids).await.unwrap()[&replica.id];
    let first = used().await;
    // Nobody listens there, but the packets are counted.
    for _ in 0..10 {
        let _ = std::net::TcpStream::connect((replica.address.unwrap(), 9));
    }
    eventually("processor time and traffic grow", async || {
        let now = used().await;
        (now.cpu_micros >= first.cpu_micros + 100_000 && now.received > first.received && now.sent > first.sent)
            .then_some(())
    })
    .await;
    let began = std::time::Instant::now();
    for _ in 0..100 {
        used().await;
    }
    // The engine takes milliseconds for each.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?} for a hundred", began.elapsed());
    runtime.remove(&set.id, Duration::ZERO).await.unwrap();
}

async fn death_is_seen((_, world): Both) {
    let runtime = &*world.runtime;
    let set = set(&world, "deaths", "exec sleep 3600", 10);
    runtime.apply(&set).await.unwrap();
    let mut events = runtime.events().await.unwrap();
    for victim in replicas(runtime, &set.id).await {
        // Not waited for: it returns when the engine is done with the container.
        let mut kill = Command::new("docker").args(["kill", &victim.id.0]).stdout(Stdio::null()).spawn().unwrap();
        let heard = async {
            while !matches!(events.next().await, Some(RuntimeEvent::Changed { replica, what: Change::Died, .. }) if replica == victim.id)
            {
            }
        };
        tokio::time::timeout(DEADLINE, heard).await.expect("the event comes");
        let now = replicas(runtime, &set.id).await;
        let found = now.iter().find(|replica| replica.id == victim.id).expect("its remains are there");
        assert!(matches!(found.state, ReplicaState::Exited { .. }), "{found:?}");
        assert!(kill.wait().unwrap().success());
    }
    runtime.remove(&set.id, Duration::ZERO).await.unwrap();
}

async fn half_made((engine, world): Both) {
    let set = set(&world, "half", "exec sleep 3600", 3);
    world.runtime.apply(&set).await.unwrap();
    let before = replicas(&*world.runtime, &set.id).await;
    // As if the server had died between creation and start, and once with what is no longer wanted.
    let name = |index: usize| {
        docker(&["inspect", "--format", "{{.Name}}", &before[index].id.0]).trim_start_matches('/').to_owned()
    };
    let (second, third) = (name(1), name(2));
    docker(&["rm", "-f", &second, &third]);
    for (name, index, spec) in [(&second, "2", "stale"), (&third, "3", "stale")] {
        let labels: Vec<String> = docker(&[
            "inspect",
            "--format",
            "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}\n{{end}}",
            &before[0].id.0,
        ])
        .lines()
        .filter(|line| {
            line.starts_with("berth.") && !line.starts_with("berth.index") && !line.starts_with("berth.spec")
        })
        .map(str::to_owned)
        .collect();
        let mut arguments = vec!["create".to_owned(), "--name".to_owned(), name.to_string()];
        for label in labels.into_iter().chain([format!("berth.index={index}"), format!("berth.spec={spec}")]) {
            arguments.extend(["--label".to_owned(), label]);
        }
        let image = format!("{}/{}", engine.settings.registry, world.image);
        arguments.extend([image, "true".to_owned()]);
        docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let states: Vec<_> = replicas(&*world.runtime, &set.id).await.into_iter().map(|replica| replica.state).collect();
    assert_eq!(states, [ReplicaState::Running, ReplicaState::Created, ReplicaState::Created]);
    world.runtime.apply(&set).await.unwrap();
    let after = replicas(&*world.runtime, &set.id).await;
    assert_eq!(after[0], before[0]);
    assert!(after.iter().all(|replica| replica.state == ReplicaState::Running), "{after:?}");
    let command = docker(&["inspect", "--format", "{{json .Config.Cmd}}", &after[1].id.0]);
    assert!(command.contains("sleep 3600"), "what was not wanted any more was started: {command}");
    world.runtime.remove(&set.id, Duration::ZERO).await.unwrap();
}

async fn half_stopped((_, world): Both) {
    let set = set(&world, "unstopped", "exec sleep 3600", 1);
    world.runtime.apply(&set).await.unwrap();
    let replica = replicas(&*world.runtime, &set.id).await.remove(0);
    let name = docker(&["inspect", "--format", "{{.Name}}", &replica.id.0]);
    // As if the server had died between the two.
    docker(&["rename", &replica.id.0, &format!("{}.gone-0123456789ab", name.trim_start_matches('/'))]);
    assert_eq!(replicas(&*world.restarted, &set.id).await, []);
    eventually("it is stopped", async || {
        let known = Command::new("docker").args(["inspect", &replica.id.0]).output().unwrap();
        (!known.status.success()).then_some(())
    })
    .await;
}

async fn other_instance((engine, world): Both) {
    let other = engine.other().await;
    let set = set(&world, "shared", "exec sleep 3600", 1);
    world.runtime.apply(&set).await.unwrap();
    let replica = replicas(&*world.runtime, &set.id).await.remove(0).id;
    let mut own = world.runtime.job(&job(&world, "shared", &["sleep", "3600"])).await.unwrap();
    own.start().await.unwrap();
    assert_eq!(other.observe().await.unwrap(), []);
    other.stop_replica(&replica, Duration::ZERO).await.unwrap();
    other.remove(&set.id, Duration::ZERO).await.unwrap();
    assert_eq!(other.end_orphaned_jobs().await.unwrap(), 0);
    assert!(other.logs(&replica, None).await.is_err());
    other.forget(&set.id.env.tenant, None).await.unwrap();
    // The same set in both: neither names nor networks collide.
    other.apply(&set).await.unwrap();
    assert_eq!(other.observe().await.unwrap().len(), 1);
    assert_eq!(replicas(&*world.runtime, &set.id).await.len(), 1);
    other.remove(&set.id, Duration::ZERO).await.unwrap();
    other.forget(&set.id.env.tenant, None).await.unwrap();
    other.teardown().await;
    assert!(world.runtime.capabilities().host_isolation);
    let rules = Command::new("iptables-save").output().unwrap();
    assert!(
        String::from_utf8_lossy(&rules.stdout).contains(&engine.chain()),
        "the other's teardown took our rules away"
    );
    assert_eq!(replicas(&*world.runtime, &set.id).await.len(), 1);
    own.finish().await.unwrap();
    world.runtime.remove(&set.id, Duration::ZERO).await.unwrap();
}

async fn terminal((_, world): Both) {
    let script = "stty -echo -onlcr; sleep 0.2; stty size; printf '\\001\\002\\000'; read line; stty size; exit 9";
    let mut spec = job(&world, "terminal", &["sh", "-c", script]);
    spec.tty = Some((101, 31));
    spec.stdin = true;
    let mut made = world.runtime.job(&spec).await.unwrap();
    made.start().await.unwrap();
    let (mut output, mut stdin) = (made.output(), made.stdin().unwrap());
    let mut seen = Vec::new();
    while !seen.ends_with(b"\x01\x02\0") {
        let chunk = tokio::time::timeout(DEADLINE, output.next()).await.expect("output without a line end arrives");
        seen.extend(chunk.expect("more output").unwrap().bytes);
    }
    assert!(String::from_utf8_lossy(&seen).contains("31 101"), "{seen:?}");
    made.control().resize(80, 24).await.unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    let (rest, _) = super::support::read_all(output).await;
    assert!(rest.contains("24 80"), "{rest:?}");
    assert_eq!(made.wait().await.unwrap().code, 9);
    made.finish().await.unwrap();
}

async fn control_p((_, world): Both) {
    let script = "stty raw -echo; printf ready; head -c 3 | od -An -tx1";
    let mut spec = job(&world, "control-p", &["sh", "-c", script]);
    spec.tty = Some((80, 24));
    spec.stdin = true;
    let mut made = world.runtime.job(&spec).await.unwrap();
    made.start().await.unwrap();
    let (mut output, mut stdin) = (made.output(), made.stdin().unwrap());
    let mut seen = Vec::new();
    while !seen.ends_with(b"ready") {
        let chunk = tokio::time::timeout(DEADLINE, output.next()).await.expect("it is ready");
        seen.extend(chunk.expect("more output").unwrap().bytes);
    }
    // By default the engine holds the last of them back, and takes Ctrl-P Ctrl-Q for its own.
    stdin.write_all(b"\x10\x11\x10").await.unwrap();
    let (rest, _) = super::support::read_all(output).await;
    assert!(rest.contains("10 11 10"), "{rest:?}");
    assert_eq!(made.wait().await.unwrap().code, 0);
    made.finish().await.unwrap();
}

async fn cache((_, world): Both) {
    let script = |name: &str, script: &str| {
        let mut spec = job(&world, name, &["sh", "-c", script]);
        spec.cache = true;
        spec
    };
    let (_, err, exit) = run_job(&world, &script("cache-write", "echo kept > /cache/file")).await;
    assert_eq!((err.as_str(), exit.code), ("", 0));
    let (out, ..) = run_job(&world, &script("cache-read", "cat /cache/file")).await;
    assert_eq!(out, "kept\n");
    let mut other = script("cache-other", "cat /cache/file");
    other.env = "acme/other/dev".parse().unwrap();
    assert_ne!(run_job(&world, &other).await.2.code, 0, "another app sees this cache");
    let app = "acme/jobs".parse().unwrap();
    let mut user = world.runtime.job(&script("cache-use", "sleep 3600")).await.unwrap();
    user.start().await.unwrap();
    assert!(matches!(world.runtime.purge_cache(&app).await, Err(RuntimeError::Refused(_))), "purged while in use");
    user.finish().await.unwrap();
    world.runtime.purge_cache(&app).await.unwrap();
    world.runtime.purge_cache(&app).await.unwrap();
    assert_ne!(run_job(&world, &script("cache-gone", "cat /cache/file")).await.2.code, 0);
}

async fn others_forgotten((engine, world): Both) {
    // An instance of its own: the other cases make tenants meanwhile.
    let other = engine.other().await;
    let instance = engine.instances().pop().unwrap();
    let runtime: Arc<dyn Runtime> = Arc::new(other.clone());
    let theirs = World { runtime, ..world.clone() };
    for env in ["acme/kept/dev", "acme/gone/dev", "gone/app/dev"] {
        let mut spec = job(&theirs, "cache", &["true"]);
        (spec.cache, spec.env) = (true, env.parse().unwrap());
        assert_eq!(run_job(&theirs, &spec).await.2.code, 0);
    }
    let label = format!("label=berth.instance={instance}");
    let left = || {
        let count = |kind| docker(&[kind, "ls", "-q", "--filter", &label]).lines().count();
        (count("volume"), count("network"))
    };
    assert_eq!(left(), (3, 2));
    let (tenants, apps) = (["acme".parse().unwrap()].into(), ["acme/kept".parse().unwrap()].into());
    assert_eq!(other.forget_others(&tenants, &apps).await.unwrap(), 0, "what it has used itself is not left over");
    assert_eq!(left(), (3, 2));
    let next = engine.other().await;
    assert_eq!(next.forget_others(&tenants, &apps).await.unwrap(), 3);
    assert_eq!(left(), (1, 1));
    assert_eq!(next.forget_others(&tenants, &apps).await.unwrap(), 0);
    assert_eq!(next.forget_others(&Default::default(), &Default::default()).await.unwrap(), 2);
    assert_eq!(left(), (0, 0));
    other.teardown().await;
}

async fn network_removed((engine, world): Both) {
    let mut set = set(&world, "network", "exec sleep 3600", 1);
    set.id.env = "rival/network/dev".parse().unwrap();
    world.runtime.prepare_tenant(&set.id.env.tenant).await.unwrap();
    let filter = format!("label=berth.instance={}", engine.settings.instance);
    let id = docker(&["network", "ls", "-q", "--filter", &filter, "--filter", "label=berth.tenant=rival"]);
    docker(&["network", "rm", &id]);
    world.runtime.apply(&set).await.unwrap();
    assert_eq!(replicas(&*world.runtime, &set.id).await[0].state, ReplicaState::Running);
    assert!(world.runtime.forget(&set.id.env.tenant, None).await.is_err(), "a network in use was removed");
    world.runtime.remove(&set.id, Duration::ZERO).await.unwrap();
    world.runtime.forget(&set.id.env.tenant, None).await.unwrap();
    world.runtime.forget(&set.id.env.tenant, None).await.unwrap();

    world.runtime.prepare_tenant(&set.id.env.tenant).await.unwrap();
    let id = docker(&["network", "ls", "-q", "--filter", &filter, "--filter", "label=berth.tenant=rival"]);
    docker(&["network", "rm", &id]);
    let mut spec = job(&world, "network", &["true"]);
    spec.env = set.id.env.clone();
    assert_eq!(run_job(&world, &spec).await.2.code, 0);
    world.runtime.forget(&set.id.env.tenant, None).await.unwrap();
}

async fn job_given_up((engine, world): Both) {
    let spec = job(&world, "given-up", &["sleep", "3600"]);
    let filter = format!("label=berth.instance={}", engine.settings.instance);
    for wait in [1, 3, 5, 10, 20, 40] {
        let _ = tokio::time::timeout(Duration::from_millis(wait), world.runtime.job(&spec)).await;
    }
    eventually("no container is left", async || {
        let left = docker(&["ps", "-aq", "--filter", &filter, "--filter", "name=given-up"]);
        left.is_empty().then_some(())
    })
    .await;
}

async fn images((engine, world): Both) {
    let name = format!("{}/{}", engine.settings.registry, world.image);
    let present = || Command::new("docker").args(["image", "inspect", &name]).output().unwrap().status.success();
    world.runtime.prepare_image(&world.image).await.unwrap();
    assert!(present());
    assert_eq!(world.runtime.collect_images(std::slice::from_ref(&world.image)).await.unwrap(), 0);
    let set = set(&world, "images", "exec sleep 3600", 1);
    world.runtime.apply(&set).await.unwrap();
    assert_eq!(world.runtime.collect_images(&[]).await.unwrap(), 0, "an image in use was removed");
    world.runtime.remove(&set.id, Duration::ZERO).await.unwrap();
    assert_eq!(world.runtime.collect_images(&[]).await.unwrap(), 1);
    assert!(!present());
    let pulls = join_all((0..4).map(|_| world.runtime.prepare_image(&world.image))).await;
    assert!(pulls.into_iter().all(|result| result.is_ok()) && present());
}

async fn no_engine((engine, _): Both) {
    let mut settings = engine.settings.clone();
    settings.socket = engine.directory().join("no.sock");
    let error = DockerRuntime::connect(settings).await.err().expect("an error").to_string();
    assert!(error.contains("no Docker engine") && error.contains("no.sock"), "{error}");
    let mut settings = engine.settings.clone();
    settings.network_pool = "10.0.0.0/30".to_owned();
    assert!(DockerRuntime::connect(settings).await.is_err());
}

async fn mounts((engine, world): Both) {
    let file = engine.directory().join("ca.crt");
    std::fs::write(&file, "certificate").unwrap();
    // Writable by all, so that it is the mount that refuses.
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let mut spec = job(&world, "mounts", &["sh", "-c", "cat /etc/berth/ca.crt; echo x >> /etc/berth/ca.crt"]);
    spec.read_only_mounts = vec![(file.display().to_string(), "/etc/berth/ca.crt".to_owned())];
    let (out, err, exit) = run_job(&world, &spec).await;
    assert_eq!(out, "certificate");
    assert!(exit.code != 0 && err.contains("Read-only"), "{err}");
}

async fn rotation((engine, world): Both) {
    let mut settings = engine.settings.clone();
    settings.log_file_size = 32 << 10;
    let small = DockerRuntime::connect(settings).await.unwrap();
    let filler = "x".repeat(100);
    let command =
        format!("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i {filler}; [ $((i % 20)) = 0 ] && sleep 0.02; done");
    let set = set(&world, "rotation", &command, 1);
    small.apply(&set).await.unwrap();
    let replica = replicas(&small, &set.id).await.remove(0).id;
    let mut log = small.logs(&replica, None).await.unwrap();
    let mut next = 1;
    while let Some(line) = tokio::time::timeout(DEADLINE, log.next()).await.expect("the log ends") {
        let line = line.unwrap();
        let text = String::from_utf8_lossy(&line.bytes);
        assert_eq!(text.split(' ').next(), Some(next.to_string().as_str()), "a line is missing or came twice");
        next += 1;
    }
    assert_eq!(next, 2001);
    small.remove(&set.id, Duration::ZERO).await.unwrap();
    small.close(DEADLINE).await;
}

/// The engine's own address pools end at about thirty.
async fn many_tenants((_, world): Both) {
    let tenants: Vec<berth::domain::TenantName> = (0..36).map(|n| format!("many-{n}").parse().unwrap()).collect();
    for result in join_all(tenants.iter().map(|tenant| world.runtime.prepare_tenant(tenant))).await {
        result.unwrap();
    }
    for result in join_all(tenants.iter().map(|tenant| world.runtime.forget(tenant, None))).await {
        result.unwrap();
    }
}
