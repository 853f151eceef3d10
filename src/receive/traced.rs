//! What a trace says of receiving a push or a source.

use serde_json::json;

use super::{LivePush, Receive, Refusal, judge::Queued};
use crate::{
    domain::{EnvRef, OpenSpan, Timestamp, UserName},
    traces::Span,
};

/// What was received, whoever sent it.
pub(super) struct Received<'a> {
    pub(super) env: &'a EnvRef,
    pub(super) user: &'a UserName,
    pub(super) trace: Option<OpenSpan>,
    /// When it had come in and was looked at.
    pub(super) taken: Option<Timestamp>,
}

impl<'a> Received<'a> {
    /// A push whose pack has come in.
    pub(super) fn of(push: &'a LivePush, taken: Timestamp) -> Self {
        let LivePush { env, user, trace, .. } = push;
        Self { env, user, trace: *trace, taken: Some(taken) }
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
        let Received { env, user, trace: Some(trace), taken } = received else { return };
        let (traces, end) = (&self.0.settings.traces, Timestamp::now());
        let nothing = ended == Some("nothing to build");
        let refused = ended.is_some() && !nothing;
        let receive = Span::within(&trace.context, "receive", trace.begin, end).failed(refused);
        if let Some(taken) = *taken {
            traces.tell(Span::within(&receive.context, "transfer", trace.begin, taken));
            traces.tell(Span::within(&receive.context, "validate", taken, end).failed(refused));
        }
        traces.tell(receive);
        if let Some(ended) = ended {
            let root = Span::of(trace, "push", end).env(env).with("berth.user", user.as_str());
            let outcome = if nothing { ended } else { "refused" };
            let root = root.with("berth.outcome", outcome).failed(refused);
            traces.tell(if refused { root.with("berth.refusal", ended) } else { root });
        }
    }
}
