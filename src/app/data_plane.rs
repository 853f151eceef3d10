//! `berth router`.

use std::{net::SocketAddr, num::NonZeroUsize, process::ExitCode};

use super::{cli::Place, telemetry};
use crate::router::{self, RouterSettings};

/// Runs the router until it is told to stop.
pub(super) fn run(place: &Place, listen: Vec<SocketAddr>) -> anyhow::Result<ExitCode> {
    telemetry::init();
    let config = place.load()?;
    let ssh_port = config.ssh.listen.first().map_or(2222, SocketAddr::port);
    let settings = RouterSettings {
        listen: if listen.is_empty() { config.router.listen } else { listen },
        public_scheme: config.router.public_scheme.as_str(),
        max_connections_per_client: NonZeroUsize::new(config.router.max_connections_per_client),
        public_port: config.router.public_port,
        directory: config.data_dir.join("router"),
        head_limit: config.router.head_timeout,
        first_byte_limit: config.router.first_byte_timeout,
        drain: config.router.shutdown_grace,
        base_domain: config.base_domain,
        push_base: format!("ssh://berth@{}:{ssh_port}", config.ssh.host),
        ..RouterSettings::default()
    };
    router::run(settings)?;
    Ok(ExitCode::SUCCESS)
}
