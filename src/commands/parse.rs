//! The words of a command → what is asked. Parsed by clap, so that usage, help and "did you mean" are the same everywhere.

use clap::{Parser, Subcommand, error::ErrorKind};

use super::{
    Part, help,
    nouns::{
        Apps, Builds, Config, Cron, Deploy, Deployments, Domains, Drains, Envs, Events, Keys, LogsArgs, MetricsArgs,
        Releases, Scale, Tenants, Tokens, Webhooks,
    },
};
use crate::domain::{EnvRef, ReleaseVersion, UserName};

/// How commands are begun, until it is known from where: then it is replaced in what clap has written.
const PROGRAM: &str = "ssh -p 2222 berth@HOST";

/// One command of a user.
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    bin_name = PROGRAM,
    about = "Commands for your apps. Deploy by `git push`; everything else is here.",
    disable_version_flag = true,
    max_term_width = 100,
    subcommand_required = true
)]
pub(super) struct CommandLine {
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Register the public key(s) on standard input for a user (operators)
    UploadKey { name: UserName },
    /// Your keys
    #[command(subcommand)]
    Keys(Keys),
    /// Bearer tokens for the API: for programs, and for you in a browser
    #[command(subcommand)]
    Tokens(Tokens),
    /// A link to sign in with, in a browser: good once, for a few minutes
    Console,
    /// Who you are, by the key or token you used
    Whoami,
    /// Tenants: who owns apps
    #[command(subcommand)]
    Tenants(Tenants),
    /// Apps: one code base each
    #[command(subcommand)]
    Apps(Apps),
    /// Environments: running instances of an app
    #[command(subcommand)]
    Envs(Envs),
    /// What runs, and how it is
    Ps {
        env: Option<EnvRef>,
        /// What each process type waits for, since when and until when (without ENV: in all your environments)
        #[arg(long)]
        why: bool,
        #[arg(skip)]
        part: Part,
    },
    /// Set the number of replicas: `scale acme/shop/dev web=3 worker=1`
    Scale(Scale),
    /// Replace all replicas, one after another
    Restart { env: EnvRef },
    /// Logs of an environment or of a build
    Logs(LogsArgs),
    /// Requests, latency, processor, memory and network of an environment
    Metrics(MetricsArgs),
    /// Builds
    #[command(subcommand)]
    Builds(Builds),
    /// Releases
    #[command(subcommand)]
    Releases(Releases),
    /// Deployments: moves from one release to another
    #[command(subcommand)]
    Deployments(Deployments),
    /// Go back to an earlier release (the one before, unless named)
    Rollback { env: EnvRef, version: Option<ReleaseVersion> },
    /// Build and deploy the commit last pushed, again
    Redeploy {
        env: EnvRef,
        /// Build from nothing
        #[arg(long)]
        no_cache: bool,
    },
    /// Deploy an image that is in the registry already, by its digest (`releases info` prints it)
    Deploy(Deploy),
    /// Run in one environment what runs in another of the same app, without a build
    Promote { from: EnvRef, to: EnvRef },
    /// Config variables
    #[command(subcommand)]
    Config(Config),
    /// Host names
    #[command(subcommand)]
    Domains(Domains),
    /// Log drains: where the log is sent as it is written
    #[command(subcommand)]
    Drains(Drains),
    /// Run a one-off command in the current release: `run acme/shop/dev -- python manage.py shell`
    Run {
        env: EnvRef,
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Jobs that run by the clock (`cron:` in berth.yaml)
    #[command(subcommand)]
    Cron(Cron),
    /// What happened
    Events(Events),
    /// Where a tenant is told of its events
    #[command(subcommand)]
    Webhooks(Webhooks),
    /// The platform on one page: engine, registry, router, disk, queues, and what is missing (operators)
    Status,
    /// Take away what is not needed any more (operators)
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
}

impl Command {
    /// Its first word, for the log (never arguments: they may hold secrets).
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::UploadKey { .. } => "upload-key",
            Self::Keys(_) => "keys",
            Self::Tokens(_) => "tokens",
            Self::Console => "console",
            Self::Whoami => "whoami",
            Self::Tenants(_) => "tenants",
            Self::Apps(_) => "apps",
            Self::Envs(_) => "envs",
            Self::Ps { .. } => "ps",
            Self::Scale(_) => "scale",
            Self::Restart { .. } => "restart",
            Self::Logs(_) => "logs",
            Self::Metrics(_) => "metrics",
            Self::Builds(_) => "builds",
            Self::Releases(_) => "releases",
            Self::Deployments(_) => "deployments",
            Self::Rollback { .. } => "rollback",
            Self::Redeploy { .. } => "redeploy",
            Self::Deploy(_) => "deploy",
            Self::Promote { .. } => "promote",
            Self::Config(_) => "config",
            Self::Domains(_) => "domains",
            Self::Drains(_) => "drains",
            Self::Run { .. } => "run",
            Self::Cron(_) => "cron",
            Self::Events(_) => "events",
            Self::Webhooks(_) => "webhooks",
            Self::Status => "status",
            Self::Gc { .. } => "gc",
        }
    }
}

