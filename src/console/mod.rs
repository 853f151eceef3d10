//! The web page: a client of the API and of nothing else.
//!
//! Pages are made here, of what the API answers to the token of whoever is signed in; their forms post to `actions`, which ask the API for
//! the change. What happens meanwhile comes over the API's event streams, through `relay`, and the page is made again: a browser without
//! scripts sees the same, after a reload.

mod actions;
mod assets;
mod client;
mod forms;
mod model;
mod pages;
mod relay;
mod session;
mod shell;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::Response,
};
use tower_http::catch_panic::CatchPanicLayer;

use client::Client;

/// What pages work with. Clones share it.
#[derive(Clone)]
pub(crate) struct Console {
    client: Client,
    /// Whether browsers reach it by TLS, so that the cookie never goes in the clear.
    secure: bool,
    /// How commands are begun.
    ssh: Arc<str>,
}

/// The console beside the API, which answers what the console has no page for.
///
/// `url` is how browsers reach it, `ssh` how commands are begun, as in `ssh -p 2222 berth@paas.example.com`.
pub fn beside(api: Router, url: &str, ssh: &str) -> Router {
    let console = Console { client: Client::new(api), secure: url.starts_with("https://"), ssh: ssh.into() };
    pages::routes()
        .merge(session::routes())
        .merge(actions::routes())
        .merge(relay::routes())
        .merge(assets::routes())
        .fallback(elsewhere)
        .layer(CatchPanicLayer::custom(|_| shell::broken()))
        .layer(middleware::from_fn(crate::api::one_host))
        .layer(middleware::from_fn(dress))
        .with_state(console)
}

/// What every answer bears, whoever has made it; and what the framework refuses in a few words of its own, as a page.
async fn dress(request: Request, next: middleware::Next) -> Response {
    let for_scripts =
        ["/relay/", "/v1/", "/metrics", "/openapi.json"].iter().any(|path| request.uri().path().starts_with(path));
    let mut response = next.run(request).await;
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if response.status().is_client_error() && !for_scripts && !kind.starts_with("text/html") && !kind.contains("json") {
        let (status, text) = (response.status(), "the request is not one that the console's pages make");
        response = shell::problem_page(None, &client::Problem::new(status, "That was not understood", text));
    }
    let id = HeaderValue::from_str(&format!("{:032x}", rand::random::<u128>())).ok();
    let headers = response.headers_mut();
    if let Some(id) = id {
        headers.entry("x-request-id").or_insert(id);
    }
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("default-src 'none'"));
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// What the console has no page for is the API's; that there is nothing is said as a page to who wants one.
async fn elsewhere(State(console): State<Console>, request: Request) -> Response {
    let accepted = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let for_people = accepted.contains("text/html") && !request.uri().path().starts_with("/v1/");
    let answer = console.client.pass(request).await;
    if for_people && answer.status() == StatusCode::NOT_FOUND {
        let text = "no page has this address";
        return shell::problem_page(None, &client::Problem::new(StatusCode::NOT_FOUND, "There is nothing here", text));
    }
    answer
}
