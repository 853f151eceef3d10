//! `run ENV -- CMD`: a one-off command in the current release, with a terminal when the caller has one.

use std::time::Duration;

use futures::StreamExt;
use tokio::{io::AsyncWriteExt, sync::mpsc};

use super::{Caller, CommandError, CommandIo, Commands, Control, now};
use crate::{
    domain::{EnvRef, EventKind, TenantName, Verb},
    jobs::{ReleaseJob, Started, widest},
    places::NoPlace,
    runtime::{Job, JobControl, JobKind, JobSpec, RuntimeError, Source},
    store::NewEvent,
};

/// One-off commands at the same time, over the platform and of one tenant.
pub(super) const MAX_RUNNING: usize = 50;
pub(super) const MAX_OF_TENANT: usize = 10;
/// Time between SIGTERM and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// A command that runs longer is ended.
const TIME_LIMIT: Duration = Duration::from_secs(24 * 3600);

fn engine(error: RuntimeError) -> CommandError {
    match error {
        error if error.is_passing() => CommandError::TryLater(error.to_string()),
        error => CommandError::Failed(format!("the command could not be run: {error}")),
    }
}

fn no_place(reason: NoPlace, tenant: &TenantName) -> CommandError {
    CommandError::TryLater(match reason {
        NoPlace::All => format!("{MAX_RUNNING} one-off commands are running already; try again later"),
        NoPlace::Share(limit) => format!(
            "{limit} one-off commands of {tenant} are running already, as many as one tenant may have; end one of them first"
        ),
    })
}

impl Commands {
    /// Runs the command and returns its exit status; what keeps it from running is said on standard error.
    pub(super) async fn one_off(
        &self,
        caller: &Caller,
        env: &EnvRef,
        words: &[String],
        json: bool,
        mut io: CommandIo,
    ) -> u8 {
        match self.run_command(caller, env, words, &mut io).await {
            Ok(status) => status,
            Err(error) => super::finish(Err(error), &mut io, json).await,
        }
    }

    /// As [`Self::one_off`], for programs: what keeps it from running is the error.
    pub(crate) async fn run_for(
        &self,
        caller: &Caller,
        env: &EnvRef,
        words: &[String],
        mut io: CommandIo,
    ) -> Result<u8, CommandError> {
        tracing::info!(user = %caller.user, door = ?caller.door, command = "run", "command");
        self.run_command(caller, env, words, &mut io).await
    }

    async fn run_command(
        &self,
        caller: &Caller,
        env: &EnvRef,
        words: &[String],
        io: &mut CommandIo,
    ) -> Result<u8, CommandError> {
        let stored = self.env_for(caller, Verb::Run, env).await?;
        let version = stored
            .current
            .ok_or_else(|| CommandError::NotFound(format!("{env} has no release to run a command in; push first")))?;
        let release = self.release(env, version).await?;
        let _place = self.run_places.try_take(&env.tenant).map_err(|reason| no_place(reason, &env.tenant))?;

        let name = format!("run-{:08x}", rand::random::<u32>());
        let mut spec = ReleaseJob {
            release: &release,
            kind: JobKind::OneOff,
            name: name.clone(),
            process: "run",
            // One word is a shell command line, as `heroku run "a | b"` has it; several are run as they are.
            words,
            limits: widest(&release, self.settings.run_pids),
            stop_grace: STOP_GRACE,
        }
        .spec();
        spec.stdin = true;
        spec.tty = io.pty.as_ref().map(|pty| (pty.columns, pty.rows));
        if let Some(pty) = &io.pty {
            spec.environment.insert("TERM".into(), pty.term.clone());
        }
        // The words are not recorded: they may hold secrets.
        let event = NewEvent::new(EventKind::RunStarted, now(), format!("{name} started in {version} of {env}"));
        let event = event.env(env).by(&caller.user).data("run", name.as_str()).data("release", version.0);
        self.store.record(event).await?;
        let status = self.attend_command(caller, &spec, io).await;
        let end = match &status {
            Ok(status) => format!("{name} exited with status {status}"),
            Err(error) => format!("{name} ended: {error}"),
        };
        let event = NewEvent::new(EventKind::RunFinished, now(), end).env(env).by(&caller.user);
        let event = event.data("run", name.as_str()).data("exit_code", status.as_ref().ok().copied());
        if let Err(error) = self.store.record(event).await {
            tracing::error!(%env, %error, "the end of a one-off command is not recorded");
        }
        status
    }

