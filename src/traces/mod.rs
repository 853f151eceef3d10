//! Traces of pushes: what took how long, over all stages. Those who do the work say what a part of it was once that is over; where it
//! is sent, only `app` knows. Off, which is the default, nothing is made and nothing is kept.
//!
//! A span is a fact that is told afterwards, whole: so it does not matter which task, process or server ends what another began, as long
//! as the record of the work keeps the [`OpenSpan`]. Attributes are names and numbers of Berth's own words, never values of a
//! configuration, never what an app or a person wrote.

use std::{fmt, sync::Arc, time::Duration};

use crate::domain::{EnvRef, OpenSpan, Timestamp, TraceContext};

/// Longest text of an attribute, bytes.
const MAX_TEXT: usize = 256;

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self::Text(text[..end].to_owned())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

/// A part of the work that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub context: TraceContext,
    pub parent: Option<TraceContext>,
    pub name: &'static str,
    pub begin: Timestamp,
    /// Not before `begin`.
    pub end: Timestamp,
    pub attributes: Vec<(&'static str, Value)>,
    /// It did not do what it was for.
    pub failed: bool,
}

impl Span {
    /// A span that a record has kept open.
    pub fn of(open: &OpenSpan, name: &'static str, end: Timestamp) -> Self {
        let OpenSpan { context, parent, begin } = *open;
        // The time of day may have been set back meanwhile.
        Self { context, parent, name, begin, end: end.max(begin), attributes: Vec::new(), failed: false }
    }

    /// A part of `parent`.
    pub fn within(parent: &TraceContext, name: &'static str, begin: Timestamp, end: Timestamp) -> Self {
        Self::of(&part_of(parent, begin), name, end)
    }

    /// With an attribute; of texts, the first 256 bytes.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// With the names of the environment.
    pub fn env(self, env: &EnvRef) -> Self {
        let (tenant, app, name) = (env.tenant.as_str(), env.app.as_str(), env.env.as_str());
        self.with("berth.tenant", tenant).with("berth.app", app).with("berth.env", name)
    }

    /// Whether it failed.
    pub fn failed(self, failed: bool) -> Self {
        Self { failed, ..self }
    }
}

/// A span that begins, and is a part of `parent`.
fn part_of(parent: &TraceContext, begin: Timestamp) -> OpenSpan {
    OpenSpan { context: numbered(Some(parent.trace()), parent.is_sampled()), parent: Some(*parent), begin }
}

/// A new span of the trace, or of a new one.
fn numbered(trace: Option<u128>, sampled: bool) -> TraceContext {
    loop {
        let trace = trace.unwrap_or_else(rand::random);
        // Zero, which is no number, does not come up twice.
        if let Some(context) = TraceContext::new(trace, rand::random(), sampled) {
            return context;
        }
    }
}

/// Takes spans in. It must neither block nor fail.
pub trait SpanSink: Send + Sync {
    fn take(&self, span: Span);
}

/// Where spans are told. Clones share it.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Inner>>);

struct Inner {
    sink: Arc<dyn SpanSink>,
    /// The part of all new traces that is recorded, 0 to 1.
    sample: f64,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Traces(on)" } else { "Traces(off)" })
    }
}

impl Traces {
    /// No traces.
    pub fn off() -> Self {
        Self::default()
    }

    /// Spans go to `sink`; of traces that begin here, the part `sample` (0 to 1) is recorded.
    pub fn new(sink: Arc<dyn SpanSink>, sample: f64) -> Self {
        Self(Some(Arc::new(Inner { sink, sample })))
    }

    /// Whether there are any.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a trace, or a part of the caller's, who decides whether it is recorded. `None`: there are no traces.
    pub fn begin(&self, caller: Option<&TraceContext>) -> Option<OpenSpan> {
        let inner = self.0.as_ref()?;
        let begin = Timestamp::now();
        let new = || OpenSpan { context: numbered(None, rand::random::<f64>() < inner.sample), parent: None, begin };
        Some(caller.map_or_else(new, |caller| part_of(caller, begin)))
    }

