//! Builds, releases, deployments, and what moves an environment from one to another.

use axum::{Json, extract::State, http::HeaderMap, response::Response};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        entity::view,
        extract::{Asked, Body, Names},
        names::{EnvPath, PartPath, parse},
        page::{Page, PageQuery},
        problem::{Problem, Refusals},
        views::{
            Build, BuildCancelled, BuildQueued, Deployment, DeploymentBegun, DeploymentCancelled, Promote, Redeploy,
            Release, ReleaseRow, Rollback,
        },
    },
    commands::{
        Ask, Caller, Command,
        nouns::{Builds, Deployments, Releases},
    },
    domain::ReleaseVersion,
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_builds))
        .routes(routes!(show_build))
        .routes(routes!(cancel_build))
        .routes(routes!(list_releases))
        .routes(routes!(show_release))
        .routes(routes!(list_deployments))
        .routes(routes!(show_deployment))
        .routes(routes!(cancel_deployment))
        .routes(routes!(roll_back))
        .routes(routes!(redeploy))
        .routes(routes!(promote))
}

/// Builds, the newest first
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/builds", tag = "builds", params(EnvPath, PageQuery), responses((status = 200, body = Page<Build>), Refusals))]
async fn list_builds(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<Build>>, Problem> {
    let list = api.ask(caller, Ask::new(Command::Builds(Builds::List { env: path.env() }))).await?;
    Ok(Json(page.page(list, &["number"])?))
}

/// A build
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/builds/{id}", tag = "builds", params(PartPath), responses((status = 200, body = Build), Refusals))]
async fn show_build(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<PartPath>,
) -> Result<Json<Build>, Problem> {
    let (env, number) = path.build()?;
    Ok(Json(view(api.ask(caller, Ask::new(Command::Builds(Builds::Info { env, number: Some(number) }))).await?)?))
}

/// Cancel a build that is queued or running
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/builds/{id}/cancel", tag = "builds", params(PartPath), responses((status = 200, body = BuildCancelled), Refusals))]
async fn cancel_build(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<PartPath>,
) -> Result<Json<BuildCancelled>, Problem> {
    let (env, number) = path.build()?;
    Ok(Json(view(api.ask(caller, Ask::new(Command::Builds(Builds::Cancel { env, number: Some(number) }))).await?)?))
}

/// Releases, the newest first
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/releases", tag = "releases", params(EnvPath, PageQuery), responses((status = 200, body = Page<ReleaseRow>), Refusals))]
async fn list_releases(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<ReleaseRow>>, Problem> {
    let list = api.ask(caller, Ask::new(Command::Releases(Releases::List { env: path.env() }))).await?;
    Ok(Json(page.page(list, &["version"])?))
}

/// A release
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/releases/{id}", tag = "releases", params(PartPath), responses((status = 200, body = Release), Refusals))]
async fn show_release(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<PartPath>,
) -> Result<Json<Release>, Problem> {
    let (env, version) = path.release()?;
    let ask = Ask::new(Command::Releases(Releases::Info { env, version: Some(version) }));
    Ok(Json(view(api.ask(caller, ask).await?)?))
}

/// Deployments, the newest first
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/deployments", tag = "deployments", params(EnvPath, PageQuery), responses((status = 200, body = Page<Deployment>), Refusals))]
async fn list_deployments(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<Deployment>>, Problem> {
    let list = api.ask(caller, Ask::new(Command::Deployments(Deployments::List { env: path.env() }))).await?;
    Ok(Json(page.page(list, &["release"])?))
}

/// The deployment of a release, and what it waits for
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/deployments/{id}", tag = "deployments", params(PartPath), responses((status = 200, body = Deployment), Refusals))]
async fn show_deployment(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<PartPath>,
) -> Result<Json<Deployment>, Problem> {
    let (env, version) = path.release()?;
    let ask = Ask::new(Command::Deployments(Deployments::Info { env, version: Some(version) }));
    Ok(Json(view(api.ask(caller, ask).await?)?))
}

/// Give a deployment up: what served before, if anything did, goes on serving
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/deployments/{id}/cancel", tag = "deployments", params(PartPath), responses((status = 200, body = DeploymentCancelled), Refusals))]
async fn cancel_deployment(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<PartPath>,
) -> Result<Json<DeploymentCancelled>, Problem> {
    let (env, version) = path.release()?;
    let ask = Ask::new(Command::Deployments(Deployments::Cancel { env, version: Some(version) }));
    Ok(Json(view(api.ask(caller, ask).await?)?))
}

/// Go back to an earlier release: a new release alike it is deployed
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/rollback", tag = "releases", params(EnvPath, ("Idempotency-Key" = Option<String>, Header)), request_body = Rollback,
    responses((status = 202, body = DeploymentBegun), Refusals))]
async fn roll_back(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
    Body(asked): Body<Rollback>,
) -> Result<Response, Problem> {
    let env = path.env();
    let path = format!("/envs/{env}/rollback");
    let ask = Ask::new(Command::Rollback { env, version: asked.version.map(ReleaseVersion) });
    super::begin::<DeploymentBegun>(&api, caller, &headers, (&path, &asked), ask).await
}

/// Build and deploy the commit last pushed, again
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/redeploy", tag = "builds", params(EnvPath, ("Idempotency-Key" = Option<String>, Header)), request_body = Redeploy,
    responses((status = 202, body = BuildQueued), Refusals))]
async fn redeploy(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
    Body(asked): Body<Redeploy>,
) -> Result<Response, Problem> {
    let env = path.env();
    let path = format!("/envs/{env}/redeploy");
    let ask = Ask::new(Command::Redeploy { env, no_cache: asked.no_cache });
    super::begin::<BuildQueued>(&api, caller, &headers, (&path, &asked), ask).await
}

/// Run what runs in another environment of the same app, without a build
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/promote", tag = "builds", params(EnvPath, ("Idempotency-Key" = Option<String>, Header)), request_body = Promote,
    responses((status = 202, body = BuildQueued), Refusals))]
async fn promote(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
    Body(asked): Body<Promote>,
) -> Result<Response, Problem> {
    let env = path.env();
    let path = format!("/envs/{env}/promote");
    let ask = Ask::new(Command::Promote { from: parse(&asked.from)?, to: env });
    super::begin::<BuildQueued>(&api, caller, &headers, (&path, &asked), ask).await
}
