//! Lets the page's script read the API with the session's token, which no script ever sees. It changes nothing: only `GET` goes through.

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    Console,
    client::Problem,
    session::{cookie, is_from_elsewhere},
};

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/relay/v1/{*path}", get(relay))
}

/// Headers of the browser that the API is given.
const PASSED: [header::HeaderName; 2] = [header::ACCEPT, header::HeaderName::from_static("last-event-id")];

async fn relay(
    State(console): State<Console>,
    headers: HeaderMap,
    uri: axum::http::Uri,
    RawQuery(query): RawQuery,
) -> Response {
    let Some(secret) = cookie(&headers, &console).filter(|_| !is_from_elsewhere(&headers)) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    // The path is taken as it came: what is encoded in it stays so.
    let path = uri.path().strip_prefix("/relay").unwrap_or_default();
    let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut request = Request::builder().uri(target).header(header::AUTHORIZATION, secret.bearer());
    for name in PASSED {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value);
        }
    }
    let asked = match request.body(Body::empty()) {
        Ok(request) => console.client.ask(request).await,
        Err(error) => Err(Problem::broken(error)),
    };
    let mut response = match asked {
        Ok(response) => response,
        Err(problem) => (problem.status(), problem.detail).into_response(),
    };
    // Whoever opens it as a page sees text and nothing more.
    let dressed = response.headers_mut();
    dressed.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    dressed.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    dressed.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
