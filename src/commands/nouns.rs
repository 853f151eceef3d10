//! The commands under each noun (`apps create`, `keys list`), as clap parses them.

use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Span, SpanRelativeTo};

use super::Part;
use crate::{
    domain::{AppRef, BuildNumber, EnvRef, JobName, ReleaseVersion, Role, TenantName, TokenScope, UserName, WebhookId},
    events::KindFilter,
    logs::{LogCursor, LogLevel, LogSource, LogStream, Moment},
};

/// Most lines of a log that can be asked for at once.
const MAX_LINES: i64 = crate::logs::MAX_TAIL as i64;

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// List your keys (operators: --user NAME, or --all)
    List {
        #[arg(long)]
        user: Option<UserName>,
        #[arg(long, conflicts_with = "user")]
        all: bool,
    },
    /// Remove a key by its SHA256 fingerprint
    Remove { fingerprint: String },
}

/// How long a token is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime(pub SignedDuration);

impl Lifetime {
    const MOST: SignedDuration = SignedDuration::from_hours(365 * 24);
}

impl FromStr for Lifetime {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let span = text.parse::<Span>().ok();
        // Days have 24 hours here; months and years, which have no length of their own, are refused.
        let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
        let taken = duration.filter(|duration| *duration > SignedDuration::ZERO && *duration <= Self::MOST);
        taken.map(Self).ok_or_else(|| "give hours, days or weeks, as in 12h, 90d or 8w; at most 365d".to_owned())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Make a bearer token for the API; its secret is shown this once
    Create {
        /// What it is for, as in `ci`
        name: String,
        /// What it is good for, at most as much as you may: `read` (look on), `deploy` (also push, scale, roll back), `full`; or
        /// `metrics` (operators: the platform's metrics at /metrics, and nothing else)
        #[arg(long, default_value = "read")]
        scope: TokenScope,
        /// Only in this tenant
        #[arg(long)]
        tenant: Option<TenantName>,
        /// For how long: 12h, 90d, 8w; at most 365d
        #[arg(long, value_name = "TIME", default_value = "90d")]
        expires: Lifetime,
    },
    /// List your tokens (operators: --user NAME, or --all)
    List {
        #[arg(long)]
        user: Option<UserName>,
        #[arg(long, conflicts_with = "user")]
        all: bool,
    },
    /// Make a token worthless, with those that were made with it; `tokens list` has the ids
    Revoke { id: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tenants {
    /// Make a tenant (operators); its owner is you, unless named
    Create {
        tenant: TenantName,
        #[arg(long)]
        owner: Option<UserName>,
    },
    /// List your tenants
    List,
    /// Members, and how it takes pushes
    Info { tenant: TenantName },
    /// List members; with --set or --remove change them (owners)
    Members {
        tenant: TenantName,
        /// Give a member another role: --set bob=developer
        #[arg(long, value_name = "USER=ROLE")]
        set: Option<String>,
        /// Remove a member
        #[arg(long, value_name = "USER", conflicts_with = "set")]
        remove: Option<UserName>,
    },
    /// Make an invitation code to hand to a colleague (owners)
    Invite {
        tenant: TenantName,
        #[arg(long, default_value = "developer")]
        role: Role,
    },
    /// Join a tenant with an invitation code
    Join { code: String },
    /// Refuse pushes without berth.yaml, or take them again (owners)
    RequireManifest { tenant: TenantName, switch: Switch },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Apps {
    /// Make an app with environments dev and prod: `apps create acme/shop`
    Create { app: AppRef },
    /// List your apps
    List { tenant: Option<TenantName> },
    /// Remote, environments, host names
    Info { app: AppRef },
    /// Destroy an app with all its environments and history
    Destroy {
        app: AppRef,
        /// The app's name once more, to be sure
        #[arg(long, value_name = "TENANT/APP")]
        confirm: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Envs {
    /// Make an environment: `envs create acme/shop/staging`
    Create { env: EnvRef },
    /// List environments
    List {
        app: Option<AppRef>,
        #[arg(skip)]
        part: Part,
    },
    /// Destroy an environment with its history
    Destroy {
        env: EnvRef,
        /// The environment's name once more, to be sure
        #[arg(long, value_name = "TENANT/APP/ENV")]
        confirm: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Scale {
    pub env: EnvRef,
    /// TYPE=COUNT; without any, print the present scale
    pub counts: Vec<String>,
    /// Back to what the manifest says
    #[arg(long, conflicts_with = "counts")]
    pub reset: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    pub env: EnvRef,
    /// Number of lines
    #[arg(short = 'n', long = "lines", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=MAX_LINES))]
    pub lines: u32,
    /// Go on with new lines as they come
    #[arg(short, long)]
    pub follow: bool,
    /// Only one process type (web) or replica (web.2), or `router`
    #[arg(long)]
    pub process: Option<String>,
    /// Only one replica by its ID, as --json shows it: web.2 of today is not web.2 of yesterday
    #[arg(long, value_name = "ID")]
    pub replica: Option<String>,
    /// Only what the app, the router, or the platform (berth) wrote
    #[arg(long, value_name = "app|router|berth")]
    pub source: Option<LogSource>,
    /// Only standard output, or standard error
    #[arg(long, value_name = "stdout|stderr")]
    pub stream: Option<LogStream>,
    /// Only from then on: so long ago (10m, 2h, 1d), or a time (2026-01-02T03:04:05Z)
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Only what was before; with -f, end then
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
    /// Only lines that say they are so grave: trace, debug, info, warn, error, fatal
    #[arg(long)]
    pub level: Option<LogLevel>,
    /// Only lines with this text
    #[arg(long, value_name = "TEXT")]
    pub search: Option<String>,
    /// Search for capitals and small letters alike
    #[arg(short, long, requires = "search")]
    pub ignore_case: bool,
    /// Only what comes after the line with this `cursor` (see --json): with -n the first lines, with -f all
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<LogCursor>,
    /// The output of this build instead
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["process", "replica", "source", "stream", "since", "until", "level", "search", "after"])]
    pub build: Option<BuildNumber>,
}

#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    pub env: EnvRef,
    /// The time to look at, from 10s to 24h; the last minute is shown beside it
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = super::metrics::parse_since)]
    pub since: std::time::Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Builds {
    /// List builds, the newest first
    List { env: EnvRef },
    /// Build and deploy a source without git: `builds create acme/shop/dev < source.tar.gz`
    Create {
        env: EnvRef,
        /// What it is, for `releases list`
        #[arg(short, long)]
        message: Option<String>,
        /// Build from nothing
        #[arg(long)]
        no_cache: bool,
        /// Return once the build is queued
        #[arg(short, long)]
        detach: bool,
    },
    /// State, timings and reason of a build (the newest, unless named)
    Info { env: EnvRef, number: Option<BuildNumber> },
    /// Output of a build (the newest, unless named)
    Logs {
        env: EnvRef,
        number: Option<BuildNumber>,
        /// Go on until it has ended
        #[arg(short, long)]
        follow: bool,
    },
    /// Cancel a build that is queued or running
    Cancel { env: EnvRef, number: Option<BuildNumber> },
    /// Throw the app's build cache away
    PurgeCache { app: AppRef },
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    pub env: EnvRef,
    /// `berth/TENANT/APP@sha256:…`
    #[arg(value_name = "IMAGE@DIGEST")]
    pub image: String,
    /// What to run in it, as `processes:` in berth.yaml: `'{web: {command: node server.js}}'`
    #[arg(long, value_name = "MAP")]
    pub processes: Option<String>,
    /// Return once the deployment has begun
    #[arg(short, long)]
    pub detach: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Releases {
    /// List releases, the newest first
    List { env: EnvRef },
    /// One release (the current one, unless named)
    Info { env: EnvRef, version: Option<ReleaseVersion> },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Deployments {
    /// List deployments, the newest first
    List { env: EnvRef },
    /// One deployment (the newest, unless named), and what it waits for
    Info { env: EnvRef, version: Option<ReleaseVersion> },
    /// Give the deployment under way up: what served before, if anything did, goes on serving
    Cancel { env: EnvRef, version: Option<ReleaseVersion> },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// List names and values
    List { env: EnvRef },
    /// Print one value, byte for byte
    Get { env: EnvRef, name: String },
    /// Set variables: `config set acme/shop/dev KEY=value`; `KEY=-` reads the value from standard input
    Set {
        env: EnvRef,
        #[arg(required = true, value_name = "KEY=VALUE")]
        pairs: Vec<String>,
    },
    /// Remove variables
    Unset {
        env: EnvRef,
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Domains {
    /// List host names
    List { env: EnvRef },
    /// Answer at a host name too
    Add { env: EnvRef, domain: String },
    /// Stop answering at a host name
    Remove { env: EnvRef, domain: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Drains {
    /// List drains: how they are, how many lines each has sent and dropped
    List { env: EnvRef },
    /// Send the log on from now: https://HOST/PATH (NDJSON), syslog+tls://HOST:PORT or syslog://HOST:PORT (RFC 5424)
    Add {
        env: EnvRef,
        // What is wrong with it is said without quoting it: it may hold a secret.
        url: String,
    },
    /// Stop sending, by the number that `drains list` shows
    Remove { env: EnvRef, id: u64 },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cron {
    /// List the jobs of the current release: when they run next, how they ended last
    List { env: EnvRef },
    /// What became of the runs, the newest first
    History {
        env: EnvRef,
        job: Option<JobName>,
        /// Number of runs
        #[arg(short = 'n', long = "lines", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        lines: u32,
    },
    /// Run a job now and show its output; its `overlap` holds
    Run {
        env: EnvRef,
        job: JobName,
        /// Return once it has begun
        #[arg(short, long)]
        detach: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Webhooks {
    /// List webhooks, and how they are
    List { tenant: TenantName },
    /// Have events sent to a URL (owners); prints the secret that they are signed with, once
    Add {
        tenant: TenantName,
        url: String,
        /// Only events whose type begins so, as in `build.` or `deployment.finished`; may be given several times
        #[arg(long = "type", value_name = "PREFIX")]
        kinds: Vec<String>,
    },
    /// A webhook, and how it is
    Info { tenant: TenantName, id: WebhookId },
    /// Remove a webhook and its delivery log (owners)
    Remove { tenant: TenantName, id: WebhookId },
    /// What was sent last and how that went, the newest first
    Deliveries { tenant: TenantName, id: WebhookId },
    /// Send a `webhook.ping` now (owners)
    Test { tenant: TenantName, id: WebhookId },
    /// Send events again, from now on (owners)
    Enable { tenant: TenantName, id: WebhookId },
    /// Send no events (owners)
    Disable { tenant: TenantName, id: WebhookId },
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only about this tenant
    #[arg(long)]
    pub tenant: Option<TenantName>,
    /// Only about this app: TENANT/APP
    #[arg(long)]
    pub app: Option<AppRef>,
    /// Only about this environment: TENANT/APP/ENV
    #[arg(long)]
    pub env: Option<EnvRef>,
    /// Only of this kind (build.finished) or family (build.); several with commas between them
    #[arg(long = "type", value_name = "KIND", value_delimiter = ',')]
    pub kinds: Vec<KindFilter>,
    /// Only what came after the event with this number, the oldest first
    #[arg(long, value_name = "ID")]
    pub after: Option<u64>,
    /// Number of events: the newest 50 unless said otherwise, with --after as many as there are
    #[arg(short = 'n', long = "lines", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub lines: Option<u32>,
    /// Go on with new events as they come
    #[arg(short, long)]
    pub follow: bool,
}
