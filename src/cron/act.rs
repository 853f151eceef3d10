//! What is done about single jobs: what is due started or left out, what somebody asks for started.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Begun, CronRefusal, RunAsk,
    run::Running,
    service::{Active, CronService, Key},
};
use crate::{
    domain::{
        CronMark, CronRun, CronState, EnvRef, Environment, EventKind, JobName, Overlap, Release, ReleaseVersion,
        Timestamp,
    },
    places::Place,
    plan::schedule::{Action, Standing, decide},
    store::{NewEvent, StoreError, Stored},
};

/// Output that waits for a viewer, in chunks.
const VIEW: usize = 256;
/// Requests that wait until the run that they replace has ended.
const WAITING: usize = 64;

impl CronService {
    /// Asks what to do about a job, and does it.
    pub(super) async fn look_at(&mut self, (env, name): &Key, now: Timestamp) -> Result<(), StoreError> {
        let running: Vec<u64> = self.runs_of(env, name);
        let deadline = self.parts.settings.starting_deadline;
        let Some(job) = self.known.get_mut(env).and_then(|known| known.jobs.get_mut(name)) else { return Ok(()) };
        let Ok(schedule) = &job.schedule else {
            job.next = Some(Timestamp::MAX);
            return Ok(());
        };
        let (overlap, considered) = (job.job.overlap, job.mark.considered);
        let decision = decide(&Standing { schedule, overlap, considered, running: !running.is_empty() }, now, deadline);
        (job.next, job.blocked) = (decision.next.or(Some(Timestamp::MAX)), false);
        let mut mark = CronMark { considered: decision.considered, ..job.mark.clone() };
        let blocked = match decision.action {
            Action::Wait => false,
            Action::Rewind => {
                tracing::warn!(%env, job = %name, "the clock was set back; the schedule goes on from now");
                let Some(stored) = self.parts.store.get::<Environment>(env).await? else { return Ok(()) };
                Self::book(&self.parts).mark(&stored, &mark).await?;
                self.set_mark(mark);
                false
            }
            Action::Start { at, replace: true } => {
                self.stop_runs(|run| run.env == *env && run.job == *name, &format!("replaced by the run of {at}"));
                true
            }
            Action::Start { at, replace: false } => match self.places.try_take(&env.tenant) {
                Err(_) => true,
                Ok(place) => {
                    mark.last_number += 1;
                    let run = self.new_run(&mark, Some(at), CronState::Running);
                    self.start(mark, run, place, None).await?;
                    false
                }
            },
            Action::Skip { at } => {
                let number = running.last().copied().unwrap_or_default();
                let reason = format!("run {number} was still under way");
                self.leave_out(mark, at, CronState::Skipped { reason }).await?;
                false
            }
            Action::Miss { first, last } => {
                let reason = match first == last {
                    true => format!("it was due at {last} and could not be started within {} s", deadline.as_secs()),
                    false => format!("it was due from {first} to {last}, and could not be started then"),
                };
                self.leave_out(mark, last, CronState::Missed { reason }).await?;
                false
            }
        };
        if let Some(job) = self.known.get_mut(env).and_then(|known| known.jobs.get_mut(name)) {
            job.blocked = blocked;
        }
        Ok(())
    }

    /// The numbers of the runs of a job that are under way.
    fn runs_of(&self, env: &EnvRef, name: &JobName) -> Vec<u64> {
        self.active.keys().filter(|(of, job, _)| of == env && job == name).map(|(_, _, number)| *number).collect()
    }

    fn set_mark(&mut self, mark: CronMark) {
        if let Some(job) = self.known.get_mut(&mark.env).and_then(|known| known.jobs.get_mut(&mark.job)) {
            job.mark = mark;
        }
    }

    fn new_run(&self, mark: &CronMark, scheduled_at: Option<Timestamp>, state: CronState) -> CronRun {
        let now = self.parts.clock.now();
        let running = state.is_running();
        CronRun {
            env: mark.env.clone(),
            job: mark.job.clone(),
            number: mark.last_number,
            scheduled_at,
            requested_by: None,
            // Of an environment that is known.
            release: self.known.get(&mark.env).map_or(ReleaseVersion(0), |known| known.release),
            started_at: running.then_some(now),
            finished_at: (!running).then_some(now),
            state,
            repeats: 0,
            tail: Vec::new(),
        }
    }

    /// The environment, if it is still as the jobs were read from it; else it is read anew, and what is due is decided again.
    async fn unchanged(&mut self, env: &EnvRef) -> Result<Stored<Environment>, StoreError> {
        let stored = self.parts.store.get::<Environment>(env).await?;
        let same = stored.filter(|stored| {
            let known = self.known.get(env);
            known.is_some_and(|known| known.created_at == stored.created_at && stored.current == Some(known.release))
        });
        same.ok_or_else(|| StoreError::Conflict(env.to_string()))
    }

