//! The OpenAPI document, and pages to browse it by, served by ourselves.

use std::sync::Arc;

use axum::{
    Router,
    extract::Path,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, serve};

use crate::api::{Api, problem::Problem};

/// Nothing from elsewhere, and no frames. The pages of Swagger UI have styles in themselves.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes(document: &OpenApi) -> Router<Api> {
    let document: Arc<str> = document.to_json().unwrap_or_else(|error| error.to_string()).into();
    let config = Arc::new(Config::new(["/openapi.json"]).use_base_layout().validator_url("none"));
    let page = move |file: &str| page(file, config.clone());
    let index = page.clone();
    Router::new()
        .route(
            "/openapi.json",
            get(|| async move { ([(header::CONTENT_TYPE, "application/json")], document.to_string()) }),
        )
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route("/docs/", get(|| async move { index("index.html") }))
        .route("/docs/{*file}", get(|Path(file): Path<String>| async move { page(&file) }))
}

fn page(file: &str, config: Arc<Config<'static>>) -> Response {
    let missing = || Problem::new(StatusCode::NOT_FOUND, "the pages have no such file").into_response();
    match serve(file, config) {
        Ok(Some(found)) => {
            let headers = [
                (
                    header::CONTENT_TYPE,
                    HeaderValue::from_str(&found.content_type).unwrap_or(HeaderValue::from_static("text/plain")),
                ),
                (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            ];
            (headers, found.bytes.into_owned()).into_response()
        }
        Ok(None) | Err(_) => missing(),
    }
}
