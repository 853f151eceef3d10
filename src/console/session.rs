//! Who is signed in: a cookie with a token that goes by itself soon, and nothing on this side.
//!
//! Forms bear a word that is made from the token, which no other site can know; and browsers that say where a request comes from are
//! believed when it comes from elsewhere.

use std::{sync::Arc, time::Duration};

use axum::{
    Form, Router,
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware,
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use ring::hmac;
use serde::Deserialize;
use serde_json::json;

use super::{
    Console,
    client::Problem,
    model::Whoami,
    shell::{self, Rendered},
};

/// The cookie's name. A browser takes the second only over TLS and for this host alone.
const COOKIE: &str = "berth_session";
const SECURE_COOKIE: &str = "__Host-berth_session";
/// How long a browser keeps it, in seconds; the token in it may go before.
const MAX_AGE: u32 = 12 * 3600;
/// Longest token that is looked at, in bytes.
const LONGEST: usize = 200;

/// The token of who is signed in. Never shown in a debug print.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// `None`: it is no text that a token could be.
    pub(super) fn new(text: &str) -> Option<Self> {
        let fits = |text: &&str| {
            (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        Some(text.trim()).filter(fits).map(|text| Self(text.to_owned()))
    }

    /// The value of an `Authorization` header.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.as_bytes())
    }

    /// What forms bear.
    pub(super) fn form_word(&self) -> String {
        hex::encode(hmac::sign(&self.key(), FORM_WORD).as_ref())
    }

    /// A word that only we can have made for this session: short, for an address.
    pub(super) fn word_for(&self, what: &str) -> String {
        hex::encode(&hmac::sign(&self.key(), what.as_bytes()).as_ref()[..8])
    }

    /// Whether a form is one of ours, made for this session.
    pub(super) fn is_form_word(&self, word: &str) -> bool {
        hex::decode(word).is_ok_and(|word| hmac::verify(&self.key(), FORM_WORD, &word).is_ok())
    }
}

const FORM_WORD: &[u8] = b"berth console form";

/// Who is signed in, and what they may.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    pub(super) secret: Secret,
    pub(super) whoami: Whoami,
    /// How commands are begun.
    pub(super) ssh: Arc<str>,
}

impl FromRequestParts<Console> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Response> {
        let to_sign_in = || sign_in_first(parts).into_response();
        let secret = cookie(&parts.headers, console).ok_or_else(to_sign_in)?;
        match console.client.get::<Whoami>(&secret, "/v1/whoami").await {
            Ok(whoami) => Ok(Self { secret, whoami, ssh: console.ssh.clone() }),
            Err(problem) if problem.status == StatusCode::UNAUTHORIZED => Err(to_sign_in()),
            Err(problem) => Err(shell::problem_page(None, &problem).into_response()),
        }
    }
}

/// The session's token, if the browser has sent one.
pub(super) fn cookie(headers: &HeaderMap, console: &Console) -> Option<Secret> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut ours = pairs.filter(|(name, _)| *name == console.cookie_name());
    let (_, value) = ours.next()?;
    // Which of two is ours cannot be told: the other may have been planted by a host beside this one.
    ours.next().is_none().then(|| Secret::new(value)).flatten()
}

/// To where one signs in, and from there back.
fn sign_in_first(parts: &Parts) -> Redirect {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    if parts.method != Method::GET || path == "/" {
        return Redirect::to("/sign-in");
    }
    let next = percent_encoding::utf8_percent_encode(path, percent_encoding::NON_ALPHANUMERIC);
    Redirect::to(&format!("/sign-in?next={next}"))
}

/// Whether a browser says that another site has made it ask.
pub(super) fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    match (text("origin"), text("host")) {
        (Some(origin), Some(host)) => origin.split_once("://").is_none_or(|(_, from)| from != host),
        _ => false,
    }
}

impl Console {
    fn cookie_name(&self) -> &'static str {
        if self.secure { SECURE_COOKIE } else { COOKIE }
    }

    /// `value` empty: the browser forgets it.
    fn set_cookie(&self, value: &str) -> HeaderValue {
        let (name, secure) = (self.cookie_name(), if self.secure { "; Secure" } else { "" });
        let age = if value.is_empty() { 0 } else { MAX_AGE };
        let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={age}{secure}");
        HeaderValue::from_str(&cookie).unwrap_or(HeaderValue::from_static(""))
    }
}

pub(super) fn routes() -> Router<Console> {
    Router::new()
        .route("/sign-in", get(sign_in_page).post(sign_in))
        .route("/sign-in/{link}", get(link_page).post(follow_link))
        .route("/sign-out", post(sign_out))
        .layer(middleware::from_fn(whole_form))
}

/// Largest form, in bytes, and how long it may take to come.
const LARGEST_FORM: usize = 1 << 20;
const FORM_TIME: Duration = Duration::from_secs(30);

