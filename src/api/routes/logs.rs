//! Logs of environments and builds: as text, as JSON lines, or as a stream of server-sent events.

use std::convert::Infallible;

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response, sse::Event},
};
use futures::{Stream, StreamExt};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        extract::{Asked, Names},
        limit::sent,
        names::{EnvPath, PartPath, parse},
        problem::{Problem, Refusals},
    },
    commands::{BuildItem, BuildLine, Caller, CommandError},
    domain::{EnvRef, Timestamp},
    logs::{LogFilter, LogItem, LogQuery, MAX_TAIL, Moment, Search, plain_record},
    places::Place,
};

/// Lines where nothing is said.
const USUAL: usize = 100;
/// Lines that are read at a time.
const AT_ONCE: usize = 1000;
const LINES: &str = "application/x-ndjson";
const PLAIN: &str = "text/plain";
const TEXT: &str = "text/plain; charset=utf-8";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(show_logs)).routes(routes!(show_build_logs))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct LogsQuery {
    /// At most so many, up to 10000; 100 where nothing is said: the last ones or, with `after`, the first ones
    #[param(maximum = 10000)]
    lines: Option<usize>,
    /// A process type (`web`), one replica of it (`web.2`), or `router`
    process: Option<String>,
    /// The engine's name of a replica
    replica: Option<String>,
    /// `app`, `router` or `berth`
    source: Option<String>,
    /// `stdout` or `stderr`
    stream: Option<String>,
    /// How long ago (`10m`), or when (RFC 3339)
    since: Option<String>,
    until: Option<String>,
    /// Only lines that say they are so grave: trace, debug, info, warn, error, fatal
    level: Option<String>,
    /// Only lines with this text
    search: Option<String>,
    /// Whether its case does not matter
    #[serde(default)]
    #[param(required = false)]
    any_case: bool,
    /// Only what comes after the line with this `cursor`
    after: Option<String>,
}

/// A part of the query, parsed.
fn part<T: std::str::FromStr<Err: std::fmt::Display>>(text: Option<&String>) -> Result<Option<T>, Problem> {
    text.map(|text| parse(text)).transpose()
}

impl LogsQuery {
    fn query(&self, resume: Option<&str>) -> Result<LogQuery, Problem> {
        let lines = self.lines.unwrap_or(USUAL);
        if lines > MAX_TAIL {
            return Err(Problem::bad_request(format!("lines is {lines}, and {MAX_TAIL} is the most")));
        }
        let now = Timestamp::now();
        let moment = |text| part::<Moment>(text).map(|moment| moment.map(|moment| moment.at(now)));
        let search = self.search.as_ref().map(|text| Search::new(text, self.any_case)).transpose();
        let filter = LogFilter {
            process: self.process.clone(),
            replica: self.replica.clone(),
            source: part(self.source.as_ref())?,
            stream: part(self.stream.as_ref())?,
            since: moment(self.since.as_ref())?,
            until: moment(self.until.as_ref())?,
            search: search.map_err(|error| Problem::bad_request(error.to_string()))?,
            level: part(self.level.as_ref())?,
        };
        let after = resume.map(str::to_owned).or_else(|| self.after.clone());
        Ok(LogQuery { filter, lines, after: part(after.as_ref())? })
    }
}

/// Where a client that was cut off goes on.
fn resume(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id").and_then(|id| id.to_str().ok())
}

/// Lines of the environment's log, replicas' and the router's: as text; as JSON objects for who accepts application/x-ndjson; and on as they
/// come for who accepts text/event-stream, in which case `Last-Event-ID` goes on without a gap
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/logs", tag = "logs", params(EnvPath, LogsQuery, ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content((String = "text/plain"), (String = "application/x-ndjson"), (String = "text/event-stream"))), Refusals))]
async fn show_logs(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
    Asked(query): Asked<LogsQuery>,
) -> Result<Response, Problem> {
    let env = path.env();
    if super::wants_stream(&headers, &[LINES, PLAIN]) {
        let place = api.0.limits.stream(&caller.user)?;
        let items = api.log_stream(&caller, &env, query.query(resume(&headers))?).await?;
        return Ok(stream(items.map(log_event), place));
    }
    let place = api.0.limits.large_answer(&caller.user).await?;
    let as_json = super::accepts(&headers, LINES, &[PLAIN]);
    let text = page(&api, &caller, &env, query.query(None)?, as_json).await?;
    Ok(whole(text, as_json, place))
}

