//! Traces of pushes, at a collector of the test's own. These restart the control plane, so they run alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message;

use crate::{
    Case,
    platform::{DEADLINE, Platform, User, eventually},
    repository::Repository,
};

pub const CASES: &[Case] = &[
    ("one_push_is_one_trace_whichever_server_ends_it", one_push_is_one_trace_whichever_server_ends_it),
    ("a_dead_collector_changes_nothing", a_dead_collector_changes_nothing),
];

const ENDPOINT: &str = "BERTH__TELEMETRY__OTLP_ENDPOINT";
const SERVER: &str = "require('http').createServer((q, s) => s.end('alive')).listen(process.env.PORT);\n";
const SECRET: &str = "hunter2-correct-horse";

/// A collector: what it has got so far.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Listens; returns where.
    fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
            });
        });
        url
    }

    fn all(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }

    /// The trace whose root is of this app's build with that number, once it has a span of this name.
    fn trace(&self, app: &str, number: i64, last: &str) -> Vec<Span> {
        eventually(&format!("the trace of build {number} with {last}"), DEADLINE, || {
            let all = self.all();
            let is_root = |span: &&Span| span.name == "push" && number_of(span) == Some(number) && app_of(span) == app;
            let trace = all.iter().find(is_root)?.trace_id.clone();
            let of: Vec<Span> = all.into_iter().filter(|span| span.trace_id == trace).collect();
            of.iter().any(|span| span.name == last).then_some(of)
        })
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    collector.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
}

fn value(span: &Span, name: &str) -> Option<Value> {
    span.attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?.value
}

fn text(span: &Span, name: &str) -> String {
    match value(span, name) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{name} of {span:?} is {other:?}"),
    }
}

fn number_of(span: &Span) -> Option<i64> {
    match value(span, "berth.build")? {
        Value::IntValue(number) => Some(number),
        _ => None,
    }
}

fn app_of(span: &Span) -> String {
    format!("{}/{}", text(span, "berth.tenant"), text(span, "berth.app"))
}