/// Lets a request through when its form has come, so that who sends none holds no place for long.
pub(super) async fn whole_form(request: Request, next: middleware::Next) -> Response {
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(FORM_TIME, axum::body::to_bytes(body, LARGEST_FORM)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, bytes.into())).await,
        Ok(Err(_)) | Err(_) => {
            let text = "the form is too large, or did not come whole in time; nothing was done";
            shell::problem_page(None, &Problem::new(StatusCode::BAD_REQUEST, "The form did not come whole", text))
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct Wish {
    next: Option<String>,
}

/// A path of ours and nothing else.
fn safe_path(next: Option<&str>) -> &str {
    let ours = |path: &&str| {
        path.starts_with('/')
            && !path.starts_with("//")
            && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._?&=%".contains(&byte))
    };
    next.filter(ours).unwrap_or("/")
}

async fn sign_in_page(
    State(console): State<Console>,
    axum::extract::Query(wish): axum::extract::Query<Wish>,
) -> Rendered {
    shell::sign_in(&console.ssh, safe_path(wish.next.as_deref()), None)
}

#[derive(Deserialize)]
struct SignIn {
    token: String,
    #[serde(default)]
    next: Option<String>,
}

async fn sign_in(State(console): State<Console>, headers: HeaderMap, Form(form): Form<SignIn>) -> Response {
    let next = safe_path(form.next.as_deref()).to_owned();
    if is_from_elsewhere(&headers) {
        return from_elsewhere();
    }
    let Some(secret) = Secret::new(&form.token) else {
        let text = "this is not a token of Berth: it begins with berth_pat_ and has 59 characters";
        return (StatusCode::UNAUTHORIZED, shell::sign_in(&console.ssh, &next, Some(text))).into_response();
    };
    match console.client.send(Some(&secret), Method::POST, "/v1/sessions", None).await {
        Ok(session) => begin(&console, &session, &next),
        Err(problem) => (problem.status(), shell::sign_in(&console.ssh, &next, Some(&problem.detail))).into_response(),
    }
}

fn begin(console: &Console, session: &serde_json::Value, next: &str) -> Response {
    let Some(secret) = session["token"].as_str() else {
        return shell::problem_page(None, &Problem::broken("a session without a token")).into_response();
    };
    ([(header::SET_COOKIE, console.set_cookie(secret))], Redirect::to(next)).into_response()
}

/// Asks before it signs in: a link that somebody else has sent must not sign in as them unseen, and what looks links up must not use them up.
async fn link_page(State(console): State<Console>, Path(link): Path<String>) -> Response {
    let body = json!({"secret": link});
    match console.client.send(None, Method::POST, "/v1/sign-in-links/owner", Some(&body)).await {
        Ok(owner) => shell::link(owner["user"].as_str().unwrap_or_default()).into_response(),
        Err(problem) => (problem.status(), shell::sign_in(&console.ssh, "/", Some(&problem.detail))).into_response(),
    }
}

async fn follow_link(State(console): State<Console>, Path(link): Path<String>, headers: HeaderMap) -> Response {
    if is_from_elsewhere(&headers) {
        return from_elsewhere();
    }
    let body = json!({"secret": link});
    match console.client.send(None, Method::POST, "/v1/sign-in-links/sessions", Some(&body)).await {
        Ok(session) => begin(&console, &session, "/"),
        Err(problem) => (problem.status(), shell::sign_in(&console.ssh, "/", Some(&problem.detail))).into_response(),
    }
}

#[derive(Deserialize)]
struct SignOut {
    #[serde(default)]
    form: String,
}

async fn sign_out(State(console): State<Console>, headers: HeaderMap, Form(form): Form<SignOut>) -> Response {
    if let Some(secret) = cookie(&headers, &console) {
        if is_from_elsewhere(&headers) || !secret.is_form_word(&form.form) {
            return from_elsewhere();
        }
        if let Err(problem) = console.client.send(Some(&secret), Method::DELETE, "/v1/sessions/current", None).await
            && problem.status != StatusCode::UNAUTHORIZED
        {
            return shell::problem_page(None, &problem).into_response();
        }
    }
    ([(header::SET_COOKIE, console.set_cookie(""))], Redirect::to("/sign-in")).into_response()
}

/// The answer to a form that is none of ours.
pub(super) fn from_elsewhere() -> Response {
    let text = "the form is not of this session: nothing was done. Go back, reload the page, and try again";
    shell::problem_page(None, &Problem::new(StatusCode::FORBIDDEN, "This was not asked for from here", text))
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_are_gone_back_to() {
        for (asked, taken) in [
            (Some("/envs/acme/shop/dev"), "/envs/acme/shop/dev"),
            (None, "/"),
            (Some("//evil.example"), "/"),
            (Some("https://evil.example"), "/"),
            (Some("/\\evil.example"), "/"),
            (Some("/do/rollback?version=3&env=dev"), "/do/rollback?version=3&env=dev"),
            (Some("/a\r\nb"), "/"),
        ] {
            assert_eq!(safe_path(asked), taken, "{asked:?}");
        }
    }

    #[test]
    fn a_form_is_of_one_session() {
        let (one, other) = (Secret::new("berth_pat_one").unwrap(), Secret::new("berth_pat_two").unwrap());
        assert!(one.is_form_word(&one.form_word()));
        assert!(!one.is_form_word(&other.form_word()) && !one.is_form_word("") && !one.is_form_word("zz"));
        assert_eq!(format!("{one:?}"), "Secret(…)");
    }

    #[test]
    fn where_a_request_comes_from_is_believed() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse::<HeaderValue>().unwrap())).collect::<HeaderMap>()
        };
        for (pairs, elsewhere) in [
            (&[("sec-fetch-site", "same-origin")][..], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("origin", "http://localhost:7000"), ("host", "localhost:7000")], false),
            (&[("origin", "http://evil.example"), ("host", "localhost:7000")], true),
            (&[("origin", "null"), ("host", "localhost:7000")], true),
            (&[], false),
        ] {
            assert_eq!(is_from_elsewhere(&headers(pairs)), elsewhere, "{pairs:?}");
        }
    }
}
