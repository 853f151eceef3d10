//! Signing in with a browser, for the console: a session is a token that goes by itself soon.

use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        entity::view,
        extract::Body,
        problem::{Problem, Refusals},
        views::{LinkOwner, LinkSecret, SignInLink, TokenCreated},
    },
    commands::{Ask, Caller, Command},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(make_link))
        .routes(routes!(look_at_link))
        .routes(routes!(follow_link))
        .routes(routes!(begin_session))
        .routes(routes!(end_session))
}

/// Make a link to sign in with, good once. It takes no Idempotency-Key: a link that is not used goes by itself after minutes
#[utoipa::path(post, path = "/sign-in-links", tag = "account", responses((status = 201, body = SignInLink), Refusals))]
async fn make_link(State(api): State<Api>, caller: Caller) -> Result<(StatusCode, Json<SignInLink>), Problem> {
    Ok((StatusCode::CREATED, Json(view(api.ask(caller, Ask::new(Command::Console)).await?)?)))
}

/// Whom a link would sign in; it stays good
#[utoipa::path(post, path = "/sign-in-links/owner", tag = "account", request_body = LinkSecret, security(()),
    responses((status = 200, body = LinkOwner), Refusals))]
async fn look_at_link(State(api): State<Api>, Body(link): Body<LinkSecret>) -> Result<Json<LinkOwner>, Problem> {
    let link = api.link_user(&link.secret).await?;
    Ok(Json(LinkOwner { user: link.user.to_string(), expires_at: link.expires_at }))
}

/// Sign in with a link; the token that is answered goes by itself after some hours
#[utoipa::path(post, path = "/sign-in-links/sessions", tag = "account", request_body = LinkSecret, security(()),
    responses((status = 201, body = TokenCreated), Refusals))]
async fn follow_link(
    State(api): State<Api>,
    Body(link): Body<LinkSecret>,
) -> Result<(StatusCode, Json<TokenCreated>), Problem> {
    Ok((StatusCode::CREATED, Json(view(api.sign_in_by_link(&link.secret).await?.value())?)))
}

/// Sign in with a token: make another one of the same rights, which goes by itself after some hours. It takes no Idempotency-Key
#[utoipa::path(post, path = "/sessions", tag = "account", responses((status = 201, body = TokenCreated), Refusals))]
async fn begin_session(State(api): State<Api>, caller: Caller) -> Result<(StatusCode, Json<TokenCreated>), Problem> {
    Ok((StatusCode::CREATED, Json(view(api.sign_in(&caller).await?.value())?)))
}

/// Make the token that this is asked with worthless: sign out
#[utoipa::path(delete, path = "/sessions/current", tag = "account", responses((status = 204), Refusals))]
async fn end_session(State(api): State<Api>, caller: Caller) -> Result<StatusCode, Problem> {
    api.sign_out(&caller).await?;
    Ok(StatusCode::NO_CONTENT)
}
