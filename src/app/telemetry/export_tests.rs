//! Against collectors on loopback that take, refuse or say nothing.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value};
use prost::Message;

use super::*;
use crate::{
    domain::{OpenSpan, Timestamp},
    traces::Traces,
};

/// How long anything may take that is waited for.
const DEADLINE: Duration = Duration::from_secs(30);

/// One request: its head, and what was sent.
fn read(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap().to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((text, body))
}

/// A collector that answers so, and what it gets.
fn collector(status: &'static str) -> (Url, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap()).parse().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            while let Some(request) = read(&mut stream) {
                if sender.send(request).is_err() {
                    return;
                }
                let answer = format!("HTTP/1.1 {status}\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    (url, receiver)
}

fn lost(export: &Export) -> u64 {
    export.books.lost.lock().unwrap().spans
}

#[test]
fn a_collector_gets_what_is_told() {
    let (url, requests) = collector("200 OK");
    let secret = Headers(BTreeMap::from([("x-key".to_owned(), "secret".to_owned())]));
    let export = Export::start(&url, &secret).unwrap();
    let traces = Traces::new(export.clone(), 1.0);
    let begin = Timestamp::from_second(1_700_000_000).unwrap();
    let root = OpenSpan { begin, ..traces.begin(None).unwrap() };
    let end = begin + Duration::from_millis(1500);
    traces.tell(Span::within(&root.context, "queue", begin, end).failed(true));
    let env = "acme/shop/dev".parse().unwrap();
    traces.tell(Span::of(&root, "push", end).env(&env).with("berth.build", 7u64));
    export.stop();
    let (head, body) = requests.recv_timeout(DEADLINE).unwrap();
    assert!(head.starts_with("post /v1/traces ") && head.contains("x-key: secret"), "{head}");
    let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    let resource = &request.resource_spans[0];
    let service = &resource.resource.as_ref().unwrap().attributes;
    assert!(service.iter().any(|attribute| attribute.key == "service.name"), "{service:?}");
    let spans = &resource.scope_spans[0].spans;
    let (queue, push) = (&spans[0], &spans[1]);
    assert_eq!((queue.name.as_str(), push.name.as_str()), ("queue", "push"));
    assert_eq!(push.trace_id, root.context.trace().to_be_bytes());
    assert_eq!(push.span_id, root.context.span().to_be_bytes());
    assert!(push.parent_span_id.is_empty() || push.parent_span_id == [0; 8]);
    assert_eq!((&queue.trace_id, &queue.parent_span_id), (&push.trace_id, &push.span_id));
    assert_eq!(push.end_time_unix_nano - push.start_time_unix_nano, 1_500_000_000);
    assert_eq!(push.start_time_unix_nano, 1_700_000_000_000_000_000);
    let value = |name: &str| {
        let found = push.attributes.iter().find(|attribute| attribute.key == name);
        found.and_then(|attribute| attribute.value.as_ref()?.value.clone())
    };
    assert_eq!(value("berth.tenant"), Some(any_value::Value::StringValue("acme".to_owned())));
    assert_eq!(value("berth.build"), Some(any_value::Value::IntValue(7)));
    let code =
        |span: &opentelemetry_proto::tonic::trace::v1::Span| span.status.as_ref().map_or(0, |status| status.code);
    assert_eq!((code(queue), code(push)), (2, 0));
    assert_eq!(lost(&export), 0);
}

#[test]
fn what_a_collector_does_not_take_is_counted() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (refusing, refused) = collector("400 Bad Request");
    let (moved, asked) = collector("307 Temporary Redirect");
    for url in [format!("http://{closed}/v1/traces").parse().unwrap(), refusing, moved] {
        let export = Export::start(&url, &Headers::default()).unwrap();
        let now = Timestamp::now();
        let traces = Traces::new(export.clone(), 1.0);
        let root = traces.begin(None).unwrap();
        (0..3).for_each(|_| traces.tell(Span::within(&root.context, "part", now, now)));
        export.stop();
        assert_eq!(lost(&export), 3, "{url}");
        assert_eq!(export.books.waiting.load(Ordering::Acquire), 0);
    }
    assert!(refused.try_recv().is_ok());
    assert!(asked.try_iter().all(|(head, _)| head.starts_with("post /v1/traces ")), "a redirect was followed");
}

/// Takes nothing until it is let.
#[derive(Debug)]
struct Stuck(Mutex<mpsc::Receiver<()>>);

impl SpanExporter for Stuck {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        // Ends when the other side is dropped.
        let _ = self.0.lock().unwrap().recv();
        Ok(())
    }
}

#[test]
fn nobody_waits_for_a_collector_that_is_stuck() {
    let (let_go, waits) = mpsc::channel();
    let export = Export::over(Stuck(Mutex::new(waits)));
    let traces = Traces::new(export.clone(), 1.0);
    let root = traces.begin(None).unwrap();
    let now = Timestamp::now();
    (0..QUEUE + 10).for_each(|_| traces.tell(Span::within(&root.context, "part", now, now)));
    assert_eq!(lost(&export), 10, "what the queue has no room for");
    assert_eq!(export.books.waiting.load(Ordering::Acquire), QUEUE);
    let began = Instant::now();
    export.stop();
    assert!(began.elapsed() < LAST_SPANS + DEADLINE);
    assert_eq!(lost(&export), QUEUE as u64 + 10);
    drop(let_go);
}
