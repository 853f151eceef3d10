//! The command line of the binary itself: what is typed on the host. Commands of users are in `commands`.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use super::{cli_validate, config::Config};
use crate::{
    control::client,
    domain::{EnvName, UserName},
    logs::render_line,
};

/// A self-hosted git-push build-and-deploy server.
#[derive(Debug, Parser)]
#[command(name = "berth", version, about, max_term_width = 100)]
struct CommandLine {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Where the configuration and the data are.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Configuration file (else /etc/berth/berth.yaml or config/berth.yaml, if there is one)
    #[arg(long, global = true, env = "BERTH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory
    #[arg(long, global = true, env = "BERTH_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Place {
    /// The configuration, with the data directory of the command line.
    pub(super) fn load(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref(), std::env::vars())?;
        if let Some(directory) = &self.data_dir {
            config.data_dir = directory.clone();
        }
        config.data_dir = std::path::absolute(&config.data_dir)?;
        Ok(config)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control plane: SSH, builds, deployments
    Serve,
    /// Run the data plane: HTTP to the apps
    Router {
        /// Address to listen on instead of the configured ones; may be given more than once
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Vec<SocketAddr>,
    },
    /// Check that this host has what Berth needs, and that the records fit what is there
    Doctor {
        /// Mend what can be mended safely
        #[arg(long)]
        repair: bool,
    },
    /// Check a berth.yaml before pushing it
    Validate {
        #[arg(default_value = ".")]
        directory: PathBuf,
        /// With the overrides of this environment
        #[arg(long)]
        env: Option<EnvName>,
    },
    /// Print the JSON Schema of berth.yaml
    Schema,
    /// Register the public key(s) on standard input for a user; the first user becomes an operator
    UploadKey { name: UserName },
    /// Say whether the server runs, and what it lacks: the engine, the registry, room on disk
    Status {
        /// Print JSON for programs: a list of what is missing (with --full, an object)
        #[arg(long)]
        json: bool,
        /// Also how everything is that it does not lack: queues, room on disk, replicas
        #[arg(long)]
        full: bool,
    },
    /// Write the records, repositories, keys and images that cannot be made anew into a file, while the server runs
    Backup {
        /// File to make; `-` for standard output (default: berth-backup-TIME.tar.gz in this directory)
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Put a backup into an empty data directory
    Restore {
        /// What `berth backup` wrote; `-` for standard input
        file: PathBuf,
    },
    /// Take away what is not needed any more: old releases, images, caches, logs
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
    /// Remove everything this server made on the container engine; the data directory is kept
    Teardown {
        /// Really
        #[arg(long)]
        yes: bool,
    },
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// What git hooks run
    #[command(hide = true)]
    Hook { name: String },
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let done = match line.command {
        Command::Serve => super::serve::run(&line.place),
        Command::Router { listen } => super::data_plane::run(&line.place, listen),
        Command::Doctor { repair } => super::doctor::run(&line.place, repair),
        Command::Validate { directory, env } => Ok(cli_validate::validate(&directory, env.as_ref()).report()),
        Command::Schema => {
            print!("{}", cli_validate::schema());
            Ok(ExitCode::SUCCESS)
        }
        Command::UploadKey { name } => host_command(&line.place, &["upload-key", name.as_str()]),
        Command::Status { json, full: true } => {
            let words = [Some("status"), json.then_some("--json")];
            host_command(&line.place, &words.into_iter().flatten().collect::<Vec<_>>())
        }
        Command::Status { json, full: false } => super::status::run(&line.place, json),
        Command::Backup { output } => super::backup::backup(&line.place, output),
        Command::Restore { file } => super::backup::restore(&line.place, &file),
        Command::Gc { dry_run, json } => {
            let words = [Some("gc"), dry_run.then_some("--dry-run"), json.then_some("--json")];
            host_command(&line.place, &words.into_iter().flatten().collect::<Vec<_>>())
        }
        Command::Teardown { yes } => super::teardown::run(&line.place, yes),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut CommandLine::command(), "berth", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Hook { name } if name == "pre-receive" => client::hook().map(ExitCode::from),
        Command::Hook { name } => Err(anyhow::anyhow!("there is no hook {name:?}")),
    };
    done.unwrap_or_else(|error| {
        // It may quote what an archive or a file holds.
        format!("{error:#}").lines().for_each(|line| eprintln!(" !     {}", render_line(line)));
        ExitCode::FAILURE
    })
}

/// Runs a command of `commands` as the host does: through the control socket, with this process's standard input.
fn host_command(place: &Place, words: &[&str]) -> anyhow::Result<ExitCode> {
    let socket = place.load()?.control_socket();
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    client::run(&socket, words, std::io::stdin()).map(ExitCode::from)
}