    /// Tells of what is over.
    pub fn tell(&self, span: Span) {
        if let Some(inner) = self.0.as_ref().filter(|_| span.context.is_sampled()) {
            inner.sink.take(span);
        }
    }

    /// What is measured from now on is part of `parent`; nothing is when that is not recorded.
    pub fn measure(&self, parent: Option<&TraceContext>) -> Measure {
        let parent = self.0.as_ref().and(parent).copied();
        Measure { traces: self.clone(), parent, since: Timestamp::now() }
    }
}

/// One stage after the other, all parts of the same span.
#[derive(Debug, Clone)]
pub struct Measure {
    traces: Traces,
    parent: Option<TraceContext>,
    since: Timestamp,
}

impl Measure {
    /// Tells that what began where the last one ended is over, and begins the next.
    pub fn lap(&mut self, name: &'static str, finish: impl FnOnce(Span) -> Span) {
        let now = Timestamp::now();
        let since = std::mem::replace(&mut self.since, now);
        if let Some(parent) = &self.parent {
            self.traces.tell(finish(Span::within(parent, name, since, now)));
        }
    }
}

/// The moment so long before `moment`; the moment itself when there is none.
pub fn before(moment: Timestamp, time: Duration) -> Timestamp {
    moment.checked_sub(time).unwrap_or(moment)
}

/// Keeps what it is told. For tests.
#[derive(Debug, Default)]
pub struct KeptSpans(std::sync::Mutex<Vec<Span>>);

impl KeptSpans {
    /// What has come in so far.
    pub fn all(&self) -> Vec<Span> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl SpanSink for KeptSpans {
    fn take(&self, span: Span) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_their_whole() {
        let kept = Arc::new(KeptSpans::default());
        let traces = Traces::new(kept.clone(), 1.0);
        let root = traces.begin(None).unwrap();
        let mut measure = traces.measure(Some(&root.context));
        measure.lap("first", |span| span.with("count", 3u32));
        measure.lap("second", |span| span.failed(true));
        traces.tell(Span::of(&root, "whole", root.begin - Duration::from_secs(5)));
        let spans = kept.all();
        let names: Vec<_> = spans.iter().map(|span| span.name).collect();
        assert_eq!(names, ["first", "second", "whole"]);
        for part in &spans[..2] {
            assert_eq!(part.parent, Some(root.context));
            assert_eq!(part.context.trace(), root.context.trace());
            assert!(part.context.span() != root.context.span() && part.begin <= part.end);
        }
        assert!(spans[1].failed && spans[0].end == spans[1].begin);
        assert!(spans[2].parent.is_none() && spans[2].end == spans[2].begin, "an end before its beginning");
    }

    #[test]
    fn a_caller_decides_for_its_trace() {
        let caller: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let never = Traces::new(Arc::new(KeptSpans::default()), 0.0);
        assert!(!never.begin(None).unwrap().context.is_sampled());
        let joined = never.begin(Some(&caller)).unwrap();
        assert_eq!((joined.context.trace(), joined.parent), (caller.trace(), Some(caller)));
        let quiet: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".parse().unwrap();
        let kept = Arc::new(KeptSpans::default());
        let always = Traces::new(kept.clone(), 1.0);
        let untold = always.begin(Some(&quiet)).unwrap();
        let now = Timestamp::now();
        always.tell(Span::within(&untold.context, "part", now, now));
        always.measure(Some(&untold.context)).lap("part", |span| span);
        assert!(kept.all().is_empty());
        assert_eq!(Traces::off().begin(Some(&caller)), None);
    }

    #[test]
    fn texts_are_bounded() {
        let text = format!("{}é", "x".repeat(MAX_TEXT - 1));
        assert_eq!(Value::from(text.as_str()), Value::Text("x".repeat(MAX_TEXT - 1)));
    }
}
