//! Bearer tokens: what they are, and what they allow.

use jiff::ToSpan;

use super::{
    matrix::{CALLERS, MATRIX, Needs},
    people::ends_with,
    *,
};
use crate::token::api::{SecretError, TokenSecret};

/// Every kind of token: its scope, and the only tenant that it is for.
const TOKENS: [(TokenScope, Option<&str>); 8] = [
    (TokenScope::Metrics, None),
    (TokenScope::Read, None),
    (TokenScope::Deploy, None),
    (TokenScope::Full, None),
    (TokenScope::Read, Some("acme")),
    (TokenScope::Deploy, Some("acme")),
    (TokenScope::Full, Some("acme")),
    (TokenScope::Full, Some("other")),
];

impl World {
    /// Makes a token by its command; its JSON.
    pub(super) async fn token(&self, who: &str, options: &str) -> serde_json::Value {
        self.run(who, &format!("tokens create ci {options} --json")).await.ok().json()
    }

    /// Who comes with a token that was made so.
    pub(super) async fn with_token(&self, token: &serde_json::Value) -> Option<Caller> {
        self.commands.authenticate_token(token["token"].as_str().unwrap()).await.unwrap()
    }

    pub(super) async fn run_as(&self, who: &Caller, line: &str) -> Said {
        let (_controls, receiver) = mpsc::channel(4);
        self.ask(who.clone(), line, b"", receiver).await
    }

    /// A token written straight into the store, also where the command would refuse to make it; who comes with it.
    pub(super) async fn planted(
        &self,
        user: &str,
        scope: TokenScope,
        tenant: Option<&str>,
        expires_at: Timestamp,
    ) -> Caller {
        let (secret, user): (_, UserName) = (TokenSecret::generate(), user.parse().unwrap());
        let token = ApiToken {
            secret_hash: secret.hash(),
            id: secret.hash()[..12].to_owned(),
            name: "planted".into(),
            user: user.clone(),
            scope,
            tenant: tenant.map(|name| name.parse().unwrap()),
            created_at: Timestamp::now(),
            expires_at,
            last_used_at: None,
            made_with: None,
            session: false,
        };
        let read = self.store.get::<UserTokens>(&user).await.unwrap();
        let mut tokens = read.map(|read| read.record.tokens).unwrap_or_default();
        tokens.insert(token.id.clone(), token.secret_hash.clone());
        self.store.transaction().create(&token).put(&UserTokens { user, tokens }).commit().await.unwrap();
        self.commands.authenticate_token(secret.reveal()).await.unwrap().unwrap()
    }

    async fn change_token(&self, id: &serde_json::Value, change: impl Fn(&mut ApiToken)) {
        let tokens = self.store.list::<ApiToken>("").await.unwrap();
        let stored = tokens.into_iter().find(|token| token.id == id.as_str().unwrap()).unwrap();
        let mut token = stored.record.clone();
        change(&mut token);
        self.store.transaction().update(&stored, &token).commit().await.unwrap();
    }
}

fn in_a_day() -> Timestamp {
    Timestamp::now() + 24.hours()
}

/// The exit status with a token, where the user's own is `own`.
fn with_token(user: &str, own: u8, needs: Needs, scope: TokenScope, tenant: Option<&str>) -> u8 {
    let unlimited = scope == TokenScope::Full && tenant.is_none();
    let least = match needs {
        _ if scope == TokenScope::Metrics => return 3,
        Needs::Nothing => return own,
        Needs::Account if unlimited => return own,
        Needs::Account => return 3,
        Needs::Read => TokenScope::Read,
        Needs::Deploy => TokenScope::Deploy,
        Needs::Full => TokenScope::Full,
    };
    let member = matches!(user, "olga" | "dan" | "vera");
    match own {
        // Not a member, or an operator with a token that leaves that out; or the token is for another tenant.
        _ if !(member || user == "opal" && unlimited) || tenant == Some("other") => 4,
        _ if scope < least => 3,
        own => own,
    }
}

