//! Being signed in with a browser: links, and how long sessions last.

use jiff::ToSpan;

use super::*;
use crate::domain::SignInLink;

impl World {
    /// The secret of a link that somebody asks for.
    async fn link(&self, who: &Caller) -> String {
        let made = self.run_as(who, "console --json").await.ok().json();
        made["url"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned()
    }

    async fn planted_full(&self, user: &str, minutes: i64) -> Caller {
        self.planted(user, TokenScope::Full, None, Timestamp::now() + minutes.minutes()).await
    }
}

#[tokio::test]
async fn a_session_lasts_no_longer_than_what_it_was_made_with() {
    let world = World::new().await;
    let brief = world.planted_full("dan", 20).await;
    let end = brief.rights.as_ref().unwrap().expires_at;
    let link = world.link(&brief).await;
    let by_link = world.commands.sign_in_by_link(&link).await.unwrap();
    let by_token = world.commands.sign_in(&brief).await.unwrap();
    assert_eq!((by_link.about.expires_at, by_token.about.expires_at), (end, end));

    let lasting = world.planted_full("dan", 60 * 24).await;
    let link = world.link(&lasting).await;
    let session = world.commands.sign_in_by_link(&link).await.unwrap().about;
    let hours = session.expires_at.duration_since(session.created_at).as_secs_f64() / 3600.0;
    assert!((11.9..12.1).contains(&hours), "a session of {hours} hours");
}

#[tokio::test]
async fn the_newest_links_of_a_user_are_kept_and_no_more() {
    let world = World::new().await;
    let (dan, vera) = (world.planted_full("dan", 60).await, world.planted_full("vera", 60).await);
    let others = world.link(&vera).await;
    let mut links = Vec::new();
    for _ in 0..13 {
        links.push(world.link(&dan).await);
    }
    assert_eq!(world.store.list::<SignInLink>("").await.unwrap().len(), 11);
    for (at, link) in links.iter().enumerate() {
        assert_eq!(world.commands.link_user(link).await.is_ok(), at >= 3, "link {at} of 13");
    }
    world.commands.link_user(&others).await.unwrap();
}

#[tokio::test]
async fn a_token_pushes_out_only_sessions_that_tokens_began() {
    let world = World::new().await;
    let link = world.link(&caller("dan")).await;
    let by_key = world.commands.sign_in_by_link(&link).await.unwrap();
    let (leaked, other) = (world.planted_full("dan", 60).await, world.planted_full("dan", 60).await);
    let by_other = world.commands.sign_in(&other).await.unwrap();
    let first = world.commands.sign_in(&leaked).await.unwrap();
    for _ in 0..30 {
        world.commands.sign_in(&leaked).await.unwrap();
    }
    for (session, good) in [(&by_key, true), (&by_other, true), (&first, false)] {
        let found = world.commands.authenticate_token(session.secret.reveal()).await.unwrap();
        assert_eq!(found.is_some(), good, "{:?}", session.about);
    }
    let sessions = world.store.list::<ApiToken>("").await.unwrap();
    assert_eq!(sessions.iter().filter(|token| token.session).count(), 1 + 1 + 5);
}

#[tokio::test]
async fn what_was_made_with_a_session_goes_when_it_is_pushed_out() {
    let world = World::new().await;
    let stolen = world.planted_full("dan", 60).await;
    let session = world.commands.sign_in(&stolen).await.unwrap();
    let session = world.commands.authenticate_token(session.secret.reveal()).await.unwrap().unwrap();
    let made = world.run_as(&session, "tokens create lasting --scope full --json").await.ok().json();
    assert!(world.with_token(&made).await.is_some());
    for _ in 0..5 {
        world.commands.sign_in(&stolen).await.unwrap();
    }
    assert!(world.with_token(&made).await.is_none(), "what was made with a session outlives it");
    world.run("dan", &format!("tokens revoke {}", stolen.rights.as_ref().unwrap().id)).await.ok();
    let left = world.store.list::<ApiToken>("").await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn whoever_goes_while_a_link_is_used_does_not_leave_it_used_for_nothing() {
    let world = World::new().await;
    let dan = world.planted_full("dan", 60).await;
    let link = world.link(&dan).await;
    let mut asked = Box::pin(world.commands.sign_in_by_link(&link));
    while !world.store.list::<SignInLink>("").await.unwrap().is_empty() {
        assert!(futures::poll!(&mut asked).is_pending());
    }
    drop(asked);
    let begun = async {
        while !world.store.list::<ApiToken>("").await.unwrap().iter().any(|token| token.session) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), begun).await.expect("the link is used, and nobody is signed in");
}
