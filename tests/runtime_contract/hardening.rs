//! What tenants' code must not be able to do, seen from inside a container.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::Command,
    sync::Arc,
    time::Duration,
};

use berth::domain::ReplicaState;

use super::{
    docker_world::{Engine, docker},
    support::{Cases, World, exited, job, replicas, run_job, set},
};

type Both = (Arc<Engine>, World);

pub fn add(cases: &mut Cases<Both>) {
    cases.case("containers have no privileges", privileges);
    cases.case("processes are limited", process_limit);
    cases.case("an out-of-memory kill is named", memory_limit);
    cases.case("a command inside a replica has no more privileges", privileges_inside);
    cases.case("config values arrive byte for byte", environment);
    cases.case("the host and other tenants are out of reach", isolation);
    cases.case("flushed rules come back", flushed_rules);
}

async fn privileges_inside((_, world): Both) {
    let set = set(&world, "privileges-inside", "exec sleep 3600", 1);
    world.runtime.apply(&set).await.unwrap();
    let replica = replicas(&*world.runtime, &set.id).await.remove(0).id;
    let script = "grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'; id -u; id -g";
    let ran = world.runtime.exec(&replica, script, Duration::from_secs(30)).await.unwrap();
    let zero = "0".repeat(16);
    let want = format!("CapPrm:{zero}\nCapEff:{zero}\nCapBnd:{zero}\nNoNewPrivs:1\nSeccomp:2\n10001\n10001\n");
    assert_eq!(String::from_utf8_lossy(&ran.output), want);
    world.runtime.remove(&set.id, Duration::ZERO).await.unwrap();
}

async fn privileges((_, world): Both) {
    let script = "grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'; id -u; id -g; \
        cat /proc/1/comm; ls /var/run/docker.sock /run/docker.sock; mount -t tmpfs none /tmp; echo x > /proc/sys/kernel/hostname; touch /etc/new; ls /dev/kmsg /dev/mem";
    let (out, err, _) = run_job(&world, &job(&world, "privileges", &["sh", "-c", script])).await;
    let lines: Vec<&str> = out.lines().collect();
    let zero = "0000000000000000";
    let want = [
        format!("CapPrm:{zero}"),
        format!("CapEff:{zero}"),
        format!("CapBnd:{zero}"),
        "NoNewPrivs:1".to_owned(),
        "Seccomp:2".to_owned(),
        "10001".to_owned(),
        "10001".to_owned(),
    ];
    assert_eq!(lines[..7], want, "{out}");
    assert!(lines[7].contains("init"), "PID 1 is {}", lines[7]);
    assert_eq!(lines.len(), 8, "something is there that should not be: {out}");
    for refused in ["docker.sock", "mount:", "hostname", "/etc/new", "/dev/kmsg"] {
        assert!(err.contains(refused), "{refused} was allowed: {err}");
    }
}

async fn process_limit((_, world): Both) {
    // Bounded: sixty sleeps at most, with room for half of them.
    let script = "i=0; while [ $i -lt 60 ]; do sleep 20 & i=$((i+1)); done; echo survived";
    let (out, err, exit) = run_job(&world, &job(&world, "forks", &["sh", "-c", script])).await;
    assert!(err.contains("can't fork"), "out {out:?} err {err:?} {exit:?}");
}

async fn memory_limit((_, world): Both) {
    // The process itself.
    let hog = "exec dd if=/dev/zero of=/dev/null bs=300M count=1";
    let (_, _, exit) = run_job(&world, &job(&world, "hog", &["sh", "-c", hog])).await;
    assert_eq!((exit.code, exit.out_of_memory), (137, true));
    // Only a child, whose parent goes on and exits as it likes.
    let child = "dd if=/dev/zero of=/dev/null bs=300M count=1; exit 1";
    let (_, _, exit) = run_job(&world, &job(&world, "hog-child", &["sh", "-c", child])).await;
    assert_eq!((exit.code, exit.out_of_memory), (1, true), "a killed child is not noticed");
    let set = set(&world, "hog", hog, 1);
    world.runtime.apply(&set).await.unwrap();
    let dead = exited(&*world.runtime, &set.id).await;
    assert_eq!(dead.state, ReplicaState::Exited { code: 137, out_of_memory: true });
    world.runtime.remove(&set.id, Duration::ZERO).await.unwrap();
}

