//! What is refused for the token, for what has changed meanwhile, and for names in the query.

use axum::http::Method;

use super::*;
use crate::domain::{Timestamp, User, Webhook, WebhookMark};

#[tokio::test]
async fn who_may_not_is_told_why_and_what_to_do() {
    let server = Server::new().await;
    let (vera, stan, olga) = (server.token("vera").await, server.token("stan").await, server.token("olga").await);
    let nobody = server.ask("nonsense", "GET", DEV, None).await.is(401);
    assert!(nobody.headers.contains_key(header::WWW_AUTHENTICATE) && nobody.body["hint"].is_string());
    let request = Request::get(DEV).body(Body::empty()).unwrap();
    server.send(request).await.is(401);
    // A viewer looks on; who is no member does not even learn that it exists.
    server.ask(&vera, "GET", DEV, None).await.is(200);
    server.ask(&vera, "PATCH", &format!("{DEV}/scale"), Some(json!({"web": 3}))).await.is(403);
    server.ask(&vera, "GET", &format!("{DEV}/config"), None).await.is(403);
    let hidden = server.ask(&stan, "GET", DEV, None).await.is(404);
    let missing = server.ask(&stan, "GET", "/v1/envs/nobody/shop/dev", None).await.is(404);
    assert_eq!(hidden.body["type"], missing.body["type"]);
    server.ask(&olga, "POST", "/v1/tenants", Some(json!({"name": "mine"}))).await.is(403);
    // A token allows no more than its scope.
    let read = server.scoped("olga", "--scope read").await;
    server.ask(&read, "GET", DEV, None).await.is(200);
    server.ask(&read, "POST", &format!("{DEV}/restart"), None).await.is(403);
}

#[tokio::test]
async fn what_a_client_likes_best_is_what_it_gets() {
    let server = Server::new().await;
    let vera = server.token("vera").await;
    for (accept, kind) in [
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream;q=0, text/plain", "text/plain; charset=utf-8"),
        ("application/x-ndjson;q=0.1, text/plain;q=1", "text/plain; charset=utf-8"),
        ("text/plain;q=0.5, application/x-ndjson", "application/x-ndjson"),
        // What logs do not come in.
        ("application/json, application/x-ndjson;q=0.9", "application/x-ndjson"),
        ("application/json, text/event-stream;q=0.9", "text/event-stream"),
        ("*/*", "text/plain; charset=utf-8"),
    ] {
        let request = Request::get(format!("{DEV}/logs")).header(header::AUTHORIZATION, format!("Bearer {vera}"));
        let request = request.header(header::ACCEPT, accept).body(Body::empty()).unwrap();
        let response = server.router.clone().oneshot(request).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()[header::CONTENT_TYPE]),
            (StatusCode::OK, &kind.parse().unwrap()),
            "{accept}"
        );
    }
}

#[tokio::test]
async fn one_request_shows_one_token() {
    let server = Server::new().await;
    let vera = format!("Bearer {}", server.token("vera").await);
    let request =
        Request::get("/v1/whoami").header(header::AUTHORIZATION, &vera).header(header::AUTHORIZATION, "Bearer x");
    server.send(request.body(Body::empty()).unwrap()).await.is(401);
}

#[tokio::test]
async fn what_is_off_is_told_with_its_place() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let scale = format!("{DEV}/scale");
    let ask = async |kind: &str, body: &str| {
        let request = Request::patch(&scale).header(header::AUTHORIZATION, format!("Bearer {olga}"));
        server.send(request.header(header::CONTENT_TYPE, kind).body(Body::from(body.to_owned())).unwrap()).await
    };
    let torn = ask("application/json", "{\"web\":\n  oops}").await.is(400);
    assert_eq!((&torn.body["line"], &torn.body["column"]), (&json!(2), &json!(3)));
    ask("text/plain", "{}").await.is(415);
    ask("application/json", "{}").await.is(400);
    let large = format!("{{\"web\": {}}}", " ".repeat(2 << 20));
    ask("application/json", &large).await.is(413);
    let unknown = ask("application/json", "{\"webs\": 1}").await.is(404);
    assert!(unknown.body["hint"].as_str().unwrap().contains("did you mean web"), "{unknown:?}");
    server.ask(&olga, "POST", &format!("{DEV}/rollback"), Some(json!({"versoin": 1}))).await.is(400);
    server.ask(&olga, "GET", "/v1/envs/ACME/shop/dev", None).await.is(400);
    server.ask(&olga, "GET", &format!("{DEV}/builds/x"), None).await.is(400);
    for (path, why) in [
        ("/v1/envs?limit=no", "limit: it is no whole number"),
        ("/v1/events?after=no", "it is no whole number"),
        ("/v1/envs/acme/shop/dev/metrics?from=soon", "write how long ago"),
        ("/v1/envs/acme/shop/dev/metrics?step=9", "at least 10 seconds"),
    ] {
        let off = server.ask(&olga, "GET", path, None).await.is(400);
        assert!(off.body["detail"].as_str().unwrap().contains(why), "{off:?}");
    }
    server.ask(&olga, "GET", &format!("{DEV}/metrics?from=10m"), None).await.is(200);
    server.ask(&olga, "GET", "/v1/nothing", None).await.is(404);
    server.ask(&olga, "PUT", "/v1/whoami", None).await.is(405);
}

