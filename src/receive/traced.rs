//! What a trace says of receiving a push or a source.

use std::time::Instant;

use serde_json::json;

use super::{LivePush, Receive, Refusal, judge::Queued};
use crate::{
    domain::{EnvRef, OpenSpan, UserName},
    traces::{Span, time_of},
};

/// What was received, whoever sent it.
pub(super) struct Received<'a> {
    pub(super) env: &'a EnvRef,
    pub(super) user: &'a UserName,
    pub(super) trace: Option<OpenSpan>,
    pub(super) started: Instant,
    /// When it had come in and was looked at.
    pub(super) taken: Option<Instant>,
}

impl<'a> Received<'a> {
    /// A push whose pack has come in.
    pub(super) fn of(push: &'a LivePush, taken: Instant) -> Self {
        let LivePush { env, user, trace, started, .. } = push;
        Self { env, user, trace: *trace, started: *started, taken: Some(taken) }
    }
}

impl Receive {
    /// A push was judged: its build goes on with its trace, if there is one.
    pub(super) fn trace_judged(&self, received: &Received<'_>, judged: Result<Option<&Queued>, &Refusal>) {
        match judged {
            Ok(Some(_)) => self.trace_received(received, None),
            Ok(None) => self.trace_received(received, Some("nothing to build")),
            Err(refusal) => self.trace_refused(received, refusal),
        }
    }

    /// What was received is not built.
    pub(super) fn trace_refused(&self, received: &Received<'_>, refusal: &Refusal) {
        self.trace_received(received, Some(json!(refusal.kind).as_str().unwrap_or("refused")));
    }

    /// What was received was let in, or there is nothing to build for the reason `ended`, and that was all.
    pub(super) fn trace_received(&self, received: &Received<'_>, ended: Option<&str>) {
        let Received { env, user, trace: Some(trace), started, taken } = received else { return };
        let (traces, end) = (&self.0.settings.traces, time_of(Instant::now()));
        let begin = time_of(*started);
        let nothing = ended == Some("nothing to build");
        let refused = ended.is_some() && !nothing;
        let receive = Span::within(&trace.context, "receive", begin, end).failed(refused);
        if let Some(taken) = taken.map(time_of) {
            traces.tell(Span::within(&receive.context, "transfer", begin, taken));
            traces.tell(Span::within(&receive.context, "validate", taken, end).failed(refused));
        }
        traces.tell(receive);
        if let Some(ended) = ended {
            let root = Span::of(trace, "push", begin, end).env(env).with("berth.user", user.as_str());
            let outcome = if nothing { ended } else { "refused" };
            let root = root.with("berth.outcome", outcome).failed(refused);
            traces.tell(if refused { root.with("berth.refusal", ended) } else { root });
        }
    }
}
