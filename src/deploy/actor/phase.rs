//! The release phase: a command that runs once in the new image before any of its replicas.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Actor, STORE_AGAIN, execute::Done};
use crate::{
    deploy::{
        Parts,
        progress::{Audience, Note},
    },
    domain::{Release, ReleaseVersion},
    jobs::{self, ReleaseJob, attend, widest},
    logs::{JobOutput, LogRecord},
    runtime::{JobKind, Output},
    store::StoreError,
};

/// What a release phase is called in logs and in `BERTH_PROCESS`.
const PROCESS: &str = "release";

impl Actor {
    /// Begins the release phase, unless one is running. One of a release that was superseded is not cut short: half a migration is worse
    /// than a late one.
    pub(super) fn run_phase(&mut self, release: &Release) {
        if self.phase.is_some() {
            return;
        }
        let (Some(command), Some(rollout)) = (&release.release_command, &self.rollout) else { return };
        self.phase = Some(release.version);
        rollout.audience.tell(Note::Step(format!("Running release phase: {command}")));
        let phase = ReleasePhase {
            parts: self.parts.clone(),
            release: release.clone(),
            command: command.clone(),
            audience: rollout.audience.clone(),
        };
        let version = release.version;
        self.tasks.spawn(async move { Done::Phase { version, result: phase.run().await } });
    }

    /// Takes in how a release phase ended.
    pub(super) async fn phase_over(&mut self, version: ReleaseVersion, result: Result<(), (String, Vec<String>)>) {
        self.phase = None;
        let mine = self.rollout.as_mut().filter(|rollout| rollout.version == version);
        match (result, mine) {
            (Err(failure), Some(rollout)) => rollout.phase_failure = Some(failure),
            (Err((reason, _)), None) => {
                tracing::warn!(env = %self.env, %version, reason, "a superseded release phase failed")
            }
            (Ok(()), mine) => {
                if let Some(rollout) = mine {
                    rollout.mark("release phase");
                    rollout.progressed();
                }
                self.phase_succeeded(version).await;
            }
        }
    }

    async fn phase_succeeded(&mut self, version: ReleaseVersion) {
        let id = (self.env.clone(), version);
        let written = self.parts.store.modify::<Release, StoreError>(&id, |release| {
            release.release_phase_done = true;
            Ok(())
        });
        match written.await {
            Ok(release) => drop(self.releases.insert(version, release)),
            Err(error) => {
                // It has run; to run it again because of a full disk would be wrong, and to go on is safe.
                tracing::error!(env = %self.env, %error, "the end of a release phase cannot be written down");
                if let Some(release) = self.releases.get_mut(&version) {
                    release.release_phase_done = true;
                }
                self.wake_by(Instant::now() + STORE_AGAIN);
            }
        }
    }
}

struct ReleasePhase {
    parts: Arc<Parts>,
    release: Release,
    command: String,
    audience: Audience,
}

impl ReleasePhase {
    async fn run(self) -> Result<(), (String, Vec<String>)> {
        let failed = |reason: String| format!("the release phase failed: {reason}");
        // Before it begins, so that the next server knows if this one dies.
        if let Err(error) = self.count_attempt().await {
            return Err((failed(error.to_string()), Vec::new()));
        }
        let settings = &self.parts.settings;
        let spec = ReleaseJob {
            release: &self.release,
            kind: JobKind::ReleasePhase,
            name: format!("release-{}", self.release.version),
            process: PROCESS,
            words: std::slice::from_ref(&self.command),
            limits: widest(&self.release, settings.pids),
            stop_grace: settings.stop_grace,
        };
        let spec = spec.spec();
        self.say(format!("release phase of {} started: {}", self.release.version, self.command));
        let mut listeners =
            Listeners { phase: &self, log: JobOutput::new(self.parts.logs.clone(), self.release.env.clone(), PROCESS) };
        let never = std::future::pending();
        let limit = settings.release_phase_timeout;
        let attended = attend(&*self.parts.runtime, &spec, limit, never, &mut listeners).await;
        listeners.log.finish(self.parts.clock.now()).await;
        let (reason, tail) = match attended {
            Ok(attended) => (attended.ending.failure(), attended.tail),
            Err(error) => (Some(error.to_string()), Vec::new()),
        };
        self.say(reason.as_ref().map_or_else(|| "release phase succeeded".to_owned(), |reason| failed(reason.clone())));
        reason.map_or(Ok(()), |reason| Err((failed(reason), tail)))
    }

    /// Writes down that it begins, and tells when it did so before: a server that died left it half done.
    async fn count_attempt(&self) -> Result<(), StoreError> {
        let id = (self.release.env.clone(), self.release.version);
        let written = self.parts.store.modify::<Release, StoreError>(&id, |release| {
            release.release_phase_attempts = release.release_phase_attempts.saturating_add(1);
            Ok(())
        });
        let attempts = written.await?.release_phase_attempts;
        if attempts > 1 {
            let text =
                format!("The server was restarted while the release phase ran; it runs again (attempt {attempts})");
            self.audience.tell(Note::Error(text.clone()));
            self.say(text);
        }
        Ok(())
    }

    fn say(&self, text: String) {
        let record = LogRecord::berth(self.parts.clock.now(), PROCESS, text);
        self.parts.logs.append(&self.release.env, record);
    }
}

/// Who hears of a release phase: those who wait for the deployment, and the environment's log.
struct Listeners<'a> {
    phase: &'a ReleasePhase,
    log: JobOutput,
}

#[async_trait]
impl jobs::Audience for Listeners<'_> {
    async fn output(&mut self, output: Output) {
        self.log.take(&output, self.phase.parts.clock.now()).await;
        self.phase.audience.tell(Note::Raw(output.bytes));
    }

    fn silent(&mut self, running: Duration) {
        self.phase.audience.detail(format!("still running ({} s)", running.as_secs()));
    }
}
