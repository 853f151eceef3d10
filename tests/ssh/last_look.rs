//! What happens between the checks of a push and its build, and while its repository is busy.

use std::path::{Path, PathBuf};

use berth::{
    disk::DiskFloor,
    domain::{BuildNumber, BuildState, Environment},
    store::StoreError,
};

use crate::harness::{Server, env, eventually, read_until};

/// A server with one push, and a work tree with a commit to be pushed.
async fn pushed_once() -> (Server, PathBuf, String) {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    let first = server.branch("main").unwrap();
    server.commit(&work, &[("mine", "1")]).await;
    (server, work, first)
}

/// Moves the branch to a commit of its own, as another push would; its name.
fn move_branch(server: &Server, from: &str) -> String {
    let repository = git2::Repository::open_bare(server.repositories.path(&env())).unwrap();
    let parent = repository.find_commit(from.parse().unwrap()).unwrap();
    let who = git2::Signature::now("a", "a@example.com").unwrap();
    let tree = parent.tree().unwrap();
    repository.commit(None, &who, &who, "theirs", &tree, &[&parent]).unwrap().to_string()
}

fn set_branch(path: &Path, to: &str) {
    let repository = git2::Repository::open_bare(path).unwrap();
    repository.reference("refs/heads/main", to.parse().unwrap(), true, "test").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_of_a_push_that_another_one_overtook() {
    let (server, work, first) = pushed_once().await;
    let theirs = move_branch(&server, &first);
    let (path, to) = (server.repositories.path(&env()), theirs.clone());
    server.pipeline.meanwhile(async move { set_branch(&path, &to) });
    let push = server.git(&work, &["push", "paas-dev", "main"]).await;
    push.refused(&["Somebody else has pushed meanwhile: main is at", &theirs[..12], "Nothing was changed."]);
    assert_eq!(server.branch("main"), Some(theirs));
    let builds = server.pipeline.builds(&env()).await;
    assert_eq!(builds[1].state, BuildState::Cancelled { reason: "another push came first".to_owned() });
    assert_eq!(server.pipeline.begun(), [BuildNumber(1)], "a build of a refused push has begun");
    let pinned = server.repositories.pins(&env()).unwrap();
    assert!(pinned.contains(&BuildNumber(2)), "the commit was not kept while the push was checked: {pinned:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_cannot_be_withdrawn_is_named_beside_the_refusal() {
    let (server, work, first) = pushed_once().await;
    let (path, to) = (server.repositories.path(&env()), move_branch(&server, &first));
    server.pipeline.meanwhile(async move { set_branch(&path, &to) });
    server.pipeline.cancel_fails();
    let push = server.git(&work, &["push", "paas-dev", "main"]).await;
    let said = push.refused(&[
        "Somebody else has pushed meanwhile",
        "Build 2, which was queued for it, could not be withdrawn",
        "builds cancel acme/shop/dev 2",
    ]);
    assert!(!said.contains("Nothing was changed"), "{said}");
    assert_eq!(server.pipeline.begun(), [BuildNumber(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deploy_branch_may_be_chosen_meanwhile() {
    let server = Server::start().await;
    let work = server.work("work").await;
    let store = server.store.clone();
    server.pipeline.meanwhile(async move {
        let choose = |environment: &mut Environment| {
            environment.deploy_branch = Some("master".to_owned());
            Ok::<(), StoreError>(())
        };
        store.modify::<Environment, StoreError>(&env(), choose).await.unwrap();
    });
    server.git(&work, &["push", "paas-dev", "main"]).await.refused(&["master"]);
    assert_eq!((server.branch("main"), server.pipeline.begun()), (None, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_ends_just_now_moves_the_branch_before_the_next_is_let_in() {
    let (server, work, first) = pushed_once().await;
    server.pipeline.builds_end(None);
    let mut running = server.git_command("alice", &work, &["push", "paas-dev", "main"]).spawn().unwrap();
    read_until(running.stderr.as_mut().unwrap(), "-----> Building").await;
    let theirs = server.git(&work, &["rev-parse", "HEAD"]).await.ok().trim().to_owned();
    // Another one from the same first commit; the running build succeeds while it is queued.
    server.git(&work, &["checkout", "-q", "-B", "mine", &first]).await.ok();
    server.commit(&work, &[("other", "1")]).await;
    let (pipeline, other) = (server.pipeline.clone(), BuildNumber(2));
    server.pipeline.meanwhile(async move { pipeline.finish(&env(), other, BuildState::Succeeded).await });
    let push = server.git(&work, &["push", "-o", "supersede", "paas-dev", "mine:main"]).await;
    push.refused(&["Somebody else has pushed meanwhile: main is at", &theirs[..12], "Nothing was changed."]);
    assert!(running.wait().await.unwrap().success());
    assert_eq!(server.branch("main"), Some(theirs));
    assert_eq!(server.pipeline.begun(), [BuildNumber(1), BuildNumber(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_says_what_it_superseded_all_the_same() {
    let (server, work, first) = pushed_once().await;
    server.pipeline.builds_end(None);
    let mut running = server.git_command("alice", &work, &["push", "paas-dev", "main"]).spawn().unwrap();
    read_until(running.stderr.as_mut().unwrap(), "-----> Building").await;
    let (path, to) = (server.repositories.path(&env()), move_branch(&server, &first));
    server.pipeline.meanwhile(async move { set_branch(&path, &to) });
    let push = server.git(&work, &["push", "-o", "supersede", "--force", "paas-dev", "main"]).await;
    let said = push.refused(&["meanwhile", "Build 2, which the push was to replace, was cancelled."]);
    assert!(!said.contains("Nothing was changed"), "{said}");
    assert!(!running.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_a_push_that_would_supersede_and_lets_the_build_go_on() {
    let places = tempfile::tempdir().unwrap();
    let full = places.path().join("full");
    // A place that is not there is not looked at.
    let floor = DiskFloor::new(vec![full.clone()], u64::MAX);
    let server = Server::receiving(|settings| settings.disk = floor).await;
    let work = server.work("work").await;
    server.pipeline.builds_end(None);
    let mut running = server.git_command("alice", &work, &["push", "paas-dev", "main"]).spawn().unwrap();
    read_until(running.stderr.as_mut().unwrap(), "-----> Building").await;
    server.commit(&work, &[("mine", "1")]).await;
    std::fs::create_dir(&full).unwrap();
    let push = server.git(&work, &["push", "-o", "supersede", "paas-dev", "main"]).await;
    push.refused(&["Push refused: the server has too little room on disk", "Nothing was changed."]);
    assert!(!server.pipeline.builds(&env()).await[0].state.is_final(), "a build was cancelled for want of room");
    std::fs::remove_dir(&full).unwrap();
    server.pipeline.finish(&env(), BuildNumber(1), BuildState::Succeeded).await;
    assert!(running.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_waits_for_its_repository_says_so() {
    let (server, work, _) = pushed_once().await;
    let mut owned = None;
    eventually("the last push is over", || {
        owned = server.repositories.try_own(&env());
        std::future::ready(owned.is_some())
    })
    .await;
    let mut push = server.git_command("alice", &work, &["push", "paas-dev", "main"]).spawn().unwrap();
    let said = push.stderr.as_mut().unwrap();
    read_until(said, "still waiting for the repository, which is being packed anew (2 s)").await;
    drop(owned);
    assert!(push.wait().await.unwrap().success());
}
