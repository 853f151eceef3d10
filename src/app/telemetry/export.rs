//! Traces on their way to a collector: OTLP over HTTP (protobuf), by OpenTelemetry's own exporter and its thread.
//!
//! Whoever tells of a span never waits: what does not fit into the queue, or is not taken by the collector, is lost, counted, and said in
//! the log once in a while.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor},
};
use url::Url;

use crate::{
    app::config::Headers,
    domain::TraceContext,
    traces::{Span, SpanSink, Value},
};

/// Spans that may wait to be sent; a push makes some 20.
const QUEUE: usize = 4096;
/// Spans sent at once, and how long one may wait for others.
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(2);
/// How long the collector may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last spans may take when the server stops.
const LAST_SPANS: Duration = Duration::from_secs(5);
/// The least time between two lines of the log about spans that were lost.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// Of an error, so many characters are logged: a collector may answer with a page.
const REASON: usize = 200;

/// Sends spans to a collector.
pub(in crate::app) struct Export {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    books: Arc<Books>,
}

impl Export {
    /// Starts the thread that sends. Not to be called in an asynchronous runtime, whose threads must not wait.
    ///
    /// # Errors
    /// When a header is none, or the client cannot be made.
    pub(in crate::app) fn start(endpoint: &Url, headers: &Headers) -> anyhow::Result<Arc<Self>> {
        // No redirects: the headers may be secrets, and are for this collector.
        let client = reqwest::blocking::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("the client for traces cannot be made")?;
        for (name, value) in &headers.0 {
            http::HeaderName::try_from(name).with_context(|| format!("telemetry.headers: {name:?} is no name"))?;
            http::HeaderValue::try_from(value)
                .with_context(|| format!("telemetry.headers: {name} has no valid value"))?;
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .with_endpoint(endpoint.as_str())
            .with_headers(headers.0.clone().into_iter().collect())
            .build()
            .context("traces cannot be sent as configured (telemetry, and the variables OTEL_EXPORTER_OTLP_*)")?;
        Ok(Self::over(exporter))
    }

    fn over(exporter: impl SpanExporter + 'static) -> Arc<Self> {
        let books = Arc::new(Books::default());
        let counted = Counted { exporter, books: books.clone() };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY);
        let mut processor = BatchSpanProcessor::builder(counted).with_batch_config(batches.build()).build();
        let version = env!("CARGO_PKG_VERSION");
        processor.set_resource(
            &Resource::builder_empty()
                .with_attributes([KeyValue::new("service.name", "berth"), KeyValue::new("service.version", version)])
                .build(),
        );
        let scope = InstrumentationScope::builder("berth").with_version(version).build();
        Arc::new(Self { processor, scope, books })
    }

    /// Sends what waits, for a few seconds, and says what was lost. Not to be called in an asynchronous runtime.
    pub(in crate::app) fn stop(&self) {
        if let Err(error) = self.processor.shutdown_with_timeout(LAST_SPANS) {
            let waiting = self.books.waiting.swap(0, Ordering::AcqRel);
            self.books.lost(waiting, &error);
        }
        self.books.say_all();
    }

    fn data(&self, span: Span) -> SpanData {
        let id = |context: &TraceContext| SpanId::from_bytes(context.span().to_be_bytes());
        let trace = TraceId::from_bytes(span.context.trace().to_be_bytes());
        let attributes = span.attributes.into_iter().map(|(name, value)| match value {
            Value::Text(text) => KeyValue::new(name, text),
            Value::Number(number) => KeyValue::new(name, number),
        });
        SpanData {
            span_context: SpanContext::new(trace, id(&span.context), TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: span.parent.as_ref().map_or(SpanId::INVALID, id),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: span.name.into(),
            start_time: SystemTime::from(span.begin),
            end_time: SystemTime::from(span.end),
            attributes: attributes.collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: if span.failed { Status::error("") } else { Status::Unset },
            instrumentation_scope: self.scope.clone(),
        }
    }
}

impl SpanSink for Export {
    fn take(&self, span: Span) {
        // Counted here: the processor does not tell what it drops.
        if self.books.waiting.fetch_add(1, Ordering::AcqRel) >= QUEUE {
            self.books.waiting.fetch_sub(1, Ordering::AcqRel);
            return self.books.lost(1, &"the queue is full");
        }
        self.processor.on_end(self.data(span));
    }
}

/// What waits and what was lost.
#[derive(Debug, Default)]
struct Books {
    waiting: AtomicUsize,
    lost: Mutex<Lost>,
}

#[derive(Debug, Default)]
struct Lost {
    spans: u64,
    said: u64,
    said_at: Option<Instant>,
}

impl Books {
    fn lost(&self, spans: usize, why: &dyn fmt::Display) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.spans += u64::try_from(spans).unwrap_or(u64::MAX);
        if lost.said_at.is_some_and(|at| at.elapsed() < SAY_EVERY) {
            return;
        }
        (lost.said, lost.said_at) = (lost.spans, Some(Instant::now()));
        let spans = lost.spans;
        drop(lost);
        let reason: String = why.to_string().chars().filter(|c| !c.is_control()).take(REASON).collect();
        tracing::warn!(
            spans,
            reason,
            "spans were lost on their way to the collector of traces (so many in all); pushes go on"
        );
    }

    /// What has not been said yet.
    fn say_all(&self) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.spans > lost.said {
            lost.said = lost.spans;
            tracing::warn!(
                spans = lost.spans,
                "so many spans were lost in all on their way to the collector of traces"
            );
        }
    }
}

/// Keeps the books of what goes through it.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    books: Arc<Books>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.exporter.export(batch).await;
        self.books.waiting.fetch_sub(spans, Ordering::AcqRel);
        if let Err(error) = &sent {
            self.books.lost(spans, error);
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
