//! Who gets in, how many, for how long.

use std::{process::Stdio, time::Duration};

use berth::{
    domain::Role,
    ssh::{ConnectionLimits, SshSettings},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, timeout},
};

use crate::harness::{Ran, Server, eventually, read_until};

#[tokio::test(flavor = "multi_thread")]
async fn only_registered_keys_get_in_whatever_the_name() {
    let server = Server::start().await;
    server.key("unknown", &[]).await;
    Ran::of(server.ssh_command("unknown", &[], &["whoami"])).await.refused(&["Permission denied (publickey)"]);
    for name in ["root", "alice", "bob", "", "x'; id"] {
        let mut command = Command::new("ssh");
        command.args(server.ssh_options("alice")).args(["-l", name, "127.0.0.1", "whoami"]);
        let ran = Ran::of(command).await;
        // OpenSSH itself refuses some names.
        if !ran.err().contains("invalid characters") {
            assert_eq!(ran.out(), "alice\n", "{name:?}: {}", ran.err());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_key_that_can_be_uploaded_can_log_in() {
    let server = Server::start().await;
    for (name, arguments) in [
        ("ed25519", &["-t", "ed25519"][..]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
    ] {
        server.key(name, arguments).await;
        server.user(name, None).await;
        assert_eq!(Ran::of(server.ssh_command(name, &[], &["whoami"])).await.ok().trim(), name);
    }
    // SHA-1 signatures are not taken.
    Ran::of(server.ssh_command("rsa", &["-o", "PubkeyAcceptedAlgorithms=ssh-rsa"], &["whoami"])).await.refused(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_passwords_are_refused() {
    let server = Server::start().await;
    let (authority, key) = (server.key("authority", &[]).await, server.key("certified", &[]).await);
    let mut sign = Command::new("ssh-keygen");
    sign.args(["-q", "-I", "x", "-n", "berth,alice", "-s"]).arg(&authority).arg(key.with_extension("pub"));
    assert!(sign.status().await.unwrap().success());
    // Even when the authority's own key is a user's.
    server.user("authority", Some(Role::Owner)).await;
    Ran::of(server.ssh_command("certified", &[], &["whoami"])).await.refused(&["Permission denied"]);
    let options =
        ["-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password,keyboard-interactive,none"];
    Ran::of(server.ssh_command("alice", &options, &["whoami"])).await.refused(&["Permission denied (publickey)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_agents_and_subsystems_are_refused() {
    let server = Server::start().await;
    Ran::of(server.ssh_command("alice", &["-s"], &["sftp"])).await.refused(&[]);
    Ran::of(server.ssh_command("alice", &["-W", "127.0.0.1:22"], &[])).await.refused(&[]);
    let remote = ["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22"];
    Ran::of(server.ssh_command("alice", &remote, &["whoami"])).await.refused(&[]);
    // Asked for beside a command, they are left out.
    assert_eq!(Ran::of(server.ssh_command("alice", &["-A", "-X"], &["whoami"])).await.out(), "alice\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_limited() {
    let server = Server::start().await;
    let mut command = Command::new("ssh");
    command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "IdentitiesOnly=yes"]);
    command.args(["-o", "UserKnownHostsFile=/dev/null", "-p", &server.address.port().to_string()]);
    for index in 0..8 {
        command.arg("-i").arg(server.key(&format!("guess-{index}"), &[]).await);
    }
    command.arg("-i").arg(server.key("alice", &[]).await).args(["berth@127.0.0.1", "whoami"]);
    Ran::of(command).await.refused(&["Too many authentication"]);
}

/// Whether the server has closed its end by then.
async fn is_closed(stream: &mut TcpStream, within: Duration) -> bool {
    let mut buffer = [0; 1024];
    let read = async {
        // A reset is as good as an end of file.
        while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
    };
    timeout(within, read).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_log_in_is_sent_away() {
    let settings = SshSettings { login_grace: Duration::from_millis(700), ..SshSettings::default() };
    let server = Server::with(settings, false).await;
    let started = Instant::now();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"SSH-2.0-test\r\n").await.unwrap();
    assert!(is_closed(&mut silent, Duration::from_secs(5)).await);
    assert!(is_closed(&mut half, Duration::from_secs(5)).await);
    assert!(started.elapsed() >= Duration::from_millis(600));
    // Who has logged in stays.
    let mut client = server.ssh_command("alice", &[], &["wait-then-cat"]).spawn().unwrap();
    assert!(timeout(Duration::from_millis(1500), client.wait()).await.is_err(), "the session was ended");
    server.backend.go.cancel();
    assert!(client.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_wait_to_log_in_are_counted() {
    let limits = ConnectionLimits {
        unauthenticated: 4,
        unauthenticated_per_address: 3,
        waiting: 2,
        waiting_per_address: 1,
        ..ConnectionLimits::default()
    };
    let server = Server::with(SshSettings { limits, ..SshSettings::default() }, false).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let mut identification = [0; 9];
        stream.read_exact(&mut identification).await.unwrap();
        assert_eq!(&identification, b"SSH-2.0-B");
        waiting.push(stream);
    }
    let mut in_line = TcpStream::connect(server.address).await.unwrap();
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    let mut said = String::new();
    let _ = timeout(Duration::from_secs(5), refused.read_to_string(&mut said)).await.unwrap();
    assert!(said.contains("too many connections from this address"), "{said:?}");
    waiting.pop();
    let mut identification = [0; 9];
    timeout(Duration::from_secs(5), in_line.read_exact(&mut identification)).await.unwrap().unwrap();
    assert_eq!(&identification, b"SSH-2.0-B", "its turn has come");
    drop((waiting, in_line));
    eventually("there is room again", || async { server.ssh(&["whoami"]).await.status() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_hold_for_all_addresses_together() {
    let limits = ConnectionLimits { unauthenticated: 1, waiting: 0, ..ConnectionLimits::default() };
    let server = Server::with(SshSettings { limits, ..SshSettings::default() }, false).await;
    for [first, second] in
        [[server.address, server.other_address], [server.other_address, server.address], [server.other_address; 2]]
    {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut held = loop {
            let (mut stream, mut begin) = (TcpStream::connect(first).await.unwrap(), [0; 9]);
            // Whoever was there before may not have gone yet.
            match timeout(Duration::from_secs(5), stream.read_exact(&mut begin)).await.unwrap() {
                Ok(_) if &begin == b"SSH-2.0-B" => break stream,
                _ => assert!(Instant::now() < deadline, "there is no room again"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut refused = TcpStream::connect(second).await.unwrap();
        let mut said = String::new();
        let _ = timeout(Duration::from_secs(5), refused.read_to_string(&mut said)).await.unwrap();
        assert!(said.contains("too many connections"), "{said:?}");
        held.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_does_not_take_all_connections() {
    let limits = ConnectionLimits { total: 3, per_user: 2, ..ConnectionLimits::default() };
    let server = Server::with(SshSettings { limits, ..SshSettings::default() }, false).await;
    server.user("bob", None).await;
    server.user("cat", None).await;
    server.operator("opal").await;
    let hold = async |name: &str| {
        let mut client = server.ssh_command(name, &[], &["signals"]).stdin(Stdio::piped()).spawn().unwrap();
        read_until(client.stdout.as_mut().unwrap(), "ready").await;
        client
    };
    let mut alice = hold("alice").await;
    let _alice = hold("alice").await;
    server.ssh(&["whoami"]).await.refused(&["you have 2 connections open already, as many as one user may"]);
    let _bob = hold("bob").await;
    Ran::of(server.ssh_command("cat", &[], &["whoami"])).await.refused(&["as many connections as it takes"]);
    let _operator = hold("opal").await;
    assert_eq!(Ran::of(server.ssh_command("opal", &[], &["whoami"])).await.ok(), "opal\n");
    alice.kill().await.unwrap();
    eventually("alice has room again", || async { server.ssh(&["whoami"]).await.status() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_ends_the_connections_it_opened() {
    let server = Server::start().await;
    server.user("bob", None).await;
    let path = server.directory.path().join("mux");
    let control = format!("ControlPath={}", path.display());
    let mut master = server.ssh_command("bob", &["-M", "-N", "-o", &control], &[]).spawn().unwrap();
    eventually("the master is up", || async { path.exists() }).await;
    // Without a proxy that fails, ssh would open a connection of its own.
    let options = ["-o", &control, "-o", "ProxyCommand=false"];
    let ask = async |line: &'static str| Ran::of(server.ssh_command("bob", &options, &[line])).await;
    assert_eq!(ask("whoami").await.ok(), "bob\n");
    server.remove_key("bob").await;
    for line in ["whoami", "git-upload-pack 'acme/shop/dev'"] {
        assert_eq!(ask(line).await.status(), 255, "{line}");
    }
    let ended = timeout(Duration::from_secs(10), master.wait()).await.expect("the connection stays open").unwrap();
    assert!(!ended.success());
    let mut said = String::new();
    master.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert!(said.contains("the key you came in with has been removed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_client_is_noticed_and_a_quiet_one_is_not() {
    let settings = SshSettings { keepalive: Duration::from_millis(700), keepalive_tries: 3, ..SshSettings::default() };
    let server = Server::with(settings, false).await;
    let mut quiet = server.ssh_command("alice", &[], &["wait-then-cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut dead = server.ssh_command("alice", &[], &["wait-then-cat"]).stdin(Stdio::piped()).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let pid = nix::unistd::Pid::from_raw(dead.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    tokio::time::sleep(Duration::from_millis(5000)).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    let ended = timeout(Duration::from_secs(10), dead.wait()).await.expect("the dead client was not noticed").unwrap();
    assert_eq!(ended.code(), Some(255));
    assert!(quiet.try_wait().unwrap().is_none(), "the quiet client was cut off");
    server.backend.go.cancel();
    drop(quiet.stdin.take());
    assert!(quiet.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_lets_sessions_finish_and_ends_the_rest() {
    let settings = SshSettings { shutdown_grace: Duration::from_secs(3), ..SshSettings::default() };
    let server = Server::with(settings, false).await;
    let (address, go) = (server.address, server.backend.clone());
    let mut finishes = server.ssh_command("alice", &[], &["wait-then-cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stays = server.ssh_command("alice", &[], &["cat"]).stdin(Stdio::piped()).spawn().unwrap();
    finishes.stdin.take().unwrap().write_all(b"done").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let started = Instant::now();
    let stopping = tokio::spawn(server.shut_down());
    eventually("nobody new gets in", || async { TcpStream::connect(address).await.is_err() }).await;
    go.go.cancel();
    let output = finishes.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"done");
    // Waiting closes the input, which would end it as well.
    let _input = stays.stdin.take();
    assert!(!stays.wait().await.unwrap().success());
    stopping.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(9));
}