/// What became of the words.
pub(super) enum Parsed {
    Command(Box<CommandLine>),
    /// Help was asked for.
    Help(String),
    /// The words are off; the text says how and what would be right.
    Usage(String),
}

/// Longest command line taken, in bytes.
const MAX_LENGTH: usize = 128 << 10;

/// Parses the words, the colon form (`apps:create`) included. `program` is how commands are begun at the caller's door.
pub(super) fn parse(argv: Vec<String>, program: &str) -> Parsed {
    if argv.iter().map(String::len).sum::<usize>() > MAX_LENGTH {
        let text = "the command is longer than 128 KiB; give long values on standard input (KEY=-)\n";
        return Parsed::Usage(text.into());
    }
    let plain: Vec<&str> = argv.iter().map(String::as_str).filter(|word| *word != "--json").collect();
    if matches!(plain[..], [] | ["help" | "--help" | "-h"]) {
        return Parsed::Help(help::overview(program));
    }
    let mut words = vec!["berth".to_owned()];
    for (position, word) in argv.into_iter().enumerate() {
        match word.split_once(':') {
            Some((noun, verb)) if position == 0 && !noun.is_empty() && !verb.is_empty() => {
                words.extend([noun.to_owned(), verb.to_owned()]);
            }
            _ => words.push(word),
        }
    }
    match CommandLine::try_parse_from(words) {
        Ok(line) => Parsed::Command(Box::new(line)),
        Err(error) => {
            let text = error.render().to_string().replace(PROGRAM, program);
            match error.kind() {
                ErrorKind::DisplayHelp => Parsed::Help(text),
                _ => Parsed::Usage(text),
            }
        }
    }
}

