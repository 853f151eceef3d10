//! Streams: how many a user may follow, and how they end.

use futures::StreamExt;
use tokio::time::timeout;

use super::*;

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
