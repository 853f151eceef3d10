//! What is begun with an `Idempotency-Key` is begun once.

use super::*;
use crate::domain::{Build, Release};

impl Server {
    /// How many builds and releases there are of the environment.
    async fn begun(&self) -> (usize, usize) {
        let builds = self.world.store.list::<Build>("acme/shop/dev/").await.unwrap();
        let releases = self.world.store.list::<Release>("acme/shop/dev/").await.unwrap();
        (builds.len(), releases.len())
    }
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