/// The first words of all commands.
#[cfg(test)]
pub(super) fn names() -> Vec<String> {
    let command = <CommandLine as clap::CommandFactory>::command();
    command.get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(argv: Vec<String>) -> Parsed {
        super::parse(argv, "ssh -p 2022 berth@example.com")
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn every_command_of_the_contract_is_understood() {
        for text in [
            "upload-key bob",
            "keys list",
            "keys remove SHA256:abc",
            "whoami --json",
            "tokens create ci --scope deploy --tenant acme --expires 30d",
            "tokens:list --all",
            "tokens revoke 0123456789ab",
            "tenants create acme",
            "tenants invite acme --role viewer",
            "tenants join code",
            "apps create acme/shop",
            "apps:create acme/shop",
            "envs list acme/shop --json",
            "ps",
            "ps acme/shop/dev",
            "ps --why --json",
            "scale acme/shop/dev web=3 worker=1",
            "scale acme/shop/dev --reset",
            "restart acme/shop/dev",
            "logs acme/shop/dev -n 5 -f --process web",
            "logs acme/shop/dev --since 10m --until 2026-01-02T03:04:05Z --level warn --search x -i --stream stderr",
            "logs acme/shop/dev --replica abc --source router --after 1-2f-0a0b0c0d -f",
            "logs acme/shop/dev --build 3",
            "metrics acme/shop/dev --since 15m --json",
            "builds cancel acme/shop/dev",
            "builds:purge-cache acme/shop",
            "releases info acme/shop/dev v3",
            "rollback acme/shop/dev v3",
            "redeploy acme/shop/dev",
            "promote acme/shop/dev acme/shop/prod",
            "builds create acme/shop/dev --message hello --no-cache",
            "builds:create acme/shop/dev --detach",
            "deploy acme/shop/dev berth/acme/shop@sha256:00 --detach",
            "config set acme/shop/dev A=b:c",
            "domains add acme/shop/dev shop.example.com",
            "drains add acme/shop/dev syslog+tls://logs.example.com:6514",
            "drains:remove acme/shop/dev 2",
            "run acme/shop/dev -- ls -la --json",
            "cron list acme/shop/dev",
            "cron:history acme/shop/dev nightly -n 5",
            "cron run acme/shop/dev nightly --detach",
            "events -f",
            "webhooks list acme",
            "webhooks add acme https://hooks.example.com/x?key=1 --type build. --type deployment.finished",
            "webhooks info acme 1a2b3c4d",
            "webhooks:deliveries acme 1a2b3c4d --json",
            "webhooks test acme 1a2b3c4d",
        ] {
            assert!(matches!(parse(words(text)), Parsed::Command(_)), "{text} was not understood");
        }
    }

    #[test]
    fn mistakes_are_usage_and_help_is_not() {
        let Parsed::Usage(text) = parse(words("app create acme/shop")) else { panic!("taken") };
        assert!(text.contains("apps"), "no suggestion: {text}");
        for expires in ["0d", "-1d", "366d", "never", "1y", "90", "9999999999999w"] {
            let line = format!("tokens create ci --expires={expires}");
            let Parsed::Usage(text) = parse(words(&line)) else { panic!("{expires} was taken") };
            assert!(text.contains("365d"), "{text}");
        }
        let Parsed::Usage(text) = parse(words("restart acme/shop")) else { panic!("taken") };
        assert!(text.contains("TENANT/APP/ENV"), "no reason: {text}");
        assert!(matches!(parse(vec![]), Parsed::Help(_)));
        for words_and_hint in [
            ("logs acme/shop/dev --since 2026-01-02", "10m, 2h, 1d"),
            ("logs acme/shop/dev --level loud", "trace, debug"),
            ("logs acme/shop/dev --source web", "app, router and berth"),
            ("logs acme/shop/dev --after 17", "no place in a log"),
            ("logs acme/shop/dev --build 3 --since 10m", "cannot be used with"),
        ] {
            let Parsed::Usage(text) = parse(words(words_and_hint.0)) else { panic!("{words_and_hint:?} was taken") };
            assert!(text.contains(words_and_hint.1), "no reason: {text}");
        }
        for text in ["help", "--help", "help --json"] {
            let Parsed::Help(text) = parse(words(text)) else { panic!("{text} is no help") };
            assert!(text.contains("git push"), "{text}");
        }
        let Parsed::Help(text) = parse(words("help scale")) else { panic!("no help") };
        assert!(text.contains("Usage: ssh -p 2022 berth@example.com scale"), "{text}");
        assert!(matches!(parse(words("scale --help")), Parsed::Help(_)));
        assert!(matches!(parse(vec!["run".into(), "x".repeat(200_000)]), Parsed::Usage(_)));
    }

    #[test]
    fn a_one_off_command_keeps_its_own_options() {
        let Parsed::Command(line) = parse(words("run acme/shop/dev -- ls --json -f")) else { panic!("not taken") };
        assert!(!line.json);
        assert!(matches!(line.command, Command::Run { command, .. } if command == ["ls", "--json", "-f"]));
    }
}
