//! What one user may take of the git sessions, and how long a session may be still.

use std::{process::Stdio, time::Duration};

use berth::domain::{BuildNumber, BuildState, Role};
use tokio::{io::AsyncReadExt, process::Child, time::timeout};

use crate::harness::{Ran, Server, env, read_until};

const CLONE: &str = "git-upload-pack 'acme/shop/dev'";

/// A clone whose client says nothing.
async fn stuck_clone(server: &Server, user: &str) -> Child {
    let mut client = server.ssh_command(user, &[], &[CLONE]).stdin(Stdio::piped()).spawn().unwrap();
    read_until(client.stdout.as_mut().unwrap(), "refs/heads/main").await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_does_not_take_all_git_sessions() {
    let server = Server::receiving(|receive| (receive.sessions, receive.sessions_per_user) = (3, 2)).await;
    let work = server.work("work").await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    server.user("viewer", Some(Role::Viewer)).await;
    let _stuck = [stuck_clone(&server, "viewer").await, stuck_clone(&server, "viewer").await];
    let third = Ran::of(server.ssh_command("viewer", &[], &[CLONE])).await;
    third.refused(&["viewer has 2 git sessions open already, as many as one user may"]);
    assert_eq!(third.status(), 75);
    server.commit(&work, &[("a", "1")]).await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    let _alice = stuck_clone(&server, "alice").await;
    let full = server.ssh(&[CLONE]).await;
    full.refused(&["as many git clients as it can"]);
    assert_eq!(full.status(), 75);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_waits_for_its_build_holds_up_nobody() {
    let server = Server::receiving(|receive| (receive.sessions, receive.sessions_per_user) = (1, 1)).await;
    server.pipeline.builds_end(None);
    let work = server.work("work").await;
    let mut push = server.git_command("alice", &work, &["push", "paas-dev", "main"]).spawn().unwrap();
    read_until(push.stderr.as_mut().unwrap(), "-----> Building").await;
    server.git(&work, &["ls-remote", "paas-dev"]).await.ok();
    server.git(&work, &["push", "paas-dev", "main"]).await.refused(&["Build 1 of acme/shop/dev"]);
    server.pipeline.finish(&env(), BuildNumber(1), BuildState::Succeeded).await;
    assert!(push.wait().await.unwrap().success());
    server.git(&work, &["ls-remote", "paas-dev"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_session_in_which_nothing_moves_is_ended() {
    let idle = Duration::from_secs(2);
    let server = Server::receiving(|receive| receive.idle = idle).await;
    let work = server.work("work").await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    server.pipeline.builds_end(None);
    server.commit(&work, &[("a", "1")]).await;
    let mut push = server.git_command("alice", &work, &["push", "paas-dev", "main"]).spawn().unwrap();
    read_until(push.stderr.as_mut().unwrap(), "-----> Building").await;
    for service in [CLONE, "git-receive-pack 'acme/shop/dev'"] {
        let mut stuck = server.ssh_command("alice", &[], &[service]).stdin(Stdio::piped()).spawn().unwrap();
        let _open = stuck.stdin.take();
        let ended = timeout(idle * 10, stuck.wait()).await.unwrap_or_else(|_| panic!("{service} goes on")).unwrap();
        assert_eq!(ended.code(), Some(1));
        let mut said = String::new();
        stuck.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
        assert!(said.contains("Nothing was sent or received for 2 s"), "{said}");
    }
    // A push that waits for its build may be still for longer.
    assert!(push.try_wait().unwrap().is_none(), "the push was ended");
    server.pipeline.finish(&env(), BuildNumber(2), BuildState::Succeeded).await;
    assert!(push.wait().await.unwrap().success());
}
