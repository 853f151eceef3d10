//! Environments: what runs, how much of it, and jobs that run by the clock.

use std::collections::BTreeMap;

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
        entity::{Entity, only_if, view},
        extract::{Asked, Body, Names},
        idempotency::Answers,
        names::{EnvPath, PartPath, parse},
        page::{Page, PageQuery},
        problem::{Problem, Refusals},
        views::{
            CronJob, CronRun, Destroyed, Environment, EnvironmentCreated, EnvironmentRow, NewEnvironment, Restart,
            Running, Scale,
        },
    },
    commands::{
        Ask, Caller, Command, Part,
        nouns::{self, Cron, Envs},
    },
    domain::EnvRef,
};

/// Runs of cron jobs that are listed.
const RUNS: u32 = 1000;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_envs, create_env))
        .routes(routes!(show_env, destroy_env))
        .routes(routes!(list_running))
        .routes(routes!(show_scale, set_scale, reset_scale))
        .routes(routes!(restart_env))
        .routes(routes!(list_cron_jobs))
        .routes(routes!(list_cron_runs))
        .routes(routes!(run_cron_job))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct EnvsQuery {
    /// Only of this one: `TENANT/APP`
    app: Option<String>,
}

/// Your environments
#[utoipa::path(get, path = "/envs", tag = "environments", params(EnvsQuery, PageQuery), responses((status = 200, body = Page<EnvironmentRow>), Refusals))]
async fn list_envs(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<EnvsQuery>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<EnvironmentRow>>, Problem> {
    let app = query.app.as_deref().map(parse).transpose()?;
    let part = page.part::<EnvRef>()?;
    let list = api.ask(caller, Ask::new(Command::Envs(Envs::List { app, part }))).await?;
    Ok(Json(page.cut(list, "name")?))
}

/// Make an environment (owners)
#[utoipa::path(post, path = "/envs", tag = "environments", request_body = NewEnvironment, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = EnvironmentCreated), Refusals))]
async fn create_env(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(new): Body<NewEnvironment>,
) -> Result<Response, Problem> {
    let ask = Ask::new(Command::Envs(Envs::Create { env: parse(&new.name)? }));
    super::create::<EnvironmentCreated>(&api, caller, &headers, ("/envs", &new), Answers::Kept, ask).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RunningQuery {
    /// Also what each process type waits for, since when and until when
    #[serde(default)]
    #[param(required = false)]
    why: bool,
}

/// What runs in your environments, in a few words
#[utoipa::path(get, path = "/running", tag = "environments", params(RunningQuery, PageQuery), responses((status = 200, body = Page<Running>), Refusals))]
async fn list_running(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<RunningQuery>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<Running>>, Problem> {
    let part = page.part::<EnvRef>()?;
    let list = api.ask(caller, Ask::new(Command::Ps { env: None, why: query.why, part })).await?;
    Ok(Json(page.cut(list, "env")?))
}

/// An environment, what runs in it, and what it waits for
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}", tag = "environments", params(EnvPath), responses((status = 200, body = Environment), Refusals))]
async fn show_env(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
) -> Result<Json<Environment>, Problem> {
    let ps = Command::Ps { env: Some(path.env()), why: true, part: Part::default() };
    Ok(Json(view(api.ask(caller, Ask::new(ps)).await?)?))
}

/// Destroy an environment with its history (owners)
#[utoipa::path(delete, path = "/envs/{tenant}/{app}/{env}", tag = "environments", params(EnvPath),
    responses((status = 200, body = Destroyed), (status = 202, description = "It is being destroyed"), Refusals))]
async fn destroy_env(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
) -> Result<(StatusCode, Json<Option<Destroyed>>), Problem> {
    let env = path.env();
    let confirm = Some(env.to_string());
    super::within(api.ask(caller, Ask::new(Command::Envs(Envs::Destroy { env, confirm })))).await
}

/// How many replicas of each process type are wanted
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/scale", tag = "environments", params(EnvPath),
    responses((status = 200, body = Scale, headers(("ETag"))), (status = 304, description = "As you have it"), Refusals))]
