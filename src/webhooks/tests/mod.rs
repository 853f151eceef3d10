//! Webhooks told to real HTTP servers on loopback, which the settings allow.

mod failures;
mod telling;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    deploy::SystemClock,
    domain::{EventKind, Timestamp, Webhook, WebhookMark},
    outbound::OutboundSettings,
    store::{MemoryKv, NewEvent},
};

const SECRET: &str = "whsec_of_the_tests";
/// Far longer than anything takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// What came in.
#[derive(Debug, Clone)]
struct Got {
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn message(&self) -> String {
        self.json()["data"]["message"].as_str().unwrap().to_owned()
    }
}

/// What a target does with a request.
#[derive(Debug, Clone)]
enum Does {
    Answers(u16),
    Redirects(u16, String),
    /// Never answers.
    Hangs,
}

/// A server that answers as it is told, and with 200 after that.
#[derive(Clone)]
struct Target {
    port: u16,
    got: Arc<Mutex<Vec<Got>>>,
    does: Arc<Mutex<VecDeque<Does>>>,
}

impl Target {
    async fn new(does: impl IntoIterator<Item = Does>) -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), does)
    }

    fn at(listener: TcpListener, does: impl IntoIterator<Item = Does>) -> Self {
        let port = listener.local_addr().unwrap().port();
        let target = Self { port, got: Arc::default(), does: Arc::new(Mutex::new(does.into_iter().collect())) };
        let serving = target.clone();
        let answer = move |headers: HeaderMap, body: Bytes| {
            let target = serving.clone();
            async move { target.answer(headers, body).await }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(post(answer))).await });
        target
    }

    async fn answer(&self, headers: HeaderMap, body: Bytes) -> Response {
        self.got.lock().unwrap().push(Got { headers, body: body.to_vec() });
        let does = self.does.lock().unwrap().pop_front().unwrap_or(Does::Answers(200));
        match does {
            Does::Answers(status) => StatusCode::from_u16(status).unwrap().into_response(),
            Does::Redirects(status, to) => (StatusCode::from_u16(status).unwrap(), [(LOCATION, to)]).into_response(),
            Does::Hangs => std::future::pending().await,
        }
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    fn messages(&self) -> Vec<String> {
        self.got().iter().map(Got::message).collect()
    }

    async fn until(&self, requests: usize) -> Vec<Got> {
        until(&format!("{requests} requests"), async || self.got().len() >= requests).await;
        self.got()
    }
}

async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let wait = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "waited in vain for {what}");
}

fn settings() -> WebhookSettings {
    WebhookSettings {
        allow_http: true,
        first_retry: Duration::from_millis(20),
        longest_retry: Duration::from_millis(100),
        settle: Duration::from_millis(50),
        source_base: "https://berth.example.com".into(),
        ..WebhookSettings::default()
    }
}

fn acme() -> TenantName {
    "acme".parse().unwrap()
}

/// A store with the service over it.
struct World {
    store: Store,
    webhooks: Webhooks,
    stop: CancellationToken,
    service: JoinHandle<()>,
}

impl World {
    fn new(settings: WebhookSettings) -> Self {
        Self::over(Store::new(Arc::new(MemoryKv::new())), settings)
    }

    fn over(store: Store, settings: WebhookSettings) -> Self {
        let outbound =
            OutboundSettings { allowed_networks: vec!["127.0.0.1/32".parse().unwrap()], ..OutboundSettings::default() };
        let outbound = Outbound::new(outbound).unwrap();
        let parts = WebhookParts { store: store.clone(), outbound, clock: Arc::new(SystemClock), settings };
        let (webhooks, service) = Webhooks::start(parts);
        let stop = CancellationToken::new();
        let service = tokio::spawn(service.run(stop.clone()));
        Self { store, webhooks, stop, service }
    }

    /// Ends the service as kill -9 does, and starts another one.
    async fn killed(self, settings: WebhookSettings) -> Self {
        self.service.abort();
        assert!(self.service.await.unwrap_err().is_cancelled());
        Self::over(self.store, settings)
    }

    async fn hook(&self, id: &str, port: u16, kinds: &[&str]) -> WebhookId {
        let url = format!("http://127.0.0.1:{port}/{id}?key=hidden");
        let webhook = Webhook {
            tenant: acme(),
            id: id.parse().unwrap(),
            target: shown_url(&Url::parse(&url).unwrap()),
            url,
            secret: WebhookSecret(SECRET.into()),
            kinds: kinds.iter().map(ToString::to_string).collect(),
            created_by: "olga".parse().unwrap(),
            created_at: Timestamp::now(),
            enabled: true,
            disabled_reason: None,
            from: 0,
            generation: 1,
        };
        self.store.transaction().create(&webhook).commit().await.unwrap();
        webhook.id
    }

    async fn event(&self, kind: EventKind, message: &str) -> u64 {
        self.store.record(NewEvent::new(kind, Timestamp::now(), message).tenant(&acme())).await.unwrap().id
    }

    async fn queued(&self, message: &str) -> u64 {
        self.event(EventKind::BuildQueued, message).await
    }

    async fn webhook(&self, id: &WebhookId) -> Webhook {
        self.store.need::<Webhook>(&(acme(), id.clone())).await.unwrap().record
    }

    async fn mark(&self, id: &WebhookId) -> Option<WebhookMark> {
        self.store.get::<WebhookMark>(&(acme(), id.clone())).await.unwrap().map(|stored| stored.record)
    }

    /// The delivery log, the oldest first.
    async fn log(&self, id: &WebhookId) -> Vec<WebhookDelivery> {
        let mut log = self.store.list::<WebhookDelivery>(&format!("acme/{id}/")).await.unwrap();
        log.sort_by_key(|delivery| delivery.number);
        log.into_iter().map(|stored| stored.record).collect()
    }

    async fn until_logged(&self, id: &WebhookId, attempts: usize) -> Vec<WebhookDelivery> {
        until(&format!("{attempts} attempts in the log"), async || self.log(id).await.len() >= attempts).await;
        self.log(id).await
    }

    async fn stop(self) {
        self.stop.cancel();
        self.service.await.unwrap();
    }
}
