//! The API over services in memory: what each route takes, answers and refuses.

mod forms;
mod once;
mod refusals;
mod streams;

use std::num::NonZeroU32;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{Api, Inner, idempotency::Once, limit::Limits, routes};
use crate::commands::tests::World;

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
