//! The routes, by what they are about; and what is served beside them.

mod account;
mod apps;
mod config;
mod deploy;
mod docs;
mod envs;
mod events;
mod logs;
mod metrics;
mod outside;
mod platform;
mod run;
mod sessions;
mod sources;
mod streams;
mod tenants;

use std::time::Duration;

use axum::{
    Json, Router,
    extract::Request,
    http::{HeaderMap, StatusCode},
    middleware,
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;

use super::{Api, entity::view, idempotency::Answers, problem::Problem};
use crate::commands::{Ask, Caller, CommandError};

/// Media type of server-sent events.
const EVENTS: &str = "text/event-stream";
/// Header that carries the request's id, given by the client or by us.
const REQUEST_ID: &str = "x-request-id";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Berth",
        description = "A git-push build-and-deploy server. Everything that the commands over SSH do, for programs. Make a token with \
                       `ssh … tokens create NAME` and send it as `Authorization: Bearer TOKEN`. Errors are problem details (RFC 9457). Changes \
                       take `If-Match` where a resource has an `ETag`; creations and what is begun take an `Idempotency-Key`. Those that do not say so take none: \
                       one-off commands, whose output comes as they run and is not kept, and signing in, whose links and tokens are secrets that go by \
                       themselves soon. What takes long answers with a build or deployment to follow.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem)),
    modifiers(&Bearer),
    security(("token" = [])),
    servers((url = "/"))
)]
struct Document;

/// How requests are authenticated.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("berth_pat_…").build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token));
    }
}

fn routes() -> OpenApiRouter<Api> {
    let v1 = OpenApiRouter::new()
        .merge(account::routes())
        .merge(sessions::routes())
        .merge(tenants::routes())
        .merge(apps::routes())
        .merge(envs::routes())
        .merge(config::routes())
        .merge(deploy::routes())
        .merge(run::routes())
        .merge(events::routes())
        .merge(logs::routes())
        .merge(sources::routes())
        .merge(outside::routes())
        .merge(metrics::routes())
        .merge(platform::routes());
    OpenApiRouter::with_openapi(Document::openapi()).nest("/v1", v1).merge(metrics::platform())
}

/// What the routes say of themselves.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// All that is served.
pub(super) fn router(api: Api) -> Router {
    let (router, document) = routes().split_for_parts();
    router
        .merge(docs::routes(&docs::described(document)))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing here").with_hint("see /docs") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the resource does not take this method")
                .with_hint("see /docs")
        })
        .layer(CatchPanicLayer::custom(|_| Problem::broken("a route has panicked").into_response()))
        .layer(middleware::from_fn(dress))
        .with_state(api)
}

/// What every answer bears: the request's id, and that nobody keeps or guesses about it.
async fn dress(request: Request, next: middleware::Next) -> Response {
    use axum::http::{HeaderValue, header};

    let harmless = |id: &&HeaderValue| {
        (1..=64).contains(&id.len())
            && id.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
    };
    let given = request.headers().get(REQUEST_ID).filter(harmless).cloned();
    let id = given.or_else(|| HeaderValue::from_str(&format!("{:032x}", rand::random::<u128>())).ok());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    tracing::debug!(id = ?id, %method, path = %path.escape_debug(), status = response.status().as_u16(), "request");
    let headers = response.headers_mut();
    headers.extend(id.map(|id| (axum::http::HeaderName::from_static(REQUEST_ID), id)));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Makes something, once however often it is asked for with the same key.
async fn create<V: Serialize + DeserializeOwned>(
    api: &Api,
    caller: Caller,
    headers: &HeaderMap,
    request: (&str, &impl Serialize),
    answers: Answers,
    ask: Ask,
) -> Result<Response, Problem> {
    once::<V>(api, caller, headers, request, (answers, StatusCode::CREATED), ask).await
}

/// Begins what goes on for long, once however often it is asked for with the same key.
async fn begin<V: Serialize + DeserializeOwned>(
    api: &Api,
    caller: Caller,
    headers: &HeaderMap,
    request: (&str, &impl Serialize),
    ask: Ask,
) -> Result<Response, Problem> {
    once::<V>(api, caller, headers, request, (Answers::Kept, StatusCode::ACCEPTED), ask).await
}

async fn once<V: Serialize + DeserializeOwned>(
    api: &Api,
    caller: Caller,
    headers: &HeaderMap,
    (path, body): (&str, &impl Serialize),
    answers: (Answers, StatusCode),
    ask: Ask,
) -> Result<Response, Problem> {
    let request = serde_json::to_value(body).map_err(Problem::broken)?;
    let (asked_by, commands) = (caller.clone(), api.clone());
    let work = async move {
        let made: V = view(commands.ask(caller, ask).await?)?;
        serde_json::to_value(&made).map_err(Problem::broken)
    };
    api.0.once.run(&asked_by, headers, (path, &request), answers, work).await
}

/// How often a client that hears nothing is told that its stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Whether the client wants server-sent events.
fn wants_stream(headers: &HeaderMap, others: &[&str]) -> bool {
    accepts(headers, EVENTS, others)
}

/// Whether the client names this media type among those that it accepts, and likes none of the others better that there are.
fn accepts(headers: &HeaderMap, kind: &str, others: &[&str]) -> bool {
    let quality = |kind| quality(headers, kind).unwrap_or(0.0);
    quality(kind) > 0.0 && others.iter().all(|other| quality(other) <= quality(kind))
}

/// How much the client likes a media type that it names, from 0 (not at all) to 1 (RFC 9110, section 12.4.2).
fn quality(headers: &HeaderMap, kind: &str) -> Option<f32> {
    let accepted = headers.get_all(axum::http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).find_map(|one| {
        let mut parts = one.split(';').map(str::trim);
        parts.next().filter(|name| name.eq_ignore_ascii_case(kind))?;
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        Some(weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
    })
}

/// How long a client waits for what it cannot follow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer; or, when that takes long, that it goes on.
async fn within<V: DeserializeOwned>(
    work: impl Future<Output = Result<Value, CommandError>>,
) -> Result<(StatusCode, Json<Option<V>>), Problem> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => Ok((StatusCode::OK, Json(Some(view(done?)?)))),
        Err(_) => Ok((StatusCode::ACCEPTED, Json(None))),
    }
}
