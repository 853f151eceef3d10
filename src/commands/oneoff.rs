//! `run ENV -- CMD`: a one-off command in the current release, with a terminal when the caller has one.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use tokio::{io::AsyncWriteExt, sync::mpsc};

use super::{Caller, CommandError, CommandIo, Commands, Control, now};
use crate::{
    domain::{EnvRef, EventKind, Limits, Release, TenantName, Verb},
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
/// The image's launcher: sets the environment up as the buildpack wants it, then runs the command.
const LAUNCHER: &str = "/usr/local/bin/berth-launch";

fn engine(error: RuntimeError) -> CommandError {
    match error {
        error if error.is_passing() => CommandError::TryLater(error.to_string()),
        error => CommandError::Failed(format!("the command could not be run: {error}")),
    }
}

/// What the process sees: as a replica would.
fn environment(release: &Release, name: &str) -> BTreeMap<String, String> {
    let mut environment = release.config.clone();
    let env = &release.env;
    let own = [
        ("BERTH_TENANT", env.tenant.to_string()),
        ("BERTH_APP", env.app.to_string()),
        ("BERTH_ENV", env.env.to_string()),
        ("BERTH_RELEASE", release.version.to_string()),
        ("BERTH_PROCESS", "run".to_owned()),
        ("BERTH_REPLICA", name.to_owned()),
        ("SOURCE_VERSION", release.commit.clone()),
    ];
    environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    let web = release.processes.iter().find(|(process, _)| process.is_web());
    environment.extend(web.map(|(_, spec)| ("PORT".to_owned(), spec.port.to_string())));
    environment
}

/// The widest of the release's processes, since a command often loads the whole app.
fn limits(release: &Release, pids: u32) -> Limits {
    let cpu_millis = release.processes.values().map(|process| process.cpu_millis).max().unwrap_or(0).max(500);
    let memory = release.processes.values().map(|process| process.memory).max().unwrap_or(0).max(512 << 20);
    Limits { cpu_millis, memory, pids }
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
        let mut variables = environment(&release, &name);
        if let Some(pty) = &io.pty {
            variables.insert("TERM".into(), pty.term.clone());
        }
        let spec = JobSpec {
            kind: JobKind::OneOff,
            env: env.clone(),
            name: name.clone(),
            image: release.image.clone(),
            // One word is a shell command line, as `heroku run "a | b"` has it; the launcher runs several as they are.
            argv: std::iter::once(LAUNCHER.to_owned()).chain(words.iter().cloned()).collect(),
            environment: variables,
            limits: limits(&release, self.settings.run_pids),
            cache: false,
            read_only_mounts: Vec::new(),
            tty: io.pty.as_ref().map(|pty| (pty.columns, pty.rows)),
            stdin: true,
            stop_grace: STOP_GRACE,
        };
        // The words are not recorded: they may hold secrets.
        let event = NewEvent::new(EventKind::RunStarted, now(), format!("{name} started in {version} of {env}"));
        self.store.record(event.env(env).by(&caller.user)).await?;
        let mut job = self.runtime.job(&spec).await.map_err(engine)?;
        let attended = async {
            tokio::select! {
                ended = attend(job.as_mut(), io) => ended,
                denied = self.access_lost(caller, Verb::Run, &env.tenant) => Err(denied),
            }
        };
        let ended = tokio::time::timeout(TIME_LIMIT, attended).await;
        let finished = job.finish().await;
        let status =
            ended.unwrap_or_else(|_| Err(CommandError::Failed("the command ran for 24 hours and was ended".into())))?;
        finished.map_err(engine)?;
        Ok(status)
    }
}

/// Starts the job and carries its streams and signals until it ends.
async fn attend(job: &mut dyn Job, io: &mut CommandIo) -> Result<u8, CommandError> {
    let terminal = io.pty.is_some();
    let CommandIo { stdin, stdout, stderr, controls, .. } = io;
    job.start().await.map_err(engine)?;
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