async fn show_scale(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
) -> Result<Entity<Scale>, Problem> {
    let command = nouns::Scale { env: path.env(), counts: Vec::new(), reset: false };
    Entity::new(api.ask(caller, Ask::new(Command::Scale(command))).await?, &headers)
}

/// Set the number of replicas; process types that are not named stay as they are
#[utoipa::path(patch, path = "/envs/{tenant}/{app}/{env}/scale", tag = "environments", params(EnvPath, ("If-Match" = Option<String>, Header)),
    request_body(content = BTreeMap<String, u32>, example = json!({"web": 3})), responses((status = 202, body = Scale), Refusals))]
async fn set_scale(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
    Body(counts): Body<BTreeMap<String, u32>>,
) -> Result<(StatusCode, Json<Scale>), Problem> {
    if counts.is_empty() {
        return Err(Problem::bad_request("no process type is named").with_hint("as in {\"web\": 3}"));
    }
    let counts = counts.into_iter().map(|(process, count)| format!("{process}={count}")).collect();
    let command = nouns::Scale { env: path.env(), counts, reset: false };
    let ask = Ask::new(Command::Scale(command)).only_if(only_if(&headers)?);
    Ok((StatusCode::ACCEPTED, Json(view(api.ask(caller, ask).await?)?)))
}

/// Back to the numbers that the manifest says
#[utoipa::path(delete, path = "/envs/{tenant}/{app}/{env}/scale", tag = "environments", params(EnvPath, ("If-Match" = Option<String>, Header)),
    responses((status = 202, body = Scale), Refusals))]
async fn reset_scale(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
) -> Result<(StatusCode, Json<Scale>), Problem> {
    let command = nouns::Scale { env: path.env(), counts: Vec::new(), reset: true };
    let ask = Ask::new(Command::Scale(command)).only_if(only_if(&headers)?);
    Ok((StatusCode::ACCEPTED, Json(view(api.ask(caller, ask).await?)?)))
}

/// Replace all replicas, one after another
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/restart", tag = "environments", params(EnvPath, ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 202, body = Restart), Refusals))]
async fn restart_env(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
) -> Result<Response, Problem> {
    let env = path.env();
    let path = format!("/envs/{env}/restart");
    let ask = Ask::new(Command::Restart { env });
    super::begin::<Restart>(&api, caller, &headers, (&path, &()), ask).await
}

/// Jobs of the current release that run by the clock
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/cron", tag = "cron", params(EnvPath, PageQuery), responses((status = 200, body = Page<CronJob>), Refusals))]
async fn list_cron_jobs(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<CronJob>>, Problem> {
    let list = api.ask(caller, Ask::new(Command::Cron(Cron::List { env: path.env() }))).await?;
    Ok(Json(page.page(list, &["job"])?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RunsQuery {
    /// Only of this one
    job: Option<String>,
}

/// What became of the runs, the newest first
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/cron-runs", tag = "cron", params(EnvPath, RunsQuery, PageQuery),
    responses((status = 200, body = Page<CronRun>), Refusals))]
async fn list_cron_runs(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Asked(query): Asked<RunsQuery>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<CronRun>>, Problem> {
    let job = query.job.as_deref().map(parse).transpose()?;
    let command = Cron::History { env: path.env(), job, lines: RUNS };
    Ok(Json(page.page(api.ask(caller, Ask::new(Command::Cron(command))).await?, &["job", "number"])?))
}

/// Run a job now
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/cron/{id}/runs", tag = "cron", params(PartPath, ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 202, body = CronRun), Refusals))]
async fn run_cron_job(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<PartPath>,
) -> Result<Response, Problem> {
    let (env, job) = path.parts();
    let path = format!("/envs/{env}/cron/{job}/runs");
    let ask = Ask::new(Command::Cron(Cron::Run { env, job: parse(&job)?, detach: true }));
    super::begin::<CronRun>(&api, caller, &headers, (&path, &()), ask).await
}
