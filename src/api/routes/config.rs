//! Config variables and host names of an environment.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        entity::{Entity, only_if, view},
        extract::{Body, Names},
        names::{EnvPath, PartPath},
        problem::{Problem, Refusals},
        views::{ConfigChanged, Domain},
    },
    commands::{
        Ask, Caller, Command,
        nouns::{Config, Domains},
    },
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_config, change_config))
        .routes(routes!(show_variable))
        .routes(routes!(list_domains))
        .routes(routes!(add_domain, remove_domain))
}

/// Names and values of the config variables (developers)
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/config", tag = "config", params(EnvPath),
    responses((status = 200, body = BTreeMap<String, String>, headers(("ETag"))), (status = 304, description = "As you have it"), Refusals))]
async fn list_config(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
) -> Result<Entity<BTreeMap<String, String>>, Problem> {
    Entity::new(api.ask(caller, Ask::new(Command::Config(Config::List { env: path.env() }))).await?, &headers)
}

/// One value
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/config/{id}", tag = "config", params(PartPath),
    responses((status = 200, body = BTreeMap<String, String>), Refusals))]
async fn show_variable(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<PartPath>,
) -> Result<Json<BTreeMap<String, String>>, Problem> {
    let (env, name) = path.parts();
    Ok(Json(view(api.ask(caller, Ask::new(Command::Config(Config::Get { env, name }))).await?)?))
}

/// Set variables, and remove those that are null, in one step (JSON Merge Patch, RFC 7396). When something runs, a new release brings it
#[utoipa::path(patch, path = "/envs/{tenant}/{app}/{env}/config", tag = "config", params(EnvPath, ("If-Match" = Option<String>, Header)),
    request_body(content = BTreeMap<String, Option<String>>, example = json!({"LOG_LEVEL": "debug", "OLD": null})),
    responses((status = 202, body = ConfigChanged), Refusals))]
async fn change_config(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
    Body(changes): Body<BTreeMap<String, Option<String>>>,
) -> Result<(StatusCode, Json<ConfigChanged>), Problem> {
    let changed = api.ask_config(caller, path.env(), changes, only_if(&headers)?).await?;
    Ok((StatusCode::ACCEPTED, Json(view(changed)?)))
}

/// Host names
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/domains", tag = "domains", params(EnvPath),
    responses((status = 200, body = Vec<Domain>, headers(("ETag"))), (status = 304, description = "As you have it"), Refusals))]
async fn list_domains(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
) -> Result<Entity<Vec<Domain>>, Problem> {
    Entity::new(api.ask(caller, Ask::new(Command::Domains(Domains::List { env: path.env() }))).await?, &headers)
}

/// Answer at a host name too
#[utoipa::path(put, path = "/envs/{tenant}/{app}/{env}/domains/{id}", tag = "domains", params(PartPath, ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = Vec<Domain>), Refusals))]
async fn add_domain(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<PartPath>,
) -> Result<Json<Vec<Domain>>, Problem> {
    let (env, domain) = path.parts();
    let ask = Ask::new(Command::Domains(Domains::Add { env: env.clone(), domain })).only_if(only_if(&headers)?);
    api.ask(caller.clone(), ask).await?;
    Ok(Json(view(api.ask(caller, Ask::new(Command::Domains(Domains::List { env }))).await?)?))
}

/// Stop answering at a host name
#[utoipa::path(delete, path = "/envs/{tenant}/{app}/{env}/domains/{id}", tag = "domains", params(PartPath, ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = Vec<Domain>), Refusals))]
async fn remove_domain(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<PartPath>,
) -> Result<Json<Vec<Domain>>, Problem> {
    let (env, domain) = path.parts();
    let ask = Ask::new(Command::Domains(Domains::Remove { env: env.clone(), domain })).only_if(only_if(&headers)?);
    api.ask(caller.clone(), ask).await?;
    Ok(Json(view(api.ask(caller, Ask::new(Command::Domains(Domains::List { env }))).await?)?))
}
