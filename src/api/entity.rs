//! Answers with an entity tag (RFC 9110, sections 8.8.3 and 13).

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::problem::Problem;
use crate::commands::{OnlyIf, etag};

/// What a command has answered, in the form that the API promises.
///
/// # Errors
/// When it has another form, which is a fault of the server.
pub(super) fn view<V: DeserializeOwned>(value: Value) -> Result<V, Problem> {
    serde_json::from_value(value).map_err(|error| Problem::broken(format!("an answer is not as documented: {error}")))
}

/// A resource that can be read and changed as long as nobody else has changed it.
pub(super) struct Entity<V> {
    tag: String,
    view: V,
    /// The tags that the client has already.
    known: Option<String>,
}

impl<V: DeserializeOwned> Entity<V> {
    /// `value`: what the command that reads it has answered; its changes compare the tag of the same.
    pub(super) fn new(value: Value, request: &HeaderMap) -> Result<Self, Problem> {
        Self::tagged(etag(&value), value, request)
    }

    /// With the tag of what its changes compare, where that is not the whole answer.
    pub(super) fn tagged(tag: String, value: Value, request: &HeaderMap) -> Result<Self, Problem> {
        let known = request.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok()).map(str::to_owned);
        Ok(Self { tag, view: view(value)?, known })
    }
}

impl<V: Serialize> IntoResponse for Entity<V> {
    fn into_response(self) -> Response {
        let is_known = |known: &String| {
            known.split(',').map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == self.tag)
        };
        let tag = HeaderValue::from_str(&self.tag).ok().map(|tag| (header::ETAG, tag));
        let mut response = match self.known.as_ref().is_some_and(is_known) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => Json(self.view).into_response(),
        };
        response.headers_mut().extend(tag);
        response
    }
}

/// The tags of an `If-Match` header.
pub(super) fn only_if(request: &HeaderMap) -> Result<OnlyIf, Problem> {
    let Some(header) = request.get(header::IF_MATCH) else { return Ok(OnlyIf::default()) };
    let text = header.to_str().map_err(|_| Problem::bad_request("If-Match is not text"))?;
    Ok(OnlyIf(Some(text.to_owned())))
}
