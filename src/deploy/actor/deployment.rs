//! A deployment under way, and how one ends.

use std::time::Duration;

use tokio::{sync::oneshot, time::Instant};

use super::tell::Steps;
use crate::{
    deploy::{
        api::{DeployFailure, Deployed},
        clock::elapsed,
        progress::Audience,
    },
    domain::{Deployment, DeploymentState, EnvRef, OpenSpan, ReleaseVersion, RolloutProgress, Timestamp},
    plan::progress::allowance,
    store::StoreError,
    traces::{Measure, Traces},
};

/// Progress is written down no more often than this: most deployments are over sooner, and need it not.
const SAVE_EVERY: Duration = Duration::from_secs(15);

/// How a deployment ended, for all who wait for it.
#[derive(Debug, Clone)]
pub(in crate::deploy) enum Outcome {
    Deployed(Deployed),
    Failed { release: ReleaseVersion, reason: String, last_log_lines: Vec<String> },
    Superseded { by: ReleaseVersion },
    Store(StoreError),
}

impl Outcome {
    pub(in crate::deploy) fn into_result(self) -> Result<Deployed, DeployFailure> {
        match self {
            Self::Deployed(deployed) => Ok(deployed),
            Self::Failed { release, reason, last_log_lines } => {
                Err(DeployFailure::Failed { release, reason, last_log_lines })
            }
            Self::Superseded { by } => Err(DeployFailure::Superseded { by }),
            Self::Store(error) => Err(DeployFailure::Store(error)),
        }
    }
}

/// A deployment under way.
pub(super) struct Rollout {
    pub(super) version: ReleaseVersion,
    pub(super) from: Option<ReleaseVersion>,
    pub(super) started_at: Timestamp,
    began: Instant,
    /// When it last came closer to its end, and how close that was.
    pub(super) progress_at: Instant,
    pub(super) closest: u32,
    /// How long before `progress_at` it had not come closer, and how many servers have taken it up since it did.
    pub(super) idle: Duration,
    pub(super) adoptions: u32,
    /// Whether that is to be written down, and when it was last.
    pub(super) unsaved: bool,
    pub(super) saved_at: Option<Instant>,
    pub(super) audience: Audience,
    pub(super) waiting: Vec<oneshot::Sender<Outcome>>,
    /// Its span, when its trace is recorded, and what it does now as a part of that.
    pub(super) trace: Option<OpenSpan>,
    measure: Measure,
    /// Milliseconds since it began at which something was reached.
    marks: Vec<(&'static str, u64)>,
    /// What events have said of it.
    pub(super) steps: Steps,
    /// What was said last, and when.
    pub(super) said: (String, Instant),
    /// Why it has failed and with what last lines, when that could not be acted on where it was found.
    pub(super) phase_failure: Option<(String, Vec<String>)>,
    /// The last output of what is not ready is read (or was) before the deployment is given up.
    pub(super) last_words: bool,
}

impl Rollout {
    pub(super) fn new(
        version: ReleaseVersion,
        from: Option<ReleaseVersion>,
        started_at: Timestamp,
        trace: Option<OpenSpan>,
        traces: &Traces,
    ) -> Self {
        let now = Instant::now();
        Self {
            version,
            from,
            started_at,
            began: now,
            progress_at: now,
            closest: 0,
            idle: Duration::ZERO,
            adoptions: 0,
            unsaved: false,
            saved_at: Some(now),
            audience: Audience::default(),
            waiting: Vec::new(),
            trace,
            measure: traces.measure(trace.as_ref().map(|trace| &trace.context)),
            marks: Vec::new(),
            steps: Steps::default(),
            said: (String::new(), now),
            phase_failure: None,
            last_words: false,
        }
    }

    pub(super) fn mark(&mut self, name: &'static str) {
        if self.marks.iter().all(|(other, _)| *other != name) {
            let time = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.marks.push((name, time));
            self.measure.lap(name, |span| span);
        }
    }

    /// What it did last has come to nothing.
    pub(super) fn stopped_at(&mut self, name: &'static str) {
        self.measure.lap(name, |span| span.failed(true));
    }

    /// What it has not reached yet, its release phase aside.
    pub(super) fn next_mark(&self) -> &'static str {
        let reached = |name: &&str| self.marks.iter().all(|(other, _)| other != name);
        ["start", "ready"].into_iter().find(reached).unwrap_or("route")
    }

    /// Restarts the clock of the progress deadline.
    pub(super) fn progressed(&mut self) {
        self.progress_at = Instant::now();
        (self.idle, self.adoptions, self.unsaved) = (Duration::ZERO, 0, true);
    }

    /// Goes on with one that an earlier server began; `now` is the time of day.
    pub(super) fn adopt(&mut self, stored: &Deployment, now: Timestamp) {
        let (at, closest, adoptions) =
            stored.progress.as_ref().map_or((stored.started_at, 0, 0), |it| (it.at, it.closest, it.adoptions));
        (self.closest, self.idle, self.adoptions) = (closest, elapsed(at, now), adoptions.saturating_add(1));
        // At once: should this server not live long, the next one must know.
        (self.unsaved, self.saved_at) = (true, None);
    }

    /// What the next server is to know, if it is to be written down now.
    pub(super) fn take_unsaved(&mut self, now: Timestamp) -> Option<RolloutProgress> {
        let due = self.unsaved && self.saved_at.is_none_or(|saved| saved.elapsed() >= SAVE_EVERY);
        due.then(|| {
            self.saved_at = Some(Instant::now());
            let at = now - (self.idle + self.progress_at.elapsed());
            RolloutProgress { at, closest: self.closest, adoptions: self.adoptions }
        })
    }

    /// How long it may still go without coming closer to its end, from `progress_at` on.
    pub(super) fn allowance(&self, deadline: Duration) -> Duration {
        allowance(deadline, self.idle, self.adoptions)
    }

    pub(super) fn timings(&self) -> Vec<(String, u64)> {
        let mut before = 0;
        let stage = |(name, at): &(&'static str, u64)| {
            let time = at.saturating_sub(before);
            before = before.max(*at);
            ((*name).to_owned(), time)
        };
        self.marks.iter().map(stage).collect()
    }

    pub(super) fn record(&self, env: &EnvRef, state: DeploymentState, end: Option<Timestamp>) -> Deployment {
        let (to, from, started_at) = (self.version, self.from, self.started_at);
        Deployment {
            env: env.clone(),
            to,
            from,
            state,
            started_at,
            finished_at: end,
            progress: None,
            last_log_lines: Vec::new(),
            trace: self.trace,
        }
    }

    pub(super) fn end(self, outcome: &Outcome) {
        self.waiting.into_iter().for_each(|reply| drop(reply.send(outcome.clone())));
    }
}
