//! The release phase: a command that runs once in the new image before any of its replicas.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Actor, STORE_AGAIN, execute::Done};
use crate::{
    deploy::{
        Parts,
        progress::{Audience, Note},
    },
    domain::{Release, ReleaseVersion},
    jobs::{self, Attended, Begin, Ending, ReleaseJob, attend_within, widest},
    logs::{JobOutput, LogRecord},
    runtime::{JobKind, Output, RuntimeError},
    store::StoreError,
};

/// What a release phase is called in logs and in `BERTH_PROCESS`.
const PROCESS: &str = "release";
/// How often it is begun: once more after a server that ended while it ran, and then no more.
const MAX_ATTEMPTS: u32 = 2;
const TOO_OFTEN: &str = "the server went down twice while it ran, and it is not run a third time; see what it left half done \
     (`logs --process release`, and the database), then push again or `redeploy`";
/// How long an engine that does not answer is waited for before a release phase is said to have failed.
const ENGINE_PATIENCE: Duration = Duration::from_secs(300);
/// How long a release phase that was told to end may take beyond its grace time to be cleared up.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Actor {
    /// Begins the release phase, unless one is running. One of a release that was superseded is not cut short: half a migration is worse
    /// than a late one.
    pub(super) fn run_phase(&mut self, release: &Release) {
        if self.phase.is_some() {
            return;
        }
        let (Some(command), Some(rollout)) = (&release.release_command, &self.rollout) else { return };
        self.phase = Some(release.version);
        self.unwanted = CancellationToken::new();
        rollout.audience.tell(Note::Step(format!("Running release phase: {command}")));
        let phase = ReleasePhase {
            parts: self.parts.clone(),
            release: release.clone(),
            command: command.clone(),
            audience: rollout.audience.clone(),
            shutdown: self.shutdown.clone(),
            unwanted: self.unwanted.clone(),
        };
        let version = release.version;
        self.tasks.spawn(async move { Done::Phase { version, end: phase.run().await } });
    }

    /// A release phase that has not begun is not to, once its deployment is over.
    pub(super) fn drop_unwanted_phase(&self) {
        if self.phase.is_some() && self.phase != self.rollout.as_ref().map(|rollout| rollout.version) {
            self.unwanted.cancel();
        }
    }

    /// Takes in how a release phase ended.
    pub(super) async fn phase_over(&mut self, version: ReleaseVersion, end: PhaseEnd) {
        self.phase = None;
        let mine = self.rollout.as_mut().filter(|rollout| rollout.version == version);
        match (end, mine) {
            (PhaseEnd::Failed(reason, lines), Some(rollout)) => rollout.phase_failure = Some((reason, lines)),
            (PhaseEnd::Failed(reason, _), None) => {
                tracing::warn!(env = %self.env, %version, reason, "a superseded release phase failed")
            }
            // While the server stops, and the next one runs it again; or it has not begun and is not wanted any more.
            (PhaseEnd::Interrupted, _) => {}
            (PhaseEnd::Succeeded, mine) => {
                if let Some(rollout) = mine {
                    rollout.mark("release phase");
                    rollout.progressed();
                }
                if let Some(release) = self.releases.get_mut(&version) {
                    release.release_phase_done = true;
                }
                self.unwritten.insert(version);
                self.write_phases().await;
            }
        }
    }

    /// Writes down which release phases have succeeded. What cannot be written is known here nevertheless, and tried again: to run a
    /// migration again because of a full disk would be wrong, and to go on is safe.
    pub(super) async fn write_phases(&mut self) {
        for version in self.unwritten.clone() {
            let id = (self.env.clone(), version);
            let written = self.parts.store.modify::<Release, StoreError>(&id, |release| {
                release.release_phase_done = true;
                Ok(())
            });
            match written.await {
                Ok(_) | Err(StoreError::Missing(_)) => drop(self.unwritten.remove(&version)),
                Err(error) => {
                    tracing::error!(env = %self.env, %error, "the end of a release phase cannot be written down; trying again");
                    self.wake_by(Instant::now() + STORE_AGAIN);
                }
            }
        }
    }

    /// The server stops: waits until a release phase has ended, which was told to, and until its success is written down.
    pub(super) async fn wind_down(&mut self) {
        let grace = self.parts.settings.stop_grace.min(self.parts.settings.shutdown_grace);
        let deadline = Instant::now() + grace + LAST_WORDS;
        let ended = async {
            while self.phase.is_some() {
                match self.tasks.join_next().await {
                    Some(Ok(Done::Phase { version, end })) => self.phase_over(version, end).await,
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                }
            }
            while !self.unwritten.is_empty() {
                sleep(STORE_AGAIN).await;
                self.write_phases().await;
            }
        };
        if timeout_at(deadline, ended).await.is_err() {
            tracing::warn!(env = %self.env, "a release phase did not end in time, or its end could not be written down");
        }
    }
}

