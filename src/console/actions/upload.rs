//! A source that comes with a form: passed on as it comes, whatever its size.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Multipart, State, multipart::Field},
    http::{HeaderMap, Request, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::post,
};
use bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::console::{
    Console,
    client::Problem,
    session::{Visitor, from_elsewhere, is_from_elsewhere},
    shell::{EnvPath, Query, encode, problem_page},
};

/// Pieces of the file that wait to be taken.
const WAITING: usize = 8;
/// How long nothing may come.
const QUIET: Duration = Duration::from_secs(30);
/// Longest text of a field, in bytes, and how many fields there are.
const LONGEST: usize = 4096;
const FIELDS: usize = 10;

pub(super) fn routes() -> Router<Console> {
    // The API has the limit.
    Router::new().route("/upload", post(upload).layer(DefaultBodyLimit::disable()))
}

async fn upload(State(console): State<Console>, visitor: Visitor, headers: HeaderMap, parts: Multipart) -> Response {
    if is_from_elsewhere(&headers) {
        return from_elsewhere();
    }
    match taken(&console, &visitor, parts).await {
        Ok(Some(to)) => Redirect::to(&to).into_response(),
        Ok(None) => from_elsewhere(),
        Err(problem) => problem_page(Some(&visitor), &problem),
    }
}

fn off(error: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "The upload did not come whole", error.to_string())
}

/// Where to go when it is queued; `None`: the form is none of ours.
async fn taken(console: &Console, visitor: &Visitor, mut parts: Multipart) -> Result<Option<String>, Problem> {
    let mut said = Query::new();
    for _ in 0..FIELDS {
        let late = |_| off("a field did not come in time");
        let field = timeout(QUIET, parts.next_field()).await.map_err(late)?.map_err(off)?;
        let Some(field) = field else { break };
        let name = field.name().unwrap_or_default().to_owned();
        if name == "source" {
            // Browsers send fields in the order of the form, in which this is the last.
            if !said.get("form").is_some_and(|word| visitor.secret.is_form_word(word)) {
                return Ok(None);
            }
            return passed_on(console, visitor, &said, field).await.map(Some);
        }
        said.insert(name, text(field).await?);
    }
    Err(off("there is no file in it"))
}

async fn text(mut field: Field<'_>) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    let late = |_| off("a field did not come in time");
    while let Some(piece) = timeout(QUIET, field.chunk()).await.map_err(late)?.map_err(off)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > LONGEST {
            return Err(off("a field is too long"));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn passed_on(
    console: &Console,
    visitor: &Visitor,
    said: &Query,
    mut field: Field<'_>,
) -> Result<String, Problem> {
    let part = |name: &str| said.get(name).cloned().filter(|text| !text.is_empty());
    let needed = |name: &str| part(name).ok_or_else(|| super::missing(name));
    let env = EnvPath { tenant: needed("tenant")?, app: needed("app")?, env: needed("env")? };
    let message = part("message").map(|text| format!("&message={}", encode(&text))).unwrap_or_default();
    let path = format!("{}?no_cache={}{message}", env.api("/builds"), part("no_cache").is_some());
    let (pieces, body) = mpsc::channel::<Result<Bytes, std::io::Error>>(WAITING);
    let request = Request::post(path)
        .header(header::AUTHORIZATION, visitor.secret.bearer())
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(Body::from_stream(ReceiverStream::new(body)))
        .map_err(Problem::broken)?;
    let sent = async move {
        loop {
            let piece = match timeout(QUIET, field.chunk()).await {
                Ok(Ok(Some(piece))) => Ok(piece),
                Ok(Ok(None)) => return,
                Ok(Err(error)) => Err(std::io::Error::other(error)),
                Err(late) => Err(std::io::Error::other(late)),
            };
            // Once the API has answered, it takes no more.
            if pieces.send(piece).await.is_err() {
                return;
            }
        }
    };
    let asked = console.client.ask(request);
    tokio::pin!(asked, sent);
    // Once the API has answered, what the browser still sends does not matter.
    let answer = tokio::select! {
        answer = &mut asked => answer,
        () = &mut sent => asked.await,
    };
    let answer = super::super::client::json(answer?).await?;
    let build = answer["build"].as_u64().ok_or_else(|| Problem::broken("a build without a number"))?;
    Ok(format!("/envs/{env}/builds/{build}?did=build-upload"))
}
