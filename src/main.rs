//! The `berth` program: parses the command line and calls the library.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use berth::router::{self, RouterSettings};
use clap::{Parser, Subcommand};

/// A self-hosted, multi-tenant git-push build-and-deploy server.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the data plane: passes requests on to replicas.
    Router(RouterArgs),
}

#[derive(Debug, clap::Args)]
struct RouterArgs {
    /// Data directory; the router uses its folder `router`.
    #[arg(long, env = "BERTH_DATA_DIR", default_value = "/var/lib/berth")]
    data_dir: PathBuf,
    /// Address to listen on; may be given more than once. [default: [::]:8080 and 0.0.0.0:8080]
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// Milliseconds from the end of a request to the first byte of its answer.
    #[arg(long, default_value_t = 30_000)]
    first_byte_limit: u64,
    /// Milliseconds that requests under way have to finish after SIGTERM.
    #[arg(long, default_value_t = 30_000)]
    drain: u64,
}

fn main() -> anyhow::Result<()> {
    let Command::Router(args) = Cli::parse().command;
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing_subscriber::filter::LevelFilter::INFO.into())
                .from_env_lossy(),
        )
        .with_writer(std::io::stderr)
        .init();
    let mut settings = RouterSettings {
        directory: args.data_dir.join("router"),
        first_byte_limit: Duration::from_millis(args.first_byte_limit),
        drain: Duration::from_millis(args.drain),
        ..RouterSettings::default()
    };
    if !args.listen.is_empty() {
        settings.listen = args.listen;
    }
    router::run(settings)
}
