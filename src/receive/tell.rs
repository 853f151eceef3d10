//! What events say of a push.

use jiff::Timestamp;
use serde_json::json;

use super::{HookRequest, LivePush, Receive, Refusal, judge::Queued};
use crate::{
    domain::{EnvRef, EventKind, UserName},
    git::short_branch,
    store::NewEvent,
};

/// Refs that an event names.
const NAMED: usize = 10;

impl Receive {
    /// A pack was taken, and is looked at now.
    pub(super) fn tell_received(&self, push: &LivePush, request: &HookRequest) {
        let refs: Vec<_> = request.updates.iter().take(NAMED).map(|update| json!(update.name)).collect();
        let message = format!("a push to {} was received", push.env);
        let event =
            NewEvent::new(EventKind::PushReceived, Timestamp::now(), message).data("updates", request.updates.len());
        self.0.events.send(event.data("refs", refs).env(&push.env).by(&push.user));
    }

    /// `None`: nothing is to be built for it.
    pub(super) fn tell_accepted(&self, push: &LivePush, queued: Option<&Queued>) {
        let message = match queued {
            Some(queued) => format!("a push to {} was accepted as build #{}", push.env, queued.build.number),
            None => format!("a push to {} was accepted; there is nothing to build", push.env),
        };
        let event = NewEvent::new(EventKind::PushAccepted, Timestamp::now(), message).env(&push.env).by(&push.user);
        self.0.events.send(match queued {
            Some(Queued { build, detached, .. }) => event
                .data("build", build.number.0)
                .data("commit", build.commit.as_str())
                .data("branch", build.branch.as_deref().map(short_branch))
                .data("detached", *detached),
            None => event,
        });
    }

    /// With the reason, but without the details: those may quote what was pushed.
    pub(super) fn tell_refused(&self, env: &EnvRef, user: &UserName, refusal: &Refusal) {
        let message = format!("a push to {env} was refused: {}", refusal.reason);
        let event = NewEvent::new(EventKind::PushRefused, Timestamp::now(), message).env(env).by(user);
        self.0.events.send(event.data("kind", json!(refusal.kind)).data("reason", refusal.reason.as_str()));
    }
}