/// Lines as text. Those after a known one are read some at a time, so that not all of them are held as what they were read from, too.
async fn page(
    api: &Api,
    caller: &Caller,
    env: &EnvRef,
    mut query: LogQuery,
    as_json: bool,
) -> Result<String, CommandError> {
    let (mut text, mut left) = (String::new(), query.lines);
    loop {
        let asked = if query.after.is_some() { left.min(AT_ONCE) } else { left };
        let items = api.log_tail(caller, env, LogQuery { lines: asked, ..query.clone() }).await?;
        let (mut found, mut last) = (0, None);
        for item in items {
            text.push_str(&log_line(&item, as_json));
            if let LogItem::Record(entry) = &item {
                (found, last) = (found + 1, entry.cursor().or(last));
            }
        }
        left = left.saturating_sub(found);
        if found < asked || left == 0 || query.after.is_none() || last.is_none() {
            return Ok(text);
        }
        query.after = last;
    }
}

/// The events, which hold a place as long as they are followed.
fn stream(events: impl Stream<Item = Event> + Send + 'static, place: Place) -> Response {
    let events = events.map(move |event| {
        let _held = &place;
        Ok::<_, Infallible>(event)
    });
    super::streams::event_stream(events)
}

/// All of a log, which holds its place until it is sent.
fn whole(text: String, as_json: bool, place: Place) -> Response {
    let length = text.len().to_string();
    let kind = if as_json { LINES } else { TEXT };
    ([(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, &length)], sent(text, place)).into_response()
}

fn log_line(item: &LogItem, as_json: bool) -> String {
    match (item, as_json) {
        (LogItem::Record(entry), true) => format!("{}\n", entry.json()),
        (LogItem::Record(entry), false) => format!("{}\n", plain_record(entry)),
        (LogItem::Missed(lines), true) => format!("{}\n", json!({"missed": lines})),
        (LogItem::Missed(lines), false) => format!("… {lines} lines were missed\n"),
        (LogItem::Gap, true) => format!("{}\n", json!({"gap": true})),
        (LogItem::Gap, false) => "… lines may be missing here\n".to_owned(),
    }
}

fn log_event(item: Result<LogItem, CommandError>) -> Event {
    match item {
        Ok(LogItem::Record(entry)) => {
            let event = Event::default().data(entry.json());
            match entry.cursor() {
                Some(cursor) => event.id(cursor.to_string()),
                None => event,
            }
        }
        Ok(LogItem::Missed(lines)) => Event::default().event("missed").data(json!({"lines": lines}).to_string()),
        Ok(LogItem::Gap) => Event::default().event("missed").data(json!({"lines": null}).to_string()),
        Err(error) => ended(&error),
    }
}

/// The last event of a stream that ends with an error.
fn ended(error: &CommandError) -> Event {
    Event::default().event("end").data(json!({"reason": error.to_string()}).to_string())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct BuildLogsQuery {
    /// Only what comes after the line with this `offset`, for a stream
    from: Option<u64>,
}

/// The output of a build: as text; as JSON objects for who accepts application/x-ndjson; and on until it has ended (`event: end`) for who accepts
/// text/event-stream
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/builds/{id}/logs", tag = "logs", params(PartPath, BuildLogsQuery, ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, content((String = "text/plain"), (String = "application/x-ndjson"), (String = "text/event-stream"))), Refusals))]
async fn show_build_logs(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<PartPath>,
    Asked(query): Asked<BuildLogsQuery>,
) -> Result<Response, Problem> {
    let (env, number) = path.build()?;
    if super::wants_stream(&headers, &[LINES, PLAIN]) {
        let from = match resume(&headers) {
            Some(id) => parse(id)?,
            None => query.from.unwrap_or(0),
        };
        let place = api.0.limits.stream(&caller.user)?;
        let items = api.build_log_stream(&caller, &env, Some(number), from).await?;
        return Ok(stream(items.map(build_event), place));
    }
    let place = api.0.limits.large_answer(&caller.user).await?;
    let (_, lines) = api.build_log(&caller, &env, Some(number)).await?;
    let as_json = super::accepts(&headers, LINES, &[PLAIN]);
    let line = |line: &BuildLine| if as_json { format!("{}\n", line.json()) } else { format!("{}\n", line.plain()) };
    let text: String = lines.iter().map(line).collect();
    Ok(whole(text, as_json, place))
}

fn build_event(item: Result<BuildItem, CommandError>) -> Event {
    match item {
        Ok(BuildItem::Line(line)) => Event::default().id(line.offset.to_string()).data(line.json()),
        Ok(BuildItem::Ended(build)) => Event::default().event("end").data(json!(build.state).to_string()),
        Err(error) => ended(&error),
    }
}
