//! The REST API under `/v1`: a door to the commands, for programs.
//!
//! A route turns a request into what a command asks, and what that answers into a view; it decides nothing. Who may do what is decided by
//! `commands`. What went wrong is told as problem details (RFC 9457). `openapi` is written from the same code.

mod declared;
mod entity;
mod extract;
mod idempotency;
mod limit;
mod names;
mod page;
mod problem;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod views;

use std::sync::Arc;

pub(crate) use server::one_host;
pub use server::{ApiServer, ApiSettings, Connections, router};

use crate::commands::Commands;

/// What routes work with. Clones share everything.
#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

struct Inner {
    commands: Commands,
    limits: limit::Limits,
    once: idempotency::Once,
}

impl std::ops::Deref for Api {
    type Target = Commands;
    fn deref(&self) -> &Commands {
        &self.0.commands
    }
}
