//! Apps.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        entity::view,
        extract::{Asked, Body, Names},
        idempotency::Answers,
        names::{AppPath, parse},
        page::{Page, PageQuery},
        problem::{Problem, Refusals},
        views::{App, AppCreated, AppRow, CachePurged, Destroyed, NewApp},
    },
    commands::{
        Ask, Caller, Command,
        nouns::{Apps, Builds},
    },
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_apps, create_app))
        .routes(routes!(show_app, destroy_app))
        .routes(routes!(purge_cache))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AppsQuery {
    /// Only of this one
    tenant: Option<String>,
}

/// Your apps
#[utoipa::path(get, path = "/apps", tag = "apps", params(AppsQuery, PageQuery), responses((status = 200, body = Page<AppRow>), Refusals))]
async fn list_apps(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<AppsQuery>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<AppRow>>, Problem> {
    let tenant = query.tenant.as_deref().map(parse).transpose()?;
    let list = api.ask(caller, Ask::new(Command::Apps(Apps::List { tenant }))).await?;
    Ok(Json(page.page(list, &["name"])?))
}

/// Make an app, with the environments dev and prod (owners)
#[utoipa::path(post, path = "/apps", tag = "apps", request_body = NewApp, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = AppCreated), Refusals))]
async fn create_app(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(new): Body<NewApp>,
) -> Result<Response, Problem> {
    let ask = Ask::new(Command::Apps(Apps::Create { app: parse(&new.name)? }));
    super::create::<AppCreated>(&api, caller, &headers, ("/apps", &new), Answers::Kept, ask).await
}

/// An app, its environments and where to push to
#[utoipa::path(get, path = "/apps/{tenant}/{app}", tag = "apps", params(AppPath), responses((status = 200, body = App), Refusals))]
async fn show_app(State(api): State<Api>, caller: Caller, Names(path): Names<AppPath>) -> Result<Json<App>, Problem> {
    Ok(Json(view(api.ask(caller, Ask::new(Command::Apps(Apps::Info { app: path.app() }))).await?)?))
}

/// Destroy an app with all its environments and history (owners)
#[utoipa::path(delete, path = "/apps/{tenant}/{app}", tag = "apps", params(AppPath),
    responses((status = 200, body = Destroyed), (status = 202, description = "It is being destroyed"), Refusals))]
async fn destroy_app(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<AppPath>,
) -> Result<(StatusCode, Json<Option<Destroyed>>), Problem> {
    let app = path.app();
    let confirm = Some(app.to_string());
    super::within(api.ask(caller, Ask::new(Command::Apps(Apps::Destroy { app, confirm })))).await
}

/// Throw the app's build cache away
#[utoipa::path(delete, path = "/apps/{tenant}/{app}/cache", tag = "apps", params(AppPath), responses((status = 200, body = CachePurged), Refusals))]
async fn purge_cache(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<AppPath>,
) -> Result<Json<CachePurged>, Problem> {
    Ok(Json(view(api.ask(caller, Ask::new(Command::Builds(Builds::PurgeCache { app: path.app() }))).await?)?))
}