#[tokio::test]
async fn every_command_with_every_token() {
    let mut wrong = Vec::new();
    for (line, own, needs) in MATRIX {
        // Another one whenever something was changed in it.
        let mut world = World::new().await;
        for (user, own) in CALLERS.iter().zip(own).filter(|(user, _)| **user != "host") {
            let (refuses, takes): (Vec<_>, Vec<_>) = TOKENS
                .iter()
                .map(|(scope, tenant)| (scope, tenant, with_token(user, *own, *needs, *scope, *tenant)))
                .partition(|(.., wanted)| matches!(wanted, 3 | 4));
            for (scope, tenant, wanted) in refuses.into_iter().chain(takes) {
                let caller = world.planted(user, *scope, *tenant, in_a_day()).await;
                let before = world.store.revision().await.unwrap();
                let said = world.run_as(&caller, line).await;
                let token = format!("{user} with {scope} for {tenant:?}: {line}: {said:?}");
                if said.status != wanted {
                    wrong.push(format!("not {wanted}: {token}"));
                }
                let written = world.store.revision().await.unwrap() != before;
                assert!(!(written && matches!(wanted, 3 | 4)), "was denied and has written: {token}");
                assert!(!said.stderr.contains("hunter2") || said.status == 42, "a secret is told: {token}");
                if *tenant == Some("other") && !line.contains("acme") && *line != "help" {
                    assert!(!said.stdout.contains("acme"), "{token}");
                }
                if written {
                    world = World::new().await;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_token_is_shown_once_and_kept_as_its_hash() {
    let world = World::new().await;
    let said = world.run("dan", "tokens create ci --scope deploy --tenant acme --expires 30d").await.ok();
    let secret = said.stdout.split_whitespace().find(|word| word.starts_with("berth_pat_")).unwrap();
    assert!(
        said.stdout.contains("Authorization: Bearer $BERTH_TOKEN\" https://berth.example.com/v1/whoami\n")
            && said.stderr.is_empty(),
        "{said:?}"
    );
    let caller = world.commands.authenticate_token(secret).await.unwrap().unwrap();
    let rights = caller.rights.clone().unwrap();
    assert_eq!((caller.user.as_str(), caller.operator, caller.door), ("dan", false, Door::Api));
    assert_eq!((rights.scope, rights.tenant.as_ref().unwrap().as_str()), (TokenScope::Deploy, "acme"));
    let days = rights.expires_at.duration_since(Timestamp::now()).as_hours();
    assert!((29 * 24..=30 * 24).contains(&days), "{days}");

    for entry in world.store.kv().scan("").await.unwrap() {
        let value = String::from_utf8_lossy(&entry.value).into_owned();
        assert!(!value.contains(secret) && !entry.key.contains(secret), "it is kept in clear: {}", entry.key);
    }
    let events = world.events().await;
    let made = events.iter().find(|event| event.starts_with("\"token.created\"")).unwrap();
    assert!(made.contains(&rights.id) && made.contains("(ci)"), "{made}");
    let listed = world.run("dan", "tokens list --json").await.ok();
    assert_eq!(listed.json()[0]["id"], rights.id.as_str());
    let hash = TokenSecret::parse(secret).unwrap().hash();
    assert!(!listed.stdout.contains(secret) && !listed.stdout.contains(&hash), "{listed:?}");
    world.run("dan", "tokens list").await.ok().says(&rights.id).says("deploy").says("acme");

    let json = world.run_as(&caller, "whoami --json").await.ok().json();
    assert_eq!(json["token"]["id"], rights.id.as_str());
    assert_eq!((&json["token"]["scope"], &json["tenants"]["acme"]), (&"deploy".into(), &"developer".into()));
    world.run_as(&caller, "whoami").await.ok().says("(ci): scope deploy, for acme alone, until 20");
    // Nobody else's token is seen or revoked.
    world.run("stan", "tokens list").await.ok().says("No tokens");
    world.run("stan", &format!("tokens revoke {}", rights.id)).await.fails(4, "no token");
    // It tells what was wrong with a request.
    world.run_as(&caller, "config list acme/shop/dev").await.fails(3, "scope deploy");
    world.run_as(&caller, "ps other/app/dev").await.fails(4, "for acme alone");
    world.run_as(&caller, "tokens list").await.fails(3, &rights.id);
}

#[tokio::test]
async fn what_is_no_good_token_lets_nobody_in() {
    let world = World::new().await;
    let made = world.token("dan", "").await;
    assert_eq!((&made["scope"], &made["tenant"]), (&"read".into(), &serde_json::Value::Null));
    let secret = made["token"].as_str().unwrap();
    let mut mistyped = secret.to_owned();
    let last = if mistyped.pop() == Some('a') { 'b' } else { 'a' };
    mistyped.push(last);
    assert_eq!(TokenSecret::parse(&mistyped), Err(SecretError::Mistyped));
    for text in ["", "berth_pat_", &mistyped, &format!("{secret} "), TokenSecret::generate().reveal()] {
        assert_eq!(world.commands.authenticate_token(text).await.unwrap(), None, "{text}");
    }
    assert!(world.with_token(&made).await.is_some());
    world.change_token(&made["id"], |token| token.expires_at = Timestamp::now()).await;
    assert_eq!(world.with_token(&made).await, None, "it has expired");
    world.run("dan", "tokens list").await.ok().says("(expired)");
    let next = world.token("dan", "").await;
    assert_eq!(world.store.list::<ApiToken>("").await.unwrap().len(), 1, "what has expired is kept");
    assert!(world.with_token(&next).await.is_some());
    let dan = world.store.need::<User>(&"dan".parse().unwrap()).await.unwrap();
    world.store.transaction().delete(&dan).commit().await.unwrap();
    assert_eq!(world.with_token(&next).await, None, "there is no such user");
}

#[tokio::test]
async fn its_use_is_written_down_once_an_hour() {
    let world = World::new().await;
    let made = world.token("dan", "").await;
    let last_used = async || world.run("dan", "tokens list --json").await.ok().json()[0]["last_used_at"].clone();
    assert_eq!(last_used().await, serde_json::Value::Null);
    world.with_token(&made).await.unwrap();
    let (first, revision) = (last_used().await, world.store.revision().await.unwrap());
    assert_ne!(first, serde_json::Value::Null);
    world.with_token(&made).await.unwrap();
    assert_eq!(world.store.revision().await.unwrap(), revision, "each use is a write");
    world.change_token(&made["id"], |token| token.last_used_at = Some(Timestamp::now() - 61.minutes())).await;
    world.with_token(&made).await.unwrap();
    assert!(last_used().await.as_str() >= first.as_str());
}

#[tokio::test]
async fn a_user_has_so_many_tokens() {
    let world = World::new().await;
    for _ in 0..47 {
        world.run("dan", "tokens create ci").await.ok();
    }
    let made = futures::future::join_all((0..8).map(|_| world.run("dan", "tokens create ci"))).await;
    let count = |status| made.iter().filter(|said| said.status == status).count();
    assert_eq!((count(0), count(5)), (3, 5), "{made:?}");
    world.run("dan", "tokens create ci").await.fails(5, "50 tokens, which is the most");
    world.run("vera", "tokens create ci").await.ok();
    let first = world.run("dan", "tokens list --json").await.ok().json()[0]["id"].as_str().unwrap().to_owned();
    world.run("dan", &format!("tokens revoke {first}")).await.ok();
    world.run("dan", "tokens create ci").await.ok();
    assert_eq!(world.store.list::<ApiToken>("").await.unwrap().len(), 51);
    for name in ["", "a\u{7}b", &"x".repeat(61)] {
        let (_controls, controls) = mpsc::channel(4);
        let io = CommandIo::new(tokio::io::empty(), tokio::io::sink(), tokio::io::sink(), controls);
        let argv = ["tokens", "create", name].map(str::to_owned).to_vec();
        assert_eq!(world.commands.run(caller("vera"), argv, io).await, 2, "{name:?}");
    }
}

#[tokio::test]
async fn a_token_makes_no_wider_one_and_takes_those_it_made_along() {
    let world = World::new().await;
    let first = world.token("opal", "--scope full --expires 2d").await;
    let caller = world.with_token(&first).await.unwrap();
    assert!(caller.operator);
    let second = world.run_as(&caller, "tokens create more --scope full --expires 365d --json").await.ok().json();
    assert_eq!(second["expires_at"], first["expires_at"], "it lasts longer than what it was made with");
    let third = world.with_token(&second).await.unwrap();
    let third = world.run_as(&third, "tokens create most --json").await.ok().json();
    let other = world.token("opal", "").await;
    let id = first["id"].as_str().unwrap();
    world.run("dan", &format!("tokens revoke {id}")).await.fails(4, "no token");
    // With itself, from the outside, and by an operator: all are the same.
    world.run_as(&caller, &format!("tokens revoke {id}")).await.ok().says("and 2 made with it");
    for gone in [&first, &second, &third] {
        assert_eq!(world.with_token(gone).await, None);
    }
    assert!(world.with_token(&other).await.is_some());
    // Whoever asked at the very same time comes too late.
    world.run_as(&caller, "tokens create late --scope full").await.fails(3, "not good any more");
    let revoked = |events: Vec<String>| events.iter().filter(|event| event.starts_with("\"token.revoked\"")).count();
    assert_eq!(revoked(world.events().await), 3);

    let dans = world.token("dan", "").await;
    world.run("olga", "tokens list --user dan").await.fails(3, "operator");
    world.run("opal", "tokens list --user dan").await.ok().says(dans["id"].as_str().unwrap());
    world.run("host", &format!("tokens revoke {}", dans["id"].as_str().unwrap())).await.ok();
    assert_eq!(world.with_token(&dans).await, None);
}

#[tokio::test]
async fn a_token_goes_no_further_than_its_user_at_that_moment() {
    let world = World::new().await;
    let made = world.token("dan", "--scope full").await;
    let caller = world.with_token(&made).await.unwrap();
    world.run_as(&caller, "config list acme/shop/dev").await.ok();
    world.run("olga", "tenants members acme --set dan=viewer").await.ok();
    world.run_as(&caller, "config list acme/shop/dev").await.fails(3, "viewer");
    world.run("olga", "tenants members acme --remove dan").await.ok();
    world.run_as(&caller, "ps acme/shop/dev").await.fails(4, "no tenant");
    // Nor does one that only looks on take its user out of a tenant.
    let looks_on = world.with_token(&world.token("vera", "--scope deploy").await).await.unwrap();
    world.run_as(&looks_on, "tenants members acme --remove vera").await.fails(3, "");
    let full = world.with_token(&world.token("vera", "--scope full").await).await.unwrap();
    world.run_as(&full, "tenants members acme --remove vera").await.ok();
}

#[tokio::test]
async fn what_goes_on_ends_with_the_token() {
    let world = World::new().await;
    for (line, text) in [
        ("logs acme/shop/dev -f", "hello"),
        ("run acme/shop/dev -- forever", "began"),
        ("events --tenant acme -f", "token.created"),
    ] {
        let made = world.token("olga", "--scope full --tenant acme").await;
        let caller = world.with_token(&made).await.unwrap();
        let lines = ["tokens create another".to_owned(), format!("tokens revoke {}", made["id"].as_str().unwrap())];
        ends_with(&world, caller, line, text, lines).await.fails(3, "was revoked");
    }
    let ends = Timestamp::now() + 300.milliseconds();
    let caller = world.planted("olga", TokenScope::Read, None, ends).await;
    let lost = tokio::time::timeout(Duration::from_secs(10), world.commands.token_lost(&caller)).await.unwrap();
    assert!(Timestamp::now() >= ends && lost.to_string().contains("has expired"), "{lost}");
}
