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
use futures::{Stream, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{KEY, done_at, key_of};
use crate::console::{
    Console,
    client::Problem,
    session::{Visitor, from_elsewhere, is_from_elsewhere},
    shell::{EnvPath, Query, encode, problem_page},
};

/// Pieces of the file that wait to be taken.
const WAITING: usize = 8;
/// How long all that stands before the file may take, and how long nothing of the file may come.
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
    match taken(&console, &visitor, &headers, parts).await {
        Ok(Some(to)) => Redirect::to(&to).into_response(),
        Ok(None) => from_elsewhere(),
        Err(problem) => problem_page(Some(&visitor), &problem),
    }
}

fn off(error: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "The upload did not come whole", error.to_string())
}

/// Where to go when it is queued; `None`: the form is none of ours.
async fn taken(
    console: &Console,
    visitor: &Visitor,
    headers: &HeaderMap,
    mut parts: Multipart,
) -> Result<Option<String>, Problem> {
    let (mut said, deadline) = (Query::new(), Instant::now() + QUIET);
    for _ in 0..FIELDS {
        let late = |_| off("a field did not come in time");
        let field = timeout_at(deadline, parts.next_field()).await.map_err(late)?.map_err(off)?;
        let Some(field) = field else { break };
        let name = field.name().unwrap_or_default().to_owned();
        if name == "source" {
            // Browsers send fields in the order of the form, in which this is the last.
            if !said.get("form").is_some_and(|word| visitor.secret.is_form_word(word)) {
                return Ok(None);
            }
            let key = key_of(&said).zip(length(headers, said.len() + 1)).map(|(key, length)| format!("{key}-{length}"));
            return passed_on(console, visitor, &said, key, field).await.map(Some);
        }
        said.insert(name, text(field, deadline).await?);
    }
    Err(off("there is no file in it"))
}

async fn text(mut field: Field<'_>, deadline: Instant) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    let late = |_| off("a field did not come in time");
    while let Some(piece) = timeout_at(deadline, field.chunk()).await.map_err(late)?.map_err(off)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > LONGEST {
            return Err(off("a field is too long"));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How long a form with so many parts is without what stands between them, which browsers choose anew each time: it tells another file
/// in the same form from the same one again, of which the API, to which it is passed on as it comes, knows no length. In bytes.
fn length(headers: &HeaderMap, parts: usize) -> Option<usize> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let boundary = text(header::CONTENT_TYPE)?.split_once("boundary=")?.1.split(';').next()?.trim().trim_matches('"');
    text(header::CONTENT_LENGTH)?.parse::<usize>().ok()?.checked_sub(boundary.len() * (parts + 1))
}

/// The pieces up to the end, `None`. Where they cease without it, the browser has gone: what has come is not taken for a whole source.
fn whole(pieces: mpsc::Receiver<std::io::Result<Option<Bytes>>>) -> impl Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold(pieces, |mut pieces| async move {
        let gone = || Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the upload was given up"));
        let piece = pieces.recv().await.unwrap_or_else(gone)?;
        Ok(piece.map(|piece| (piece, pieces)))
    })
}

async fn passed_on(
    console: &Console,
    visitor: &Visitor,
    said: &Query,
    key: Option<String>,
    mut field: Field<'_>,
) -> Result<String, Problem> {
    let part = |name: &str| said.get(name).cloned().filter(|text| !text.is_empty());
    let needed = |name: &str| part(name).ok_or_else(|| super::missing(name));
    let env = EnvPath { tenant: needed("tenant")?, app: needed("app")?, env: needed("env")? };
    let message = part("message").map(|text| format!("&message={}", encode(&text))).unwrap_or_default();
    let path = format!("{}?no_cache={}{message}", env.api("/builds"), part("no_cache").is_some());
    let (pieces, body) = mpsc::channel(WAITING);
    let mut request = Request::post(path)
        .header(header::AUTHORIZATION, visitor.secret.bearer())
        .header(header::CONTENT_TYPE, "application/octet-stream");
    if let Some(key) = key {
        request = request.header(KEY, key);
    }
    let request = request.body(Body::from_stream(whole(body))).map_err(Problem::broken)?;
    let sent = async move {
        loop {
            let piece = match timeout(QUIET, field.chunk()).await {
                Ok(Ok(piece)) => Ok(piece),
                Ok(Err(error)) => Err(std::io::Error::other(error)),
                Err(late) => Err(std::io::Error::other(late)),
            };
            let ends = !matches!(piece, Ok(Some(_)));
            // Once the API has answered, it takes no more.
            if pieces.send(piece).await.is_err() || ends {
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
    Ok(done_at(&format!("/envs/{env}/builds/{build}"), visitor, "build-upload"))
}

#[cfg(test)]
mod tests {
    use axum::extract::FromRequest;
    use futures::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_stands_before_the_file_comes_in_time_or_not_at_all() {
        let slow = stream::unfold("--edge\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n", async |piece| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from(piece)), "x"))
        });
        let request = Request::post("/").header(header::CONTENT_TYPE, "multipart/form-data; boundary=edge");
        let request = request.body(Body::from_stream(slow)).unwrap();
        let mut parts = Multipart::from_request(request, &()).await.unwrap();
        let begin = Instant::now();
        let field = parts.next_field().await.unwrap().unwrap();
        let problem = timeout(QUIET * 2, text(field, begin + QUIET)).await.expect("it is waited for").unwrap_err();
        assert!(problem.detail.contains("in time") && begin.elapsed() == QUIET, "{problem:?}");
    }

    #[tokio::test]
    async fn what_was_given_up_is_no_whole_source() {
        for end in [Some(Ok(None)), Some(Err(std::io::Error::other("cut off"))), None] {
            let is_whole = matches!(end, Some(Ok(None)));
            let (sender, pieces) = mpsc::channel(WAITING);
            sender.send(Ok(Some(Bytes::from_static(b"half")))).await.unwrap();
            if let Some(end) = end {
                sender.send(end).await.unwrap();
            }
            drop(sender);
            let taken: Vec<_> = whole(pieces).collect().await;
            assert_eq!((taken.len(), taken.iter().all(Result::is_ok)), (if is_whole { 1 } else { 2 }, is_whole));
        }
    }

    #[test]
    fn a_file_is_told_from_another_whatever_stands_between_the_parts() {
        let length = |boundary: &str, length: usize| {
            let kind = format!("multipart/form-data; boundary={boundary}");
            let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, length.to_string())];
            super::length(&headers.into_iter().map(|(name, value)| (name, value.parse().unwrap())).collect(), 2)
        };
        assert_eq!(length("edge", 100), Some(88));
        assert_eq!((length("longer", 106), length("\"edge\"", 100)), (Some(88), Some(88)));
        assert_ne!(length("edge", 101), Some(88));
        assert_eq!(length("edge", 1), None);
    }
}
