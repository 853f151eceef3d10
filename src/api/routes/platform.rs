//! What concerns the platform as a whole.

use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        entity::view,
        extract::Body,
        problem::{Problem, Refusals},
        views::{Collect, Collected, Platform},
    },
    commands::{Ask, Caller, Command},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(show_platform)).routes(routes!(collect_garbage))
}

/// The platform on one page: engine, registry, router, disk, queues, and what is missing (operators)
#[utoipa::path(get, path = "/platform", tag = "platform", responses((status = 200, body = Platform), Refusals))]
async fn show_platform(State(api): State<Api>, caller: Caller) -> Result<Json<Platform>, Problem> {
    Ok(Json(view(api.ask(caller, Ask::new(Command::Status)).await?)?))
}

/// Take away what is not needed any more (operators)
#[utoipa::path(post, path = "/collections", tag = "platform", request_body = Collect,
    responses((status = 200, body = Collected), (status = 202, description = "It goes on"), Refusals))]
async fn collect_garbage(
    State(api): State<Api>,
    caller: Caller,
    Body(asked): Body<Collect>,
) -> Result<(StatusCode, Json<Option<Collected>>), Problem> {
    super::within(api.ask(caller, Ask::new(Command::Gc { dry_run: asked.dry_run }))).await
}