async fn environment((_, world): Both) {
    let values = [
        ("PLAIN", "value"),
        ("EMPTY", ""),
        ("NEWLINES", "-----BEGIN KEY-----\nabc\r\n\n-----END KEY-----\n"),
        ("QUOTES", "\"double\" 'single' `back` \\ backslash"),
        ("DOLLAR", "$HOME ${PATH} $(id) $$"),
        ("UNICODE", "Grüße, 世界 🚢"),
        ("EQUALS", "a=b==c"),
        ("SPACES", "  leading and trailing  "),
        ("CONTROL", "\u{1}\t\u{7f}"),
        ("PATH", "/bin:/somewhere/else"),
    ];
    let mut spec = job(&world, "environment", &["cat", "/proc/self/environ"]);
    spec.environment = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let (out, ..) = run_job(&world, &spec).await;
    let mut set = set(&world, "environment", "cat /proc/self/environ >&2; exec sleep 3600", 1);
    set.environment = spec.environment.clone();
    for (key, value) in values {
        assert!(out.split('\0').any(|pair| pair == format!("{key}={value}")), "{key} in {out:?}");
    }
    world.runtime.apply(&set).await.unwrap();
    let replica = replicas(&*world.runtime, &set.id).await.remove(0).id;
    let environ =
        std::fs::read(format!("/proc/{}/environ", docker(&["inspect", "--format", "{{.State.Pid}}", &replica.0])));
    let environ = String::from_utf8(environ.unwrap()).unwrap();
    for (key, value) in values.iter().chain([&("BERTH_REPLICA", "1")]) {
        assert!(environ.split('\0').any(|pair| pair == format!("{key}={value}")), "{key} in {environ:?}");
    }
    world.runtime.remove(&set.id, Duration::ZERO).await.unwrap();
}

/// All of this stays between bridges on this machine: the addresses asked for are the host's own and other containers'; the metadata
/// address is given to an interface of a network namespace that the container does not leave.
async fn isolation((engine, world): Both) {
    let mut rival = set(&world, "victim", "exec httpd -f -p 5000", 1);
    rival.id.env = "rival/victim/dev".parse().unwrap();
    world.runtime.apply(&rival).await.unwrap();
    let mut friend = rival.clone();
    friend.id.env = "acme/victim/dev".parse().unwrap();
    world.runtime.apply(&friend).await.unwrap();
    let address = async |set: &berth::domain::ReplicaSet| {
        replicas(&*world.runtime, &set.id).await[0].address.unwrap().to_string()
    };
    let (rival_address, friend_address) = (address(&rival).await, address(&friend).await);
    let gateway = format!("{}.1", friend_address.rsplit_once('.').unwrap().0);
    let rival_gateway = format!("{}.1", rival_address.rsplit_once('.').unwrap().0);
    let service = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let closed = service.local_addr().unwrap().port();
    let router = TcpListener::bind((Ipv4Addr::UNSPECIFIED, engine.settings.host_ports[0])).unwrap();
    let open = engine.settings.host_ports[0];
    // The host by its address towards the world, and by that of a bridge that is not ours.
    let outward = outward_address();
    let subnet = docker(&["network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", "bridge"]);
    let default_bridge = format!("{}.1", subnet.rsplit_once('.').unwrap().0);
    let try_port = |host: &str, port: u16| format!("nc -w 2 {host} {port} -e true 2>/dev/null && echo {host}:{port};");
    let script = [
        try_port(&friend_address, 5000),
        try_port(&gateway, open),
        try_port(&gateway, closed),
        try_port(&rival_gateway, closed),
        try_port(&default_bridge, closed),
        try_port(&outward, closed),
        try_port(&rival_address, 5000),
        "echo done".to_owned(),
    ]
    .concat();
    let (out, ..) = run_job(&world, &job(&world, "reach", &["sh", "-c", &script])).await;
    assert_eq!(out, format!("{friend_address}:5000\n{gateway}:{open}\ndone\n"));
    drop((service, router));
    // Metadata services: the rule is there, and it is the first thing that packets from our bridges meet on their way out.
    let rules = Command::new("iptables").args(["-S", &format!("{}FWD", engine.chain())]).output().unwrap();
    assert!(String::from_utf8_lossy(&rules.stdout).contains("-d 169.254.0.0/16 -j DROP"));
    let first = Command::new("iptables").args(["-S", "DOCKER-USER"]).output().unwrap();
    let first = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(first.contains(&format!("-i {}+ -j {}FWD", engine.bridges(), engine.chain())), "{first}");
    for set in [&rival, &friend] {
        world.runtime.remove(&set.id, Duration::ZERO).await.unwrap();
    }
}

/// The address that the host would send from. Connecting a datagram socket sends nothing.
fn outward_address() -> String {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    match socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)) {
        Ok(()) => socket.local_addr().unwrap().ip().to_string(),
        Err(_) => Ipv4Addr::LOCALHOST.to_string(),
    }
}

async fn flushed_rules((engine, world): Both) {
    let rules = || {
        let output = Command::new("iptables-save").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let ours = |line: &&str| line.contains(&engine.chain()) && line.starts_with("-A");
        text.lines().filter(ours).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rules();
    assert!(before.len() >= 6, "{before:?}");
    let iptables = |arguments: &[&str]| assert!(Command::new("iptables").args(arguments).status().unwrap().success());
    let chain = format!("{}IN", engine.chain());
    iptables(&["-F", &chain]);
    iptables(&["-D", "INPUT", "-i", &format!("{}+", engine.bridges()), "-j", &chain]);
    assert_ne!(rules(), before);
    world.runtime.prepare_tenant(&"acme".parse().unwrap()).await.unwrap();
    world.runtime.prepare_tenant(&"acme".parse().unwrap()).await.unwrap();
    let mut after = rules();
    let mut wanted = before;
    after.sort();
    wanted.sort();
    assert_eq!(after, wanted, "restored, and not doubled");
}
