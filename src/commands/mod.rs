//! What a user may ask, once: ssh, the API and the control socket are doors to it. Authorisation lives here (`access`).
//!
//! Words are parsed in `parse`; each group of commands has a file of its own; what they find is said for people or programs by
//! `answer`, and what went wrong, with its exit status, by [`CommandError`]. What runs beneath is asked through `ports`.

mod access;
mod answer;
mod apps;
mod ask;
mod builds;
mod config;
mod cron;
mod deployments;
mod domains;
mod drains;
mod environments;
mod error;
mod events;
mod follow;
mod gc;
mod help;
mod images;
mod io;
mod keys;
mod logs;
mod metrics;
pub(crate) mod nouns;
mod oneoff;
mod output;
mod parse;
mod pipeline;
mod platform;
mod ports;
mod releases;
mod running;
mod sessions;
mod sources;
mod tenants;
#[cfg(test)]
pub(crate) mod tests;
mod tokens;
mod webhooks;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

pub(crate) use ask::{Ask, Part, etag};
pub use error::CommandError;
pub use gc::Collections;
pub use io::{CommandIo, Control, OnlyIf, Pty};
pub use output::{BuildItem, BuildLine};
pub use platform::{
    DEADLINE as STATUS_DEADLINE, DiskStatus, EngineStatus, FileSystem, Foundations, Missing, RegistryStatus,
    RouterStatus, ServerStatus,
};
pub use ports::{BuildQueue, CronRuns, Deployments, PlatformStatus, Sources};
pub use sources::SourceOptions;

pub(crate) use access::did_you_mean;
use answer::Answer;
pub(crate) use parse::Command;
use parse::Parsed;
pub(crate) use webhooks::settings as webhook_settings;

use crate::{
    domain::{EnvRef, Environment, PublicKey, TenantName, Timestamp, TokenRights, TraceContext, User, UserName, Verb},
    drains::Drains,
    events::{EventHub, Pace},
    git::Repositories,
    logs::{Logs, render_line, safe_json},
    manifest::Defaults,
    metrics::Metrics,
    places::Places,
    registry::{PublishGate, Registry},
    runtime::Runtime,
    store::{Store, StoreError},
    token::TokenKey,
    traces::Traces,
    webhooks::Webhooks,
};

/// Where a command came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// With a registered key, over SSH.
    Ssh,
    /// The control socket: whoever may open it is root or runs the server.
    Host,
    /// The API, with a bearer token.
    Api,
}

/// Who asks, after authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub user: UserName,
    /// Whether what is asked is asked as an operator: a token may leave that out.
    pub operator: bool,
    pub door: Door,
    /// What the token that was shown allows of what the user may; `None`: all of it.
    pub rights: Option<TokenRights>,
    /// The trace that what is asked is a part of, where the caller has said so.
    pub trace: Option<TraceContext>,
}

/// How the commands speak of the server, from its configuration.
#[derive(Debug, Clone)]
pub struct CommandSettings {
    /// What users type as host name for ssh, and the port.
    pub ssh_host: String,
    pub ssh_port: u16,
    /// How users reach the API and the console, as in `https://berth.example.com`; no `/` at its end.
    pub api_url: String,
    /// Environments answer below this domain.
    pub base_domain: String,
    /// Host names at which the platform itself is reached.
    pub own_hosts: Vec<String>,
    /// Processes and threads of a one-off command.
    pub run_pids: u32,
    /// What holds for a process that does not say.
    pub process_defaults: Defaults,
    /// Most that a process may ask for: thousandths of a core, bytes of memory.
    pub largest_process: (u32, u64),
    /// Where traces of builds begin that come without a push.
    pub traces: Traces,
}

