//! What works: push, clone, fetch, options.

use berth::domain::{BuildNumber, BuildState, Environment, QueuePlace, Role};

use crate::harness::{Ran, Server, env, eventually, read_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_push_shows_its_build_and_moves_the_branch() {
    let server = Server::start().await;
    let work = server.work("work").await;
    let commit = server.commit(&work, &[("berth.yaml", "app: acme/shop\nauth: token-acme-shop\n")]).await;
    let push = server.git(&work, &["push", "paas-dev", "main"]).await;
    push.ok();
    let said = push.err();
    for text in ["remote: -----> Building", "remote: =====> https://dev.shop.acme.localhost", "[new branch]"] {
        assert!(said.contains(text), "{said}");
    }
    assert_eq!(server.branch("main"), Some(commit.clone()));
    let environment = server.store.need::<Environment>(&env()).await.unwrap();
    assert_eq!(environment.deploy_branch.as_deref(), Some("main"));
    assert!(!said.contains("There is no berth.yaml"), "{said}");
    let build = &server.pipeline.builds(&env()).await[0];
    assert_eq!((build.commit.as_str(), build.pushed_by.as_str()), (commit.as_str(), "alice"));
    assert_eq!(build.timings[0].0, "receive");
    let pinned = server.repositories.branch_commit(&env(), "refs/berth/builds/1").unwrap();
    assert_eq!(pinned, Some(commit));
    assert!(server.git(&work, &["push", "paas-dev", "main"]).await.err().contains("Everything up-to-date"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_build_waits_says_so_at_once() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.pipeline.builds_end(None);
    server.pipeline.queued_at(Some(QueuePlace { ahead: 3, running: 2 }));
    let mut push = server.git_command("alice", &work, &["push", "paas-dev", "main"]);
    let mut push = push.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = push.stderr.take().unwrap();
    read_until(&mut said, "remote: -----> Build 1 is waiting: 3 before it, 2 running").await;
    server.pipeline.queued_at(None);
    read_until(&mut said, "remote: -----> Building").await;
    server.pipeline.finish(&env(), BuildNumber(1), BuildState::Succeeded).await;
    assert!(push.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_without_a_manifest_is_shown_one_to_add() {
    let server = Server::start().await;
    let work = server.work("work").await;
    let push = server.git(&work, &["push", "paas-dev", "main"]).await;
    push.ok();
    let said = push.err();
    assert!(said.contains("remote:        app: acme/shop"), "{said}");
    let (offer, end) = (said.find("There is no berth.yaml"), said.find("remote: =====>"));
    assert!(offer.is_some() && offer < end, "{said}");
    server.commit(&work, &[("a", "b")]).await;
    let push = server.git(&work, &["push", "paas-dev", "main"]).await;
    push.ok();
    assert!(!push.err().contains("There is no berth.yaml"), "it is offered with each push");

    let server = Server::start().await;
    let work = server.work("work").await;
    let push = server.git(&work, &["push", "-o", "detach", "paas-dev", "main"]).await;
    push.ok();
    assert!(push.err().contains("There is no berth.yaml"), "{}", push.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn clone_fetch_and_list_with_every_protocol_version() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    server.user("viewer", Some(Role::Viewer)).await;
    let root = server.directory.path();
    for version in ["0", "1", "2"] {
        let protocol = format!("protocol.version={version}");
        for path in ["acme/shop/dev", "acme/shop/dev.git"] {
            let list = ["-c", &protocol, "ls-remote", &server.url(path)];
            let refs = Ran::of(server.git_command("viewer", root, &list)).await.ok();
            assert!(refs.contains("refs/heads/main") && refs.contains("HEAD"), "{refs}");
            assert!(!refs.contains("refs/berth"), "{refs}");
        }
        let target = format!("clone-{version}");
        server.git(root, &["-c", &protocol, "clone", "-q", &server.url("acme/shop/dev"), &target]).await.ok();
        let clone = root.join(&target);
        assert_eq!(std::fs::read_to_string(clone.join("index.html")).unwrap(), "hello");
        let commit = server.commit(&work, &[("version", version)]).await;
        server.git(&work, &["-c", &protocol, "push", "-q", "paas-dev", "main"]).await.ok();
        server.git(&clone, &["-c", &protocol, "pull", "-q"]).await.ok();
        assert_eq!(server.git(&clone, &["rev-parse", "HEAD"]).await.ok().trim(), commit);
    }
    // A path as scp writes it.
    let scp = format!("berth@127.0.0.1:{}", "acme/shop/dev");
    server.git(root, &["ls-remote", &scp]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_force_pushes_and_several_refs() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.git(&work, &["tag", "v0"]).await.ok();
    server.git(&work, &["push", "-q", "paas-dev", "v0"]).await.ok();
    assert!(server.pipeline.builds(&env()).await.is_empty(), "a tag was built");
    server.git(&work, &["tag", "-a", "-m", "x", "v1"]).await.ok();
    server.git(&work, &["push", "-q", "paas-dev", "main", "v1"]).await.ok();
    server.commit(&work, &[("a", "1")]).await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    server.git(&work, &["reset", "-q", "--hard", "HEAD~1"]).await.ok();
    let other = server.commit(&work, &[("b", "1")]).await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.refused(&["rejected"]);
    server.git(&work, &["push", "-q", "--force", "paas-dev", "main"]).await.ok();
    assert_eq!(server.branch("main"), Some(other));
    server.git(&work, &["push", "-q", "paas-dev", ":v0"]).await.ok();
    assert_eq!(server.pipeline.builds(&env()).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn master_may_be_the_deploy_branch() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.git(&work, &["push", "-q", "paas-dev", "main:master"]).await.ok();
    let clone = server.directory.path().join("clone");
    server.git(server.directory.path(), &["clone", "-q", &server.url("acme/shop/dev"), "clone"]).await.ok();
    assert_eq!(server.git(&clone, &["branch", "--show-current"]).await.ok().trim(), "master");
    let refused = server.git(&work, &["push", "paas-dev", "main"]).await;
    refused.refused(&["git push paas-dev main:master"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn detach_returns_at_once_and_supersede_replaces() {
    let server = Server::start().await;
    server.pipeline.builds_end(None);
    let work = server.work("work").await;
    let first = server.commit(&work, &[("a", "1")]).await;
    let push = server.git(&work, &["push", "-o", "detach", "-o", "no-cache", "paas-dev", "main"]).await;
    push.ok();
    assert!(push.err().contains("Queued as build 1"), "{}", push.err());
    assert_eq!(server.branch("main"), Some(first));
    let build = server.pipeline.builds(&env()).await.remove(0);
    assert!(build.detached && build.no_cache);

    let second = server.commit(&work, &[("a", "2")]).await;
    let busy = server.git(&work, &["push", "paas-dev", "main"]).await;
    busy.refused(&[
        "Build 1 of acme/shop/dev, pushed by alice, has been queued for",
        "git push -o supersede paas-dev HEAD:main",
    ]);

    let mut superseding =
        server.git_command("alice", &work, &["push", "-o", "supersede", "paas-dev", "main"]).spawn().unwrap();
    eventually("the second build is queued", || async { server.pipeline.builds(&env()).await.len() == 2 }).await;
    server.pipeline.finish(&env(), BuildNumber(2), BuildState::Succeeded).await;
    assert!(superseding.wait().await.unwrap().success());
    let builds = server.pipeline.builds(&env()).await;
    assert!(matches!(builds[0].state, BuildState::Cancelled { .. }));
    assert_eq!(server.branch("main"), Some(second));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_pushes_at_once_none_is_built_that_git_refuses() {
    let server = Server::start().await;
    server.pipeline.builds_end(None);
    let work = server.work("work").await;
    let mut commits = Vec::new();
    for turn in 0..8 {
        commits.push(server.commit(&work, &[("a", &turn.to_string())]).await);
    }
    let push = async |commit: &String| {
        let refspec = format!("{commit}:refs/heads/main");
        server.git(&work, &["push", "-o", "detach", "-o", "supersede", "paas-dev", &refspec]).await.status() == 0
    };
    let accepted = futures::future::join_all(commits.iter().map(push)).await;
    let builds = server.pipeline.builds(&env()).await;
    assert_eq!(builds.len(), accepted.iter().filter(|accepted| **accepted).count());
    assert_eq!(server.branch("main"), builds.last().map(|build| build.commit.clone()));
    // Each of them began where the one before it had ended.
    let began: Vec<_> = builds.iter().skip(1).map(|build| build.old_commit.clone().unwrap()).collect();
    let ended: Vec<_> = builds.iter().take(builds.len() - 1).map(|build| build.commit.clone()).collect();
    assert_eq!(began, ended);
}
