//! What routes take from a request: who asks, names in the path, the query, the body. Whatever is off is told as a problem.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{StatusCode, header, request::Parts},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::{Api, declared, problem::Problem};
use crate::{commands::Caller, domain::TraceContext};

/// Largest body of a request, in bytes, where nothing else is said.
const MAX_BODY: usize = 1 << 20;
/// How long it may take to come.
const BODY_TIME: Duration = Duration::from_secs(60);

/// What a library says of a number, for people.
pub(super) fn in_plain_words(text: &str) -> String {
    text.replace("invalid digit found in string", "it is no whole number from 0 on")
        .replace("cannot parse integer from empty string", "it is empty, and should be a whole number")
        .replace("number too large to fit in target type", "the number is too large")
}

fn unauthenticated(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
        .with_hint("make a token with `ssh … tokens create NAME`, and send it as `Authorization: Bearer TOKEN`")
}

impl FromRequestParts<Api> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Scraper(caller) = Scraper::from_request_parts(parts, api).await?;
        caller.need_commands()?;
        Ok(caller)
    }
}

/// Who asks, perhaps with a token that is for the platform's metrics alone: for the route of these.
pub(super) struct Scraper(pub(super) Caller);

impl FromRequestParts<Api> for Scraper {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let mut headers = parts.headers.get_all(header::AUTHORIZATION).iter();
        let header = headers.next().ok_or_else(|| unauthenticated("the request has no Authorization header"))?;
        // A proxy before us may have judged the other one.
        if headers.next().is_some() {
            return Err(unauthenticated("the request has several Authorization headers, and one is needed"));
        }
        let secret = header.to_str().ok().and_then(|text| text.split_once(' '));
        let secret =
            secret.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, secret)| secret.trim());
        let secret = secret.ok_or_else(|| unauthenticated("the Authorization header is not `Bearer TOKEN`"))?;
        let caller = api.authenticate_token(secret).await.map_err(Problem::broken)?;
        let caller = caller.ok_or_else(|| unauthenticated("this token is unknown, has expired or was revoked"))?;
        api.0.limits.may_ask(&caller.user)?;
        declared::check_query(parts)?;
        Ok(Self(Caller { trace: trace_of(parts), ..caller }))
    }
}

/// The trace that the caller's request is a part of (W3C Trace Context, section 3.2). What is none is ignored, as the standard wants.
fn trace_of(parts: &Parts) -> Option<TraceContext> {
    let mut headers = parts.headers.get_all("traceparent").iter();
    let header = headers.next().filter(|_| headers.next().is_none())?;
    header.to_str().ok()?.trim().parse().ok()
}

/// The names in the path.
pub(super) struct Names<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Names<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, api).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(error) => Err(Problem::bad_request(format!("the path is off: {}", error.body_text()))),
        }
    }
}

/// The query, or a part of it: that it has no names that nobody knows is seen to with [`Caller`].
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, api).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => {
                let text = error.body_text();
                let text = in_plain_words(text.trim_start_matches("Failed to deserialize query string: "));
                Err(Problem::bad_request(format!("the query is off: {text}")))
            }
        }
    }
}

/// A body of JSON.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Api) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let detail = format!("the body is {:?}, and application/json is taken", kind.escape_debug().to_string());
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        read_json(&whole_body(request).await?).map(Self)
    }
}

/// The body, up to a limit.
pub(super) async fn whole_body(request: Request) -> Result<Bytes, Problem> {
    let body = tokio::time::timeout(BODY_TIME, Limited::new(request.into_body(), MAX_BODY).collect()).await;
    let body = body
        .map_err(|_| Problem::bad_request(format!("the body did not come whole within {} s", BODY_TIME.as_secs())))?;
    body.map(|body| body.to_bytes()).map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {} KiB", MAX_BODY >> 10))
        }
        None => Problem::bad_request("the body did not come whole"),
    })
}

fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let problem = Problem::bad_request(format!("the body cannot be read: {error}"));
        Problem { line: error.line().try_into().ok(), column: error.column().try_into().ok(), ..problem }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_body_is_off_is_told() {
        let problem =
            read_json::<std::collections::BTreeMap<String, u32>>(b"{\"web\": 1,\n \"worker\": x}").unwrap_err();
        assert_eq!((problem.status, problem.line, problem.column), (400, Some(2), Some(12)));
    }
}
