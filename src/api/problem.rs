//! What went wrong, as problem details (RFC 9457).

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use crate::commands::CommandError;

/// Media type of problem details.
const MEDIA_TYPE: &str = "application/problem+json";
/// Seconds after which what was refused for now may be tried again.
const RETRY_AFTER: &str = "2";

/// Why a request was not done as asked (RFC 9457).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Problem {
    /// The kind of problem, for programs: a path below the API, as in `/problems/conflict`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The kind, for people.
    pub(crate) title: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// What failed and why.
    pub(crate) detail: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// Where in the request body, from 1, when it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) column: Option<u32>,
}

impl Problem {
    /// A problem of the kind that the status stands for.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let (kind, title) = match status {
            StatusCode::BAD_REQUEST => ("bad-request", "The request is not as it has to be"),
            StatusCode::UNAUTHORIZED => ("unauthenticated", "No valid token came with the request"),
            StatusCode::FORBIDDEN => ("not-permitted", "You may not do that"),
            StatusCode::NOT_FOUND => ("not-found", "It does not exist, or you may not know that it does"),
            StatusCode::METHOD_NOT_ALLOWED => ("method", "The resource does not take this method"),
            StatusCode::CONFLICT => ("conflict", "It exists already, is in use, or somebody else is at it"),
            StatusCode::PRECONDITION_FAILED => ("changed", "It has been changed since you read it"),
            StatusCode::PAYLOAD_TOO_LARGE => ("too-large", "The request is too large"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ("media-type", "The body is not of a type that is taken here"),
            StatusCode::UNPROCESSABLE_ENTITY => ("failed", "It was tried and failed"),
            StatusCode::TOO_MANY_REQUESTS => ("too-many", "Too many requests"),
            StatusCode::SERVICE_UNAVAILABLE => ("try-later", "Nothing is wrong with the request; try again later"),
            _ => ("broken", "The server is at fault"),
        };
        let (kind, title) = (format!("/problems/{kind}"), title.to_owned());
        Self { kind, title, status: status.as_u16(), detail: detail.into(), hint: None, line: None, column: None }
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// A fault of the server's own, which the caller is told nothing of; the log is.
    pub(crate) fn broken(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "a request to the API failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server is at fault; its log says why")
    }
}

impl From<CommandError> for Problem {
    /// The first line says what failed; what follows, or stands behind a semicolon, what to do.
    fn from(error: CommandError) -> Self {
        let status = match &error {
            CommandError::Failed(_) | CommandError::Unfit(_) => StatusCode::UNPROCESSABLE_ENTITY,
            CommandError::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
            CommandError::Usage(_) => StatusCode::BAD_REQUEST,
            CommandError::Denied(_) => StatusCode::FORBIDDEN,
            CommandError::NotFound(_) => StatusCode::NOT_FOUND,
            CommandError::Conflict(_) => StatusCode::CONFLICT,
            CommandError::Stale(_) => StatusCode::PRECONDITION_FAILED,
            CommandError::TryLater(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let text = error.to_string();
        let (detail, hint) = match text.split_once('\n').or_else(|| text.split_once("; ")) {
            Some((detail, hint)) => (detail, Some(hint)),
            None => (text.as_str(), None),
        };
        let problem = Self::new(status, detail);
        match hint {
            Some(hint) => problem.with_hint(hint.trim_end()),
            None => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"berth\""));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            _ => {}
        }
        response
    }
}

/// What any request can be refused with.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "for the OpenAPI document")]
pub(crate) enum Refusals {
    /// The request is not as it has to be
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(Problem),
    /// No valid token came with the request
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(Problem),
    /// You may not do that
    #[response(status = 403, content_type = "application/problem+json")]
    NotPermitted(Problem),
    /// It does not exist, or you may not know that it does
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// It exists already, is in use, or somebody else is at it
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(Problem),
    /// It has been changed since you read it
    #[response(status = 412, content_type = "application/problem+json")]
    Changed(Problem),
    /// The request is too large
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// The body is not of a type that is taken here
    #[response(status = 415, content_type = "application/problem+json")]
    MediaType(Problem),
    /// It was tried and failed
    #[response(status = 422, content_type = "application/problem+json")]
    Failed(Problem),
    /// Too many requests
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(Problem),
    /// The server is at fault
    #[response(status = 500, content_type = "application/problem+json")]
    Broken(Problem),
    /// Nothing is wrong with the request; try again later
    #[response(status = 503, content_type = "application/problem+json")]
    TryLater(Problem),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_told_from_what_failed() {
        let problem = |text: &str| Problem::from(CommandError::NotFound(text.into()));
        let one = problem("there is no app acme/shp; did you mean acme/shop?");
        assert_eq!((one.status, one.detail.as_str()), (404, "there is no app acme/shp"));
        assert_eq!(one.hint.as_deref(), Some("did you mean acme/shop?"));
        let two = problem("v3 was not deployed; v2 serves\nSee what it said: logs acme/shop/dev");
        assert_eq!(two.detail, "v3 was not deployed; v2 serves");
        assert_eq!(two.hint.as_deref(), Some("See what it said: logs acme/shop/dev"));
        assert_eq!(problem("no").hint, None);
        assert_eq!(Problem::from(CommandError::Stale(String::new())).status, 412);
    }
}