/// How a release phase ended.
pub(super) enum PhaseEnd {
    Succeeded,
    /// Why, and its last lines.
    Failed(String, Vec<String>),
    /// The server stops.
    Interrupted,
}

struct ReleasePhase {
    parts: Arc<Parts>,
    release: Release,
    command: String,
    audience: Audience,
    shutdown: CancellationToken,
    /// Its deployment is over.
    unwanted: CancellationToken,
}

impl ReleasePhase {
    async fn run(self) -> PhaseEnd {
        let failed = |reason: String| format!("the release phase failed: {reason}");
        // Before it begins, so that the next server knows if this one dies.
        match self.count_attempt(1).await {
            Err(error) => return PhaseEnd::Failed(failed(error.to_string()), Vec::new()),
            Ok(attempt) if attempt > MAX_ATTEMPTS => {
                self.say(failed(TOO_OFTEN.to_owned()));
                return PhaseEnd::Failed(failed(TOO_OFTEN.to_owned()), Vec::new());
            }
            Ok(1) => {}
            Ok(attempt) => self.announce(format!(
                "The server was restarted while the release phase ran; it runs again (attempt {attempt} of {MAX_ATTEMPTS})"
            )),
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
        let limit = settings.release_phase_timeout;
        let begin = Begin { within: ENGINE_PATIENCE, unwanted: self.unwanted.clone() };
        let attended = attend_within(&*self.parts.runtime, &spec, begin, limit, self.stopped(), &mut listeners).await;
        listeners.log.finish(self.parts.clock.now()).await;
        let (reason, tail) = match attended {
            Ok(Attended { ending: Ending::Stopped(_), .. }) => return PhaseEnd::Interrupted,
            Ok(Attended { ending: Ending::NotBegun(_), .. }) => return self.not_begun().await,
            Ok(attended) => (attended.ending.failure(), attended.tail),
            Err(error) => (Some(error.to_string()), Vec::new()),
        };
        self.say(reason.as_ref().map_or_else(|| "release phase succeeded".to_owned(), |reason| failed(reason.clone())));
        reason.map_or(PhaseEnd::Succeeded, |reason| PhaseEnd::Failed(failed(reason), tail))
    }

    /// Returns when the server stops, and says so.
    async fn stopped(&self) -> String {
        self.shutdown.cancelled().await;
        self.announce(
            "The server stops: the release phase is told to end, and runs again once the server is back".to_owned(),
        );
        "the server was stopped".to_owned()
    }

    /// Nothing of it ran: that was no attempt.
    async fn not_begun(&self) -> PhaseEnd {
        if let Err(error) = self.count_attempt(-1).await {
            tracing::warn!(env = %self.release.env, %error, "a release phase that did not begin counts as one that was interrupted");
        }
        PhaseEnd::Interrupted
    }

    /// Writes down that it begins (or did not, after all); returns which attempt it is. One after another means that a server ended
    /// while it ran.
    async fn count_attempt(&self, by: i32) -> Result<u32, StoreError> {
        let id = (self.release.env.clone(), self.release.version);
        let written = self.parts.store.modify::<Release, StoreError>(&id, |release| {
            release.release_phase_attempts = release.release_phase_attempts.saturating_add_signed(by);
            Ok(())
        });
        Ok(written.await?.release_phase_attempts)
    }

    fn announce(&self, text: String) {
        self.audience.tell(Note::Error(text.clone()));
        self.say(text);
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

    fn waiting(&mut self, why: &RuntimeError) {
        self.phase.audience.detail(why.waiting());
        self.phase.say(why.waiting());
    }

    fn silent(&mut self, running: Duration) {
        self.phase.audience.detail(format!("still running ({} s)", running.as_secs()));
    }
}
