//! The log of an environment, as it is written.

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};

use super::{Failed, told};
use crate::console::{
    Console,
    model::LogLine,
    session::Visitor,
    shell::{self, EnvPath, Query, Rendered, Shell, encode},
};

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/envs/{tenant}/{app}/{env}/logs", get(logs))
}

/// What can be asked for, as the API has it.
const FILTERS: [&str; 6] = ["process", "source", "level", "search", "since", "lines"];
const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "fatal"];
/// Lines that are shown, however many are asked for.
const MOST: usize = 3000;
const SOURCES: [&str; 3] = ["app", "router", "berth"];

#[derive(Template)]
#[template(path = "logs.html", config = "src/console/askama.toml")]
struct Logs {
    shell: Shell,
    env: EnvPath,
    asked: Query,
    lines: Vec<LogLine>,
    /// Lines at the beginning that are not shown.
    left_out: usize,
    /// Where what comes next is had from.
    follow: String,
}

impl Logs {
    fn value(&self, name: &str) -> &str {
        self.asked.get(name).map_or("", String::as_str)
    }

    fn levels(&self) -> [&'static str; 6] {
        LEVELS
    }

    fn sources(&self) -> [&'static str; 3] {
        SOURCES
    }
}

async fn logs(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let asked: Query =
        query.into_iter().filter(|(name, value)| FILTERS.contains(&name.as_str()) && !value.is_empty()).collect();
    let pairs: Vec<String> = asked
        .iter()
        .filter(|(name, _)| *name != "lines")
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .chain(asked.contains_key("search").then(|| "any_case=true".to_owned()))
        .collect();
    let lines = asked.get("lines").map_or("200", String::as_str);
    // What is no number is refused by the API.
    let lines = lines.parse::<usize>().map_or_else(|_| encode(lines), |lines| lines.min(MOST).to_string());
    let path = env.api(&format!("/logs?lines={lines}&{}", pairs.join("&")));
    let path = path.trim_end_matches('&');
    let (lines, left_out) = console.client.tail(&visitor.secret, path, MOST).await.map_err(told(&visitor))?;
    let lines: Vec<LogLine> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut pairs = pairs;
    match lines.iter().rev().find_map(|line| line.cursor.as_ref()) {
        Some(cursor) => pairs.push(format!("after={}", encode(cursor))),
        None => pairs.push("lines=0".to_owned()),
    }
    let follow = format!("/relay{}?{}", env.api("/logs"), pairs.join("&"));
    Ok(shell::page(&Logs { shell: Shell::env(&visitor, &env, "Logs"), env, asked, lines, left_out, follow }))
}
