//! Metrics: of an environment over time, and of the platform for Prometheus.

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        extract::{Asked, Names, Scraper},
        names::{EnvPath, parse},
        problem::{Problem, Refusals},
    },
    commands::Caller,
    domain::Timestamp,
    logs::Moment,
    metrics::{MetricsQuery, MetricsView},
};

/// Media type of Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(show_metrics))
}

/// What is outside of `/v1`, where Prometheus looks for it.
pub(super) fn platform() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(platform_metrics))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RangeQuery {
    /// From when on (RFC 3339), or how long ago (`10m`); an hour before `to` where nothing is said. 24 hours are kept
    from: Option<String>,
    /// Until when; now where nothing is said
    to: Option<String>,
    /// Seconds of one step, made a multiple of 10; 10 at least
    step: Option<u32>,
}

/// Requests, latency, errors, processor, memory, network and replicas of an environment, over time
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/metrics", tag = "metrics", params(EnvPath, RangeQuery), responses((status = 200, body = Object), Refusals))]
async fn show_metrics(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Asked(query): Asked<RangeQuery>,
) -> Result<Json<MetricsView>, Problem> {
    let now = Timestamp::now();
    let moment =
        |text: Option<&String>| text.map(|text| parse::<Moment>(text).map(|moment| moment.at(now))).transpose();
    let query = MetricsQuery { from: moment(query.from.as_ref())?, to: moment(query.to.as_ref())?, step: query.step };
    Ok(Json(api.metrics(&caller, &path.env(), query).await?))
}

/// The platform's metrics in Prometheus' text format (operators; a token of scope `metrics` is good for this alone)
#[utoipa::path(get, path = "/metrics", tag = "metrics", responses((status = 200, body = String, content_type = "text/plain"), Refusals))]
async fn platform_metrics(State(api): State<Api>, Scraper(caller): Scraper) -> Result<impl IntoResponse, Problem> {
    Ok(([(header::CONTENT_TYPE, PROMETHEUS)], api.platform_metrics(&caller).await?))
}
