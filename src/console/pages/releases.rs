//! Releases, and the deployments of them.

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};

use super::{Failed, builds::Part, environment::with_rollback, told};
use crate::console::{
    Console,
    client::Page,
    forms::Form,
    model::{Deployment, Release, ReleaseRow},
    session::Visitor,
    shell::{self, EnvPath, Query, Rendered, Shell, cursor, encode},
};

pub(super) fn routes() -> Router<Console> {
    Router::new()
        .route("/envs/{tenant}/{app}/{env}/releases", get(list))
        .route("/envs/{tenant}/{app}/{env}/releases/{id}", get(one))
}

#[derive(Template)]
#[template(path = "releases.html", config = "src/console/askama.toml")]
struct Releases {
    shell: Shell,
    env: EnvPath,
    releases: Vec<(ReleaseRow, Option<Form>)>,
    deployments: Vec<Deployment>,
    next: Option<String>,
}

async fn list(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let releases = env.api(&format!("/releases?limit=50{}", cursor(&query)));
    let deployments = env.api("/deployments?limit=20");
    let (page, deployments) = tokio::try_join!(
        console.client.get::<Page<ReleaseRow>>(&visitor.secret, &releases),
        console.client.get::<Page<Deployment>>(&visitor.secret, &deployments),
    )
    .map_err(told(&visitor))?;
    let query_of = format!("{}&type=release.,deployment.", env.event_query());
    let shell = Shell::env(&visitor, &env, "Releases").live(&query_of).done(&query);
    let releases = page.items.into_iter().map(|row| with_rollback(&shell, &env, row)).collect();
    Ok(shell::page(&Releases { shell, env, releases, deployments: deployments.items, next: page.next }))
}

#[derive(Template)]
#[template(path = "release.html", config = "src/console/askama.toml")]
struct ReleasePage {
    shell: Shell,
    env: EnvPath,
    release: Release,
    processes: String,
    deployment: Option<Deployment>,
    back: Option<Form>,
}

async fn one(
    State(console): State<Console>,
    visitor: Visitor,
    Path(part): Path<Part>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let (env, id) = part.split();
    let path = env.api(&format!("/releases/{}", encode(&id)));
    let release = console.client.get::<Release>(&visitor.secret, &path).await.map_err(told(&visitor))?;
    // A release that was never deployed has none.
    let path = env.api(&format!("/deployments/{}", encode(&id)));
    let deployment = console.client.get::<Deployment>(&visitor.secret, &path).await.ok();
    let shell = Shell::env(&visitor, &env, "Releases");
    let shell = shell.live(&format!("{}&type=deployment.", env.event_query())).done(&query);
    let version = release.version.to_string();
    let back = shell.form("rollback", &env.with(&[("version", &version)])).map(Form::button);
    let processes = serde_json::to_string_pretty(&release.processes).unwrap_or_default();
    Ok(shell::page(&ReleasePage { shell, env, release, processes, deployment, back }))
}