#[tokio::test]
async fn a_change_of_what_others_have_changed_is_refused() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    for (path, change) in [(format!("{DEV}/config"), json!({"B": "2"})), (format!("{DEV}/scale"), json!({"web": 5}))] {
        let seen = server.ask(&olga, "GET", &path, None).await.is(200).tag();
        let again = server.ask_with(&olga, "GET", &path, None, &[("if-none-match", &seen)]).await;
        assert_eq!(again.status, StatusCode::NOT_MODIFIED);
        server.ask_with(&olga, "PATCH", &path, Some(change.clone()), &[("if-match", &seen)]).await.is(202);
        assert_ne!(server.ask(&olga, "GET", &path, None).await.is(200).tag(), seen);
        server.ask_with(&olga, "PATCH", &path, Some(change.clone()), &[("if-match", &seen)]).await.is(412);
    }
    let path = format!("{DEV}/domains/one.example.com");
    let seen = server.ask(&olga, "GET", &format!("{DEV}/domains"), None).await.is(200).tag();
    server.ask_with(&olga, "PUT", &path, None, &[("if-match", &seen)]).await.is(200);
    server.ask_with(&olga, "DELETE", &path, None, &[("if-match", &seen)]).await.is(412);
    server.ask_with(&olga, "DELETE", &path, None, &[("if-match", "*")]).await.is(200);
}

#[tokio::test]
async fn how_deliveries_go_is_no_change_of_a_webhook() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let (path, store) = ("/v1/tenants/acme/webhooks/deadbeef", &server.world.store);
    // It is disabled, so nobody else writes how its deliveries go.
    let like = store.list::<Webhook>("acme/").await.unwrap().remove(0).record;
    let webhook = Webhook { id: "deadbeef".parse().unwrap(), enabled: false, ..like };
    store.transaction().create(&webhook).commit().await.unwrap();
    let seen = server.ask(&olga, "GET", path, None).await.is(200);
    let mark = WebhookMark { missed: 7, failing_since: Some(Timestamp::now()), ..WebhookMark::of(&webhook, None) };
    store.transaction().create(&mark).commit().await.unwrap();
    let failing = server.ask(&olga, "GET", path, None).await.is(200);
    assert_eq!((&failing.body["missed"], failing.tag()), (&json!(7), seen.tag()));
    let on = Some(json!({"enabled": true}));
    server.ask_with(&olga, "PATCH", path, on.clone(), &[("if-match", &seen.tag())]).await.is(200);
    server.ask_with(&olga, "PATCH", path, on, &[("if-match", &seen.tag())]).await.is(412);
    assert_ne!(server.ask(&olga, "GET", path, None).await.is(200).tag(), seen.tag());
}

#[tokio::test]
async fn a_token_for_metrics_is_good_for_nothing_else() {
    let server = Server::new().await;
    let scraper = server.scoped("opal", "--scope metrics").await;
    let document = server.send(Request::get("/openapi.json").body(Body::empty()).unwrap()).await.is(200).body;
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 40, "{}", paths.len());
    for (path, operations) in paths {
        // Each name as one that there is; the document says where it goes.
        let path = path.replace("{tenant}", "acme").replace("{app}", "shop").replace("{env}", "dev");
        let path = path.replace("{id}", "2").replace("{user}", "dan").replace("{host}", "a.example.com");
        for (method, operation) in operations.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            // What takes no token at all: the secret of a link is enough for these.
            if operation["security"] == json!([{}]) {
                assert!(path.starts_with("/v1/sign-in-links/"), "{path} takes no token");
                continue;
            }
            if path != "/metrics"
                && matches!(method, Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE)
            {
                let refused = server.ask(&scraper, method.as_str(), &path, None).await;
                assert_eq!(refused.status, 403, "{method} {path}: {refused:?}");
            }
        }
    }
    let (status, kind, _) = server.text(&scraper, "/metrics", "*/*").await;
    assert!(status == 200 && kind.starts_with("text/plain; version=0.0.4"), "{status} {kind}");
    // Its user has to be an operator still.
    let opal = server.world.store.need::<User>(&"opal".parse().unwrap()).await.unwrap();
    let demoted = User { operator: false, ..opal.record.clone() };
    server.world.store.transaction().update(&opal, &demoted).commit().await.unwrap();
    server.ask(&scraper, "GET", "/metrics", None).await.is(403);
    let read = server.scoped("olga", "--scope read").await;
    server.ask(&read, "GET", "/metrics", None).await.is(403);
    let olga = server.token("olga").await;
    let made = json!({"name": "prometheus", "scope": "metrics"});
    server.ask(&olga, "POST", "/v1/tokens", Some(made)).await.is(403);
}

