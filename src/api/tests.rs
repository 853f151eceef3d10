//! The API over services in memory: what each route takes, answers and refuses.

mod once;
mod refusals;
mod streams;

use std::num::NonZeroU32;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{Api, Inner, idempotency::Once, limit::Limits, routes};
use crate::{
    commands::tests::World,
    domain::{Timestamp, Webhook, WebhookMark},
};

/// An answer.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        if self.status.is_client_error() || self.status.is_server_error() {
            assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
            assert_eq!(self.body["status"], status);
            assert!(self.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{self:?}");
        }
        self
    }

    fn tag(&self) -> String {
        self.headers[header::ETAG].to_str().unwrap().to_owned()
    }
}

/// A server, and tokens for it.
struct Server {
    world: World,
    router: Router,
}

impl Server {
    async fn new() -> Self {
        let world = World::new().await;
        let limits = Limits::new(NonZeroU32::new(10_000).unwrap(), CONNECTIONS);
        let once = Once::new(world.store.clone());
        let inner = Inner { commands: world.commands.clone(), limits, once };
        Self { world, router: routes::router(Api(inner.into())) }
    }

    /// A token of a user with the most that it can be good for.
    async fn token(&self, who: &str) -> String {
        self.scoped(who, "--scope full").await
    }

    async fn scoped(&self, who: &str, options: &str) -> String {
        let made = self.world.run(who, &format!("tokens create test {options} --json")).await.ok().json();
        made["token"].as_str().unwrap().to_owned()
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn ask(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.ask_with(token, method, path, body, &[]).await
    }

    async fn ask_with(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request =
            Request::builder().method(method).uri(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }
}

/// One user may follow a hundred streams of them.
const CONNECTIONS: usize = 400;

const DEV: &str = "/v1/envs/acme/shop/dev";

#[tokio::test]
async fn whatever_can_be_read_is_as_documented() {
    let server = Server::new().await;
    let (olga, opal) = (server.token("olga").await, server.token("opal").await);
    let mut tagged = 0;
    for path in [
        "/v1/whoami",
        "/v1/keys",
        "/v1/tokens",
        "/v1/tenants",
        "/v1/tenants/acme",
        "/v1/tenants/acme/members",
        "/v1/apps",
        "/v1/apps?tenant=acme",
        "/v1/apps/acme/shop",
        "/v1/envs",
        "/v1/envs?app=acme/shop",
        DEV,
        &format!("{DEV}/scale"),
        &format!("{DEV}/config"),
        &format!("{DEV}/config/SECRET"),
        &format!("{DEV}/domains"),
        &format!("{DEV}/cron"),
        &format!("{DEV}/cron-runs"),
        &format!("{DEV}/builds"),
        &format!("{DEV}/builds/2"),
        &format!("{DEV}/releases"),
        &format!("{DEV}/releases/v2"),
        &format!("{DEV}/deployments"),
        &format!("{DEV}/deployments/2"),
        &format!("{DEV}/metrics"),
        &format!("{DEV}/drains"),
        "/v1/tenants/acme/webhooks",
        "/v1/tenants/acme/webhooks/1a2b3c4d",
        "/v1/events",
        "/v1/events?tenant=acme&type=token.,build.finished&limit=5",
    ] {
        let answer = server.ask(&olga, "GET", path, None).await.is(200);
        assert!(answer.body.is_object() || answer.body.is_array(), "{path}: {answer:?}");
        tagged += usize::from(answer.headers.contains_key(header::ETAG));
    }
    let document = serde_json::to_value(routes::document()).unwrap();
    let operations = document["paths"].as_object().unwrap().values().map(|path| &path["get"]["responses"]);
    let documented = operations.filter(|all| !all["304"].is_null() && !all["200"]["headers"]["ETag"].is_null()).count();
    assert_eq!(documented, tagged, "what has a tag says so");
    server.ask(&opal, "GET", "/v1/keys?all=true", None).await.is(200);
    let events = server.ask(&opal, "GET", "/v1/events?type=token.", None).await.is(200).body;
    let source = events["items"][0]["source"].as_str().unwrap();
    assert!(source.starts_with("https://berth.example.com/"), "{source}");
    let platform = server.ask(&opal, "GET", "/v1/platform", None).await.is(200).body;
    assert_eq!((&platform["engine"]["answers"], &platform["missing"][0]["what"]), (&json!(false), &json!("engine")));
    assert_eq!((&platform["counts"]["tenants"], &platform["counts"]["replicas_wanted"]), (&json!(2), &json!(3)));
    server.ask(&olga, "GET", "/v1/platform", None).await.is(403);
    server.ask(&opal, "POST", "/v1/collections", Some(json!({"dry_run": true}))).await.is(200);
}

#[tokio::test]
async fn changes_are_those_of_the_commands() {
    let server = Server::new().await;
    let (olga, opal) = (server.token("olga").await, server.token("opal").await);
    let made = server.ask(&opal, "POST", "/v1/tenants", Some(json!({"name": "new", "owner": "olga"}))).await.is(201);
    assert_eq!(made.body["members"], json!({"olga": "owner"}));
    let app = server.ask(&olga, "POST", "/v1/apps", Some(json!({"name": "new/api"}))).await.is(201);
    assert!(app.body["manifest"].as_str().unwrap().contains("app: new/api"), "{app:?}");
    server.ask(&olga, "POST", "/v1/apps", Some(json!({"name": "new/api"}))).await.is(409);
    let made = server.ask(&olga, "POST", "/v1/envs", Some(json!({"name": "new/api/test"}))).await.is(201);
    assert!(made.body["remote"].as_str().unwrap().ends_with("/new/api/test"));
    let scaled = server.ask(&olga, "PATCH", &format!("{DEV}/scale"), Some(json!({"web": 3}))).await.is(202);
    assert_eq!(scaled.body["scale"]["web"], 3);
    server.ask(&olga, "DELETE", &format!("{DEV}/scale"), None).await.is(202);
    server.ask(&olga, "POST", &format!("{DEV}/restart"), None).await.is(202);
    let changed =
        server.ask(&olga, "PATCH", &format!("{DEV}/config"), Some(json!({"A": "1", "SECRET": null}))).await.is(202);
    assert_eq!(changed.body["changed"], true);
    let release = changed.body["deployment"].as_u64().unwrap();
    server.ask(&olga, "GET", &format!("{DEV}/deployments/{release}"), None).await.is(200);
    let config = server.ask(&olga, "GET", &format!("{DEV}/config"), None).await.is(200);
    assert_eq!((&config.body["A"], &config.body["SECRET"]), (&json!("1"), &Value::Null));
    let begun = server.ask(&olga, "POST", &format!("{DEV}/rollback"), Some(json!({"version": 1}))).await.is(202);
    assert_eq!(begun.body["env"], "acme/shop/dev");
    let queued = server.ask(&olga, "POST", &format!("{DEV}/redeploy"), Some(json!({"no_cache": true}))).await.is(202);
    server.ask(&olga, "GET", &format!("{DEV}/builds/{}", queued.body["build"]), None).await.is(200);
    let put = async || server.ask(&olga, "PUT", &format!("{DEV}/domains/api.example.com"), None).await.is(200).body;
    let (domains, again) = (put().await, put().await);
    assert!(domains.to_string().contains("api.example.com"));
    assert_eq!(domains, again);
    server.ask(&olga, "DELETE", &format!("{DEV}/domains/api.example.com"), None).await.is(200);
    let code = server.ask(&olga, "POST", "/v1/tenants/acme/invitations", Some(json!({"role": "viewer"}))).await.is(201);
    let stan = server.token("stan").await;
    server.ask(&stan, "POST", "/v1/memberships", Some(json!({"code": code.body["code"]}))).await.is(201);
    server.ask(&olga, "PUT", "/v1/tenants/acme/members/stan", Some(json!({"role": "developer"}))).await.is(200);
    server.ask(&olga, "DELETE", "/v1/tenants/acme/members/stan", None).await.is(200);
    server.ask(&olga, "PATCH", "/v1/tenants/acme", Some(json!({"require_manifest": true}))).await.is(200);
    server.ask(&olga, "DELETE", "/v1/envs/new/api/test", None).await.is(200);
    server.ask(&olga, "DELETE", "/v1/apps/new/api", None).await.is(200);
    let token = server.ask(&olga, "POST", "/v1/tokens", Some(json!({"name": "ci", "scope": "read"}))).await.is(201);
    server.ask(token.body["token"].as_str().unwrap(), "GET", DEV, None).await.is(200);
    server.ask(&olga, "DELETE", &format!("/v1/tokens/{}", token.body["id"].as_str().unwrap()), None).await.is(200);
    server.ask(token.body["token"].as_str().unwrap(), "GET", DEV, None).await.is(401);
}

#[tokio::test]
async fn a_command_is_run_and_its_output_comes_as_it_is_written() {
    let server = Server::new().await;
    let (olga, vera) = (server.token("olga").await, server.token("vera").await);
    let run = format!("{DEV}/runs");
    let request = Request::post(&run).header(header::AUTHORIZATION, format!("Bearer {olga}"));
    let request = request.header(header::CONTENT_TYPE, "application/json");
    let body = json!({"command": ["cat", "-n"], "stdin": "hello"}).to_string();
    let response = server.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let lines: Vec<Value> =
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert!(lines.contains(&json!({"stream": "stdout", "text": "cat|-n hello"})), "{lines:?}");
    assert_eq!(lines.last(), Some(&json!({"exit_status": 42})));
    server.ask(&vera, "POST", &run, Some(json!({"command": ["ls"]}))).await.is(403);
    server.ask(&olga, "POST", &run, Some(json!({"command": []}))).await.is(400);
    server.ask(&olga, "POST", "/v1/envs/acme/shop/prod/runs", Some(json!({"command": ["ls"]}))).await.is(404);
}

impl Server {
    /// The status, the type and the text of an answer that is no JSON.
    async fn text(&self, token: &str, path: &str, accept: &str) -> (u16, String, String) {
        let request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        let response =
            self.router.clone().oneshot(request.header(header::ACCEPT, accept).body(Body::empty()).unwrap()).await;
        let (parts, body) = response.unwrap().into_parts();
        let kind = parts.headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let text = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), kind, String::from_utf8(text.to_vec()).unwrap())
    }