    /// Runs the job until it ends, its time is up, or its caller is gone or may not run it any more.
    async fn attend_command(&self, caller: &Caller, spec: &JobSpec, io: &mut CommandIo) -> Result<u8, CommandError> {
        let denied = || self.access_lost(caller, Verb::Run, &spec.env.tenant);
        let mut started = tokio::select! {
            started = Started::new(&*self.runtime, spec) => started.map_err(engine)?,
            denied = denied() => return Err(denied),
        };
        let attended = async {
            tokio::select! {
                ended = attend(started.job(), io) => ended,
                denied = denied() => Err(denied),
            }
        };
        let ended = tokio::time::timeout(TIME_LIMIT, attended).await;
        let finished = started.finish().await;
        let status =
            ended.unwrap_or_else(|_| Err(CommandError::Failed("the command ran for 24 hours and was ended".into())))?;
        finished.map_err(engine)?;
        Ok(status)
    }
}

/// Carries the job's streams and signals until it ends.
async fn attend(job: &mut dyn Job, io: &mut CommandIo) -> Result<u8, CommandError> {
    let terminal = io.pty.is_some();
    let CommandIo { stdin, stdout, stderr, controls, .. } = io;
    let output = job.output();
    let input = job.stdin();
    let control = job.control();
    let feed = async {
        if let Some(mut input) = input {
            // Either end may close first; the job's end decides.
            let _ = tokio::io::copy(stdin, &mut input).await;
            // A terminal has no half-close: the engine would take it for a hangup and drop what is still to be shown.
            if !terminal {
                let _ = input.shutdown().await;
            }
            std::future::pending::<()>().await
        }
        std::future::pending::<()>().await
    };
    let finish = async {
        relay(output, stdout, stderr).await;
        job.wait().await.map_err(engine)
    };
    let exit = tokio::select! {
        exit = finish => exit?,
        () = feed => return Err(CommandError::Failed("the input ended in an unexpected way".into())),
        () = steer(control, controls) => return Err(CommandError::Failed("the connection is gone; the command was ended".into())),
    };
    if exit.code != 0 && exit.out_of_memory {
        return Err(CommandError::Failed("the command used more memory than it may and was killed".into()));
    }
    Ok(u8::try_from(exit.code).unwrap_or(1))
}

async fn relay(
    mut output: futures::stream::BoxStream<'static, Result<crate::runtime::Output, RuntimeError>>,
    stdout: &mut Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    stderr: &mut Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
) {
    while let Some(Ok(chunk)) = output.next().await {
        let sink = match chunk.source {
            Source::Stdout => &mut *stdout,
            Source::Stderr => &mut *stderr,
        };
        // A client that has gone is noticed by its hangup.
        let _ = sink.write_all(&chunk.bytes).await;
        let _ = sink.flush().await;
    }
}

/// Passes signals and sizes on; returns when the caller has hung up.
async fn steer(control: Box<dyn JobControl>, controls: &mut mpsc::Receiver<Control>) {
    while let Some(event) = controls.recv().await {
        let done = match event {
            Control::Resize { columns, rows } => control.resize(columns, rows).await,
            Control::Signal(name) => control.signal(&name).await,
            Control::Hangup => return,
        };
        if let Err(error) = done {
            tracing::debug!(%error, "a signal or size did not reach a one-off command");
        }
    }
    // The door has dropped its end without a hangup: it no longer steers, but the command goes on.
    std::future::pending::<()>().await
}
