//! Real connections, on loopback alone: what may not be reached is a listener that counts who came.

use std::{
    collections::HashMap,
    io,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use axum::{
    Router,
    extract::Query,
    http::{StatusCode, header::LOCATION},
    routing::any,
};
use reqwest::Method;
use tokio::net::TcpListener;
use url::Url;

use super::*;

/// Names with what they lead to, one answer after the other; the last stays.
#[derive(Default)]
struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    asked: AtomicUsize,
}

impl Names {
    fn of(names: &[(&str, &[&[&str]])]) -> Arc<Self> {
        let parse = |address: &&str| address.parse().unwrap();
        let answers = names.iter().map(|(name, answers)| {
            let answers = answers.iter().map(|addresses| addresses.iter().map(parse).collect()).collect();
            ((*name).to_owned(), answers)
        });
        Arc::new(Self { answers: Mutex::new(answers.collect()), asked: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let answers = answers.get_mut(host).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
    }
}

/// 127.0.0.1 is where the tenant's server is; the rest of loopback stands for what the tenant may not reach.
fn outbound(names: Arc<Names>) -> Outbound {
    let settings = OutboundSettings {
        allowed_networks: vec!["127.0.0.1/32".parse().unwrap()],
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(10),
    };
    Outbound::with_resolver(settings, names).unwrap()
}

/// Counts who comes.
async fn forbidden(address: &str) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let came = Arc::new(AtomicUsize::new(0));
    let counted = came.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, came)
}

/// Answers `/?status=307&to=URL` with that redirect, and everything else with its body.
async fn server() -> u16 {
    let answer = |Query(query): Query<HashMap<String, String>>, method: axum::http::Method, body: String| async move {
        let status = query.get("status").map_or(200, |status| status.parse().unwrap());
        let to = query.get("to").cloned().unwrap_or_default();
        (StatusCode::from_u16(status).unwrap(), [(LOCATION, to)], format!("{method} {body}"))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(answer))).await });
    port
}

fn redirecting(port: u16, status: u16, to: &str) -> Url {
    let status = status.to_string();
    Url::parse_with_params(&format!("http://127.0.0.1:{port}/"), [("status", status.as_str()), ("to", to)]).unwrap()
}

/// The status and body of an answer, or why there is none.
async fn post(outbound: &Outbound, url: Url) -> Result<(u16, String), OutboundError> {
    let host = url.host_str().unwrap_or_default().to_owned();
    let request = outbound.http_client().request(Method::POST, url)?.body("hello");
    let response = request.send().await.map_err(|error| OutboundError::of(&error, &host))?;
    let status = response.status().as_u16();
    let body = read_at_most(response, 4096).await.map_err(|error| OutboundError::of(&error, &host))?;
    Ok((status, String::from_utf8(body).unwrap()))
}

fn is_refused(error: &OutboundError) -> bool {
    matches!(error, OutboundError::Refused { .. })
}

