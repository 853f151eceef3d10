//! What happened: as a list, and as a stream of server-sent events.

use std::convert::Infallible;

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response, sse::Event},
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        extract::Asked,
        names::parse,
        problem::{Problem, Refusals},
    },
    commands::Caller,
    events::{EventFilter, StreamEnd, Told},
};

/// Events of a list where nothing is said, and at the most.
const USUAL: usize = 100;
const MOST: usize = 1000;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(events))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Only of this tenant
    tenant: Option<String>,
    /// Only of this app: `TENANT/APP`
    app: Option<String>,
    /// Only of this environment: `TENANT/APP/ENV`
    env: Option<String>,
    /// Only of these kinds, with commas between them: `build.finished`, or all of a family: `build.`
    #[serde(rename = "type")]
    kinds: Option<String>,
    /// Only what came after the event with this id; as a list, the oldest of them first
    after: Option<u64>,
    /// Events of a list, from 1 to 1000; 100 where nothing is said
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

impl EventsQuery {
    fn filter(&self) -> Result<EventFilter, Problem> {
        let kinds = self.kinds.iter().flat_map(|kinds| kinds.split(',')).filter(|kind| !kind.is_empty());
        EventFilter::parse(self.tenant.as_deref(), self.app.as_deref(), self.env.as_deref(), kinds)
            .map_err(|error| Problem::bad_request(error.to_string()))
    }
}

/// Events, the oldest first.
#[derive(Debug, Serialize, ToSchema)]
struct Events {
    /// CloudEvents 1.0
    #[schema(value_type = Vec<Object>)]
    items: Vec<Value>,
    /// What to give as `after` for those that come next
    next: Option<u64>,
}

/// What happened, the newest events; or, for who accepts text/event-stream, what happens: CloudEvents 1.0. A stream begins after
/// `Last-Event-ID` (or `after`); who reads too slowly is told (`event: end`) and may go on from there
#[utoipa::path(get, path = "/events", tag = "events", params(EventsQuery, ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, content((Events = "application/json"), (String = "text/event-stream"))), Refusals))]
async fn events(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Asked(query): Asked<EventsQuery>,
) -> Result<Response, Problem> {
    let filter = query.filter()?;
    if super::wants_stream(&headers, &["application/json"]) {
        let after = match headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default()) {
            Some(id) => Some(parse(id).map_err(|_| not_a_number(id))?),
            None => query.after,
        };
        return stream(&api, &caller, filter, after).await;
    }
    let limit = query.limit.unwrap_or(USUAL);
    if !(1..=MOST).contains(&limit) {
        return Err(Problem::bad_request(format!("limit is {limit}, and has to be from 1 to {MOST}")));
    }
    let events = api.event_list(&caller, &filter, query.after, limit).await?;
    let source = &api.settings.api_url;
    let items =
        events.iter().map(|event| serde_json::to_value(event.cloud_event(source)).unwrap_or_default()).collect();
    Ok(Json(Events { items, next: events.last().map(|event| event.id).or(query.after) }).into_response())
}

fn not_a_number(id: &str) -> Problem {
    Problem::bad_request(format!("Last-Event-ID is {id:?}, and has to be the number of an event"))
}

async fn stream(api: &Api, caller: &Caller, filter: EventFilter, after: Option<u64>) -> Result<Response, Problem> {
    let place = api.0.limits.stream(&caller.user)?;
    let told = api.event_stream(caller, filter, after).await?;
    let (commands, of) = (api.clone(), caller.clone());
    let lost = async move { commands.token_lost(&of).await };
    let state = Some((Box::pin(told), Box::pin(lost), place));
    let told = futures::stream::unfold(state, async |state| {
        let (mut told, mut lost, place) = state?;
        tokio::select! {
            // Events may come without end.
            biased;
            lost = &mut lost => Some((Err(StreamEnd::AccessLost { reason: lost.to_string() }), None)),
            next = told.next() => Some((next?, Some((told, lost, place)))),
        }
    });
    let events = told.map(sse).map(Ok::<_, Infallible>);
    Ok(super::streams::event_stream(events))
}

fn sse(told: Result<Told, StreamEnd>) -> Event {
    match told {
        Ok(Told::Event(event)) => Event::default().id(event.id.to_string()).data(event.cloud_event()),
        Ok(Told::Missed { from, to }) => {
            Event::default().event("missed").data(json!({"from": from, "to": to}).to_string())
        }
        Err(end) => {
            let last_id = match &end {
                StreamEnd::TooSlow { last_id } | StreamEnd::Stopping { last_id } => Some(*last_id),
                StreamEnd::AccessLost { .. } => None,
            };
            Event::default().event("end").data(json!({"reason": end.to_string(), "last_id": last_id}).to_string())
        }
    }
}
