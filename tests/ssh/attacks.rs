//! Attacks, each by name.

use tokio::io::AsyncWriteExt;

use crate::harness::{Ran, Server, env};

#[tokio::test(flavor = "multi_thread")]
async fn path_traversal_in_the_repository_path() {
    let server = Server::start().await;
    std::fs::write(server.directory.path().join("secret"), "secret").unwrap();
    for path in [
        "../secret",
        "acme/shop/../../../secret",
        "/etc",
        "acme/shop/dev.git/../dev",
        "acme/shop/dev/objects",
        "acme//shop/dev",
        "./acme/shop/dev",
        "acme/shop/dev%00",
        "ACME/shop/dev",
        "acme/shop/dev\n",
        "~root",
        "-acme/shop/dev",
    ] {
        for service in ["git-upload-pack", "git-receive-pack"] {
            let line = format!("{service} '{path}'");
            let ran = server.ssh(&[&line]).await;
            ran.refused(&["is not the path of an environment"]);
            assert_eq!((ran.status(), ran.out().as_str()), (4, ""), "{line}");
        }
    }
    assert!(!server.repositories.path(&env()).exists(), "a repository was made for a path that was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn option_injection_into_git() {
    let server = Server::start().await;
    let mark = server.directory.path().join("mark");
    let touch = format!("touch {}", mark.display());
    for line in [
        format!("git-upload-pack --upload-pack='{touch}' 'acme/shop/dev'"),
        format!("git-upload-pack '--upload-pack={touch}'"),
        format!("git-receive-pack '--receive-pack={touch}'"),
        format!("git-upload-archive --exec='{touch}' 'acme/shop/dev'"),
        format!("git -c core.sshCommand='{touch}' upload-pack 'acme/shop/dev'"),
        format!("git --exec-path={} upload-pack 'acme/shop/dev'", mark.display()),
        "git-upload-pack --strict --timeout=0 acme/shop/dev".to_owned(),
        "git-shell -c id".to_owned(),
        "git-daemon".to_owned(),
    ] {
        let ran = server.ssh(&[&line]).await;
        assert_ne!(ran.status(), 0, "{line}: {}", ran.out());
    }
    assert!(!mark.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn shell_metacharacters_in_commands() {
    let server = Server::start().await;
    let mark = server.directory.path().join("mark");
    let touch = format!("touch {}", mark.display());
    for line in [
        format!("git-upload-pack 'acme/shop/dev'; {touch}"),
        format!("git-upload-pack 'acme/shop/dev'\n{touch}"),
        format!("git-upload-pack 'acme/shop/dev' && {touch}"),
        format!("git-upload-pack \"$({touch})\""),
        format!("git-upload-pack `{touch}`"),
        format!("whoami; {touch}"),
        format!("whoami | {touch}"),
        touch.clone(),
        "bash -i".to_owned(),
        "/bin/sh -c id".to_owned(),
        "scp -t /tmp".to_owned(),
        "rsync --server . /".to_owned(),
    ] {
        let ran = server.ssh(&[&line]).await;
        assert_ne!(ran.status(), 0, "{line}: {}", ran.out());
        assert!(!ran.out().contains("uid="), "{line}");
    }
    assert!(!mark.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_in_git_protocol() {
    let server = Server::start().await;
    for value in ["version=9", "version=2\nGIT_DIR=/", "$(id)", &"a".repeat(5000), "version=2;x", "\u{1}"] {
        let option = format!("SetEnv=GIT_PROTOCOL={value}");
        let ran =
            Ran::of(server.ssh_command("alice", &["-o", &option], &["git-upload-pack 'acme/shop/dev' < /dev/null"]))
                .await;
        ran.refused(&["needs exactly one path"]);
        let ran = Ran::of(server.ssh_command("alice", &["-o", &option], &["git-upload-pack 'acme/shop/dev'"])).await;
        // Version 0: the advertisement of an empty repository, as for a client that said nothing.
        assert!(
            ran.out().contains("capabilities^{}") || ran.out() == "0000",
            "{value:.20?}: {:?} {}",
            ran.out(),
            ran.err()
        );
        assert!(!ran.out().contains("version 2"), "{value:.20?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_injection() {
    let server = Server::start().await;
    let work = server.work("work").await;
    let mark = server.directory.path().join("mark");
    let script = server.directory.path().join("evil");
    std::fs::write(&script, format!("#!/bin/sh\ntouch {}\n", mark.display())).unwrap();
    let mut command = server.git_command("alice", &work, &["push", "-q", "paas-dev", "main"]);
    let ssh = command.as_std().get_envs().find(|(name, _)| *name == "GIT_SSH_COMMAND").unwrap().1.unwrap().to_owned();
    let evil = script.display();
    let set = format!(
        " -o 'SetEnv=LD_PRELOAD={evil} GIT_EXTERNAL_DIFF={evil} BERTH_BIN={evil} GIT_EXEC_PATH=/tmp PATH=/tmp BERTH_PUSH=x GIT_CONFIG_COUNT=0'"
    );
    let mut ssh = ssh.into_string().unwrap();
    ssh.push_str(&set);
    command.env("GIT_SSH_COMMAND", ssh);
    Ran::of(command).await.ok();
    assert!(!mark.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_command_lines() {
    let server = Server::start().await;
    // Longer than one argument of exec may be, so it comes by the protocol alone: see `exec`'s own tests for the limit.
    let long = "a".repeat(120_000);
    let ran = server.ssh(&["argv", &long]).await;
    assert_eq!(ran.ok().len(), long.len() + 5);
    let words = "a ".repeat(60_000);
    server.ssh(&["argv", &words]).await.refused(&["more than 1024 words"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_and_config_cannot_be_pushed_or_forged() {
    let server = Server::start().await;
    let work = server.work("work").await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    let socket = server.directory.path().join("control.sock");
    let forged = r#"{"pre_receive":{"token":"0000","quarantine":"/tmp","updates":[],"options":[]}}"#;
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(forged.as_bytes()).await.unwrap();
    stream.write_all(b"\n").await.unwrap();
    let answer = crate::harness::read_until(&mut stream, "\"exit\"").await;
    assert!(answer.contains("{\"exit\":1}"), "{answer}");
    // A repository's own configuration and hooks are not looked at.
    let path = server.repositories.path(&env());
    let mark = server.directory.path().join("mark");
    std::fs::create_dir_all(path.join("hooks")).unwrap();
    for hook in ["pre-receive", "update", "post-receive", "reference-transaction"] {
        let file = path.join("hooks").join(hook);
        std::fs::write(&file, format!("#!/bin/sh\ntouch {}\n", mark.display())).unwrap();
        std::process::Command::new("chmod").arg("+x").arg(&file).status().unwrap();
    }
    server.commit(&work, &[("a", "1")]).await;
    server.git(&work, &["push", "-q", "paas-dev", "main"]).await.ok();
    assert!(!mark.exists());
}