/// What the commands need.
pub struct Services {
    pub store: Store,
    pub builds: Arc<dyn BuildQueue>,
    pub sources: Arc<dyn Sources>,
    pub registry: Arc<dyn Registry>,
    /// Keeps images from being collected while a release is made of them.
    pub publishing: PublishGate,
    pub deployer: Arc<dyn Deployments>,
    pub cron: Arc<dyn CronRuns>,
    pub logs: Logs,
    pub drains: Drains,
    pub metrics: Metrics,
    pub runtime: Arc<dyn Runtime>,
    pub repositories: Repositories,
    pub collections: Arc<dyn Collections>,
    pub platform: Arc<dyn PlatformStatus>,
    pub events: EventHub,
    pub webhooks: Webhooks,
    /// Signs the project tokens of new manifests.
    pub tokens: Arc<TokenKey>,
    pub settings: CommandSettings,
}

/// All commands. Clones share everything.
#[derive(Clone)]
pub struct Commands {
    services: Arc<Services>,
    /// Of one-off commands.
    run_places: Arc<Places<TenantName>>,
    /// Who changes the config of an environment.
    config_turns: Arc<Places<EnvRef>>,
    /// Of those who follow logs and builds.
    follow_places: Arc<Places<TenantName>>,
    /// How often it is told of each user that they were refused something.
    denied: Arc<Mutex<Pace<UserName>>>,
}

impl std::ops::Deref for Commands {
    type Target = Services;
    fn deref(&self) -> &Services {
        &self.services
    }
}

/// Config changes at the same time.
const MAX_TURNS: usize = 1000;
/// Of what one user was refused, so much is told at once, and then one every so often.
const DENIED: (u32, Duration) = (5, Duration::from_secs(60));

/// The present.
fn now() -> Timestamp {
    Timestamp::now()
}

impl Commands {
    /// Commands over these services.
    pub fn new(services: Services) -> Self {
        let run_places = Arc::new(Places::new(oneoff::MAX_RUNNING, oneoff::MAX_OF_TENANT));
        let config_turns = Arc::new(Places::new(MAX_TURNS, 1));
        let follow_places = Arc::new(Places::new(follow::MAX_FOLLOWED, follow::MAX_OF_TENANT));
        let denied = Arc::new(Mutex::new(Pace::new(DENIED.0, DENIED.1)));
        Self { services: Arc::new(services), run_places, config_turns, follow_places, denied }
    }

    /// Who owns the key with this `SHA256:…` fingerprint.
    ///
    /// # Errors
    /// The store's.
    pub async fn authenticate(&self, fingerprint: &str) -> Result<Option<Caller>, StoreError> {
        let Some(key) = self.store.get::<PublicKey>(fingerprint).await? else { return Ok(None) };
        let user = self.store.get::<User>(&key.user).await?;
        Ok(user.map(|user| Caller {
            user: user.name.clone(),
            operator: user.operator,
            door: Door::Ssh,
            rights: None,
            trace: None,
        }))
    }

    /// The environment, if the caller may do `verb` to it; for the git door.
    ///
    /// # Errors
    /// [`CommandError::NotFound`] when it does not exist or the caller may not know of it, [`CommandError::Denied`] when the caller
    /// may see it but not do that; else the store failed.
    pub async fn may(&self, caller: &Caller, verb: Verb, env: &EnvRef) -> Result<Environment, CommandError> {
        Ok(self.env_for(caller, verb, env).await?.record)
    }

    /// How commands are begun at this door.
    pub(crate) fn program(&self, door: Door) -> String {
        match (door, self.settings.ssh_port) {
            (Door::Host, _) => "berth".to_owned(),
            // Who reads the texts through the API types commands as everybody else does.
            (Door::Ssh | Door::Api, 22) => format!("ssh berth@{}", self.settings.ssh_host),
            (Door::Ssh | Door::Api, port) => format!("ssh -p {port} berth@{}", self.settings.ssh_host),
        }
    }

