//! What is begun with an `Idempotency-Key` is begun once.

use std::time::Duration;

use axum::response::Response;
use tokio::sync::oneshot;

use super::*;
use crate::{
    api::{idempotency::Answers, problem::Problem},
    commands::{Caller, Door},
    domain::{Build, OnceRequest, Release},
    store::open_store,
};

impl Server {
    /// How many builds and releases there are of the environment.
    async fn begun(&self) -> (usize, usize) {
        let builds = self.world.store.list::<Build>("acme/shop/dev/").await.unwrap();
        let releases = self.world.store.list::<Release>("acme/shop/dev/").await.unwrap();
        (builds.len(), releases.len())
    }
}

#[tokio::test]
async fn what_is_asked_twice_with_one_key_is_done_once() {
    let server = Server::new().await;
    let (olga, dan) = (server.token("olga").await, server.token("dan").await);
    let key = [("idempotency-key", "3f1c")];
    let make = async |token: &str, name: &str| {
        server.ask_with(token, "POST", "/v1/apps", Some(json!({"name": name})), &key).await
    };
    let first = make(&olga, "acme/one").await.is(201);
    let again = make(&olga, "acme/one").await.is(201);
    assert_eq!((first.body, &again.headers["idempotency-replayed"]), (again.body, &"true".parse().unwrap()));
    make(&olga, "acme/two").await.is(422);
    // Another token of hers is not told what came of it, and does not do it again.
    let (second, read) = (server.token("olga").await, server.scoped("olga", "--scope read").await);
    for token in [&second, &read] {
        let other = make(token, "acme/one").await.is(422);
        assert!(other.body["detail"].as_str().unwrap().contains("another token"), "{other:?}");
        assert!(!other.body.to_string().contains("manifest"), "{other:?}");
    }
    // The key is one's own, and what failed is tried again.
    make(&dan, "acme/one").await.is(403);
    make(&dan, "acme/one").await.is(403);
    let invite = async || {
        server
            .ask_with(
                &olga,
                "POST",
                "/v1/tenants/acme/invitations",
                Some(json!({"role": "viewer"})),
                &[("idempotency-key", "k")],
            )
            .await
    };
    let code = invite().await.is(201).body["code"].clone();
    assert!(code.is_string());
    // Its secret is shown once, and was not kept.
    invite().await.is(409);
    let kept = server.world.store.list::<OnceRequest>("").await.unwrap();
    let kept = format!("{:?}", kept.iter().map(|one| &one.record).collect::<Vec<_>>());
    assert!(kept.contains("acme/one") && !kept.contains(code.as_str().unwrap()), "{kept}");
    // After a restart of a server that had not finished.
    let kept = server.world.store.list::<OnceRequest>("").await.unwrap();
    let stored = kept.into_iter().find(|one| one.answer.as_ref().is_some_and(|(_, body)| body.is_some())).unwrap();
    let torn = OnceRequest { answer: None, server: 1, ..stored.record.clone() };
    server.world.store.transaction().update(&stored, &torn).commit().await.unwrap();
    let unknown = make(&olga, "acme/one").await.is(409);
    assert!(unknown.body["detail"].as_str().unwrap().contains("restarted"), "{unknown:?}");
}

