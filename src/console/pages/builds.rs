//! Builds, and the output of one as it comes.

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};
use serde::Deserialize;

use super::{Failed, told};
use crate::console::{
    Console,
    client::Page,
    forms::Form,
    model::{Build, BuildLine},
    session::Visitor,
    shell::{self, EnvPath, Query, Rendered, Shell, cursor, encode},
};

pub(super) fn routes() -> Router<Console> {
    Router::new()
        .route("/envs/{tenant}/{app}/{env}/builds", get(list))
        .route("/envs/{tenant}/{app}/{env}/builds/{id}", get(one))
}

#[derive(Template)]
#[template(path = "builds.html", config = "src/console/askama.toml")]
struct Builds {
    shell: Shell,
    env: EnvPath,
    builds: Vec<Build>,
    next: Option<String>,
}

async fn list(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let path = env.api(&format!("/builds?limit=50{}", cursor(&query)));
    let page = console.client.get::<Page<Build>>(&visitor.secret, &path).await.map_err(told(&visitor))?;
    let shell = Shell::env(&visitor, &env, "Builds").live(&format!("{}&type=build.", env.event_query())).done(&query);
    Ok(shell::page(&Builds { shell, env, builds: page.items, next: page.next }))
}

/// A build's path.
#[derive(Deserialize)]
pub(super) struct Part {
    tenant: String,
    app: String,
    env: String,
    pub(super) id: String,
}

impl Part {
    pub(super) fn split(self) -> (EnvPath, String) {
        (EnvPath { tenant: self.tenant, app: self.app, env: self.env }, self.id)
    }
}

#[derive(Template)]
#[template(path = "build.html", config = "src/console/askama.toml")]
struct BuildPage {
    shell: Shell,
    env: EnvPath,
    build: Build,
    lines: Vec<BuildLine>,
    /// Lines at the beginning that are not shown.
    left_out: usize,
    /// Where the rest of the output comes from.
    follow: Option<String>,
    cancel: Option<Form>,
}

/// Lines that are shown.
const LINES: usize = 3000;

async fn one(
    State(console): State<Console>,
    visitor: Visitor,
    Path(part): Path<Part>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let (env, id) = part.split();
    let path = env.api(&format!("/builds/{}", encode(&id)));
    let build = console.client.get::<Build>(&visitor.secret, &path).await.map_err(told(&visitor))?;
    let (lines, left_out) = match console.client.tail(&visitor.secret, &format!("{path}/logs"), LINES).await {
        Ok(found) => found,
        // The output of an old one may have been taken away.
        Err(problem) if problem.status == 404 => Default::default(),
        Err(problem) => return Err(told(&visitor)(problem)),
    };
    let lines: Vec<BuildLine> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let from = lines.last().map_or(String::new(), |line| format!("?from={}", line.offset));
    let follow = build.is_under_way().then(|| format!("/relay{path}/logs{from}"));
    let shell = Shell::env(&visitor, &env, "Builds").live(&format!("{}&type=build.", env.event_query())).done(&query);
    let cancel = shell.form("build-cancel", &env.with(&[("id", &id)])).map(Form::button);
    let cancel = cancel.filter(|_| build.is_under_way());
    Ok(shell::page(&BuildPage { shell, env, build, lines, left_out, follow, cancel }))
}
