//! Users, keys, members, invitations.

use super::*;

const KEY: &[u8] = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ alice@laptop\n";
const OTHER_KEY: &[u8] = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA4BMYNaAQ1sO3DDcVQ8pPpTz8ffM2R3XkGc9qLmJfFs\n";

#[tokio::test]
async fn the_first_user_of_an_empty_server_is_an_operator() {
    let world = World::new().await;
    for user in world.store.list::<User>("").await.unwrap() {
        world.store.transaction().delete(&user).commit().await.unwrap();
    }
    world.feed("host", "upload-key alice", KEY).await.ok().says("Created user alice (operator").says("SHA256:");
    let json = world.feed("host", "upload-key bob --json", OTHER_KEY).await.ok().json();
    assert_eq!(
        (&json["operator"], &json["created"], &json["keys"][0]["added"]),
        (&false.into(), &true.into(), &true.into())
    );
    assert!(world.events().await[0].starts_with("\"key.added\" key SHA256:"));
}

#[tokio::test]
async fn a_key_names_one_user() {
    let world = World::new().await;
    let first = world.feed("opal", "upload-key alice --json", KEY).await.ok().json();
    let fingerprint = first["keys"][0]["fingerprint"].as_str().unwrap().to_owned();
    let alice = world.commands.authenticate(&fingerprint).await.unwrap().unwrap();
    assert_eq!((alice.user.as_str(), alice.operator, alice.door), ("alice", false, Door::Ssh));
    assert_eq!(world.commands.authenticate("SHA256:none").await.unwrap(), None);
    world.feed("opal", "upload-key alice", KEY).await.ok().says("Already there");
    world.feed("opal", "upload-key bob", KEY).await.fails(5, "belongs to another user");
    assert!(world.store.get::<User>(&"bob".parse().unwrap()).await.unwrap().is_none(), "bob was made all the same");
    world.feed("opal", "upload-key bob", b"-----BEGIN OPENSSH PRIVATE KEY-----\n").await.fails(2, "PRIVATE key");
    world.feed("dan", "upload-key bob", OTHER_KEY).await.fails(3, "operator");

    world.run("dan", &format!("keys remove {fingerprint}")).await.fails(4, "no key");
    world.run("alice", &format!("keys remove {fingerprint}")).await.fails(5, "only key");
    world.run("opal", &format!("keys remove {fingerprint}")).await.ok();
    assert_eq!(world.commands.authenticate(&fingerprint).await.unwrap(), None);
    assert!(world.events().await.iter().any(|event| event.starts_with("\"key.removed\"")));
}

#[tokio::test]
async fn whoami_says_where_one_is_what() {
    let world = World::new().await;
    let json = world.run("dan", "whoami --json").await.ok().json();
    assert_eq!(json, serde_json::json!({"user": "dan", "operator": false, "tenants": {"acme": "developer"}}));
    world.run("opal", "whoami").await.ok().says("opal (operator)");
}

#[tokio::test]
async fn a_tenant_keeps_an_owner() {
    let world = World::new().await;
    world.run("olga", "tenants members acme --remove olga").await.fails(5, "no owner");
    world.run("olga", "tenants members acme --set olga=viewer").await.fails(5, "no owner");
    world.run("opal", "tenants members acme --remove olga").await.fails(5, "no owner");
    world.run("olga", "tenants members acme --set dan=owner").await.ok();
    // Each removes the other: one of them stays.
    let removed = tokio::join!(
        world.run("olga", "tenants members acme --remove dan"),
        world.run("dan", "tenants members acme --remove olga")
    );
    assert_ne!(removed.0.status == 0, removed.1.status == 0, "{removed:?}");
    let acme = world.store.need::<Tenant>(&"acme".parse().unwrap()).await.unwrap();
    assert_eq!(acme.members.values().filter(|role| **role == Role::Owner).count(), 1);
    world.run("opal", "tenants members acme --set nobody=viewer").await.fails(4, "not a member");
    world.run("opal", "tenants members acme --set vera=boss").await.fails(2, "boss");
    world.run("vera", "tenants members acme --remove vera").await.ok();
    world.run("vera", "ps acme/shop/dev").await.fails(4, "");
}

#[tokio::test]
async fn an_invitation_is_good_once() {
    let world = World::new().await;
    let invited = world.run("olga", "tenants invite acme --role viewer --json").await.ok().json();
    let code = invited["code"].as_str().unwrap().to_owned();
    let kept = serde_json::to_string(&world.store.list::<Invite>("").await.unwrap()[0].record).unwrap();
    assert!(!kept.contains(&code), "the code is kept in clear");
    assert!(code.len() == 32 && code.chars().all(|c| c.is_ascii_hexdigit()), "{code} may be taken for an option");
    let join = format!("tenants join {code}");
    let joins = futures::future::join_all(["stan", "eve", "mallory", "trent"].map(|who| world.run(who, &join))).await;
    let mut statuses: Vec<u8> = joins.iter().map(|said| said.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [0, 4, 4, 4]);
    assert!(world.events().await.iter().all(|event| !event.contains(&code)));
}