    /// Runs a command and returns its exit status; without one, greets. Everything it has to say has been written when this
    /// returns.
    pub async fn run(&self, caller: Caller, argv: Vec<String>, mut io: CommandIo) -> u8 {
        if let Err(denied) = caller.need_commands() {
            return finish(Err(denied), &mut io, false).await;
        }
        if argv.is_empty() {
            let text = help::welcome(&caller, &self.program(caller.door));
            return finish(io.print(&text).await, &mut io, false).await;
        }
        let line = match parse::parse(argv, &self.program(caller.door)) {
            Parsed::Command(line) => *line,
            Parsed::Help(text) => return finish(io.print(&text).await, &mut io, false).await,
            Parsed::Usage(text) => return finish(Err(CommandError::Usage(text)), &mut io, false).await,
        };
        tracing::info!(user = %caller.user, door = ?caller.door, command = line.command.name(), "command");
        if let Command::Run { env, command } = &line.command {
            return self.one_off(&caller, env, command, line.json, io).await;
        }
        let result = match self.dispatch(&caller, line.command, line.json, &mut io).await {
            Ok(Some(answer)) => io.print(&answer.render(line.json)).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        finish(result, &mut io, line.json).await
    }

    /// `None`: the command has written its answer itself.
    async fn dispatch(
        &self,
        caller: &Caller,
        command: Command,
        json: bool,
        io: &mut CommandIo,
    ) -> Result<Option<Answer>, CommandError> {
        caller.need_commands()?;
        let answer = match command {
            Command::UploadKey { name } => self.upload_key(caller, &name, io).await?,
            Command::Keys(command) => self.keys(caller, command).await?,
            Command::Tokens(command) => self.tokens_of(caller, command).await?,
            Command::Console => self.console(caller).await?,
            Command::Whoami => self.whoami(caller).await?,
            Command::Tenants(command) => self.tenants(caller, command, &io.only_if.clone()).await?,
            Command::Apps(command) => self.apps(caller, command).await?,
            Command::Envs(command) => self.envs(caller, command).await?,
            Command::Ps { env: Some(env), why, .. } => self.ps(caller, &env, why).await?,
            Command::Ps { env: None, why: false, part } => self.ps_all(caller, &part).await?,
            Command::Ps { env: None, why: true, part } => self.why_all(caller, &part).await?,
            Command::Scale(args) => self.scale(caller, args, io).await?,
            Command::Restart { env } => self.restart(caller, &env, io).await?,
            Command::Logs(args) => return self.show_logs(caller, args, json, io).await.map(|()| None),
            Command::Metrics(args) => self.show_metrics(caller, args).await?,
            Command::Builds(command) => return self.builds(caller, command, json, io).await,
            Command::Releases(command) => self.releases(caller, command).await?,
            Command::Deployments(command) => self.deployments(caller, command).await?,
            Command::Rollback { env, version } => self.rollback(caller, &env, version, io).await?,
            Command::Redeploy { env, no_cache } => self.redeploy(caller, &env, no_cache, json, io).await?,
            Command::Deploy(args) => self.deploy_and_answer(caller, args, io).await?,
            Command::Promote { from, to } => self.promote(caller, &from, &to, json, io).await?,
            Command::Config(command) => self.config(caller, command, io).await?,
            Command::Domains(command) => self.domains(caller, command, &io.only_if.clone()).await?,
            Command::Drains(command) => self.drains(caller, command).await?,
            Command::Cron(command) => return self.cron_jobs(caller, command, json, io).await,
            Command::Status => self.platform(caller).await?,
            Command::Gc { dry_run } => self.gc(caller, dry_run, io).await?,
            Command::Webhooks(command) => self.webhooks(caller, command, &io.only_if.clone()).await?,
            Command::Events(args) => return self.events(caller, args, json, io).await.map(|()| None),
            // It takes the streams for itself, so `run` has sent it elsewhere.
            Command::Run { .. } => return Ok(None),
        };
        Ok(Some(answer))
    }
}

/// Says what went wrong, if anything, and gives the exit status.
async fn finish(result: Result<(), CommandError>, io: &mut CommandIo, json: bool) -> u8 {
    let Err(error) = result else { return 0 };
    let status = error.exit_status();
    let text = match (&error, json) {
        // clap's texts are complete.
        (CommandError::Usage(text), false) if text.ends_with('\n') => text.clone(),
        // It may quote what an app has printed.
        (error, false) => error.to_string().lines().map(|line| format!(" !     {}\n", render_line(line))).collect(),
        (error, true) => {
            let said = serde_json::json!({"error": error.to_string(), "exit_status": status});
            format!("{}\n", safe_json(&said))
        }
    };
    io.tell(&text).await;
    status
}