    /// The first events of a stream.
    async fn stream(&self, token: &str, path: &str, count: usize, last: Option<&str>) -> String {
        let mut request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        request = request.header(header::ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut pieces = response.into_body().into_data_stream();
        let mut text = String::new();
        while text.matches("data:").count() < count {
            let next = tokio::time::timeout(std::time::Duration::from_secs(60), futures::StreamExt::next(&mut pieces));
            let Some(piece) = next.await.expect("more comes") else { break };
            text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
        text
    }
}

#[tokio::test]
async fn logs_come_as_text_lines_and_streams() {
    let server = Server::new().await;
    let (vera, stan) = (server.token("vera").await, server.token("stan").await);
    let logs = format!("{DEV}/logs");
    let (status, kind, text) = server.text(&vera, &logs, "*/*").await;
    assert_eq!((status, kind.as_str()), (200, "text/plain; charset=utf-8"));
    assert!(text.contains("hello ^[[2J") && !text.contains('\u{1b}'), "{text:?}");
    let (_, kind, text) =
        server.text(&vera, &format!("{logs}?search=HELLO&any_case=true"), "application/x-ndjson").await;
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((kind.as_str(), &line["text"]), ("application/x-ndjson", &json!("hello \u{1b}[2J")));
    let streamed = server.stream(&vera, &logs, 1, None).await;
    let cursor = line["cursor"].as_str().unwrap();
    assert!(streamed.contains(&format!("id: {cursor}")) || streamed.contains(&format!("id:{cursor}")), "{streamed}");
    let (_, _, rest) = server.text(&vera, &format!("{logs}?after={cursor}"), "*/*").await;
    assert_eq!(rest, "");
    let (_, _, output) = server.text(&vera, &format!("{DEV}/builds/2/logs"), "text/plain").await;
    assert_eq!(output, "-----> Building\n");
    let streamed = server.stream(&vera, &format!("{DEV}/builds/2/logs"), 2, None).await;
    assert!(streamed.contains("-----> Building") && streamed.contains("event: end"), "{streamed}");
    for query in ["lines=99999", "since=soon", "level=loud", "after=x", "source=moon"] {
        server.ask(&vera, "GET", &format!("{logs}?{query}"), None).await.is(400);
    }
    server.ask(&stan, "GET", &logs, None).await.is(404);
}

#[tokio::test]
async fn events_are_listed_and_streamed_to_those_who_may_know() {
    let server = Server::new().await;
    let (olga, stan) = (server.token("olga").await, server.token("stan").await);
    server.ask(&olga, "POST", "/v1/apps", Some(json!({"name": "acme/one"}))).await.is(201);
    server.ask(&olga, "PATCH", &format!("{DEV}/config"), Some(json!({"KEY": "swordfish"}))).await.is(202);
    let listed = server.ask(&olga, "GET", "/v1/events?tenant=acme&type=app.", None).await.is(200).body;
    let first = &listed["items"][0];
    assert_eq!((&first["specversion"], &first["type"]), (&json!("1.0"), &json!("dev.berth.app.created")));
    let id = first["id"].as_str().unwrap().parse::<u64>().unwrap();
    let streamed = server.stream(&olga, "/v1/events?type=app.", 1, Some(&(id - 1).to_string())).await;
    assert!(streamed.contains(&format!("\"id\":\"{id}\"")), "{streamed}");
    let all = server.ask(&olga, "GET", "/v1/events?limit=1000", None).await.is(200).body.to_string();
    assert!(all.contains("config.changed") && !all.contains("swordfish"), "{all}");
    let others = server.ask(&stan, "GET", "/v1/events?limit=1000", None).await.is(200).body.to_string();
    assert!(!others.contains("acme"), "{others}");
    server.ask(&stan, "GET", "/v1/events?tenant=acme", None).await.is(404);
    server.ask(&olga, "GET", "/v1/events?type=bild.finished", None).await.is(400);
}

#[tokio::test]
async fn webhooks_drains_and_metrics_are_behind_the_same_door() {
    let server = Server::new().await;
    let (olga, vera, opal) = (server.token("olga").await, server.token("vera").await, server.token("opal").await);
    let hooks = "/v1/tenants/acme/webhooks";
    let new = json!({"url": "https://hooks.example.com/x?key=hunter2", "types": ["build."]});
    server.ask(&vera, "POST", hooks, Some(new.clone())).await.is(403);
    let made = server.ask(&olga, "POST", hooks, Some(new)).await.is(201).body;
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    let listed = server.ask(&vera, "GET", hooks, None).await.is(200).body.to_string();
    assert!(listed.contains(id) && !listed.contains(secret) && !listed.contains("hunter2"), "{listed}");
    server.ask(&olga, "PATCH", &format!("{hooks}/{id}"), Some(json!({"enabled": false}))).await.is(200);
    server.ask(&olga, "GET", &format!("{hooks}/{id}/deliveries"), None).await.is(200);
    server.ask(&olga, "DELETE", &format!("{hooks}/{id}"), None).await.is(200);
    let drains = format!("{DEV}/drains");
    let made =
        server.ask(&olga, "POST", &drains, Some(json!({"url": "https://u:hunter2@logs.example.com/"}))).await.is(201);
    assert!(!made.body.to_string().contains("hunter2"), "{made:?}");
    let listed = server.ask(&vera, "GET", &drains, None).await.is(200).body;
    assert_eq!(listed["items"][0]["id"], made.body["id"]);
    server.ask(&olga, "DELETE", &format!("{drains}/{}", made.body["id"]), None).await.is(200);
    let (status, kind, text) = server.text(&opal, "/metrics", "*/*").await;
    assert!(status == 200 && kind.starts_with("text/plain; version=0.0.4") && text.contains("# TYPE berth_"), "{text}");
    server.ask(&olga, "GET", "/metrics", None).await.is(403);
}

#[tokio::test]
async fn sources_and_images_are_deployed_without_git() {
    let server = Server::new().await;
    let (olga, vera) = (server.token("olga").await, server.token("vera").await);
    let send = async |token: &str, kind: &str| {
        let request = Request::post(format!("{DEV}/builds?message=from%20ci"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        server.send(request.header(header::CONTENT_TYPE, kind).body(Body::from("an archive")).unwrap()).await
    };
    let queued = send(&olga, "application/gzip").await.is(202).body;
    server.ask(&olga, "GET", &format!("{DEV}/builds/{}", queued["build"]), None).await.is(200);
    send(&olga, "application/json").await.is(415);
    send(&vera, "application/gzip").await.is(403);
    let image = format!("berth/acme/shop@sha256:{}", "7".repeat(64));
    server.ask(&olga, "POST", &format!("{DEV}/deployments"), Some(json!({"image": image}))).await.is(404);
    server
        .ask(&olga, "POST", &format!("{DEV}/deployments"), Some(json!({"image": "berth/acme/shop:latest"})))
        .await
        .is(400);
}

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
    server.ask(&olga, "GET", "/v1/envs?limit=no", None).await.is(400);
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
    let kept = server.world.store.list::<crate::domain::OnceRequest>("").await.unwrap();
    let kept = format!("{:?}", kept.iter().map(|one| &one.record).collect::<Vec<_>>());
    assert!(kept.contains("acme/one") && !kept.contains(code.as_str().unwrap()), "{kept}");
    // After a restart of a server that had not finished.
    let kept = server.world.store.list::<crate::domain::OnceRequest>("").await.unwrap();
    let stored = kept.into_iter().find(|one| one.answer.as_ref().is_some_and(|(_, body)| body.is_some())).unwrap();
    let torn = crate::domain::OnceRequest { answer: None, server: 1, ..stored.record.clone() };
    server.world.store.transaction().update(&stored, &torn).commit().await.unwrap();
    let unknown = make(&olga, "acme/one").await.is(409);
    assert!(unknown.body["detail"].as_str().unwrap().contains("restarted"), "{unknown:?}");
}

#[tokio::test]
async fn lists_come_in_pages() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    for number in 0..5 {
        server.ask(&olga, "POST", "/v1/apps", Some(json!({"name": format!("acme/app{number}")}))).await.is(201);
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.ask(&olga, "GET", &format!("/v1/apps?limit=2{cursor}"), None).await.is(200).body;
        names.extend(page["items"].as_array().unwrap().iter().map(|app| app["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(names, ["acme/app0", "acme/app1", "acme/app2", "acme/app3", "acme/app4", "acme/shop"]);
    server.ask(&olga, "GET", "/v1/apps?limit=0", None).await.is(400);
    server.ask(&olga, "GET", "/v1/apps?cursor=x", None).await.is(400);
}

#[tokio::test]
async fn answers_bear_an_id_and_are_kept_by_nobody() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let own = server.ask_with(&olga, "GET", "/v1/whoami", None, &[("x-request-id", "mine-1")]).await.is(200);
    assert_eq!(
        (&own.headers["x-request-id"], &own.headers["cache-control"]),
        (&"mine-1".parse().unwrap(), &"no-store".parse().unwrap())
    );
    let given = server.ask_with(&olga, "GET", "/v1/nothing", None, &[("x-request-id", "a b\"<")]).await.is(404);
    assert_eq!(given.headers["x-request-id"].len(), 32);
}

#[tokio::test]
async fn the_document_and_its_pages_are_served() {
    let server = Server::new().await;
    let document = server.send(Request::get("/openapi.json").body(Body::empty()).unwrap()).await.is(200).body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let mut ids = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let Ok(_) = method.to_uppercase().parse::<Method>() else { continue };
            ids.push(operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}")).to_owned());
            assert!(operation["responses"]["401"].is_object() && operation["summary"].is_string(), "{method} {path}");
            for (status, answer) in operation["responses"].as_object().unwrap() {
                assert!(answer["description"].is_string(), "{method} {path} does not say what {status} is");
            }
        }
    }
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document["components"]["schemas"][reference].is_object(), "{reference} is not described");
    }
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["Page_Build"]["properties"]["items"]["items"]["$ref"], "#/components/schemas/Build");
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "operation ids are told apart: {ids:?}");
    for (path, kind) in [("/docs/", "text/html"), ("/docs/swagger-ui.css", "text/css")] {
        let response = server.router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert!(response.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with(kind));
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
    }
}
