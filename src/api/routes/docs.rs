//! The OpenAPI document, and pages to browse it by, served by ourselves.

use std::sync::Arc;

use axum::{
    Router,
    extract::Path,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa::openapi::{
    OpenApi, Ref, RefOr, Schema,
    path::Operation,
    schema::{ArrayItems, Components},
};
use utoipa_swagger_ui::{Config, serve};

use crate::api::{Api, problem::Problem};

/// Nothing from elsewhere, and no frames. The pages of Swagger UI have styles in themselves.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What an answer is, in a few words, where a route says no more than its status.
fn meaning(status: &str) -> &'static str {
    match status {
        "201" => "It is made",
        "202" => "It has begun",
        _ => "Done",
    }
}

/// The document with a description of each answer: OpenAPI 3.1 wants one ("Response Object"), and generators of clients insist on it.
pub(super) fn described(mut document: OpenApi) -> OpenApi {
    let items = document.paths.paths.values_mut();
    let operations = items.flat_map(|item| {
        [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch].into_iter().flatten()
    });
    for (status, answer) in operations.flat_map(|operation: &mut Operation| &mut operation.responses.responses) {
        if let RefOr::T(answer) = answer
            && answer.description.is_empty()
        {
            meaning(status).clone_into(&mut answer.description);
        }
    }
    document.components.as_mut().map(name_items);
    document
}

/// Lets pages say that their items are what has a name of its own: else a generated client has two types of the same thing.
fn name_items(components: &mut Components) {
    let names: Vec<String> = components.schemas.keys().cloned().collect();
    for (name, page) in &mut components.schemas {
        if let Some(item) = name.strip_prefix("Page_").filter(|item| names.iter().any(|name| name == item))
            && let RefOr::T(Schema::Object(page)) = page
            && let Some(RefOr::T(Schema::Array(items))) = page.properties.get_mut("items")
        {
            items.items = ArrayItems::RefOrSchema(Box::new(Ref::from_schema_name(item).into()));
        }
    }
}

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
