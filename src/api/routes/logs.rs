//! Logs of environments and builds: as text, as JSON lines, or as a stream of server-sent events.

use std::{convert::Infallible, fmt::Display};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
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
    domain::Timestamp,
    logs::{LogFilter, LogItem, LogQuery, MAX_TAIL, Moment, Search, plain_record},
    places::Place,
};

/// Lines where nothing is said.
const USUAL: usize = 100;
const LINES: &str = "application/x-ndjson";
/// Events that are there together are sent in one piece, until it has so many bytes: a connection holds some pieces that its client does not
/// read, and each costs it about as much as a single event.
const PIECE: usize = 8 << 10;
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
    if super::wants_stream(&headers) {
        let place = api.0.limits.stream(&caller.user)?;
        let items = api.log_stream(&caller, &env, query.query(resume(&headers))?).await?;
        return Ok(stream(items.map(log_event), place));
    }
    let place = api.0.limits.large_answer(&caller.user).await?;
    let items = api.log_tail(&caller, &env, query.query(None)?).await?;
    let as_json = super::accepts(&headers, LINES);
    let text: String = items.iter().map(|item| log_line(item, as_json)).collect();
    Ok(whole(text, as_json, place))
}

/// The events, which hold a place as long as they are followed.
fn stream(events: impl Stream<Item = String> + Send + 'static, place: Place) -> Response {
    let pieces = pieces(events).map(move |piece| {
        let _held = &place;
        Ok::<_, Infallible>(piece)
    });
    let head = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (head, Body::from_stream(pieces)).into_response()
}

/// What there is of the events at a time; a comment where there is nothing for long.
fn pieces(events: impl Stream<Item = String> + Send + 'static) -> impl Stream<Item = Bytes> + Send + 'static {
    futures::stream::unfold(Box::pin(events.fuse()), async |mut events| {
        let mut piece = match timeout(super::KEEP_ALIVE, events.next()).await {
            Ok(first) => first?,
            Err(_) => ":\n\n".to_owned(),
        };
        while piece.len() < PIECE
            && let Some(Some(next)) = events.next().now_or_never()
        {
            piece.push_str(&next);
        }
        Some((Bytes::from(piece), events))
    })
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

/// An event of a line (HTML, section 9.2.5), of JSON in one line.
fn line_event(id: impl Display, json: &str) -> String {
    format!("id: {id}\ndata: {json}\n\n")
}

fn named_event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn log_event(item: Result<LogItem, CommandError>) -> String {
    match item {
        Ok(LogItem::Record(entry)) => match entry.cursor() {
            Some(cursor) => line_event(cursor, entry.json()),
            None => format!("data: {}\n\n", entry.json()),
        },
        Ok(LogItem::Missed(lines)) => named_event("missed", &json!({"lines": lines})),
        Ok(LogItem::Gap) => named_event("missed", &json!({"lines": null})),
        Err(error) => ended(&error),
    }
}

/// The last event of a stream that ends with an error.
fn ended(error: &CommandError) -> String {
    named_event("end", &json!({"reason": error.to_string()}))
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
    if super::wants_stream(&headers) {
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
    let as_json = super::accepts(&headers, LINES);
    let line = |line: &BuildLine| if as_json { format!("{}\n", line.json()) } else { format!("{}\n", line.plain()) };
    let text: String = lines.iter().map(line).collect();
    Ok(whole(text, as_json, place))
}

fn build_event(item: Result<BuildItem, CommandError>) -> String {
    match item {
        Ok(BuildItem::Line(line)) => line_event(line.offset, &line.json()),
        Ok(BuildItem::Ended(build)) => named_event("end", &json!(build.state)),
        Err(error) => ended(&error),
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn events_that_are_there_together_are_one_piece_of_some_length() {
        let (sender, events) = mpsc::unbounded();
        let mut pieces = Box::pin(pieces(events));
        for n in 0..1000 {
            sender.unbounded_send(line_event(n, r#"{"text":"hello"}"#)).unwrap();
        }
        let (mut all, mut count) = (Vec::new(), 0);
        while let Some(Some(piece)) = pieces.next().now_or_never() {
            assert!(piece.len() < PIECE + 100, "{}", piece.len());
            (all, count) = ([&all[..], &piece].concat(), count + 1);
        }
        let all = String::from_utf8(all).unwrap();
        assert_eq!(all.split_terminator("\n\n").count(), 1000);
        assert!(all.starts_with("id: 0\ndata: {\"text\":\"hello\"}\n\nid: 1\n") && count < 10, "{count}");
        assert_eq!(pieces.next().await.unwrap(), ":\n\n", "nothing came for long");
        sender.unbounded_send(named_event("end", &Value::Null)).unwrap();
        drop(sender);
        assert_eq!(pieces.next().await.unwrap(), "event: end\ndata: null\n\n");
        assert_eq!(pieces.next().await, None);
    }
}
