//! `Idempotency-Key`: what is asked again with the same key is not done again, over restarts of the server too.
//! After the IETF draft "The Idempotency-Key HTTP Header Field".

use std::panic::AssertUnwindSafe;

use axum::{
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use jiff::ToSpan;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::problem::Problem;
use crate::{
    commands::Caller,
    domain::{OnceRequest, Timestamp, UserName},
    store::{Store, StoreError, Stored},
};

/// The header.
const HEADER: &str = "idempotency-key";
/// Longest key, in bytes.
const MAX_KEY: usize = 255;
/// How long a request is remembered, in hours, and how many of one user.
const HOURS: i64 = 24;
const KEPT: usize = 1000;

/// Whether the answer of a request may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    Kept,
    /// They hold a secret that is shown once.
    Secret,
}

/// Requests that are done once.
#[derive(Clone)]
pub(super) struct Once {
    store: Store,
    server: u64,
}

fn hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

impl Once {
    pub(super) fn new(store: Store) -> Self {
        Self { store, server: rand::random() }
    }

    /// Does `work` unless the same was done with the key of this request; without a key, does it. `request`: what was asked, and of what.
    /// `done`: the status of its answer.
    ///
    /// # Errors
    /// Those of the work; when the key was used for another request or with another token, or its request is under way or its end unknown.
    pub(super) async fn run(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        request: (&str, &Value),
        (answers, done): (Answers, StatusCode),
        work: impl Future<Output = Result<Value, Problem>> + Send + 'static,
    ) -> Result<Response, Problem> {
        let Some(key) = headers.get(HEADER) else {
            // What is begun is done though the client goes.
            let made = tokio::spawn(work).await.map_err(Problem::broken)??;
            return Ok(answer(done, &made.to_string(), false));
        };
        let key = key.to_str().ok().filter(|key| !key.is_empty() && key.len() <= MAX_KEY);
        let key =
            key.ok_or_else(|| Problem::bad_request(format!("Idempotency-Key is 1 to {MAX_KEY} visible characters")))?;
        let begun = OnceRequest {
            user: caller.user.clone(),
            token: caller.rights.as_ref().map_or_else(String::new, |rights| rights.id.clone()),
            key_hash: hash(&[key]),
            request_hash: hash(&[request.0, &request.1.to_string()]),
            at: Timestamp::now(),
            server: self.server,
            answer: None,
        };
        let id = (begun.user.clone(), begun.key_hash.clone());
        if let Some(known) = self.store.get::<OnceRequest>(&id).await.map_err(Problem::broken)? {
            return self.again(&known, &begun);
        }
        self.sweep(&begun.user).await?;
        let once = self.clone();
        // Whoever has gone may ask again what came of it. That it is begun is written in the same task: else whoever goes meanwhile would
        // leave a request that is under way for ever.
        let working = tokio::spawn(async move { once.work(begun, (answers, done), work).await });
        let made = working.await.map_err(Problem::broken)??;
        Ok(answer(done, &made.to_string(), false))
    }

    /// Writes down that it is begun, does it, and writes down what came of it.
    async fn work(
        &self,
        begun: OnceRequest,
        answers: (Answers, StatusCode),
        work: impl Future<Output = Result<Value, Problem>> + Send,
    ) -> Result<Value, Problem> {
        match self.store.transaction().create(&begun).commit().await {
            Ok(_) => {}
            Err(StoreError::Conflict(_)) => return Err(under_way()),
            Err(error) => return Err(Problem::broken(error)),
        }
        // What has panicked has failed: nothing of it is used afterwards.
        let result = AssertUnwindSafe(work).catch_unwind().await;
        let result = result.unwrap_or_else(|_| Err(Problem::broken("what was asked for has panicked")));
        self.write_down(begun, &result, answers).await;
        result
    }

    fn again(&self, known: &OnceRequest, asked: &OnceRequest) -> Result<Response, Problem> {
        // Before anything is told of the request: this token may be good for less than that one.
        if known.token != asked.token {
            let text = "this Idempotency-Key was used with another token of yours, and what came of it is told to that one alone";
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text);
            return Err(problem.with_hint("look whether it was done, and if not, ask with a new key"));
        }
        if known.request_hash != asked.request_hash {
            let problem =
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "this Idempotency-Key was used for another request");
            return Err(problem.with_hint("use a new key for each thing that is to be done"));
        }
        match &known.answer {
            Some((status, Some(body))) => {
                Ok(answer(StatusCode::from_u16(*status).map_err(Problem::broken)?, body, true))
            }
            Some((_, None)) => {
                Err(Problem::new(StatusCode::CONFLICT, "this was done already, and its secret is shown only once")
                    .with_hint("revoke what was made, and make another with a new key"))
            }
            None if known.server == self.server => Err(under_way()),
            None => Err(Problem::new(
                StatusCode::CONFLICT,
                "the server was restarted while it did this: it is not known whether it was done",
            )
            .with_hint("look whether it was, and if not, ask with a new key")),
        }
    }

    /// What failed may be tried again with the same key.
    async fn write_down(
        &self,
        begun: OnceRequest,
        result: &Result<Value, Problem>,
        (answers, done): (Answers, StatusCode),
    ) {
        let id = (begun.user.clone(), begun.key_hash.clone());
        let written = async {
            let stored = self.store.need::<OnceRequest>(&id).await?;
            let transaction = match result {
                Ok(answer) => {
                    let body = (answers == Answers::Kept).then(|| answer.to_string());
                    let known = OnceRequest { answer: Some((done.as_u16(), body)), ..begun };
                    self.store.transaction().update(&stored, &known)
                }
                Err(_) => self.store.transaction().delete(&stored),
            };
            transaction.commit().await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, "what came of a request with an Idempotency-Key is not written down");
        }
    }

    /// Makes room for one more.
    async fn sweep(&self, user: &UserName) -> Result<(), Problem> {
        let kept = self.store.list::<OnceRequest>(&format!("{user}/")).await.map_err(Problem::broken)?;
        let oldest = Timestamp::now() - HOURS.hours();
        let (old, young): (Vec<_>, Vec<_>) = kept.into_iter().partition(|request| request.at < oldest);
        let delete =
            |of: Vec<Stored<OnceRequest>>| of.iter().fold(self.store.transaction(), |all, one| all.delete(one));
        if !old.is_empty() {
            match delete(old).commit().await {
                // Somebody else sweeps.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(Problem::broken(error)),
            }
        }
        if young.len() >= KEPT {
            let text = format!("you have used {KEPT} Idempotency-Keys within {HOURS} hours, and more are not kept");
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        Ok(())
    }
}

fn under_way() -> Problem {
    Problem::new(StatusCode::CONFLICT, "the request with this Idempotency-Key is under way")
        .with_hint("ask again in a moment")
}

fn answer(status: StatusCode, body: &str, again: bool) -> Response {
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body.to_owned()).into_response();
    if again {
        response.headers_mut().insert("idempotency-replayed", axum::http::HeaderValue::from_static("true"));
    }
    response
}
