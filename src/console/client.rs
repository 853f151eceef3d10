//! Asks the API, as any other client does, but without a network in between.

use std::collections::VecDeque;

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode, header},
};
use futures::TryStreamExt;
use http_body_util::{BodyExt, Limited};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::io::StreamReader;
use tower::ServiceExt;

use super::session::Secret;

/// Largest answer that is taken as a whole, in bytes.
const MOST: usize = 16 << 20;

/// Why the API did not do as asked (RFC 9457).
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Problem {
    pub(super) status: u16,
    #[serde(default)]
    pub(super) title: String,
    #[serde(default)]
    pub(super) detail: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, title: &str, detail: impl Into<String>) -> Self {
        Self { status: status.as_u16(), title: title.to_owned(), detail: detail.into(), hint: None }
    }

    /// A fault of ours, which the log tells about.
    pub(super) fn broken(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "a page of the console could not be made");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "The server is at fault", "the server's log says why")
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// A part of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) next: Option<String>,
}

/// Clones share it.
#[derive(Clone)]
pub(super) struct Client(Router);

impl Client {
    pub(super) fn new(api: Router) -> Self {
        Self(api)
    }

    /// What is at a path of the API, as in `/v1/whoami`.
    pub(super) async fn get<T: DeserializeOwned>(&self, secret: &Secret, path: &str) -> Result<T, Problem> {
        let answer = self.send(Some(secret), Method::GET, path, None).await?;
        serde_json::from_value(answer).map_err(|error| Problem::broken(format!("{path}: {error}")))
    }

    /// Does something; the answer is null where there is none.
    pub(super) async fn send(
        &self,
        secret: Option<&Secret>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Problem> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(secret) = secret {
            request = request.header(header::AUTHORIZATION, secret.bearer());
        }
        self.take(request, body).await
    }

    /// Sends a request with a body of JSON, if any; the answer is null where there is none.
    pub(super) async fn take(
        &self,
        request: axum::http::request::Builder,
        body: Option<&Value>,
    ) -> Result<Value, Problem> {
        let request = match body {
            Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        json(self.ask(request.map_err(Problem::broken)?).await?).await
    }

    /// The last lines of what may be long, as many as fit, and how many there were before them.
    pub(super) async fn tail(
        &self,
        secret: &Secret,
        path: &str,
        most: usize,
    ) -> Result<(VecDeque<String>, usize), Problem> {
        let request = Request::builder().uri(path).header(header::AUTHORIZATION, secret.bearer());
        let request = request.header(header::ACCEPT, "application/x-ndjson").body(Body::empty());
        let body = self.ask(request.map_err(Problem::broken)?).await?.into_body().into_data_stream();
        let mut lines = BufReader::new(StreamReader::new(TryStreamExt::map_err(body, std::io::Error::other))).lines();
        let (mut kept, mut bytes, mut left_out) = (VecDeque::<String>::new(), 0, 0);
        while let Some(line) = lines.next_line().await.map_err(Problem::broken)? {
            bytes += line.len();
            kept.push_back(line);
            while kept.len() > most || bytes > MOST {
                let Some(oldest) = kept.pop_front() else { break };
                bytes -= oldest.len();
                left_out += 1;
            }
        }
        Ok((kept, left_out))
    }

    /// Whatever the API answers.
    pub(super) async fn pass(&self, request: Request<Body>) -> Response<Body> {
        match self.0.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// An answer that need not be at hand as a whole.
    ///
    /// # Errors
    /// The API's problem, when its answer is one.
    pub(super) async fn ask(&self, request: Request<Body>) -> Result<Response<Body>, Problem> {
        let response = self.pass(request).await;
        if response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let bytes = whole(response).await?;
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| Problem::broken(String::from_utf8_lossy(&bytes))))
    }
}

async fn whole(response: Response<Body>) -> Result<bytes::Bytes, Problem> {
    let body = Limited::new(response.into_body(), MOST).collect().await;
    body.map(|body| body.to_bytes()).map_err(Problem::broken)
}

/// An answer as JSON; what is none is text, as the output of a command is.
pub(super) async fn json(response: Response<Body>) -> Result<Value, Problem> {
    let bytes = whole(response).await?;
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|_| match bytes.is_empty() {
        true => Value::Null,
        false => Value::String(String::from_utf8_lossy(&bytes).into_owned()),
    }))
}
