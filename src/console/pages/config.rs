//! Config variables: their names; values only when they are asked for.

use std::collections::BTreeMap;

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};

use super::{Failed, told};
use crate::console::{
    Console,
    client::Problem,
    forms::Form,
    session::Visitor,
    shell::{self, EnvPath, Query, Rendered, Shell, encode},
};

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/envs/{tenant}/{app}/{env}/config", get(config))
}

#[derive(Template)]
#[template(path = "config.html", config = "src/console/askama.toml")]
struct Config {
    shell: Shell,
    env: EnvPath,
    variables: Vec<Variable>,
    /// Why they are not shown.
    refused: Option<Problem>,
    set: Option<Form>,
    import: Option<Form>,
}

struct Variable {
    name: String,
    /// `None`: hidden.
    value: Option<String>,
    unset: Option<Form>,
    reveal: String,
}

async fn config(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let listed = console.client.get::<BTreeMap<String, String>>(&visitor.secret, &env.api("/config")).await;
    let (values, refused) = match listed {
        Ok(values) => (values, None),
        // That there is an environment, and that it has config, is no secret to who may see it.
        Err(problem) if problem.status == 403 => (BTreeMap::new(), Some(problem)),
        Err(problem) => return Err(told(&visitor)(problem)),
    };
    let shell = Shell::env(&visitor, &env, "Config").live(&format!("{}&type=config.", env.event_query())).done(&query);
    let asked = query.get("reveal").map_or("", String::as_str);
    let variables = values
        .into_iter()
        .map(|(name, value)| Variable {
            value: Some(value).filter(|_| asked == "*" || asked == name),
            unset: shell.form("config-unset", &env.with(&[("id", &name)])).map(Form::button),
            reveal: format!("/envs/{env}/config?reveal={}", encode(&name)),
            name,
        })
        .collect();
    let (set, import) = (shell.form("config-set", &env.values()), shell.form("config-import", &env.values()));
    Ok(shell::page(&Config { shell, env, variables, refused, set, import }))
}
