//! Jobs that run by the clock: `cron …`.

use serde_json::{Value, json};

use super::{
    Answer, Caller, CommandError, CommandIo, Commands, access::did_you_mean, answer, io::interrupted, nouns, now,
};
use crate::{
    cron::{Begun, CronRefusal},
    domain::{CronJob, CronRun, CronState, EnvRef, JobName, Overlap, Release, Timestamp, Verb},
    logs::{OutputLines, render_line},
    places::NoPlace,
    plan::schedule::Schedule,
};

fn overlap(overlap: Overlap) -> &'static str {
    match overlap {
        Overlap::Skip => "skip",
        Overlap::Replace => "replace",
        Overlap::Allow => "allow",
    }
}

/// `2026-03-01 10:05 UTC`
fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

fn outcome(run: &CronRun) -> String {
    let repeats = if run.repeats > 0 { format!(" (and {} more in a row)", run.repeats) } else { String::new() };
    match run.state.reason() {
        Some(reason) => format!("{}: {reason}{repeats}", run.state.word()),
        None => run.state.word().to_owned(),
    }
}

fn run_row(run: &CronRun) -> Vec<String> {
    let due = match (&run.requested_by, run.scheduled_at) {
        (Some(user), _) => format!("by {user}"),
        (None, at) => at.map_or_else(|| "-".to_owned(), moment),
    };
    let started = run.started_at.map_or_else(|| "-".to_owned(), |at| answer::age(now().duration_since(at).as_secs()));
    let took = run.started_at.zip(run.finished_at).map(|(from, to)| answer::age(to.duration_since(from).as_secs()));
    let took = took.unwrap_or_else(|| "-".to_owned());
    vec![run.job.to_string(), run.number.to_string(), due, started, took, run.release.to_string(), outcome(run)]
}

fn no_release(env: &EnvRef) -> CommandError {
    CommandError::NotFound(format!("{env} has no release, so no job of it runs; push first"))
}

fn no_job<'j>(env: &EnvRef, job: &JobName, known: impl Iterator<Item = &'j JobName>) -> CommandError {
    let hint = did_you_mean(job.as_str(), known.map(ToString::to_string));
    CommandError::NotFound(format!("the current release of {env} has no cron job {job}{hint}; see `cron list {env}`"))
}

fn refusal(env: &EnvRef, job: &JobName, refusal: CronRefusal) -> CommandError {
    match refusal {
        CronRefusal::NoJob { known } if known.is_empty() => {
            CommandError::NotFound(format!("the current release of {env} has no cron jobs; add `cron:` to berth.yaml"))
        }
        CronRefusal::NoJob { known } => no_job(env, job, known.iter()),
        CronRefusal::Busy { number } => CommandError::Conflict(format!(
            "run {number} of {job} is under way, and its overlap is skip; see `logs {env} -f --process cron.{job}`"
        )),
        CronRefusal::NoPlace(NoPlace::All) => {
            CommandError::TryLater("as many cron jobs run already as may on this server; try again later".into())
        }
        CronRefusal::NoPlace(NoPlace::Share(limit)) => CommandError::TryLater(format!(
            "{limit} cron jobs of {} run already, as many as one tenant may have; wait for one of them",
            env.tenant
        )),
        CronRefusal::Stopping => CommandError::TryLater("the server is stopping; try again in a minute".into()),
        CronRefusal::Store(error) => error.into(),
    }
}