#[tokio::test]
async fn only_judged_addresses_are_connected_to() {
    let (port, came) = forbidden("127.0.0.2").await;
    let names = Names::of(&[("inside.test", &[&["127.0.0.2", "10.0.0.1"]]), ("none.test", &[&[]])]);
    let outbound = outbound(names);
    for host in ["127.0.0.2", "inside.test", "[::ffff:127.0.0.2]", "::ffff:7f00:2"] {
        let error = outbound.connect(host, port).await.unwrap_err();
        assert!(is_refused(&error), "{error}");
        assert!(error.to_string().contains("outbound.allowed_networks"), "{error}");
    }
    let error = outbound.connect("none.test", port).await.unwrap_err();
    assert_eq!(error.to_string(), "none.test cannot be resolved: it has no address");
    let error = outbound.connect("inside.test", port).await.unwrap_err().to_string();
    assert!(error.starts_with("inside.test leads to 10.0.0.1, a private address"), "{error}");
    assert_eq!(came.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn of_several_addresses_the_allowed_ones_are_tried_and_asked_for_once() {
    let (forbidden_port, came) = forbidden("127.0.0.2").await;
    let allowed = TcpListener::bind(("127.0.0.1", forbidden_port)).await.unwrap();
    // Whoever asks a second time is led inside.
    let names = Names::of(&[("both.test", &[&["127.0.0.2", "127.0.0.1"], &["127.0.0.2"]])]);
    let stream = outbound(names.clone()).connect("both.test", forbidden_port).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), allowed.local_addr().unwrap());
    assert_eq!(names.asked.load(Ordering::SeqCst), 1);
    assert_eq!(came.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_refused_connection_and_an_unknown_name_say_so() {
    let port = {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        gone.local_addr().unwrap().port()
    };
    let outbound = outbound(Names::of(&[]));
    let error = outbound.connect("127.0.0.1", port).await.unwrap_err();
    assert!(matches!(error, OutboundError::Connect { .. }), "{error}");
    let error = outbound.connect("unknown.test", port).await.unwrap_err();
    assert_eq!(error.to_string(), "unknown.test cannot be resolved: no such name");
}

#[tokio::test]
async fn the_systems_resolver_finds_loopback() {
    let found = SystemResolver::default().resolve("localhost").await.unwrap();
    assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
}

#[tokio::test]
async fn http_goes_to_judged_addresses_and_keeps_the_method_over_redirects() {
    let port = server().await;
    let names = Names::of(&[("hook.test", &[&["127.0.0.2", "127.0.0.1"]])]);
    let outbound = outbound(names);
    let named = format!("http://hook.test:{port}/");
    let expected = (200, "POST hello".to_owned());
    assert_eq!(post(&outbound, Url::parse(&named).unwrap()).await.unwrap(), expected);
    for status in [307, 308] {
        assert_eq!(post(&outbound, redirecting(port, status, &named)).await.unwrap(), expected);
    }
    // What would make a GET of it is handed out.
    for status in [301, 302, 303] {
        assert_eq!(post(&outbound, redirecting(port, status, &named)).await.unwrap().0, status);
    }
}

#[tokio::test]
async fn redirects_do_not_lead_inside() {
    let port = server().await;
    let (inside_port, came) = forbidden("127.0.0.2").await;
    let (inside_port_6, came_6) = forbidden("::1").await;
    let names = Names::of(&[("inside.test", &[&["127.0.0.2", "10.0.0.1"]])]);
    let outbound = outbound(names);
    let targets = [
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        format!("http://[::1]:{inside_port_6}/"),
        "http://[::ffff:127.0.0.1]/".to_owned(),
        format!("http://[::ffff:127.0.0.2]:{inside_port}/"),
        format!("http://inside.test:{inside_port}/"),
        // Other ways to write 127.0.0.2.
        format!("http://0x7f000002:{inside_port}/"),
        format!("http://2130706434:{inside_port}/"),
        format!("http://127.2:{inside_port}/"),
        format!("//127.0.0.2:{inside_port}/"),
    ];
    for target in &targets {
        let error = post(&outbound, redirecting(port, 307, target)).await.unwrap_err();
        assert!(is_refused(&error), "{target}: {error}");
        // Over a redirect that is allowed, too.
        let twice = redirecting(port, 308, target);
        let error = post(&outbound, redirecting(port, 307, twice.as_str())).await.unwrap_err();
        assert!(is_refused(&error), "{target}: {error}");
        if let Ok(url) = Url::parse(target) {
            let error = post(&outbound, url).await.unwrap_err();
            assert!(is_refused(&error), "{target}: {error}");
        }
    }
    assert_eq!((came.load(Ordering::SeqCst), came_6.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test]
async fn redirects_are_counted_and_their_urls_looked_at() {
    let port = server().await;
    let outbound = outbound(Names::of(&[]));
    let chain = |hops: usize| {
        let end = Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap();
        (0..hops).fold(end, |to, _| redirecting(port, 307, to.as_str()))
    };
    assert_eq!(post(&outbound, chain(3)).await.unwrap().0, 200);
    let error = post(&outbound, chain(4)).await.unwrap_err();
    assert_eq!(error.to_string(), "the URL cannot be used: it leads through more than 3 redirects");
    let error = post(&outbound, redirecting(port, 307, &format!("http://user:x@127.0.0.1:{port}/"))).await.unwrap_err();
    assert!(error.to_string().contains("a user name or a password"), "{error}");
    // Not HTTP at all: the answer is handed out as it is.
    let answer = post(&outbound, redirecting(port, 307, "file:///etc/passwd")).await.unwrap();
    assert_eq!(answer.0, 307);
}

#[test]
fn a_hop_from_https_to_http_is_refused() {
    let gate = outbound(Names::of(&[])).gate;
    let hop = |from: &str, to: &str| gate.check_hop(Some(&Url::parse(from).unwrap()), &Url::parse(to).unwrap());
    assert!(hop("https://a.test/", "https://b.test/").is_ok());
    assert!(hop("http://a.test/", "https://b.test/").is_ok());
    assert!(hop("http://a.test/", "http://b.test/").is_ok());
    assert!(matches!(hop("https://a.test/", "http://b.test/"), Err(OutboundError::Url(_))));
    assert!(matches!(hop("https://a.test/", "https://10.1.1.1/"), Err(OutboundError::Refused { .. })));
}

#[tokio::test]
async fn no_more_of_an_answer_is_read_than_asked_for() {
    let endless = || async {
        axum::body::Body::from_stream(futures::stream::repeat_with(|| Ok::<_, io::Error>("x".repeat(1000))))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(endless))).await });
    let client = outbound(Names::of(&[])).http_client();
    let response = client.request(Method::GET, Url::parse(&url).unwrap()).unwrap().send().await.unwrap();
    assert_eq!(read_at_most(response, 4096).await.unwrap().len(), 4096);
}
