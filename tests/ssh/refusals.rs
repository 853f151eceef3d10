//! What is refused, with its reason and way out, and that nothing is half-done.

use std::collections::BTreeMap;

use berth::{
    domain::{BuildState, Environment, Event, EventKind, Role, Tenant, Timestamp},
    ssh::SshSettings,
};

use crate::harness::{MAX_PUSH, Ran, Server, env};

#[tokio::test(flavor = "multi_thread")]
async fn refs_that_cannot_be_pushed() {
    let server = Server::start().await;
    let work = server.work("work").await;
    let refused: [(&[&str], &[&str]); 4] = [
        (&["main:feature"], &["git push paas-dev feature:main", "git push paas-dev HEAD:main"]),
        (&["main", "main:master"], &["git push paas-dev main"]),
        (&["main:refs/notes/x"], &["Only the deploy branch and tags", "HEAD:main"]),
        (&["main:refs/berth/builds/1"], &["rejected"]),
    ];
    for (refs, texts) in refused {
        server.git(&work, &[&["push", "paas-dev"], refs].concat()).await.refused(texts);
    }
    assert_eq!(server.branch("main"), None);
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    let before = server.branch("main");
    server.commit(&work, &[("a", "1")]).await;
    let refused: [(&[&str], &[&str]); 5] = [
        (&["main:feature"], &["is deployed from the branch main, not feature", "git push paas-dev feature:main"]),
        (&["main", "main:feature"], &["not feature"]),
        (&[":main"], &["cannot be deleted"]),
        (&["--mirror"], &["rejected"]),
        (&["-o", "skip-ci", "main"], &["no push option \"skip-ci\"", "git push -o supersede"]),
    ];
    for (refs, texts) in refused {
        server.git(&work, &[&["push", "paas-dev"], refs].concat()).await.refused(texts);
    }
    assert_eq!(server.branch("main"), before, "something was half-done");
    assert_eq!(server.pipeline.builds(&env()).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_what_became_of_a_push() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.commit(&work, &[("berth.yaml", "app: acme/other")]).await;
    server.git(&work, &["push", "paas-dev", "main"]).await.refused(&["berth.yaml says"]);
    server.commit(&work, &[("berth.yaml", "app: acme/shop")]).await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    // They are written beside.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let events = loop {
        let events = server.store.list::<Event>("").await.unwrap();
        if events.iter().any(|event| event.kind == EventKind::PushAccepted) {
            break events;
        }
        assert!(std::time::Instant::now() < deadline, "{events:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let kinds: Vec<_> = events.iter().map(|event| event.kind.name()).collect();
    assert_eq!(kinds, ["push.received", "push.refused", "push.received", "push.accepted"]);
    assert_eq!(events[1].data.get("kind").and_then(|kind| kind.as_str()), Some("manifest"));
    assert_eq!(events[3].data.get("branch").and_then(|branch| branch.as_str()), Some("main"));
    assert!(events[3].data.get("build").is_some());
    assert!(events.iter().all(|event| event.env_ref() == Some(env()) && event.actor.is_some()), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_that_cannot_be_built() {
    let server = Server::start().await;
    let work = server.work("work").await;
    let manifests = [
        ("proccesses: {}", &["unknown key", "did you mean", "Nothing was changed"][..]),
        ("app: acme/other", &["berth.yaml says `app: acme/other`, but this remote is acme/shop/dev"]),
        ("auth: token-acme-other", &["is the token of acme/other, not of acme/shop", "apps info acme/shop"]),
        ("auth: bt1.junk", &["does not count: its signature is wrong"]),
    ];
    for (manifest, texts) in manifests {
        server.commit(&work, &[("berth.yaml", manifest)]).await;
        server.git(&work, &["push", "paas-dev", "main"]).await.refused(texts);
    }
    std::fs::write(work.join(".git/message"), "x".repeat(2 << 20)).unwrap();
    server.git(&work, &["commit", "-q", "--allow-empty", "-F", ".git/message"]).await.ok();
    server.git(&work, &["push", "paas-dev", "main"]).await.refused(&["larger than 1 MiB", "git commit --amend"]);
    server.git(&work, &["checkout", "-q", "--orphan", "empty"]).await.ok();
    server.git(&work, &["rm", "-rqf", "."]).await.ok();
    server.commit(&work, &[]).await;
    server.git(&work, &["push", "paas-dev", "empty:main"]).await.refused(&["no files in it", "git add -A"]);
    assert_eq!(server.branch("main"), None);
    assert!(server.pipeline.builds(&env()).await.is_empty());
    let environment = server.store.need::<Environment>(&env()).await.unwrap();
    assert_eq!(environment.deploy_branch, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_wanted_when_the_server_says_so() {
    let server = Server::with(SshSettings::default(), true).await;
    let work = server.work("work").await;
    server.git(&work, &["push", "paas-dev", "main"]).await.refused(&["wants a berth.yaml", "app: acme/shop"]);
    server.commit(&work, &[("berth.yaml", "app: acme/shop")]).await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shallow_clone_is_told_to_fetch_the_rest() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.commit(&work, &[("a", "1")]).await;
    let root = server.directory.path();
    let origin = format!("file://{}", work.display());
    server.git(root, &["clone", "-q", "--depth", "1", &origin, "shallow"]).await.ok();
    let shallow = root.join("shallow");
    let push = ["push", &server.url("acme/shop/dev"), "main"];
    server.git(&shallow, &push).await.refused(&["shallow clone", "git fetch --unshallow"]);
    let tag = ["push", &server.url("acme/shop/dev"), "main:refs/tags/v1"];
    server.git(&shallow, &tag).await.refused(&["shallow clone"]);
    assert!(!server.repositories.path(&env()).join("shallow").exists());
    // The server having the rest, a shallow clone is as good as any.
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    let commit = server.commit(&shallow, &[("b", "1")]).await;
    server.git(&shallow, &push).await.ok();
    assert_eq!(server.branch("main"), Some(commit));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_too_large_is_told_the_limit() {
    let server = Server::start().await;
    let work = server.work("work").await;
    let noise: Vec<u8> = (0..MAX_PUSH as usize * 2)
        .scan(1u32, |x, _| {
            *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*x >> 24) as u8)
        })
        .collect();
    std::fs::write(work.join("noise"), noise).unwrap();
    server.commit(&work, &[]).await;
    server.git(&work, &["push", "paas-dev", "main"]).await.refused(&["the limit is 3 MiB", ".gitignore"]);
    assert_eq!(server.branch("main"), None);
    let objects = server.repositories.path(&env()).join("objects");
    let left = std::fs::read_dir(objects)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("tmp_objdir"));
    assert_eq!(left.count(), 0, "the quarantine was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_and_foreign_remotes_get_the_same_answer() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.user("stranger", None).await;
    let ask = async |user: &str, path: &str, arguments: &[&str]| {
        let url = server.url(path);
        let arguments: Vec<&str> = arguments.iter().map(|word| if *word == "URL" { &url } else { *word }).collect();
        let ran = Ran::of(server.git_command(user, &work, &arguments)).await;
        ran.refused(&["no access to it"]).replace("stranger", "USER").replace("alice", "USER")
    };
    for arguments in [&["push", "URL", "main"][..], &["ls-remote", "URL"]] {
        let foreign = ask("stranger", "acme/shop/dev", arguments).await;
        let absent = ask("stranger", "acme/shop/xyz", arguments).await;
        assert_eq!(foreign, absent.replace("xyz", "dev"));
        ask("alice", "acme/shop/xyz", arguments).await;
    }
    let status = Ran::of(server.ssh_command("stranger", &[], &["git-upload-pack 'acme/shop/dev'"])).await.status();
    assert_eq!(status, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_may_fetch_but_not_push() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.user("viewer", Some(Role::Viewer)).await;
    let push = Ran::of(server.git_command("viewer", &work, &["push", "paas-dev", "main"])).await;
    push.refused(&["viewer may see acme/shop/dev, but not push to it", "developer"]);
    Ran::of(server.git_command("viewer", &work, &["ls-remote", "paas-dev"])).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_rejects_the_push_and_a_full_queue_does() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.pipeline.builds_end(Some(BuildState::Failed { reason: "npm ci failed".into() }));
    let refused = server.git(&work, &["push", "paas-dev", "main"]).await;
    refused.refused(&["-----> Building", "build 1 failed", "builds logs acme/shop/dev 1", "pre-receive hook declined"]);
    assert_eq!(server.branch("main"), None);
    server.pipeline.full(true);
    server.git(&work, &["push", "paas-dev", "main"]).await.refused(&["8 builds are waiting", "try again"]);
    server.pipeline.full(false);
    server.pipeline.builds_end(Some(BuildState::Succeeded));
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_moved_during_the_push_is_not_built_over() {
    let server = Server::start().await;
    let root = server.directory.path();
    let work = server.work("work").await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    server.git(root, &["clone", "-q", &server.url("acme/shop/dev"), "other"]).await.ok();
    let other = server.commit(&root.join("other"), &[("other", "1")]).await;
    server.commit(&work, &[("mine", "1")]).await;
    // git runs it when it has seen where the branch is, before it sends anything.
    let hook = work.join(".git/hooks/pre-push");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\nunset GIT_DIR GIT_PREFIX\nexec git -C ../other push -q origin main >&2\n")
        .unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let push = server.git(&work, &["push", "--force", "paas-dev", "main"]).await;
    push.refused(&["Somebody else has pushed meanwhile: main is at", &other[..12], "Fetch it, merge or rebase"]);
    assert_eq!(server.branch("main"), Some(other));
    assert_eq!(server.pipeline.builds(&env()).await.len(), 2, "what is refused was built");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_may_want_a_manifest() {
    let server = Server::start().await;
    let work = server.work("work").await;
    let require = async |require_manifest: bool| {
        let name = env().tenant;
        let tenant = Tenant { name, members: BTreeMap::new(), created_at: Timestamp::UNIX_EPOCH, require_manifest };
        server.store.transaction().put(&tenant).commit().await.unwrap();
    };
    require(true).await;
    let push = server.git(&work, &["push", "paas-dev", "main"]).await;
    push.refused(&["The tenant acme wants a berth.yaml", "app: acme/shop"]);
    assert!(server.pipeline.builds(&env()).await.is_empty());
    require(false).await;
    server.git(&work, &["push", "paas-dev", "main"]).await.ok();
}
