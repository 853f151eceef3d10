//! Who asks, and their keys.

use axum::{Json, extract::State, http::HeaderMap, response::Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        entity::view,
        extract::{Asked, Body, Names},
        idempotency::Answers,
        names::parse,
        page::{Page, PageQuery},
        problem::{Problem, Refusals},
        views::{Key, KeysAdded, NewKeys, NewToken, Token, TokenCreated, TokensRevoked, Whoami},
    },
    commands::{
        Ask, Caller, Command,
        nouns::{Keys, Tokens},
    },
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(whoami))
        .routes(routes!(list_keys, add_keys))
        .routes(routes!(remove_key))
        .routes(routes!(list_tokens, create_token))
        .routes(routes!(revoke_token))
}

/// Who you are, by the token
#[utoipa::path(get, path = "/whoami", tag = "account", responses((status = 200, body = Whoami), Refusals))]
async fn whoami(State(api): State<Api>, caller: Caller) -> Result<Json<Whoami>, Problem> {
    Ok(Json(view(api.ask(caller, Ask::new(Command::Whoami)).await?)?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct KeysQuery {
    /// Whose (operators); yours, where nobody is named
    user: Option<String>,
    /// Everybody's (operators)
    #[serde(default)]
    #[param(required = false)]
    all: bool,
}

/// Keys
#[utoipa::path(get, path = "/keys", tag = "account", params(KeysQuery, PageQuery), responses((status = 200, body = Page<Key>), Refusals))]
async fn list_keys(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<KeysQuery>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<Key>>, Problem> {
    let user = query.user.as_deref().map(parse).transpose()?;
    let list = api.ask(caller, Ask::new(Command::Keys(Keys::List { user, all: query.all }))).await?;
    Ok(Json(page.page(list, &["fingerprint"])?))
}

/// Register keys for a user (operators)
#[utoipa::path(post, path = "/keys", tag = "account", request_body = NewKeys, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = KeysAdded), Refusals))]
async fn add_keys(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(new): Body<NewKeys>,
) -> Result<Response, Problem> {
    let ask = Ask::new(Command::UploadKey { name: parse(&new.user)? }).with_input(new.keys.clone());
    super::create::<KeysAdded>(&api, caller, &headers, ("/keys", &new), Answers::Kept, ask).await
}

/// Remove a key
#[utoipa::path(delete, path = "/keys/{fingerprint}", tag = "account", params(("fingerprint" = String, Path, description = "`SHA256:…`")),
    responses((status = 200, body = KeyRemoved), Refusals))]
async fn remove_key(
    State(api): State<Api>,
    caller: Caller,
    Names(fingerprint): Names<String>,
) -> Result<Json<KeyRemoved>, Problem> {
    Ok(Json(view(api.ask(caller, Ask::new(Command::Keys(Keys::Remove { fingerprint }))).await?)?))
}

/// A key that was removed.
#[derive(Debug, serde::Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyRemoved {
    /// Its fingerprint
    removed: String,
    user: String,
}

/// Tokens (never their secrets)
#[utoipa::path(get, path = "/tokens", tag = "account", params(KeysQuery, PageQuery), responses((status = 200, body = Page<Token>), Refusals))]
async fn list_tokens(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<KeysQuery>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<Token>>, Problem> {
    let user = query.user.as_deref().map(parse).transpose()?;
    let list = api.ask(caller, Ask::new(Command::Tokens(Tokens::List { user, all: query.all }))).await?;
    Ok(Json(page.page(list, &["id"])?))
}

/// Make a token; its secret is shown this once
#[utoipa::path(post, path = "/tokens", tag = "account", request_body = NewToken, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = TokenCreated), Refusals))]
async fn create_token(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(new): Body<NewToken>,
) -> Result<Response, Problem> {
    let command = Tokens::Create {
        name: new.name.clone(),
        scope: new.scope.into(),
        tenant: new.tenant.as_deref().map(parse).transpose()?,
        expires: parse(new.expires.as_deref().unwrap_or("90d"))?,
    };
    super::create::<TokenCreated>(
        &api,
        caller,
        &headers,
        ("/tokens", &new),
        Answers::Secret,
        Ask::new(Command::Tokens(command)),
    )
    .await
}

/// Make a token worthless, with those that were made with it
#[utoipa::path(delete, path = "/tokens/{id}", tag = "account", params(("id" = String, Path)), responses((status = 200, body = TokensRevoked), Refusals))]
async fn revoke_token(
    State(api): State<Api>,
    caller: Caller,
    Names(id): Names<String>,
) -> Result<Json<TokensRevoked>, Problem> {
    Ok(Json(view(api.ask(caller, Ask::new(Command::Tokens(Tokens::Revoke { id }))).await?)?))
}