#[tokio::test]
async fn what_is_begun_is_begun_once_with_one_key() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let requests = [
        ("rollback", json!({"version": 1}), json!({"version": 2})),
        ("redeploy", json!({"no_cache": true}), json!({})),
        ("restart", Value::Null, Value::Null),
    ];
    for (verb, asked, other) in requests {
        let path = format!("{DEV}/{verb}");
        let ask = async |body: &Value| {
            let body = (!body.is_null()).then(|| body.clone());
            server.ask_with(&olga, "POST", &path, body, &[("idempotency-key", verb)]).await
        };
        let first = ask(&asked).await.is(202);
        let begun = server.begun().await;
        let again = ask(&asked).await.is(202);
        assert_eq!((&first.body, &again.headers["idempotency-replayed"]), (&again.body, &"true".parse().unwrap()));
        assert_eq!(server.begun().await, begun, "{verb}");
        if other != asked {
            ask(&other).await.is(422);
        }
    }
    // What failed is tried again.
    for (verb, body) in [("promote", json!({"from": "acme/shop/gone"})), ("deployments", json!({"image": "x"}))] {
        for _ in 0..2 {
            let path = format!("{DEV}/{verb}");
            let answer = server.ask_with(&olga, "POST", &path, Some(body.clone()), &[("idempotency-key", verb)]).await;
            assert!(answer.status.is_client_error() && answer.status != 422, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn an_archive_is_built_once_with_one_key() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let send = async |query: &str, archive: &'static str| {
        let request = Request::post(format!("{DEV}/builds{query}"))
            .header(header::AUTHORIZATION, format!("Bearer {olga}"))
            .header(header::CONTENT_TYPE, "application/gzip")
            .header(header::CONTENT_LENGTH, archive.len())
            .header("idempotency-key", "ci-7");
        server.send(request.body(Body::from(archive)).unwrap()).await
    };
    let first = send("", "an archive").await.is(202);
    let begun = server.begun().await;
    let again = send("", "an archive").await.is(202);
    assert_eq!((first.body, &again.headers["idempotency-replayed"]), (again.body, &"true".parse().unwrap()));
    send("", "another archive").await.is(422);
    send("?no_cache=true", "an archive").await.is(422);
    assert_eq!(server.begun().await, begun);
}

#[tokio::test]
async fn a_job_is_run_once_with_one_key() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let path = format!("{DEV}/cron/nightly/runs");
    let ask = async || server.ask_with(&olga, "POST", &path, None, &[("idempotency-key", "k")]).await.is(202);
    let (first, again) = (ask().await, ask().await);
    assert_eq!((first.body, &again.headers["idempotency-replayed"]), (again.body, &"true".parse().unwrap()));
    let runs = server.ask(&olga, "GET", &format!("{DEV}/cron-runs"), None).await.is(200).body;
    assert_eq!(runs["items"].as_array().unwrap().len(), 1, "{runs}");
}

/// What is posted and takes no key: what is shown as it comes, signing in, and what does the same when it is asked again.
const WITHOUT_KEY: [&str; 9] = [
    "/v1/envs/{tenant}/{app}/{env}/runs",
    "/v1/sign-in-links",
    "/v1/sign-in-links/owner",
    "/v1/sign-in-links/sessions",
    "/v1/sessions",
    "/v1/envs/{tenant}/{app}/{env}/builds/{id}/cancel",
    "/v1/envs/{tenant}/{app}/{env}/deployments/{id}/cancel",
    "/v1/tenants/{tenant}/webhooks/{id}/test",
    "/v1/collections",
];

#[test]
fn what_makes_or_begins_something_takes_a_key() {
    let document = serde_json::to_value(routes::document()).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let post = &operations["post"];
        let takes =
            post["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "Idempotency-Key"));
        assert!(
            post.is_null() || takes != WITHOUT_KEY.contains(&path.as_str()),
            "POST {path}: a key is taken: {takes}"
        );
    }
}

/// Requests that are done once, over a store on disk: its commits take a while, and go on when nobody waits for them.
struct OnDisk {
    once: Once,
    caller: Caller,
    _directory: tempfile::TempDir,
}

impl OnDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let once = Once::new(open_store(directory.path()).unwrap());
        let user = "olga".parse().unwrap();
        let caller = Caller { user, operator: false, door: Door::Api, rights: None, trace: None };
        Self { once, caller, _directory: directory }
    }

    async fn run(
        &self,
        key: Option<&'static str>,
        work: impl Future<Output = Result<Value, Problem>> + Send + 'static,
    ) -> Result<Response, Problem> {
        let headers = key.map(|key| ("idempotency-key".parse().unwrap(), key.parse().unwrap()));
        let headers = HeaderMap::from_iter(headers);
        let done = (Answers::Kept, StatusCode::CREATED);
        self.once.run(&self.caller, &headers, ("/apps", &Value::Null), done, work).await
    }
}

/// The client goes as soon as something was begun: whether the work is done nevertheless.
async fn is_done_though_the_client_goes(key: Option<&'static str>) {
    let server = OnDisk::new();
    let (tell, told) = oneshot::channel();
    let work = async move {
        tokio::task::yield_now().await;
        tell.send(()).unwrap();
        Ok(json!({}))
    };
    let mut asked = Box::pin(server.run(key, work));
    assert!(futures::poll!(&mut asked).is_pending());
    drop(asked);
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap().expect("it was given up");
}

#[tokio::test]
async fn what_has_a_key_is_done_though_the_client_goes_while_that_is_written_down() {
    is_done_though_the_client_goes(Some("k")).await;
}

#[tokio::test]
async fn what_has_no_key_is_done_though_the_client_goes() {
    is_done_though_the_client_goes(None).await;
}

#[tokio::test]
async fn what_has_panicked_may_be_tried_again_with_the_same_key() {
    let server = OnDisk::new();
    assert_eq!(server.run(Some("k"), async { panic!("as if it were broken") }).await.unwrap_err().status, 500);
    server.run(Some("k"), async { Ok(json!({})) }).await.unwrap();
}