#[tokio::test]
async fn a_change_of_a_tenant_that_others_have_changed_is_refused() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let (tenant, members) = ("/v1/tenants/acme", "/v1/tenants/acme/members");
    let (dan, vera) = (format!("{members}/dan"), format!("{members}/vera"));
    let tags = async || {
        let tag = async |path| server.ask(&olga, "GET", path, None).await.is(200).tag();
        (tag(tenant).await, tag(members).await)
    };
    let (seen_tenant, seen_members) = tags().await;
    let again = server.ask_with(&olga, "GET", tenant, None, &[("if-none-match", &seen_tenant)]).await;
    assert_eq!(again.status, StatusCode::NOT_MODIFIED);
    for status in [200, 412] {
        let change = Some(json!({"require_manifest": true}));
        server.ask_with(&olga, "PATCH", tenant, change, &[("if-match", &seen_tenant)]).await.is(status);
    }
    // That is none of the members.
    assert_eq!(tags().await.1, seen_members);
    let role = Some(json!({"role": "viewer"}));
    server.ask_with(&olga, "PUT", &dan, role.clone(), &[("if-match", &seen_members)]).await.is(200);
    server.ask_with(&olga, "PUT", &vera, role, &[("if-match", &seen_members)]).await.is(412);
    server.ask_with(&olga, "DELETE", &vera, None, &[("if-match", &seen_members)]).await.is(412);
    let now = tags().await.1;
    server.ask_with(&olga, "DELETE", &vera, None, &[("if-match", &now)]).await.is(200);
}

#[tokio::test]
async fn names_in_a_query_that_nobody_knows_are_named() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    for (path, unknown, hint) in [
        ("/v1/envs?app=acme/shop&limt=2&x%22=1".to_owned(), "\"limt\", \"x\\\"\"", Some("did you mean limit?")),
        (format!("{DEV}?why=1"), "\"why\"; it takes none", None),
        (format!("{DEV}/logs?serch=x"), "\"serch\"", Some("did you mean search?")),
        ("/v1/events?types=build.".to_owned(), "\"types\"", Some("did you mean type?")),
        ("/metrics?a=b".to_owned(), "\"a\"", None),
    ] {
        let opal = server.token("opal").await;
        let off = server.ask(&opal, "GET", &path, None).await.is(400).body;
        assert!(off["detail"].as_str().unwrap().contains(unknown), "{path}: {off}");
        assert_eq!(off["hint"].as_str(), hint, "{path}: {off}");
    }
    let request = Request::get("/v1/events?typo=x").header(header::AUTHORIZATION, format!("Bearer {olga}"));
    server.send(request.header(header::ACCEPT, "text/event-stream").body(Body::empty()).unwrap()).await.is(400);
    server.ask(&olga, "POST", &format!("{DEV}/restart?now=1"), None).await.is(400);
    server.ask("nonsense", "GET", "/v1/envs?limt=2", None).await.is(401);
}

#[tokio::test]
async fn a_change_of_a_webhook_that_others_have_changed_is_refused() {
    let server = Server::new().await;
    let (olga, vera) = (server.token("olga").await, server.token("vera").await);
    let hook = "/v1/tenants/acme/webhooks/1a2b3c4d";
    let seen = server.ask(&vera, "GET", hook, None).await.is(200);
    assert!(!seen.body.to_string().contains("hunter2"), "{seen:?}");
    let seen = seen.tag();
    let again = server.ask_with(&vera, "GET", hook, None, &[("if-none-match", &seen)]).await;
    assert_eq!(again.status, StatusCode::NOT_MODIFIED);
    for status in [200, 412] {
        server.ask_with(&olga, "PATCH", hook, Some(json!({"enabled": false})), &[("if-match", &seen)]).await.is(status);
    }
    server.ask_with(&olga, "DELETE", hook, None, &[("if-match", &seen)]).await.is(412);
    let now = server.ask(&vera, "GET", hook, None).await.is(200).tag();
    server.ask_with(&olga, "DELETE", hook, None, &[("if-match", &now)]).await.is(200);
    server.ask(&vera, "GET", hook, None).await.is(404);
}

#[tokio::test]
async fn events_that_are_not_there_yet_are_not_waited_for() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    server.ask(&olga, "PUT", &format!("{DEV}/domains/api.example.com"), None).await.is(200);
    let newest = server.ask(&olga, "GET", "/v1/events", None).await.is(200).body["next"].as_u64().unwrap();
    server.ask(&olga, "GET", &format!("/v1/events?after={newest}"), None).await.is(200);
    let refused = server.ask(&olga, "GET", "/v1/events?after=99999999999", None).await.is(400);
    assert!(refused.body["detail"].as_str().unwrap().contains("no event 99999999999"), "{refused:?}");
    let stream = [("accept", "text/event-stream"), ("last-event-id", "abc")];
    let refused = server.ask_with(&olga, "GET", "/v1/events", None, &stream).await.is(400);
    assert!(refused.body["detail"].as_str().unwrap().contains("Last-Event-ID is \"abc\""), "{refused:?}");
}