    /// Writes a run down and starts it.
    async fn start(
        &mut self,
        mark: CronMark,
        run: CronRun,
        place: Place,
        viewer: Option<(mpsc::Sender<Bytes>, oneshot::Sender<CronRun>)>,
    ) -> Result<(), StoreError> {
        let parts = self.parts.clone();
        let stored = self.unchanged(&run.env).await?;
        let release = parts.store.need::<Release>(&(run.env.clone(), run.release)).await?.record;
        let Some(job) = release.cron.get(&run.job).cloned() else {
            return Err(StoreError::Missing(format!("the cron job {}", run.job)));
        };
        Self::book(&parts).enter(&stored, &mark, &run).await?;
        self.set_mark(mark);
        if let Some(by) = &run.requested_by {
            let message = format!("run {} of {} started in {} by hand", run.number, run.job, run.release);
            let event = NewEvent::new(EventKind::CronStarted, parts.clock.now(), message).env(&run.env).by(by);
            let event = event.data("job", run.job.as_str()).data("run", run.number).data("release", run.release.0);
            self.event(event).await;
        }
        let (stop, stopped) = watch::channel(None);
        let (output, ended) = viewer.unzip();
        let key = (run.env.clone(), run.job.clone(), run.number);
        let beside = self.active.keys().any(|(env, job, _)| (env, job) == (&run.env, &run.job));
        let running = Running { parts, release, job, run: run.clone(), stop: stopped, output, beside, place };
        let id = self.tasks.spawn(running.run()).id();
        self.ids.insert(id, key.clone());
        self.active.insert(key, Active { run, stop, ended });
        Ok(())
    }

    /// Writes down that a run was left out; several in a row for the same reason are one record.
    async fn leave_out(&mut self, mut mark: CronMark, at: Timestamp, state: CronState) -> Result<(), StoreError> {
        let stored = self.unchanged(&mark.env).await?;
        let last = Self::book(&self.parts).run(&mark.env, &mark.job, mark.last_number).await?;
        let repeated = last.filter(|last| last.state == state);
        let run = match &repeated {
            Some(last) => CronRun {
                repeats: last.repeats + 1,
                scheduled_at: Some(at),
                finished_at: Some(self.parts.clock.now()),
                ..last.clone()
            },
            None => {
                mark.last_number += 1;
                self.new_run(&mark, Some(at), state)
            }
        };
        Self::book(&self.parts).enter(&stored, &mark, &run).await?;
        self.set_mark(mark);
        if repeated.is_none() {
            let (job, word) = (&run.job, run.state.word());
            let message = format!("{job} {word}: {}", run.state.reason().unwrap_or_default());
            let event = NewEvent::new(EventKind::CronSkipped, self.parts.clock.now(), message).env(&run.env);
            self.event(event.data("job", run.job.as_str()).data("outcome", word)).await;
        }
        Ok(())
    }

    /// Starts a job because somebody asked for it.
    pub(super) async fn run_now(&mut self, ask: RunAsk) {
        let known = self.known.get(&ask.env);
        let Some(job) = known.and_then(|known| known.jobs.get(&ask.job)) else {
            let known = known.map(|known| known.jobs.keys().cloned().collect()).unwrap_or_default();
            return drop(ask.reply.send(Err(CronRefusal::NoJob { known })));
        };
        let (overlap, mut mark) = (job.job.overlap, job.mark.clone());
        let running = self.runs_of(&ask.env, &ask.job);
        match (running.last(), overlap) {
            (Some(number), Overlap::Skip) => {
                return drop(ask.reply.send(Err(CronRefusal::Busy { number: *number })));
            }
            (Some(number), Overlap::Replace) => {
                if self.waiting.len() >= WAITING {
                    return drop(ask.reply.send(Err(CronRefusal::Busy { number: *number })));
                }
                let why = format!("replaced by a run that {} asked for", ask.by);
                self.stop_runs(|run| run.env == ask.env && run.job == ask.job, &why);
                return self.waiting.push(ask);
            }
            (None, _) | (Some(_), Overlap::Allow) => {}
        }
        let place = match self.places.try_take(&ask.env.tenant) {
            Ok(place) => place,
            Err(reason) => return drop(ask.reply.send(Err(CronRefusal::NoPlace(reason)))),
        };
        mark.last_number += 1;
        let run = CronRun { requested_by: Some(ask.by.clone()), ..self.new_run(&mark, None, CronState::Running) };
        let ((sender, output), (end, ended)) = (mpsc::channel(VIEW), oneshot::channel());
        let begun = self.start(mark, run.clone(), place, Some((sender, end))).await;
        // Whoever asked may have gone; the run goes on.
        let _ = ask.reply.send(begun.map(|()| Begun { run, output, ended }).map_err(CronRefusal::from));
    }
}
