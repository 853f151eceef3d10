//! Builds: `builds …`.

use futures::StreamExt;
use serde_json::{Value, json};

use super::{
    Answer, BuildItem, BuildLine, Caller, CommandError, CommandIo, Commands, SourceOptions, answer, io::interrupted,
    nouns, now,
};
use crate::{
    domain::{AppRef, Build, BuildNumber, BuildState, EnvRef, Stage, Verb},
    logs::render_line,
    store::Stored,
};

/// Lines that are written in one go, as far as they are there.
const AT_ONCE: usize = 500;

/// The state in a word.
pub(super) fn state(build: &Build) -> &'static str {
    match &build.state {
        BuildState::Queued => "queued",
        BuildState::Running { stage: Stage::Build } => "building",
        BuildState::Running { stage: Stage::Deploy } => "deploying",
        BuildState::Succeeded => "succeeded",
        BuildState::Failed { .. } => "failed",
        BuildState::Cancelled { .. } => "cancelled",
    }
}

/// Seconds from start to end, or until now.
fn seconds(build: &Build) -> f64 {
    let end = build.finished_at.unwrap_or_else(now);
    build.started_at.map_or(0.0, |start| end.duration_since(start).as_secs_f64())
}

fn reason(build: &Build) -> Option<&str> {
    match &build.state {
        BuildState::Failed { reason } | BuildState::Cancelled { reason } => Some(reason),
        _ => None,
    }
}

fn value(build: &Build) -> Value {
    json!({
        "env": build.env, "number": build.number, "commit": build.commit, "state": state(build), "reason": reason(build),
        "pushed_by": build.pushed_by, "queued_at": build.queued_at, "started_at": build.started_at, "finished_at": build.finished_at,
        "release": build.release, "image": build.image.as_ref().map(ToString::to_string),
        "timings_ms": build.timings.iter().map(|(stage, ms)| json!([stage, ms])).collect::<Vec<_>>(),
    })
}

impl Commands {
    /// `builds …`. `None`: the answer was streamed.
    pub(super) async fn builds(
        &self,
        caller: &Caller,
        command: nouns::Builds,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Option<Answer>, CommandError> {
        match command {
            nouns::Builds::List { env } => self.list_builds(caller, &env).await.map(Some),
            nouns::Builds::Info { env, number } => {
                self.env_for(caller, Verb::Read, &env).await?;
                let build = self.build(&env, number).await?;
                Ok(Some(build_info(&build)))
            }
            nouns::Builds::Logs { env, number, follow } => {
                self.build_logs(caller, &env, number, follow, json, io).await.map(|()| None)
            }
            nouns::Builds::Create { env, message, no_cache, detach } => {
                let options = SourceOptions { message, no_cache };
                self.create_build(caller, &env, options, detach, json, io).await.map(Some)
            }
            nouns::Builds::Cancel { env, number } => self.cancel_build(caller, &env, number).await.map(Some),
            nouns::Builds::PurgeCache { app } => self.purge_cache(caller, &app).await.map(Some),
        }
    }

    /// A build by its number, or the newest.
    pub(super) async fn build(&self, env: &EnvRef, number: Option<BuildNumber>) -> Result<Stored<Build>, CommandError> {
        let found = match number {
            Some(number) => self.store.get::<Build>(&(env.clone(), number)).await?,
            None => self.store.list::<Build>(&format!("{env}/")).await?.pop(),
        };
        let what = number
            .map_or_else(|| "no build yet".to_owned(), |number| format!("no build {number}; see `builds list {env}`"));
        found.ok_or_else(|| CommandError::NotFound(format!("{env} has {what}")))
    }

    async fn list_builds(&self, caller: &Caller, env: &EnvRef) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let builds = self.store.list::<Build>(&format!("{env}/")).await?;
        let row = |build: &Stored<Build>| {
            let release = build.release.map_or_else(|| "-".to_owned(), |version| version.to_string());
            let commit = build.commit.get(..7).unwrap_or_default().to_owned();
            let age = answer::age(now().duration_since(build.queued_at).as_secs());
            let why = reason(build).unwrap_or_default().lines().next().unwrap_or_default().to_owned();
            let time = format!("{:.1}s", seconds(build));
            vec![
                build.number.to_string(),
                state(build).into(),
                commit,
                release,
                build.pushed_by.to_string(),
                time,
                age,
                why,
            ]
        };
        let rows = builds.iter().rev().map(row).collect();
        let values = builds.iter().rev().map(|build| value(build)).collect();
        Ok(Answer::table(
            &["build", "state", "commit", "release", "by", "took", "age", "why"],
            rows,
            values,
            "No builds yet.",
        ))
    }

