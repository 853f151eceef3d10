//! Streams: how many a user may follow, and how they end.

use futures::StreamExt;
use tokio::time::timeout;

use super::*;
use crate::logs::LogRecord;

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

impl Server {
    /// A stream that is open until it is dropped.
    async fn open(&self, token: &str, path: &str) -> axum::response::Response {
        let request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        let request = request.header(header::ACCEPT, "text/event-stream").body(Body::empty()).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }
}

#[tokio::test]
async fn one_user_follows_so_many_streams() {
    let server = Server::new().await;
    let (olga, vera) = (server.token("olga").await, server.token("vera").await);
    let paths = ["/v1/events".to_owned(), format!("{DEV}/logs"), format!("{DEV}/builds/2/logs")];
    let mut open = Vec::new();
    for number in 0..100 {
        let response = server.open(&olga, &paths[number % paths.len()]).await;
        assert_eq!(response.status(), 200);
        open.push(response);
    }
    for path in &paths {
        let refused = server.ask_with(&olga, "GET", path, None, &[("accept", "text/event-stream")]).await.is(503);
        assert!(refused.body["hint"].as_str().unwrap().contains("end one of them"), "{refused:?}");
        assert_eq!(server.open(&vera, path).await.status(), 200);
    }
    drop(open);
    assert_eq!(server.open(&olga, &paths[0]).await.status(), 200);
}

#[tokio::test]
async fn a_stream_of_events_says_that_its_token_is_gone() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let made = server.ask(&olga, "POST", "/v1/tokens", Some(json!({"name": "ci", "scope": "read"}))).await.is(201).body;
    let (token, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    let mut pieces = server.open(token, "/v1/events").await.into_body().into_data_stream();
    server.ask(&olga, "DELETE", &format!("/v1/tokens/{id}"), None).await.is(200);
    let mut text = String::new();
    while let Some(piece) = timeout(DEADLINE, pieces.next()).await.expect("it ends") {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    assert!(text.contains("event: end") && text.contains("was revoked"), "{text:?}");
}

#[tokio::test]
async fn a_page_after_a_line_has_each_line_once() {
    let server = Server::new().await;
    let vera = server.token("vera").await;
    let lines = async |query: &str| {
        let (status, _, text) = server.text(&vera, &format!("{DEV}/logs?{query}"), "application/x-ndjson").await;
        assert_eq!(status, 200, "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let cursor = lines("lines=1").await[0]["cursor"].as_str().unwrap().to_owned();
    for number in 0..2600 {
        let record = LogRecord::berth(crate::domain::Timestamp::now(), "web.1", format!("line {number}"));
        server.world.logs.append_when_ready(&"acme/shop/dev".parse().unwrap(), record).await;
    }
    for (asked, come) in [(0, 0), (1, 1), (1000, 1000), (2500, 2500), (10_000, 2600)] {
        let found = lines(&format!("lines={asked}&after={cursor}")).await;
        let texts: Vec<_> = found.iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(texts, (0..come).map(|number| format!("line {number}")).collect::<Vec<_>>(), "{asked} lines");
    }
    let found = lines(&format!("lines=1200&after={cursor}&search=7")).await;
    assert_eq!(found.len(), (0..2600).filter(|number: &i32| number.to_string().contains('7')).count());
}
