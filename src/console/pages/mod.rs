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

use std::collections::VecDeque;

use askama::Template;
use axum::{
    Router,
    http::{Method, Request, header},
    response::{IntoResponse, Response},
};
use futures::TryStreamExt;
use serde_json::Value;
use tokio::io::AsyncBufReadExt;
use tokio_util::io::StreamReader;

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
pub(super) fn form(visitor: &Visitor, action: &Action, form: Form, about: &Query) -> Rendered {
    shell::page(&FormPage { shell: Shell::new(visitor, action.title).below(&shell::crumbs(about)), action, form })
}

#[derive(Template)]
#[template(path = "result.html", config = "src/console/askama.toml")]
struct ResultPage<'p> {
    shell: Shell,
    action: &'p Action,
    parts: Vec<(&'p str, String)>,
}

/// Parts of an answer that is shown once.
pub(super) fn result(
    visitor: &Visitor,
    action: &Action,
    parts: &[(&str, &str)],
    answer: &Value,
    about: &Query,
) -> Rendered {
    let text = |value: &Value| match value {
        Value::String(text) => match text.parse::<crate::domain::Timestamp>() {
            Ok(moment) => moment.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            Err(_) => text.clone(),
        },
        Value::Null => String::new(),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    };
    let parts = parts.iter().map(|(label, name)| (*label, text(&answer[*name]))).collect();
    let shell = Shell::new(visitor, action.title).below(&shell::crumbs(about));
    shell::page(&ResultPage { shell, action, parts })
}

#[derive(Template)]
#[template(path = "output.html", config = "src/console/askama.toml")]
struct OutputPage<'p> {
    shell: Shell,
    command: &'p str,
    lines: VecDeque<LogLine>,
    /// Lines before these that are not shown.
    left_out: usize,
    status: Option<i64>,
    error: Option<String>,
    again: Option<Form>,
}

/// How long a command may take here, and how many lines of its output are shown.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);
const LINES: usize = 5000;

/// What a command has put out, the end of it where that is long.
#[derive(Default)]
struct Output {
    lines: VecDeque<LogLine>,
    left_out: usize,
    status: Option<i64>,
    error: Option<String>,
}

impl Output {
    /// Reads until the command has ended, or has taken too long; who does not listen any more ends it.
    async fn of(response: Response) -> Self {
        let mut output = Self::default();
        let pieces = response.into_body().into_data_stream().map_err(std::io::Error::other);
        let mut lines = tokio::io::BufReader::new(StreamReader::new(pieces)).lines();
        let read = async {
            while let Ok(Some(line)) = lines.next_line().await {
                output.take(&line);
            }
        };
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            let text =
                format!("it ran for more than {} s and was ended; use ssh for what takes long", PATIENCE.as_secs());
            output.error = Some(text);
        }
        output
    }

    fn take(&mut self, line: &str) {
        let Ok(piece) = serde_json::from_str::<Value>(line) else { return };
        self.status = piece["exit_status"].as_i64().or(self.status);
        self.error = piece["error"].as_str().map(str::to_owned).or(self.error.take());
        let stream = piece["stream"].as_str().unwrap_or_default();
        for text in piece["text"].as_str().unwrap_or_default().lines() {
            self.lines.push_back(LogLine { stream: stream.to_owned(), text: text.to_owned(), ..LogLine::default() });
        }
        let over = self.lines.len().saturating_sub(LINES);
        self.lines.drain(..over);
        self.left_out += over;
    }
}

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
    let Output { lines, left_out, status, error } = Output::of(console.client.ask(request).await?).await;
    let part = |name: &str| said.get(name).cloned().unwrap_or_default();
    let env = EnvPath { tenant: part("tenant"), app: part("app"), env: part("env") };
    let command = part("command");
    let again = Form::offered(visitor, action.name, &env.with(&[("command", &command)]));
    let shell = Shell::env(visitor, &env, "Run");
    Ok(shell::page(&OutputPage { shell, command: &command, lines, left_out, status, error, again }))
}