#[tokio::test]
async fn invitations_of_different_people_do_not_disturb_each_other() {
    let world = World::new().await;
    let mut joins = Vec::new();
    for who in ["ann", "ben", "cat", "don", "eve"] {
        let code =
            world.run("olga", "tenants invite acme --json").await.ok().json()["code"].as_str().unwrap().to_owned();
        let world = &world;
        joins.push(async move { (who, world.run(who, &format!("tenants join {code}")).await.status) });
    }
    for (who, status) in futures::future::join_all(joins).await {
        assert_eq!(status, 0, "{who} did not get in");
    }
    let acme = world.store.need::<Tenant>(&"acme".parse().unwrap()).await.unwrap();
    assert_eq!(acme.members.len(), 8);
}

#[tokio::test]
async fn an_invitation_takes_no_role_away_and_expires() {
    let world = World::new().await;
    let invite = async || world.run("olga", "tenants invite acme --role viewer --json").await.ok().json();
    let code = |json: serde_json::Value| json["code"].as_str().unwrap().to_owned();
    let joined = world.run("dan", &format!("tenants join {} --json", code(invite().await))).await.ok().json();
    assert_eq!(joined["role"], "developer");
    let late = code(invite().await);
    let stored = world.store.list::<Invite>("").await.unwrap().remove(0);
    let expired = Invite { expires_at: Timestamp::UNIX_EPOCH, ..stored.record.clone() };
    world.store.transaction().update(&stored, &expired).commit().await.unwrap();
    world.run("stan", &format!("tenants join {late}")).await.fails(4, "expired");
    invite().await;
    assert_eq!(world.store.list::<Invite>("").await.unwrap().len(), 1, "what has expired is kept");
}

#[tokio::test]
async fn invitations_go_with_the_right_to_make_them() {
    let world = World::new().await;
    let invite = async |who: &str| {
        let invited = world.run(who, "tenants invite acme --role owner --json").await.ok().json();
        format!("tenants join {}", invited["code"].as_str().unwrap())
    };
    for change in ["--set dan=developer", "--remove dan"] {
        world.run("olga", "tenants members acme --set dan=owner").await.ok();
        let (join, kept) = (invite("dan").await, invite("olga").await);
        let made = world.store.list::<Invite>("").await.unwrap();
        let dans = made.iter().find(|invite| invite.created_by.as_str() == "dan").unwrap().record.clone();
        world.run("olga", &format!("tenants members acme {change}")).await.ok();
        assert!(world.store.get::<Invite>(&dans.code_hash).await.unwrap().is_none(), "{change}: it is kept");
        // One that was made at the very same time.
        world.store.transaction().create(&dans).commit().await.unwrap();
        world.run("dan", &join).await.fails(4, "withdrawn");
        world.run("stan", &join).await.fails(4, "withdrawn");
        world.run("ann", &kept).await.ok();
    }
    for maker in ["opal", "host"] {
        let join = invite(maker).await;
        world.run("ben", &join).await.ok();
    }
}

/// Starts a command, takes its caller's membership away once it has said `text`, and waits for its end.
async fn loses_access(world: &World, who: &str, line: &str, text: &str) -> Said {
    let lines = ["tenants members acme --set olga=owner".to_owned(), format!("tenants members acme --remove {who}")];
    ends_with(world, caller(who), line, text, lines).await
}

/// Starts a command and, once it has said `text`, has olga do two others, of which only the second one must end it.
pub(super) async fn ends_with(world: &World, who: Caller, line: &str, text: &str, lines: [String; 2]) -> Said {
    let argv = line.split(' ').map(str::to_owned).collect();
    let (_controls, controls) = mpsc::channel(4);
    let ((stdout, mut out), (stderr, mut err)) = (tokio::io::duplex(1 << 20), tokio::io::duplex(1 << 20));
    let (stdin, _input) = tokio::io::duplex(16);
    let io = CommandIo::new(stdin, stdout, stderr, controls);
    let commands = world.commands.clone();
    let running = tokio::spawn(async move { commands.run(who, argv, io).await });
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        assert_ne!(out.read_buf(&mut seen).await.unwrap(), 0, "{line} has ended");
    }
    world.run("olga", &lines[0]).await.ok();
    assert!(!running.is_finished(), "{line} has ended for no reason");
    world.run("olga", &lines[1]).await.ok();
    let status = tokio::time::timeout(Duration::from_secs(10), running).await.expect("it goes on").unwrap();
    let mut stderr = String::new();
    err.read_to_string(&mut stderr).await.unwrap();
    Said { status, stdout: String::from_utf8_lossy(&seen).into_owned(), stderr }
}

#[tokio::test]
async fn what_goes_on_ends_with_the_membership() {
    let world = World::new().await;
    let mut writer = world.logs.build_writer(&shop(), BuildNumber(7)).unwrap();
    writer.write(b"-----> Compiling\n");
    let under_way = build(&shop(), 7, BuildState::Running { stage: Stage::Build });
    world.store.transaction().create(&under_way).commit().await.unwrap();
    for (who, line, text) in [
        ("vera", "logs acme/shop/dev -f", "hello"),
        ("vic", "builds logs acme/shop/dev 7 -f", "Compiling"),
        ("dan", "run acme/shop/dev -- forever", "began"),
    ] {
        if who == "vic" {
            let join = world.run("olga", "tenants invite acme --role viewer --json").await.ok().json();
            world.run(who, &format!("tenants join {}", join["code"].as_str().unwrap())).await.ok();
        }
        loses_access(&world, who, line, text).await.fails(3, "your membership of acme has changed");
    }
}
