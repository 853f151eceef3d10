//! One run of a job, from its start to its end.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::CronParts;
use crate::{
    domain::{CronJob, CronRun, CronState, Limits, Release},
    jobs::{Attended, Audience, Begin, Ending, ReleaseJob, attend_within},
    logs::{JobOutput, LogRecord},
    places::Place,
    runtime::{JobKind, Output, RuntimeError},
};

/// What a run needs.
pub(super) struct Running {
    pub(super) parts: Arc<CronParts>,
    pub(super) release: Release,
    pub(super) job: CronJob,
    pub(super) run: CronRun,
    /// Why it is to end, once it is.
    pub(super) stop: watch::Receiver<Option<String>>,
    /// Who wants to see its output.
    pub(super) output: Option<mpsc::Sender<Bytes>>,
    /// Another run of the job is under way: then this one does not wait for the engine beside it.
    pub(super) beside: bool,
    /// Given back when the run is over.
    pub(super) place: Place,
}

impl Running {
    /// Runs it and returns the record with its end.
    pub(super) async fn run(mut self) -> CronRun {
        let process = process(&self.run);
        let say = |text: String| LogRecord::berth(self.parts.clock.now(), &process, text);
        let (number, version) = (self.run.number, self.run.release);
        self.parts.logs.append(&self.run.env, say(format!("run {number} of {version} started")));
        let spec = ReleaseJob {
            release: &self.release,
            kind: JobKind::Cron,
            name: format!("cron-{}-{number}", self.run.job),
            process: &process,
            words: std::slice::from_ref(&self.job.command),
            limits: Limits { cpu_millis: self.job.cpu_millis, memory: self.job.memory, pids: self.parts.settings.pids },
            stop_grace: self.parts.settings.stop_grace,
        };
        let spec = spec.spec();
        let mut audience = Listeners {
            parts: &self.parts,
            run: &self.run,
            log: JobOutput::new(self.parts.logs.clone(), self.run.env.clone(), process.as_str()),
            viewer: self.output.take(),
        };
        let patience = self.patience();
        let stop = &mut self.stop;
        let stopped = async move {
            let reason = stop.wait_for(Option::is_some).await.map(|reason| reason.clone().unwrap_or_default());
            match reason {
                Ok(reason) => reason,
                // The service is gone, and this task with it.
                Err(_) => std::future::pending().await,
            }
        };
        let runtime = &*self.parts.runtime;
        let begin = Begin { within: patience, unwanted: CancellationToken::new() };
        let attended = attend_within(runtime, &spec, begin, self.job.timeout, stopped, &mut audience).await;
        audience.log.finish(self.parts.clock.now()).await;
        let (state, tail) = match attended {
            Ok(Attended { ending: Ending::Stopped(reason) | Ending::NotBegun(reason), tail, .. }) => {
                (CronState::Stopped { reason }, tail)
            }
            Ok(attended) => {
                let (failure, exit) = (attended.ending.failure(), attended.ending.exit());
                (failure.map_or(CronState::Succeeded, |reason| CronState::Failed { reason, exit }), attended.tail)
            }
            Err(error) => (CronState::Failed { reason: error.to_string(), exit: None }, Vec::new()),
        };
        let why = state.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
        self.parts.logs.append(&self.run.env, say(format!("run {number} {}{why}", state.word())));
        self.run.state = state;
        (self.run.finished_at, self.run.tail) = (Some(self.parts.clock.now()), tail);
        drop(self.place);
        self.run
    }

    /// How long it may wait for the engine: one that came due until the latest moment at which it may be started, one that somebody waits
    /// for not at all, nor one beside another: an outage is not to end in all of them at once.
    fn patience(&self) -> Duration {
        let (deadline, now) = (self.parts.settings.starting_deadline, self.parts.clock.now());
        self.run.scheduled_at.filter(|_| !self.beside).map_or(Duration::ZERO, |at| {
            let late = Duration::try_from(now.duration_since(at)).unwrap_or_default();
            deadline.saturating_sub(late)
        })
    }
}

/// What the job is called in logs and in `BERTH_PROCESS`.
fn process(run: &CronRun) -> String {
    format!("cron.{}", run.job)
}

struct Listeners<'a> {
    parts: &'a CronParts,
    run: &'a CronRun,
    log: JobOutput,
    viewer: Option<mpsc::Sender<Bytes>>,
}

#[async_trait]
impl Audience for Listeners<'_> {
    async fn output(&mut self, output: Output) {
        self.log.take(&output, self.parts.clock.now()).await;
        if let Some(viewer) = &self.viewer {
            // A viewer who is slow or gone does not hold the job up.
            let _ = viewer.try_send(output.bytes);
        }
    }

    fn silent(&mut self, _: Duration) {}

    fn waiting(&mut self, why: &RuntimeError) {
        let text = format!("run {} is {}", self.run.number, why.waiting());
        self.parts.logs.append(&self.run.env, LogRecord::berth(self.parts.clock.now(), &process(self.run), text));
    }
}