    async fn cancel_build(
        &self,
        caller: &Caller,
        env: &EnvRef,
        number: Option<BuildNumber>,
    ) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::Push, env).await?;
        let number = match number {
            Some(number) => self.build(env, Some(number)).await?.number,
            None => {
                let active = self.builds.active(env).await?;
                active.ok_or_else(|| CommandError::NotFound(format!("no build is queued or running in {env}")))?.number
            }
        };
        if !self.builds.cancel(env, number, &format!("cancelled by {}", caller.user)).await? {
            let build = self.build(env, Some(number)).await?;
            let text = match build.state {
                BuildState::Running { stage: Stage::Deploy } => {
                    format!("build {number} of {env} is built and being deployed; to stop that: rollback {env}")
                }
                _ => format!("build {number} of {env} has ended already: {}", state(&build)),
            };
            return Err(CommandError::Conflict(text));
        }
        Ok(Answer::new(format!("Build {number} of {env} is cancelled"), json!({"env": env, "build": number})))
    }

    async fn purge_cache(&self, caller: &Caller, app: &AppRef) -> Result<Answer, CommandError> {
        self.app_for(caller, Verb::Push, app).await?;
        let purged = self.builds.purge_cache(app).await;
        purged.map_err(|error| CommandError::Failed(format!("the cache of {app} could not be purged: {error:#}")))?;
        Ok(Answer::new(format!("The build cache of {app} is empty"), json!({"app": app})))
    }

    /// Prints the output of a build so far, or until it has ended.
    pub(super) async fn build_logs(
        &self,
        caller: &Caller,
        env: &EnvRef,
        number: Option<BuildNumber>,
        follow: bool,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<(), CommandError> {
        let form = if json { Form::Json } else { Form::Text };
        if follow {
            return self.relay_build(caller, env, number, form, io).await;
        }
        let (_, lines) = self.build_log(caller, env, number).await?;
        let text: String = lines.iter().map(|line| form.line(line)).collect();
        io.print(&text).await
    }

    /// Relays the output of a build from its beginning until it has ended, or the caller interrupts or may not see it any more, which
    /// does not stop the build.
    pub(super) async fn relay_build(
        &self,
        caller: &Caller,
        env: &EnvRef,
        number: Option<BuildNumber>,
        form: Form,
        io: &mut CommandIo,
    ) -> Result<(), CommandError> {
        let output = self.build_log_stream(caller, env, number, 0).await?;
        let mut output = std::pin::pin!(output.ready_chunks(AT_ONCE));
        loop {
            let chunk = tokio::select! {
                chunk = output.next() => chunk,
                () = interrupted(&mut io.controls) => {
                    return Err(CommandError::Failed(format!("the build goes on; see `builds logs {env} -f`")));
                }
            };
            let Some(chunk) = chunk else { return Ok(()) };
            let (mut text, mut end) = (String::new(), None);
            for item in chunk {
                match item {
                    Ok(BuildItem::Line(line)) => text.push_str(&form.line(&line)),
                    Ok(BuildItem::Ended(_)) => end = Some(Ok(())),
                    Err(error) => end = Some(Err(error)),
                }
            }
            form.write(io, &text).await?;
            if let Some(end) = end {
                return end;
            }
        }
    }
}

/// How the output of a build is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    /// One JSON object a line.
    Json,
    /// Text on standard error, while standard output is for a result.
    Aside,
}

impl Form {
    fn line(self, line: &BuildLine) -> String {
        let line = if self == Self::Json { line.json() } else { line.rendered() };
        format!("{line}\n")
    }

    async fn write(self, io: &mut CommandIo, text: &str) -> Result<(), CommandError> {
        if self == Self::Aside {
            io.tell(text).await;
            return Ok(());
        }
        io.print(text).await
    }
}

fn build_info(build: &Build) -> Answer {
    let mut human = format!("build {} of {}: {}\n", build.number, build.env, state(build));
    if let Some(reason) = reason(build) {
        human.push_str(&format!(
            "why:     {}\n",
            reason.lines().map(render_line).collect::<Vec<_>>().join("\n         ")
        ));
    }
    human.push_str(&format!("commit:  {}\nby:      {} at {}\n", build.commit, build.pushed_by, build.queued_at));
    if let Some(release) = build.release {
        human.push_str(&format!("release: {release}\n"));
    }
    human.push_str(&format!("took:    {:.2}s\n", seconds(build)));
    for (stage, milliseconds) in &build.timings {
        human.push_str(&format!("  {stage:<16} {milliseconds:>7} ms\n"));
    }
    Answer::new(human, value(build))
}
