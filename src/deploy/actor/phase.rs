//! The release phase: a command that runs once in the new image before any of its replicas.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{Actor, STORE_AGAIN, execute::Done};
use crate::{
    deploy::{
        Parts,
        progress::{Audience, Note},
        spec,
    },
    domain::{Release, ReleaseVersion},
    runtime::{Job, JobKind, JobSpec, RuntimeError},
    store::StoreError,
};

/// How long making and starting the job may take; it may have to wait for the image.
const START_DEADLINE: Duration = Duration::from_secs(300);
/// How long clearing up may take.
const FINISH_DEADLINE: Duration = Duration::from_secs(30);
/// Output is said to be still coming when there was none for this long.
const SILENCE: Duration = Duration::from_secs(8);
/// Last output that is kept for the failure's message, in bytes.
const TAIL: usize = 4096;

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
            job: self.phase_job(release, command),
            audience: rollout.audience.clone(),
        };
        let version = release.version;
        self.tasks.spawn(async move { Done::Phase { version, result: phase.run().await } });
    }

    fn phase_job(&self, release: &Release, command: &str) -> JobSpec {
        JobSpec {
            kind: JobKind::ReleasePhase,
            env: self.env.clone(),
            name: format!("release-{}", release.version),
            image: release.image.clone(),
            argv: spec::launched(command),
            environment: spec::phase_variables(release),
            limits: spec::phase_limits(release, self.parts.settings.pids),
            cache: false,
            read_only_mounts: Vec::new(),
            tty: None,
            stdin: false,
            stop_grace: self.parts.settings.stop_grace,
        }
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
    job: JobSpec,
    audience: Audience,
}

impl ReleasePhase {
    async fn run(self) -> Result<(), (String, Vec<String>)> {
        let mut tail = VecDeque::with_capacity(TAIL);
        let reason = match self.run_job(&mut tail).await {
            Ok(None) => return Ok(()),
            Ok(Some(reason)) => reason,
            Err(error) => error.to_string(),
        };
        let text = String::from_utf8_lossy(tail.make_contiguous()).into_owned();
        let mut lines: Vec<String> = text.lines().rev().take(30).map(str::to_owned).collect();
        lines.reverse();
        Err((format!("the release phase failed: {reason}"), lines))
    }

    /// Why it failed, if it did.
    async fn run_job(&self, tail: &mut VecDeque<u8>) -> Result<Option<String>, RuntimeError> {
        let start = async {
            let mut job = self.parts.runtime.job(&self.job).await?;
            job.start().await?;
            Ok(job)
        };
        let late = || Err(RuntimeError::Unavailable(format!("no start within {} s", START_DEADLINE.as_secs())));
        let mut job = timeout(START_DEADLINE, start).await.unwrap_or_else(|_| late())?;
        let reason = self.follow(job.as_mut(), tail).await;
        if timeout(FINISH_DEADLINE, job.finish()).await.is_err() {
            tracing::warn!(job = self.job.name, "a release phase cannot be cleared up in time");
        }
        reason
    }

    async fn follow(&self, job: &mut dyn Job, tail: &mut VecDeque<u8>) -> Result<Option<String>, RuntimeError> {
        let limit = self.parts.settings.release_phase_timeout;
        let (began, deadline) = (Instant::now(), Instant::now() + limit);
        let mut output = job.output();
        loop {
            tokio::select! {
                chunk = output.next() => match chunk {
                    Some(chunk) => {
                        let bytes = chunk?.bytes;
                        tail.extend(&bytes);
                        tail.drain(..tail.len().saturating_sub(TAIL));
                        self.audience.tell(Note::Raw(bytes));
                    }
                    None => break,
                },
                () = sleep_until((Instant::now() + SILENCE).min(deadline)) => {
                    if Instant::now() >= deadline {
                        return Ok(Some(format!("it took longer than {} s", limit.as_secs())));
                    }
                    self.audience.detail(format!("still running ({} s)", began.elapsed().as_secs()));
                }
            }
        }
        let Ok(exit) = timeout_at(deadline, job.wait()).await else {
            return Ok(Some(format!("it took longer than {} s", limit.as_secs())));
        };
        Ok(match exit? {
            exit if exit.code == 0 => None,
            exit if exit.out_of_memory => Some("it ran out of memory".to_owned()),
            exit => Some(format!("it exited with status {}", exit.code)),
        })
    }
}
