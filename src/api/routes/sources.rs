//! Deploying without git: sources as an archive, and images by digest.

use std::collections::BTreeMap;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::io::StreamReader;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        extract::{Asked, Body, Names},
        idempotency::Answers,
        names::EnvPath,
        problem::{Problem, Refusals},
        views::{BuildQueued, DeploymentBegun},
    },
    commands::{Caller, SourceOptions},
};

/// What an archive may be said to be.
const ARCHIVES: [&str; 5] =
    ["application/gzip", "application/x-gzip", "application/x-tar", "application/x-gtar", "application/octet-stream"];

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(create_build)).routes(routes!(deploy_image))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct SourceQuery {
    /// What the commit says that is made of it
    message: Option<String>,
    /// Build from nothing
    #[serde(default)]
    #[param(required = false)]
    no_cache: bool,
}

/// A tar or tar.gz of a source tree.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "for the OpenAPI document")]
struct Archive(Vec<u8>);

/// Build and deploy a source that comes as tar or tar.gz, judged as a push is. What is asked again with the same key is not read: of the
/// archive, only its length and type are compared
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/builds", tag = "builds", params(EnvPath, SourceQuery, ("Idempotency-Key" = Option<String>, Header)),
    request_body(content((Archive = "application/octet-stream"), (Archive = "application/gzip"), (Archive = "application/x-tar"))), responses((status = 202, body = BuildQueued), Refusals))]
async fn create_build(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Asked(query): Asked<SourceQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !ARCHIVES.contains(&kind.as_str()) {
        let detail = format!("the body is {kind:?}, and an archive is taken");
        return Err(
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).with_hint(format!("send it as {}", ARCHIVES[0]))
        );
    }
    let (env, text) = (path.env(), |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default());
    let path = format!("/envs/{env}/builds");
    let asked = json!({
        "message": query.message, "no_cache": query.no_cache, "length": text(header::CONTENT_LENGTH), "kind": kind,
    });
    let options = SourceOptions { message: query.message, no_cache: query.no_cache };
    let bytes = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let source = StreamReader::new(Box::pin(bytes));
    let (commands, by) = (api.clone(), caller.clone());
    let work = async move {
        let build = commands.build_from_tarball(&by, &env, source, options).await?;
        serde_json::to_value(BuildQueued::of(&build)).map_err(Problem::broken)
    };
    api.0.once.run(&caller, &headers, (&path, &asked), (Answers::Kept, StatusCode::ACCEPTED), work).await
}

/// An image in Berth's own registry.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewDeployment {
    /// By its digest, as `releases info` shows it
    #[schema(example = "berth/acme/shop@sha256:…")]
    image: String,
    /// What to run of it, as in `berth.yaml`; else what the newest release of it ran
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    processes: Option<BTreeMap<String, serde_json::Value>>,
}

/// Deploy an image that is in the registry already, by its digest
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/deployments", tag = "deployments", params(EnvPath, ("Idempotency-Key" = Option<String>, Header)), request_body = NewDeployment,
    responses((status = 202, body = DeploymentBegun), Refusals))]
async fn deploy_image(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
    Body(new): Body<NewDeployment>,
) -> Result<Response, Problem> {
    let env = path.env();
    let path = format!("/envs/{env}/deployments");
    let asked = serde_json::to_value(&new).map_err(Problem::broken)?;
    let processes = new.processes.as_ref().map(serde_json::to_string).transpose().map_err(Problem::broken)?;
    let (commands, by) = (api.clone(), caller.clone());
    let work = async move {
        let release = commands.deploy_image(&by, &env, &new.image, processes.as_deref()).await?;
        let begun = DeploymentBegun::of(&env, release.version, commands.deployer.url(&env));
        serde_json::to_value(begun).map_err(Problem::broken)
    };
    api.0.once.run(&caller, &headers, (&path, &asked), (Answers::Kept, StatusCode::ACCEPTED), work).await
}
