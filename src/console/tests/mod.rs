//! The console over the API over services in memory.

mod doors;
mod parity;
mod safety;
mod sessions;
mod table;

use std::{collections::BTreeSet, num::NonZeroU32};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Request, header},
};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::session::Secret;
use crate::{
    api::{self, ApiSettings},
    commands::tests::World,
};

const URL: &str = "http://localhost:7000";
const DEV: &str = "/envs/acme/shop/dev";
/// What forms about that environment say.
const OF_DEV: &str = "tenant=acme&app=shop&env=dev";

/// An answer, as text.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    #[track_caller]
    fn shows(self, text: &str) -> Self {
        assert!(self.text.contains(text), "{text:?} is not shown: {self:?}");
        self
    }

    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn leads_to(self, path: &str) -> Self {
        // Behind that stands what only this session can have been told.
        let to = self.header(header::LOCATION).split("&word=").next();
        assert_eq!((self.status, to), (303, Some(path)), "{self:?}");
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    /// The token in the cookie that it sets.
    fn session(&self) -> Secret {
        let cookie = self.header(header::SET_COOKIE);
        let value = cookie.split_once('=').and_then(|(_, rest)| rest.split(';').next()).unwrap_or_default();
        Secret::new(value).unwrap_or_else(|| panic!("no session has begun: {self:?}"))
    }
}

/// The console beside the API.
struct Server {
    world: World,
    router: Router,
}

impl Server {
    async fn new() -> Self {
        Self::at(URL).await
    }

    async fn at(url: &str) -> Self {
        let world = World::new().await;
        let settings = ApiSettings { max_connections: 10, rate_per_user: NonZeroU32::new(10_000).unwrap() };
        let router =
            super::beside(api::router(world.commands.clone(), &settings), url, "ssh -p 2222 berth@paas.example.com");
        Self { world, router }
    }

    /// A token by its command.
    async fn token(&self, who: &str, options: &str) -> String {
        let made = self.world.run(who, &format!("tokens create test {options} --json")).await.ok().json();
        made["token"].as_str().unwrap().to_owned()
    }

    /// A session of a user, for all that they may.
    async fn session(&self, who: &str) -> Secret {
        self.session_with(who, "--scope full").await
    }

    async fn session_with(&self, who: &str, options: &str) -> Secret {
        let token = self.token(who, options).await;
        let caller = self.world.commands.authenticate_token(&token).await.unwrap().unwrap();
        let session = self.world.commands.sign_in(&caller).await.unwrap();
        Secret::new(session.secret.reveal()).unwrap()
    }

    /// What is answered; the request names a host, as all do.
    async fn send(&self, mut request: Request<Body>) -> Answer {
        request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost:7000"));
        self.send_as_is(request).await
    }

    async fn send_as_is(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    /// A page. Each of its elements can be told from the others, as a page that is made again needs.
    async fn page(&self, session: &Secret, path: &str) -> Answer {
        let request = Request::get(path).header(header::COOKIE, cookie(session)).body(Body::empty()).unwrap();
        let answer = self.send(request).await;
        let mut seen = BTreeSet::new();
        let ids = answer.text.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let twice: Vec<&str> = ids.filter(|id| !seen.insert(*id)).collect();
        assert!(twice.is_empty(), "{path} has twice: {twice:?}");
        answer
    }

    /// Sends a form of the session's own.
    async fn act(&self, session: &Secret, action: &str, form: &str) -> Answer {
        let form = format!("form={}&key={:x}&{form}", session.form_word(), rand::random::<u64>());
        self.post(Some(session), &format!("/do/{action}"), &form, &[]).await
    }

    async fn post(&self, session: Option<&Secret>, path: &str, form: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::post(path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(session) = session {
            request = request.header(header::COOKIE, cookie(session));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(form.to_owned())).unwrap()).await
    }
}

fn cookie(session: &Secret) -> String {
    format!("other=1; berth_session={}", session.bearer().trim_start_matches("Bearer "))
}

/// Text as it stands in a page.
fn in_page(text: &str) -> String {
    askama::filters::escape(text, askama::filters::Html).unwrap().to_string()
}
