//! The commands under each noun (`apps create`, `keys list`), as clap parses them.

use clap::{Args, Subcommand, ValueEnum};

use crate::domain::{AppRef, BuildNumber, EnvRef, JobName, ReleaseVersion, Role, TenantName, UserName};

/// Most lines of a log that can be asked for at once.
const MAX_LINES: i64 = crate::logs::MAX_TAIL as i64;

#[derive(Debug, Subcommand)]
pub(super) enum Keys {
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
pub(super) enum Tenants {
    /// Make a tenant (operators); its owner is you, unless named
    Create {
        tenant: TenantName,
        #[arg(long)]
        owner: Option<UserName>,
    },
    /// List your tenants
    List,
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
pub(super) enum Apps {
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
pub(super) enum Envs {
    /// Make an environment: `envs create acme/shop/staging`
    Create { env: EnvRef },
    /// List environments
    List { app: Option<AppRef> },
    /// Destroy an environment with its history
    Destroy {
        env: EnvRef,
        /// The environment's name once more, to be sure
        #[arg(long, value_name = "TENANT/APP/ENV")]
        confirm: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Scale {
    pub env: EnvRef,
    /// TYPE=COUNT; without any, print the present scale
    pub counts: Vec<String>,
    /// Back to what the manifest says
    #[arg(long, conflicts_with = "counts")]
    pub reset: bool,
}

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
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
    /// The output of this build instead
    #[arg(long, value_name = "NUMBER")]
    pub build: Option<BuildNumber>,
}

#[derive(Debug, Args)]
pub(super) struct MetricsArgs {
    pub env: EnvRef,
    /// The time to look at, from 10s to 24h; the last minute is shown beside it
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = super::metrics::parse_since)]
    pub since: std::time::Duration,
}

#[derive(Debug, Subcommand)]
pub(super) enum Builds {
    /// List builds, the newest first
    List { env: EnvRef },
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

#[derive(Debug, Subcommand)]
pub(super) enum Releases {
    /// List releases, the newest first
    List { env: EnvRef },
    /// One release (the current one, unless named)
    Info { env: EnvRef, version: Option<ReleaseVersion> },
}

#[derive(Debug, Subcommand)]
pub(super) enum Deployments {
    /// List deployments, the newest first
    List { env: EnvRef },
    /// One deployment (the newest, unless named), and what it waits for
    Info { env: EnvRef, version: Option<ReleaseVersion> },
    /// Give the deployment under way up: what served before, if anything did, goes on serving
    Cancel { env: EnvRef, version: Option<ReleaseVersion> },
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
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
pub(super) enum Domains {
    /// List host names
    List { env: EnvRef },
    /// Answer at a host name too
    Add { env: EnvRef, domain: String },
    /// Stop answering at a host name
    Remove { env: EnvRef, domain: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum Cron {
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

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only about this tenant
    #[arg(long)]
    pub tenant: Option<TenantName>,
    /// Number of events
    #[arg(short = 'n', long = "lines", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub lines: u32,
    /// Go on with new events as they come
    #[arg(short, long)]
    pub follow: bool,
}
