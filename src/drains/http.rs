//! Lines by HTTP: a POST of NDJSON for each batch.
//!
//! An answer 2xx acknowledges the batch. 408, 429, 5xx and a connection that breaks: the same lines are sent again after a pause, in which
//! the ring goes on taking new ones. Every other answer is a refusal that would come again: the batch is given up and counted, so that
//! one that a receiver cannot digest does not block those after it; there is a pause then, too, so that a receiver that refuses all (a
//! token that has expired) is not offered the whole buffer at once.

use percent_encoding::percent_decode_str;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use tokio::time::Duration;
use url::Url;

use super::source::{Fault, Source};
use crate::{
    domain::{DrainUrl, Timestamp},
    outbound::{Outbound, OutboundError, read_at_most},
};

/// Bytes of an answer that are read, so that the connection can be used again.
const ANSWER: usize = 64 << 10;

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Taken,
    Again { why: String, after: Option<Duration> },
    Refused(String),
}

/// Sends what there is until something goes wrong.
pub(super) async fn attend(source: &mut Source) -> Fault {
    loop {
        if let Err(fault) = step(source).await {
            return fault;
        }
    }
}

async fn step(source: &mut Source) -> Result<(), Fault> {
    let mut batch = source.next(source.place()).await?;
    source.lose(&batch).await?;
    if batch.body.is_empty() {
        return source.taken(&batch).await;
    }
    let body = std::mem::take(&mut batch.body);
    match post(&source.shared().outbound, source.url(), body).await {
        Outcome::Taken => {
            source.connected();
            source.taken(&batch).await
        }
        Outcome::Again { why, after } => Err(Fault::Failed { why, after }),
        Outcome::Refused(why) => {
            source.refused(&batch, &why).await?;
            Err(Fault::failed(why))
        }
    }
}

/// The URL without user name and password.
fn without_user(url: &DrainUrl) -> Url {
    let mut bare = url.secret().clone();
    // Fails only for URLs without a host, which drains do not have.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    bare
}

async fn post(outbound: &Outbound, url: &DrainUrl, body: Vec<u8>) -> Outcome {
    let again = |error: OutboundError| Outcome::Again { why: error.to_string(), after: None };
    let request = match outbound.http_client().request(Method::POST, without_user(url)) {
        Ok(request) => request.header(CONTENT_TYPE, "application/x-ndjson").body(body),
        Err(error) => return again(error),
    };
    let text = |encoded: &str| percent_decode_str(encoded).decode_utf8_lossy().into_owned();
    let (user, password) = (url.secret().username(), url.secret().password());
    let request = match user.is_empty() && password.is_none() {
        true => request,
        false => request.basic_auth(text(user), password.map(text)),
    };
    match request.send().await {
        Ok(response) => {
            let outcome = judge(&response);
            // The answer is in its head; what else there is, or is not, changes nothing.
            let _ = read_at_most(response, ANSWER).await;
            outcome
        }
        Err(error) => again(OutboundError::of(&error, &url.host())),
    }
}

fn judge(response: &Response) -> Outcome {
    let status = response.status();
    let answered = format!("the receiver answered {status}");
    match status {
        _ if status.is_success() => Outcome::Taken,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Outcome::Again { why: answered, after: wanted_pause(response.headers().get(RETRY_AFTER), Timestamp::now()) }
        }
        _ if status.is_server_error() => {
            Outcome::Again { why: answered, after: wanted_pause(response.headers().get(RETRY_AFTER), Timestamp::now()) }
        }
        _ if status.is_redirection() => {
            Outcome::Refused(format!("{answered}; the drain must be of the URL that this leads to"))
        }
        _ => Outcome::Refused(answered),
    }
}

/// `Retry-After`: seconds or a date (RFC 9110, section 10.2.3).
fn wanted_pause(header: Option<&HeaderValue>, now: Timestamp) -> Option<Duration> {
    let text = header?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(at.duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_that_receivers_ask_for() {
        let now: Timestamp = "1994-11-06T08:49:07Z".parse().unwrap();
        for (text, seconds) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", None),
            ("soon", None),
            ("-1", None),
        ] {
            let pause = wanted_pause(Some(&HeaderValue::from_static(text)), now);
            assert_eq!(pause, seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(wanted_pause(None, now), None);
    }
}
