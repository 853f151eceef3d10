//! `drains …`: what is kept, shown and refused.

use super::*;

#[tokio::test]
async fn drains_come_and_go_and_their_secrets_are_never_shown() {
    let world = World::new().await;
    let url = "https://ann:hunter2@logs.example.com/hunter2?token=hunter2";
    let said = world.run("dan", &format!("drains add acme/shop/dev {url}")).await.ok();
    assert!(said.stdout.contains("https://***@logs.example.com/…?*** (drain 1)"), "{said:?}");
    world.run("dan", &format!("drains add acme/shop/dev {url}")).await.fails(5, "by drain 1");
    world.run("dan", "drains add acme/shop/dev syslog+tls://logs.example.com --json").await.ok();
    // It begins where the log ended.
    let mark = world.store.need::<DrainMark>(&(shop(), 1)).await.unwrap();
    assert_eq!(mark.cursor, world.logs.end(&shop()).await.unwrap());
    assert_eq!(mark.cursor.line, 1);
    world.logs.append_when_ready(&shop(), LogRecord::berth(Timestamp::now(), "web.1", "one more")).await;
    let listed = world.run("vera", "drains list acme/shop/dev --json").await.ok().json();
    let first = &listed[0];
    assert_eq!(
        (&first["id"], &first["url"], &first["lag"], &first["dropped"], &first["state"]),
        (
            &serde_json::json!(1),
            &serde_json::json!("https://***@logs.example.com/…?***"),
            &serde_json::json!(1),
            &serde_json::json!(0),
            &serde_json::json!("starting")
        )
    );
    let table = world.run("vera", "drains list acme/shop/dev").await.ok().says("syslog+tls://logs.example.com");
    let events = world.events().await;
    assert!(events.iter().any(|event| event.starts_with("\"drain.changed\" the log of acme/shop/dev is sent to")));
    for text in [table.stdout, listed.to_string(), events.concat()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    world.run("dan", "drains remove acme/shop/dev 1").await.ok().says("no longer sent");
    world.run("dan", "drains remove acme/shop/dev 1").await.fails(4, "no drain 1");
    assert!(world.store.get::<DrainMark>(&(shop(), 1)).await.unwrap().is_none());
    world.run("olga", "envs destroy acme/shop/dev --confirm acme/shop/dev").await.ok();
    assert!(world.store.list::<Drain>("").await.unwrap().is_empty());
    assert!(world.store.list::<DrainMark>("").await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_receiver_is_refused_without_being_quoted() {
    let world = World::new().await;
    for (url, why) in [
        ("ftp://hunter2", "must begin with"),
        ("syslog://logs.example.com:601", "use syslog+tls://"),
        ("http://logs.example.com/?hunter2", "use https://"),
        ("https://169.254.169.254/hunter2", "only public addresses"),
        ("https://127.1/hunter2", "only public addresses"),
        ("syslog+tls://127.0.0.1", "only public addresses"),
        ("syslog+tls://hunter2@logs.example.com", "host and port alone"),
    ] {
        let said = world.run("dan", &format!("drains add acme/shop/dev {url}")).await.fails(2, why);
        assert!(!said.stderr.contains("hunter2"), "{said:?}");
    }
    for n in 0..5 {
        world.run("dan", &format!("drains add acme/shop/dev https://logs.example.com/{n}")).await.ok();
    }
    world.run("dan", "drains add acme/shop/dev https://logs.example.com/6").await.fails(5, "which is the most");
    assert_eq!(world.store.list::<Drain>("").await.unwrap().len(), 5);
}
