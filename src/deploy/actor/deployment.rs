//! A deployment under way, and how one ends.

use tokio::{sync::oneshot, time::Instant};

use crate::{
    deploy::{
        api::{DeployFailure, Deployed},
        progress::Audience,
    },
    domain::{Deployment, DeploymentState, EnvRef, ReleaseVersion, Timestamp},
    store::StoreError,
};

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
    pub(super) audience: Audience,
    pub(super) waiting: Vec<oneshot::Sender<Outcome>>,
    /// Milliseconds since it began at which something was reached.
    marks: Vec<(&'static str, u64)>,
    /// What was said last, and when.
    pub(super) said: (String, Instant),
    /// Why it has failed and with what last lines, when that could not be acted on where it was found.
    pub(super) phase_failure: Option<(String, Vec<String>)>,
    /// The last output of what is not ready is read (or was) before the deployment is given up.
    pub(super) last_words: bool,
}

impl Rollout {
    pub(super) fn new(version: ReleaseVersion, from: Option<ReleaseVersion>, started_at: Timestamp) -> Self {
        let now = Instant::now();
        Self {
            version,
            from,
            started_at,
            began: now,
            progress_at: now,
            closest: 0,
            audience: Audience::default(),
            waiting: Vec::new(),
            marks: Vec::new(),
            said: (String::new(), now),
            phase_failure: None,
            last_words: false,
        }
    }

    pub(super) fn mark(&mut self, name: &'static str) {
        if self.marks.iter().all(|(other, _)| *other != name) {
            let time = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.marks.push((name, time));
        }
    }

    /// Restarts the clock of the progress deadline.
    pub(super) fn progressed(&mut self) {
        self.progress_at = Instant::now();
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
        Deployment { env: env.clone(), to, from, state, started_at, finished_at: end }
    }

    pub(super) fn end(self, outcome: &Outcome) {
        self.waiting.into_iter().for_each(|reply| drop(reply.send(outcome.clone())));
    }
}
