//! The pages, by what they are about.

mod account;
mod app;
mod builds;
mod config;
mod environment;
mod events;
mod home;
mod logs;
mod parts;
mod platform;
mod releases;
mod tenant;

use askama::Template;
use axum::{
    Router,
    http::{Method, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    Console,
    actions::Action,
    client::Problem,
    forms::Form,
    model::LogLine,
    session::Visitor,
    shell::{self, EnvPath, Query, Rendered, Shell},
};

/// What a handler of a page answers: the page, or the problem in its frame.
struct Failed(Box<(Option<Visitor>, Problem)>);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let (visitor, problem) = *self.0;
        shell::problem_page(visitor.as_ref(), &problem)
    }
}

/// Puts a problem into the visitor's frame.
fn told<'v>(visitor: &'v Visitor) -> impl Fn(Problem) -> Failed + Copy + 'v {
    move |problem| Failed(Box::new((Some(visitor.clone()), problem)))
}

pub(super) fn routes() -> Router<Console> {
    Router::new()
        .merge(home::routes())
        .merge(tenant::routes())
        .merge(app::routes())
        .merge(environment::routes())
        .merge(builds::routes())
        .merge(releases::routes())
        .merge(logs::routes())
        .merge(config::routes())
        .merge(parts::routes())
        .merge(events::routes())
        .merge(account::routes())
        .merge(platform::routes())
}

#[derive(Template)]
#[template(path = "form_page.html", config = "src/console/askama.toml")]
struct FormPage<'p> {
    shell: Shell,
    action: &'p Action,
    form: Form,
}

/// A form on a page of its own.
pub(super) fn form(visitor: &Visitor, action: &Action, form: Form) -> Rendered {
    shell::page(&FormPage { shell: Shell::new(visitor, action.title), action, form })
}

#[derive(Template)]
#[template(path = "result.html", config = "src/console/askama.toml")]
struct ResultPage<'p> {
    shell: Shell,
    action: &'p Action,
    parts: Vec<(&'p str, String)>,
}

/// Parts of an answer that is shown once.
pub(super) fn result(visitor: &Visitor, action: &Action, parts: &[(&str, &str)], answer: &Value) -> Rendered {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    };
    let parts = parts.iter().map(|(label, name)| (*label, text(&answer[*name]))).collect();
    shell::page(&ResultPage { shell: Shell::new(visitor, action.title), action, parts })
}

#[derive(Template)]
#[template(path = "output.html", config = "src/console/askama.toml")]
struct OutputPage<'p> {
    shell: Shell,
    command: &'p str,
    lines: Vec<LogLine>,
    status: Option<i64>,
    error: Option<String>,
    again: Option<Form>,
}

/// How long the output of a command is waited for.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Runs a command and shows what it has put out.
pub(super) async fn output(
    console: &Console,
    visitor: &Visitor,
    action: &'static Action,
    path: &str,
    body: &Option<Value>,
    said: &Query,
) -> Result<Response, Problem> {
    let body = body.as_ref().map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::AUTHORIZATION, visitor.secret.bearer())
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .map_err(Problem::broken)?;
    let took_too_long = |_| {
        let text = format!("it ran for more than {} s and was ended; use ssh for what takes long", PATIENCE.as_secs());
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "It took too long", text)
    };
    let run = async { super::client::text(console.client.ask(request).await?).await };
    let text = tokio::time::timeout(PATIENCE, run).await.map_err(took_too_long)??;
    let (mut lines, mut status, mut error) = (Vec::new(), None, None);
    for piece in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        status = piece["exit_status"].as_i64().or(status);
        error = piece["error"].as_str().map(str::to_owned).or(error);
        let stream = piece["stream"].as_str().unwrap_or_default().to_owned();
        let line = |text: &str| LogLine { stream: stream.clone(), text: text.to_owned(), ..LogLine::default() };
        lines.extend(piece["text"].as_str().unwrap_or_default().lines().map(line));
    }
    let part = |name: &str| said.get(name).cloned().unwrap_or_default();
    let env = EnvPath { tenant: part("tenant"), app: part("app"), env: part("env") };
    let command = part("command");
    let again = Form::offered(visitor, action.name, &env.with(&[("command", &command)]));
    let shell = Shell::env(visitor, &env, "Run");
    Ok(shell::page(&OutputPage { shell, command: &command, lines, status, error, again }))
}
