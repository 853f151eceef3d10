//! What happened, and what happens.

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};

use super::{Failed, told};
use crate::console::{
    Console,
    model::{Event, Events},
    session::Visitor,
    shell::{self, EnvPath, Query, Rendered, Shell, encode},
};

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/events", get(all)).route("/envs/{tenant}/{app}/{env}/events", get(of_env))
}

#[derive(Template)]
#[template(path = "events.html", config = "src/console/askama.toml")]
struct EventsPage {
    shell: Shell,
    asked: Query,
    /// The newest first.
    events: Vec<Event>,
    /// Whether it is about one environment.
    of_env: bool,
}

impl EventsPage {
    fn value(&self, name: &str) -> &str {
        self.asked.get(name).map_or("", String::as_str)
    }

    fn families(&self) -> [&'static str; 18] {
        FAMILIES
    }
}

/// Families of events, as the list to choose from has them.
const FAMILIES: [&str; 18] = [
    "push.",
    "build.",
    "release.",
    "deployment.",
    "replica.",
    "scale.",
    "config.",
    "domain.",
    "env.",
    "app.",
    "tenant.",
    "member.",
    "access.",
    "run.",
    "cron.",
    "drain.",
    "webhook.",
    "token.",
];

async fn all(
    State(console): State<Console>,
    visitor: Visitor,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let shell = Shell::new(&visitor, "Events").below(&[("/events".into(), "events".into())]);
    show(&console, &visitor, shell, query, None).await
}

async fn of_env(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let shell = Shell::env(&visitor, &env, "Events");
    show(&console, &visitor, shell, query, Some(&env)).await
}

async fn show(
    console: &Console,
    visitor: &Visitor,
    shell: Shell,
    asked: Query,
    env: Option<&EnvPath>,
) -> Result<Rendered, Failed> {
    let mut asked: Query = asked
        .into_iter()
        .filter(|(name, value)| ["tenant", "type"].contains(&name.as_str()) && !value.is_empty())
        .collect();
    if let Some(env) = env {
        asked.remove("tenant");
        asked.insert("env".to_owned(), env.to_string());
    }
    let query: Vec<String> = asked.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    let query = query.join("&");
    let path = format!("/v1/events?limit=200&{query}");
    let found = console.client.get::<Events>(&visitor.secret, path.trim_end_matches('&')).await;
    let mut events = found.map_err(told(visitor))?.items;
    events.reverse();
    let shell = shell.live(&query);
    Ok(shell::page(&EventsPage { shell, asked, events, of_env: env.is_some() }))
}
