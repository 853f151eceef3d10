//! `tracing` for people on a terminal, JSON otherwise; on standard error, so that output stays clean. And traces of pushes, to a collector
//! if there is one (`export`).

mod export;

use std::{io::IsTerminal, sync::Arc};

use anyhow::Context;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use self::export::Export;
use super::config::{ENDPOINT_VARIABLE, Telemetry};
use crate::traces::Traces;

/// What is logged unless `BERTH_LOG` says otherwise (syntax of `tracing_subscriber::EnvFilter`).
const DEFAULT_FILTER: &str = "info,pingora=warn,pingora_core=warn,pingora_proxy=warn,russh=warn";

/// Installs the subscriber; call once.
pub fn init() {
    let filter = EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let registry = tracing_subscriber::registry().with(filter);
    if std::io::stderr().is_terminal() {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_target(false)).init();
    } else {
        registry.with(fmt::layer().with_writer(std::io::stderr).json().flatten_event(true)).init();
    }
}

/// Where traces are told, and what sends them; nothing is started without a collector. Not to be called in an asynchronous runtime.
///
/// # Errors
/// When the configuration is not valid. A collector that is away is no error.
pub(super) fn start_traces(config: &Telemetry) -> anyhow::Result<(Traces, Option<Arc<Export>>)> {
    let variable = std::env::var(ENDPOINT_VARIABLE).ok();
    let Some(endpoint) = config.endpoint(variable).context("the configuration is not valid")? else {
        return Ok((Traces::off(), None));
    };
    let export = Export::start(&endpoint, &config.headers).context("the configuration is not valid")?;
    tracing::info!(%endpoint, sample = config.sample, "traces of pushes are sent to a collector");
    Ok((Traces::new(export.clone(), config.sample), Some(export)))
}
