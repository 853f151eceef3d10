//! `events` and its stream: who may read what, from where, and that no secret is ever in it.

use std::pin::Pin;

use futures::{Stream, StreamExt};

use super::*;
use crate::{
    events::{EventFilter, StreamEnd, Told},
    store::NewEvent,
};

const PATIENCE: Duration = Duration::from_secs(30);

type Tellings = Pin<Box<dyn Stream<Item = Result<Told, StreamEnd>> + Send>>;

fn filter(tenant: Option<&str>, app: Option<&str>, kind: &'static str) -> EventFilter {
    EventFilter::parse(tenant, app, None, [kind]).unwrap()
}

impl World {
    async fn stream(&self, who: &str, filter: EventFilter, after: Option<u64>) -> Tellings {
        Box::pin(self.commands.event_stream(&caller(who), filter, after).await.unwrap())
    }

    async fn happens(&self, tenant: &str, message: &str) -> u64 {
        let event = NewEvent::new(EventKind::AppCreated, Timestamp::now(), message);
        self.store.record(event.tenant(&tenant.parse().unwrap())).await.unwrap().id
    }
}

async fn next(told: &mut Tellings) -> Result<String, StreamEnd> {
    match tokio::time::timeout(PATIENCE, told.next()).await.expect("something is told in time") {
        Some(Ok(Told::Event(event))) => Ok(event.message.clone()),
        Some(Ok(Told::Missed { from, to })) => Ok(format!("missed {from} to {to}")),
        Some(Err(end)) => Err(end),
        None => Ok("the end".to_owned()),
    }
}

#[tokio::test]
async fn replayed_then_live_and_only_what_one_may_see() {
    let world = World::new().await;
    let first = world.happens("acme", "a").await;
    world.happens("other", "b").await;
    world.happens("acme", "c").await;
    let mut vera = world.stream("vera", EventFilter::default(), Some(0)).await;
    let mut live = world.stream("vera", EventFilter::default(), None).await;
    let mut after = world.stream("vera", filter(Some("acme"), None, ""), Some(first)).await;
    let mut stan = world.stream("stan", EventFilter::default(), Some(0)).await;
    let mut opal = world.stream("opal", EventFilter::default(), Some(0)).await;
    world.happens("acme", "d").await;
    let platform = NewEvent::new(EventKind::EngineLost, Timestamp::now(), "e");
    world.store.record(platform).await.unwrap();
    world.happens("acme", "f").await;
    world.happens("other", "g").await;
    for (told, want) in [(&mut vera, "acdf"), (&mut after, "cdf"), (&mut stan, "bg"), (&mut opal, "abcdefg")] {
        for letter in want.chars() {
            assert_eq!(next(told).await.unwrap(), letter.to_string(), "{want}");
        }
    }
    // Only what comes; what was recorded just before may not have reached the hub then.
    let mut letter = next(&mut live).await.unwrap();
    while letter != "d" {
        assert!("ac".contains(&letter), "{letter}");
        letter = next(&mut live).await.unwrap();
    }
    assert_eq!(next(&mut live).await.unwrap(), "f");
    for (who, filter) in [("stan", filter(Some("acme"), None, "")), ("stan", filter(None, Some("acme/shop"), ""))] {
        let refused = world.commands.event_stream(&caller(who), filter, None).await.err().unwrap();
        assert!(matches!(refused, CommandError::NotFound(_)), "{refused:?}");
    }
    let typo = world.commands.event_stream(&caller("vera"), filter(None, Some("acme/shpo"), ""), None).await.err();
    assert!(typo.unwrap().to_string().contains("did you mean acme/shop?"));
}

#[tokio::test]
async fn whoever_loses_the_membership_reads_no_further() {
    let world = World::new().await;
    let mut vera = world.stream("vera", filter(Some("acme"), None, "app."), Some(0)).await;
    let mut all = world.stream("vera", filter(None, None, "app."), Some(0)).await;
    world.happens("acme", "before").await;
    assert_eq!(next(&mut vera).await.unwrap(), "before");
    assert_eq!(next(&mut all).await.unwrap(), "before");
    world.run("olga", "tenants members acme --remove vera").await.ok();
    world.happens("acme", "after").await;
    let end = next(&mut vera).await.expect_err("it ends");
    assert!(matches!(&end, StreamEnd::AccessLost { reason } if reason.contains("acme")), "{end:?}");
    assert_eq!(next(&mut vera).await.unwrap(), "the end");
    // Of everything, what is left.
    let join = |tenant: &mut Tenant| {
        tenant.members.insert("vera".parse().unwrap(), Role::Viewer);
        Ok::<_, StoreError>(())
    };
    world.store.modify::<Tenant, StoreError>(&"other".parse().unwrap(), join).await.unwrap();
    world.happens("other", "elsewhere").await;
    assert_eq!(next(&mut all).await.unwrap(), "elsewhere");
    // So it is for one who is no operator any more.
    let mut opal = world.stream("opal", EventFilter::default(), None).await;
    let demote = |user: &mut User| {
        user.operator = false;
        Ok::<_, StoreError>(())
    };
    let demoted = async {
        world.store.modify::<User, StoreError>(&"opal".parse().unwrap(), demote).await.unwrap();
    };
    let ((), end) = tokio::join!(demoted, async {
        loop {
            if let Err(end) = next(&mut opal).await {
                return end;
            }
        }
    });
    assert!(matches!(end, StreamEnd::AccessLost { .. }), "{end:?}");
}