impl Commands {
    /// `cron …`; `None`: everything has been said.
    pub(super) async fn cron_jobs(
        &self,
        caller: &Caller,
        command: nouns::Cron,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Option<Answer>, CommandError> {
        match command {
            nouns::Cron::List { env } => self.list_cron(caller, &env).await.map(Some),
            nouns::Cron::History { env, job, lines } => {
                self.cron_history(caller, &env, job.as_ref(), lines).await.map(Some)
            }
            nouns::Cron::Run { env, job, detach } => self.run_cron(caller, &env, &job, detach, json, io).await,
        }
    }

    async fn list_cron(&self, caller: &Caller, env: &EnvRef) -> Result<Answer, CommandError> {
        let stored = self.env_for(caller, Verb::Read, env).await?;
        let release: Option<Release> = match stored.current {
            Some(version) => Some(self.release(env, version).await?.record),
            None => None,
        };
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for (name, job) in release.iter().flat_map(|release| &release.cron) {
            let last = self.store.list::<CronRun>(&format!("{env}/{name}/")).await?.pop().map(|run| run.record);
            let (next, problem) = match Schedule::parse(&job.schedule, &job.timezone) {
                Ok(schedule) => (schedule.next_after(now()), None),
                Err(error) => (None, Some(error.to_string())),
            };
            rows.push(job_row(name, job, next, problem.as_deref(), last.as_ref()));
            values.push(json!({
                "job": name, "schedule": job.schedule, "timezone": job.timezone, "command": job.command,
                "overlap": job.overlap, "timeout_seconds": job.timeout.as_secs(), "next": next, "problem": problem,
                "last": last, "release": release.as_ref().map(|release| release.version),
            }));
        }
        let empty = "No cron jobs in the current release. Declare them in berth.yaml: cron: {nightly: {schedule: \"@daily\", command: …}}";
        Ok(Answer::table(&["job", "schedule", "next", "overlap", "last"], rows, values, empty))
    }

    async fn cron_history(
        &self,
        caller: &Caller,
        env: &EnvRef,
        job: Option<&JobName>,
        lines: u32,
    ) -> Result<Answer, CommandError> {
        let stored = self.env_for(caller, Verb::Read, env).await?;
        let prefix = job.map_or_else(|| format!("{env}/"), |job| format!("{env}/{job}/"));
        let mut runs: Vec<CronRun> =
            self.store.list::<CronRun>(&prefix).await?.into_iter().map(|run| run.record).collect();
        if let (Some(job), true) = (job, runs.is_empty()) {
            let version = stored.current.ok_or_else(|| no_release(env))?;
            let release = self.release(env, version).await?;
            if !release.cron.contains_key(job) {
                return Err(no_job(env, job, release.cron.keys()));
            }
        }
        let moment = |run: &CronRun| run.started_at.or(run.scheduled_at).or(run.finished_at);
        runs.sort_by_key(|run| std::cmp::Reverse((moment(run), run.number)));
        runs.truncate(lines as usize);
        let rows = runs.iter().map(run_row).collect();
        let values: Vec<Value> = runs.iter().map(|run| json!(run)).collect();
        Ok(Answer::table(&["job", "run", "due", "started", "took", "release", "result"], rows, values, "No runs yet."))
    }

    async fn run_cron(
        &self,
        caller: &Caller,
        env: &EnvRef,
        job: &JobName,
        detach: bool,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Option<Answer>, CommandError> {
        let stored = self.env_for(caller, Verb::Run, env).await?;
        stored.current.ok_or_else(|| no_release(env))?;
        let begun = self.cron.run_now(env, job, &caller.user).await.map_err(|error| refusal(env, job, error))?;
        let (number, release) = (begun.run.number, begun.run.release);
        if detach {
            let text = format!("Run {number} of {job} began in {release}; see `logs {env} --process cron.{job}`");
            return Ok(Some(Answer::new(text, json!(begun.run))));
        }
        io.tell(&format!("-----> Run {number} of {job} in {release}\n")).await;
        let ended = self.watch_run(caller, env, begun, json, io).await?;
        match &ended.state {
            CronState::Failed { reason, .. } => {
                let text = format!("run {number} of {job} failed: {reason}; see `logs {env} --process cron.{job}`");
                Err(CommandError::Failed(text))
            }
            CronState::Stopped { reason } => {
                Err(CommandError::Failed(format!("run {number} of {job} was stopped: {reason}")))
            }
            _ => Ok(Some(Answer::new(format!("Run {number} of {job} {}", ended.state.word()), json!(ended)))),
        }
    }

    /// Shows a run's output until it is over. A caller who interrupts, goes away or may not see it any more does not end it.
    async fn watch_run(
        &self,
        caller: &Caller,
        env: &EnvRef,
        begun: Begun,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<CronRun, CommandError> {
        let Begun { run, mut output, mut ended } = begun;
        let seen = format!("see `logs {env} -f --process cron.{}`", run.job);
        let mut lines = OutputLines::default();
        let mut open = true;
        let mut access_lost = std::pin::pin!(self.access_lost(caller, Verb::Run, &env.tenant));
        loop {
            let mut text = String::new();
            tokio::select! {
                biased;
                chunk = output.recv(), if open => match chunk {
                    Some(chunk) => lines.take(&chunk, |line| text.extend([&render_line(line), "\n"])),
                    None => {
                        open = false;
                        text.extend(lines.rest().map(|line| render_line(&line) + "\n"));
                    }
                },
                () = interrupted(&mut io.controls) => {
                    return Err(CommandError::Failed(format!("not watching any longer; it goes on, {seen}")));
                }
                denied = &mut access_lost => return Err(denied),
                over = &mut ended, if !open => {
                    return over.map_err(|_| CommandError::TryLater(format!("the server is stopping; {seen}")));
                }
            }
            match (text.is_empty(), json) {
                (true, _) => {}
                // Programs get one value on standard output.
                (false, true) => io.tell(&text).await,
                (false, false) => io.print(&text).await?,
            }
        }
    }
}

fn job_row(
    name: &JobName,
    job: &CronJob,
    next: Option<Timestamp>,
    problem: Option<&str>,
    last: Option<&CronRun>,
) -> Vec<String> {
    let zone = if job.timezone == Schedule::UTC { String::new() } else { format!(" {}", job.timezone) };
    let next = problem.map_or_else(|| next.map_or_else(|| "never".to_owned(), moment), |why| format!("never: {why}"));
    let last = last.map_or_else(|| "-".to_owned(), outcome);
    vec![name.to_string(), format!("{}{zone}", job.schedule), next, overlap(job.overlap).to_owned(), last]
}
