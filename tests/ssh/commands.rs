//! Commands over SSH: words, input, output, status, terminals, signals, back-pressure.

use std::{process::Stdio, sync::atomic::Ordering, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::harness::{Ran, Server, eventually, read_until};

#[tokio::test(flavor = "multi_thread")]
async fn status_output_and_words() {
    let server = Server::start().await;
    assert_eq!(server.ssh(&["whoami"]).await.ok(), "alice\n");
    for status in [0, 1, 2, 3, 4, 5, 75, 255] {
        assert_eq!(server.ssh(&["exit", &status.to_string()]).await.status(), status);
    }
    assert_eq!(server.ssh(&["nonsense"]).await.status(), 2);
    let both = server.ssh(&["both"]).await;
    assert_eq!((both.out().as_str(), both.err().as_str()), ("out\n", "err\n"));
    assert_eq!(
        server.ssh(&["argv 'a b' \"c\\\"d\" $HOME `id`"]).await.ok(),
        "[\"a b\", \"c\\\"d\", \"$HOME\", \"`id`\"]\n"
    );
    server.ssh(&["argv 'a"]).await.refused(&["quote in the command line is not closed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_command_says_what_to_type() {
    let server = Server::start().await;
    let hello = server.ssh(&[]).await.ok();
    assert!(hello.contains("Hello alice") && hello.contains("help"), "{hello}");
    let terminal = Ran::of(server.ssh_command("alice", &["-tt"], &[])).await.ok();
    assert!(terminal.contains("Hello alice") && terminal.contains("\r\n"), "{terminal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_its_end_reach_the_command() {
    let server = Server::start().await;
    assert_eq!(server.ssh_with_input(&["cat"], b"hello".to_vec()).await.ok(), "hello");
    assert_eq!(server.ssh_with_input(&["cat"], Vec::new()).await.ok(), "");
    assert_eq!(server.ssh(&["cat"]).await.ok(), "");
    // Input that nobody reads.
    assert_eq!(server.ssh_with_input(&["exit", "5"], vec![b'x'; 4 << 20]).await.status(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn much_goes_both_ways_at_once() {
    let server = Server::start().await;
    let input: Vec<u8> = (0..32 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let ran = server.ssh_with_input(&["cat"], input.clone()).await;
    assert_eq!(ran.status(), 0);
    assert!(ran.0.stdout == input, "{} bytes came back", ran.0.stdout.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reader_slows_the_command() {
    let server = Server::start().await;
    let mut client = server.ssh_command("alice", &[], &["flood"]).spawn().unwrap();
    let mut stdout = client.stdout.take().unwrap();
    let flooded = || server.backend.flooded.load(Ordering::Relaxed);
    let mut last = u64::MAX;
    eventually("the command stops", || {
        let before = std::mem::replace(&mut last, flooded());
        async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            before == last
        }
    })
    .await;
    // The client's window (2 MiB), its pipe, our frames.
    assert!(flooded() < 8 << 20, "{} bytes were let go", flooded());
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..16 {
        stdout.read_exact(&mut buffer).await.unwrap();
    }
    assert!(flooded() > 16 << 20);
    client.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_command_slows_the_client() {
    let server = Server::start().await;
    let mut client = server.ssh_command("alice", &[], &["wait-then-cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0_usize;
    while let Ok(written) = timeout(Duration::from_secs(1), stdin.write(&chunk)).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "nothing holds the client back");
    }
    assert!(sent > 1 << 20, "{sent}");
    // The connection itself is not held up: another session on it would work, and the command's output comes.
    server.backend.go.cancel();
    let total = sent;
    let reader = tokio::spawn(async move {
        let mut count = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match stdout.read(&mut buffer).await.unwrap() {
                0 => return count,
                length => count += length,
            }
        }
    });
    drop(stdin);
    assert_eq!(timeout(Duration::from_secs(30), reader).await.unwrap().unwrap(), total);
    assert!(client.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_and_signals() {
    let server = Server::start().await;
    let options = ["-tt", "-o", "SetEnv=TERM=xterm-berth"];
    let command = server.ssh_command("alice", &options, &["pty"]);
    let said = Ran::of(command).await.ok();
    assert!(said.ends_with("\r\n") && said.trim().split(' ').count() == 3, "{said:?}");
    assert_eq!(server.ssh(&["pty"]).await.ok(), "no pty\n");
    // `run` has a terminal of its own: its bytes are left alone.
    let raw = Ran::of(server.ssh_command("alice", &["-tt"], &["run"])).await.ok();
    assert!(raw.ends_with('\n') && !raw.contains('\r'), "{raw:?}");

    let mut client = server.ssh_command("alice", &["-tt"], &["signals"]).stdin(Stdio::piped()).spawn().unwrap();
    read_until(client.stdout.as_mut().unwrap(), "ready").await;
    client.stdin.as_mut().unwrap().write_all(b"\x03").await.unwrap();
    read_until(client.stdout.as_mut().unwrap(), "Signal(\"INT\")").await;
    assert_eq!(client.wait().await.unwrap().code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sessions_share_a_connection() {
    let server = Server::start().await;
    let path = server.directory.path().join("mux");
    let control = format!("ControlPath={}", path.display());
    let mut master = server.ssh_command("alice", &["-M", "-N", "-o", &control], &[]).spawn().unwrap();
    eventually("the master is up", || async { path.exists() }).await;
    let mut flood = server.ssh_command("alice", &["-o", &control], &["flood"]).spawn().unwrap();
    eventually("it floods", || async { server.backend.flooded.load(Ordering::Relaxed) > 1 << 20 }).await;
    // One session whose reader sleeps does not hold up another.
    assert_eq!(Ran::of(server.ssh_command("alice", &["-o", &control], &["whoami"])).await.ok(), "alice\n");
    let mut held = Vec::new();
    for _ in 0..9 {
        held.push(server.ssh_command("alice", &["-o", &control], &["wait-then-cat"]).spawn().unwrap());
    }
    eventually("an eleventh is refused", || async {
        // Without a proxy that fails, ssh would open a connection of its own.
        let options = ["-o", &control, "-o", "ProxyCommand=false"];
        Ran::of(server.ssh_command("alice", &options, &["whoami"])).await.status() != 0
    })
    .await;
    flood.kill().await.unwrap();
    master.kill().await.unwrap();
}