#[tokio::test]
async fn numbers_from_the_future_are_told() {
    let world = World::new().await;
    let last = world.happens("acme", "a").await;
    let mut told = world.stream("vera", EventFilter::default(), Some(last + 5)).await;
    assert_eq!(next(&mut told).await.unwrap(), format!("missed {} to {}", last + 1, last + 5));
    world.happens("acme", "b").await;
    assert_eq!(next(&mut told).await.unwrap(), "b");
}

#[tokio::test]
async fn the_command_filters_and_goes_on_after_a_number() {
    let world = World::new().await;
    world.run("olga", "apps create acme/blog").await.ok();
    world.run("dan", "scale acme/shop/dev web=3").await.ok();
    let lines = |said: Said| -> Vec<serde_json::Value> {
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = lines(world.run("vera", "events --json").await.ok());
    let scaled = &lines(world.run("vera", "events --type scale. --json").await.ok())[0];
    assert_eq!((&scaled["kind"], &scaled["env"]), (&"scale.changed".into(), &"dev".into()));
    assert_eq!(scaled["data"]["new"], serde_json::json!({"web": 3}));
    let blog = lines(world.run("vera", "events --app acme/blog --json").await.ok());
    assert!(!blog.is_empty() && blog.iter().all(|event| event["app"] == "blog"), "{blog:?}");
    let first = all[0]["id"].as_u64().unwrap();
    assert_eq!(lines(world.run("vera", &format!("events --after {first} --json")).await.ok()), all[1..]);
    assert_eq!(lines(world.run("vera", &format!("events --after {first} -n 1 --json")).await.ok()), all[1..2]);
    world.run("vera", "events --type build.finish").await.fails(2, "did you mean build.finished?");
    world.run("vera", "events --tenant acme --app other/app").await.fails(2, "is not of acme");
    world.run("stan", "events --app acme/shop").await.fails(4, "no tenant acme");
}

#[tokio::test]
async fn what_a_role_lacks_is_told_to_its_tenant_but_not_all_the_time() {
    let world = World::new().await;
    let mut told = world.stream("olga", filter(Some("acme"), None, "access.denied"), None).await;
    for _ in 0..50 {
        world.run("vera", "scale acme/shop/dev web=2").await.fails(3, "viewer");
    }
    world.run("dan", "tenants create mine").await.fails(3, "operator");
    world.run("dan", "apps create acme/x").await.fails(3, "owner");
    let mut who = Vec::new();
    while who.last().is_none_or(|who: &String| !who.starts_with("dan")) {
        who.push(next(&mut told).await.unwrap());
    }
    assert_eq!(who.len(), 6, "{who:?}");
    assert_eq!(who[0], "vera was refused for lack of a role in acme: operate");
    // What only operators may do concerns the platform.
    assert!(world.events().await.iter().any(|event| event.contains("dan may not create tenants")));
}

#[tokio::test]
async fn no_value_of_config_is_ever_in_an_event() {
    const SECRET: &str = "hunter2-correct-horse";
    let world = World::new().await;
    world.run("dan", &format!("config set acme/shop/dev PASSWORD={SECRET} OTHER={SECRET}")).await.ok();
    world.run("dan", "config unset acme/shop/dev OTHER").await.ok();
    world.run("dan", &format!("config set acme/shop/prod PASSWORD={SECRET}")).await.ok();
    world.run("dan", &format!("config set acme/shop/dev {SECRET}")).await.fails(2, "KEY=VALUE");
    world.run("vera", &format!("config set acme/shop/dev A={SECRET}")).await.fails(3, "viewer");
    world.run("dan", "scale acme/shop/dev web=2").await.ok();
    world.run("dan", "restart acme/shop/dev").await.ok();
    world.run("dan", "rollback acme/shop/dev").await.ok();
    world.feed("dan", &format!("run acme/shop/dev -- echo {SECRET}"), b"").await;
    let events = world.store.list::<Event>("").await.unwrap();
    let all = serde_json::to_string(&events.iter().map(|event| &event.record).collect::<Vec<_>>()).unwrap();
    assert!(!all.contains(SECRET) && !all.contains("hunter2"), "{all}");
    let changed: Vec<_> = events.iter().filter(|event| event.kind == EventKind::ConfigChanged).collect();
    assert_eq!(changed[0].data.get("set"), Some(&serde_json::json!(["OTHER", "PASSWORD"])));
    assert_eq!(changed[1].data.get("unset"), Some(&serde_json::json!(["OTHER"])));
    assert_eq!(changed[2].data.get("release"), Some(&serde_json::Value::Null), "nothing runs there");
    assert!(changed.iter().all(|event| event.actor == Some("dan".parse().unwrap())));
}
