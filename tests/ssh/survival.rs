//! A push outlives its client, its `receive-pack` and the server.

use std::time::Duration;

use berth::{
    domain::{Build, BuildNumber, BuildState, Environment},
    ssh::SshSettings,
    store::StoreError,
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::harness::{Server, env, eventually, read_until};

/// Starts a push and returns once its build is queued.
async fn push_and_wait(server: &Server, work: &std::path::Path) -> tokio::process::Child {
    let mut command = server.git_command("alice", work, &["push", "paas-dev", "main"]);
    let mut push = command.process_group(0).spawn().unwrap();
    read_until(push.stderr.as_mut().unwrap(), "-----> Building").await;
    push
}

fn pid(child: &tokio::process::Child) -> Pid {
    Pid::from_raw(child.id().unwrap().try_into().unwrap())
}

/// Processes of git that work on the server's repositories.
fn git_processes(server: &Server) -> Vec<i32> {
    let root = server.repositories.root().to_str().unwrap().to_owned();
    let of = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(&root).then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_does_not_lose_the_push() {
    let server = Server::start().await;
    server.pipeline.builds_end(None);
    let work = server.work("work").await;
    let commit = server.commit(&work, &[("a", "1")]).await;
    let mut push = push_and_wait(&server, &work).await;
    killpg(pid(&push), Signal::SIGKILL).unwrap();
    push.wait().await.unwrap();
    server.pipeline.finish(&env(), BuildNumber(1), BuildState::Succeeded).await;
    eventually("the branch moves", || async { server.branch("main").as_ref() == Some(&commit) }).await;
    eventually("git ends", || async { git_processes(&server).is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_receive_pack_does_not_lose_the_push() {
    let server = Server::start().await;
    server.pipeline.builds_end(None);
    let work = server.work("work").await;
    let commit = server.commit(&work, &[("a", "1")]).await;
    let mut push = push_and_wait(&server, &work).await;
    for pid in git_processes(&server) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    assert!(!push.wait().await.unwrap().success());
    assert_eq!(server.branch("main"), None);
    server.pipeline.finish(&env(), BuildNumber(1), BuildState::Succeeded).await;
    eventually("the branch moves", || async { server.branch("main").as_ref() == Some(&commit) }).await;
    let environment = server.store.need::<Environment>(&env()).await.unwrap();
    assert_eq!(environment.deploy_branch.as_deref(), Some("main"));
    // The pack is whole, with no help of git's.
    let repository = server.repositories.path(&env());
    server.git(&repository, &["fsck", "--full", "--strict"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_while_it_sends_leaves_nothing() {
    let server = Server::start().await;
    let mut command = server.ssh_command("alice", &[], &["git-receive-pack 'acme/shop/dev'"]);
    let mut client = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    read_until(client.stdout.as_mut().unwrap(), "report-status").await;
    assert_eq!(git_processes(&server).len(), 1);
    client.start_kill().unwrap();
    eventually("git ends", || async { git_processes(&server).is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_tells_the_pusher_and_moves_the_branch_later() {
    let settings = SshSettings { shutdown_grace: Duration::from_secs(2), ..SshSettings::default() };
    let server = Server::with(settings.clone(), false).await;
    server.pipeline.builds_end(None);
    let work = server.work("work").await;
    let commit = server.commit(&work, &[("a", "1")]).await;
    let mut push = push_and_wait(&server, &work).await;
    let (directory, store) = server.shut_down().await;
    let said = read_until(push.stderr.as_mut().unwrap(), "builds logs acme/shop/dev 1 -f").await;
    assert!(said.contains("The server is restarting. Build 1 goes on"), "{said}");
    assert!(!push.wait().await.unwrap().success());

    let server = Server::over(directory, store, settings.clone(), false).await;
    assert_eq!(server.branch("main"), None);
    server.pipeline.finish(&env(), BuildNumber(1), BuildState::Succeeded).await;
    eventually("the branch moves", || async { server.branch("main").as_ref() == Some(&commit) }).await;

    // A build that ended while nobody was there: moved at the next start, but never back from a newer one.
    let (directory, store) = server.shut_down().await;
    let not_yet = |build: &mut Build| {
        build.settled = false;
        Ok::<(), StoreError>(())
    };
    store.modify(&(env(), BuildNumber(1)), not_yet).await.unwrap();
    let repositories = berth::git::Repositories::new(directory.path().join("repositories"));
    std::fs::remove_file(repositories.path(&env()).join("refs/heads/main")).unwrap();
    let server = Server::over(directory, store, settings, false).await;
    assert_eq!(server.branch("main"), Some(commit));
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_at_the_same_time_are_let_in_one_by_one() {
    let server = Server::start().await;
    server.pipeline.builds_end(None);
    let mut pushes = Vec::new();
    for name in ["one", "two", "three"] {
        let work = server.work(name).await;
        server.commit(&work, &[("who", name)]).await;
        pushes.push((server.git_command("alice", &work, &["push", "paas-dev", "main"]), work));
    }
    let running: Vec<_> = pushes.iter_mut().map(|(command, _)| command.spawn().unwrap()).collect();
    eventually("one is queued", || async { server.pipeline.builds(&env()).await.len() == 1 }).await;
    let mut accepted = 0;
    let mut waiting = Vec::new();
    for child in running {
        waiting.push(tokio::spawn(child.wait_with_output()));
    }
    eventually("two are refused", || async { waiting.iter().filter(|task| task.is_finished()).count() == 2 }).await;
    server.pipeline.finish(&env(), BuildNumber(1), BuildState::Succeeded).await;
    for task in waiting {
        let output = task.await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        accepted += usize::from(output.status.success());
        assert!(output.status.success() || said.contains("Build 1 of acme/shop/dev"), "{said}");
    }
    assert_eq!(accepted, 1);
}
