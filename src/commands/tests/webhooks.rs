//! `webhooks …`.

use super::*;

const URL: &str = "https://hooks.example.com:8443/v1/s3cr3t?token=s3cr3t";

#[tokio::test]
async fn a_webhook_is_added_shown_without_secrets_and_removed() {
    let world = World::new().await;
    world.run("olga", "webhooks remove acme 1a2b3c4d").await.ok();
    let added = world.run("olga", &format!("webhooks add acme {URL} --type build. --json")).await.ok().json();
    let secret = added["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_") && secret.len() > 40, "{secret}");
    for (who, line) in [("vera", "webhooks list acme"), ("vera", "webhooks list acme --json"), ("olga", "events")] {
        let said = world.run(who, line).await.ok().says("https://hooks.example.com:8443/…");
        assert!(!said.stdout.contains("s3cr3t") && !said.stdout.contains(secret), "{said:?}");
    }
    let listed = world.run("vera", "webhooks list acme --json").await.ok().json();
    assert_eq!((&listed[0]["id"], &listed[0]["types"]), (&added["id"], &serde_json::json!(["build."])));
    let id = added["id"].as_str().unwrap();
    world.run("olga", &format!("webhooks disable acme {id}")).await.ok();
    world.run("olga", &format!("webhooks disable acme {id}")).await.ok().says("already");
    world.run("vera", "webhooks list acme").await.ok().says("disabled");
    world.run("olga", &format!("webhooks enable acme {id}")).await.ok().says("from now on");
    world.run("olga", &format!("webhooks remove acme {id}")).await.ok();
    world.run("olga", &format!("webhooks remove acme {id}")).await.fails(4, "has no webhook");
    let events = world.events().await.join("\n");
    for text in ["added the webhook", "disabled the webhook", "enabled the webhook", "removed the webhook"] {
        assert!(events.contains(&format!("\"webhook.changed\" {text}")), "{events}");
    }
}

#[tokio::test]
async fn urls_and_types_are_looked_at() {
    let world = World::new().await;
    for (url, why) in [
        ("hooks.example.com", "the URL cannot be used"),
        ("ftp://hooks.example.com/", "https://"),
        ("http://hooks.example.com/", "webhooks.allow_http"),
        ("https:///hooks.example.com/", "names no host"),
        ("https://hooks.example.com:0/", "no port 0"),
        ("https://hooks.example.com/#part", "a fragment"),
        ("https://user:pass@hooks.example.com/", "a user name or a password"),
        ("https://127.0.0.1/", "outbound.allowed_networks"),
        ("https://[::ffff:10.0.0.1]/", "outbound.allowed_networks"),
        ("https://169.254.169.254/latest", "link-local"),
    ] {
        world.run("olga", &format!("webhooks add acme {url}")).await.fails(2, why);
    }
    world.run("olga", &format!("webhooks add acme {URL} --type Build")).await.fails(2, "not the beginning");
    world.run("olga", "webhooks list acme/shop").await.fails(2, "");
}

#[tokio::test]
async fn a_tenant_has_a_bounded_number_and_a_test_says_what_went_wrong() {
    let world = World::new().await;
    world.run("olga", "webhooks test acme 1a2b3c4d").await.fails(1, "for documentation");
    let log = world.run("vera", "webhooks deliveries acme 1a2b3c4d --json").await.ok().json();
    assert!(log[0]["error"].as_str().unwrap().contains("outbound.allowed_networks"), "{log}");
    assert_eq!(log[0]["type"], "dev.berth.webhook.ping");
    for _ in 1..20 {
        world.run("olga", &format!("webhooks add acme {URL}")).await.ok();
    }
    world.run("olga", &format!("webhooks add acme {URL}")).await.fails(5, "20 webhooks");
}
