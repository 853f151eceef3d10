//! What concerns the platform as a whole.

use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        extract::Body,
        problem::{Problem, Refusals},
        views::{Collect, Collected},
    },
    commands::{Ask, Caller, Command},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(collect_garbage))
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