/// Names of spans, by the name of what they are a part of. All have a parent in the trace but for the root, and begin no sooner.
#[track_caller]
fn tree(spans: &[Span]) -> BTreeMap<String, BTreeSet<String>> {
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|span| (span.span_id.as_slice(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "two spans have the same number: {spans:#?}");
    let mut tree: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.name != "push") {
        let parent = by_id.get(span.parent_span_id.as_slice());
        let parent = parent.unwrap_or_else(|| panic!("{span:?} has no parent in {spans:#?}"));
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        // What is told by durations is off by the time that it takes to tell it.
        assert!(parent.start_time_unix_nano <= span.start_time_unix_nano + 10_000_000, "{span:?} in {parent:?}");
        tree.entry(parent.name.clone()).or_default().insert(span.name.clone());
    }
    tree
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// An app whose build takes a while, and which has a release phase.
fn app(platform: &Platform) -> (String, User, Repository) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    let scripts = r#""build": "sleep 5 && echo built""#;
    let package =
        format!(r#"{{"name": "case", "version": "1.0.0", "engines": {{"node": "22.x"}}, "scripts": {{{scripts}}}}}"#);
    repository.write("package.json", package);
    repository.write("server.js", SERVER);
    repository.write("berth.yaml", "processes: {web: {command: node server.js}}\nrelease: echo migrated\n");
    repository.commit("First");
    platform.ssh(&user, &["config", "set", &format!("{app}/dev"), &format!("PASSWORD={SECRET}")]).ok();
    (app, user, repository)
}

const STAGES: [&str; 9] =
    ["receive", "queue", "checkout", "compile", "slug", "image", "registry push", "release", "deployment"];

fn one_push_is_one_trace_whichever_server_ends_it(platform: &Platform) {
    let collector = Collector::default();
    let url = collector.start();
    platform.stop_serve();
    platform.start_serve_with(&[(ENDPOINT, &url)]);
    let (app, user, repository) = app(platform);
    repository.push().ok();

    let spans = collector.trace(&app, 1, "settle");
    let first = tree(&spans);
    assert_eq!(first["push"], set(&STAGES), "{first:?}");
    assert_eq!(first["receive"], set(&["transfer", "validate"]));
    assert_eq!(first["deployment"], set(&["release phase", "start", "ready", "route", "settle"]));
    let root = spans.iter().find(|span| span.name == "push").unwrap();
    assert!(root.parent_span_id.iter().all(|byte| *byte == 0), "{root:?}");
    assert_eq!((text(root, "berth.outcome"), text(root, "berth.user")), ("succeeded".to_owned(), user.name.clone()));
    assert_eq!(text(root, "berth.commit"), repository.git(&["rev-parse", "HEAD"]).ok().stdout.trim());

    // The server dies while the next one is built.
    repository.edit("package.json", "echo built", "echo again");
    repository.commit("Second");
    let mut push = repository.git_command(&["push", "paas-dev", "main"]);
    let mut push = push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let of_second = |collector: &Collector| {
        let all = collector.all();
        all.into_iter().rfind(|span| span.trace_id != root.trace_id && span.name == "queue")
    };
    let queue = eventually("the second build has begun", DEADLINE, || of_second(&collector));
    platform.kill_serve();
    assert!(!push.wait().unwrap().success());
    platform.start_serve_with(&[(ENDPOINT, &url)]);
    let spans = collector.trace(&app, 2, "settle");
    assert_eq!(spans[0].trace_id, queue.trace_id, "another trace");
    let second = tree(&spans);
    assert_eq!(second["push"], set(&STAGES), "{second:?}");
    let deployment = ["release phase", "start", "ready", "route", "drain", "stop", "settle"];
    assert_eq!(second["deployment"], set(&deployment), "{second:?}");
    let queues: Vec<_> = spans.iter().filter(|span| span.name == "queue").collect();
    assert_eq!(queues.len(), 2, "one for each server: {queues:?}");

    a_caller_is_the_parent(platform, &collector, &app, &user, &repository);
    let everything = format!("{:?}", collector.all());
    for secret in [SECRET, "migrated", "server.js"] {
        assert!(!everything.contains(secret), "{secret} is in a span");
    }
    platform.stop_serve();
    platform.start_serve();
}

/// An upload over the API is a part of its caller's trace.
fn a_caller_is_the_parent(platform: &Platform, collector: &Collector, app: &str, user: &User, repository: &Repository) {
    let made = platform.ssh(user, &["tokens", "create", "test", "--scope", "full", "--json"]).ok().json();
    let archive = repository.git_command(&["archive", "--format=tar.gz", "HEAD"]).output().unwrap().stdout;
    let client = reqwest::blocking::Client::builder().timeout(DEADLINE).no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{}/v1/envs/{app}/dev/builds", platform.api_port);
    let answer = client
        .post(url)
        .bearer_auth(made["token"].as_str().unwrap())
        .header("Content-Type", "application/gzip")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .body(archive)
        .send()
        .unwrap();
    assert_eq!(answer.status(), 202);
    let spans = collector.trace(app, 3, "push");
    let root = spans.iter().find(|span| span.name == "push").unwrap();
    assert_eq!(root.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    assert_eq!(root.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
}

fn a_dead_collector_changes_nothing(platform: &Platform) {
    // Connections come in, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    platform.stop_serve();
    platform.start_serve_with(&[(ENDPOINT, &url)]);
    let (app, _user, repository) = app(platform);
    repository.push().ok().says(&["is live: release v"]);
    // And then none come in any more.
    drop(silent);
    repository.edit("server.js", "alive", "well");
    repository.commit("Second");
    repository.push().ok();
    let (tenant, name) = app.split_once('/').unwrap();
    assert_eq!(platform.get(&format!("dev.{name}.{tenant}.localhost"), "/").1, "well");
    let log = || std::fs::read_to_string(platform.log_file("serve")).unwrap();
    eventually("what was lost is said", Duration::from_secs(60), || log().contains("spans were lost").then_some(()));
    platform.stop_serve();
    platform.start_serve();
}
