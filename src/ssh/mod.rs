//! The SSH door: keys → user, exec → command or git, a byte pump with back-pressure.
//!
//! Only a registered public key gets in, and the user is the key's owner, whatever name the client sends. A session runs one of
//! Berth's commands or one end of git's wire protocol; there is no shell, no forwarding, no agent, no subsystem.

mod admission;
mod connection;
mod exec;
mod gate;
mod handler;
mod inlet;
mod outlet;
mod server;
mod session;

use async_trait::async_trait;

pub use admission::ConnectionLimits;
pub use server::{SshServer, SshSettings};

use crate::{
    commands::{Caller, CommandIo},
    domain::{EnvRef, UserName, Verb},
    git::{settings::Service, wire::WireIo},
    store::StoreError,
};

/// What the SSH server needs of what is behind it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Whose key this is, by its `SHA256:…` fingerprint.
    async fn authenticate(&self, fingerprint: &str) -> Result<Option<Caller>, StoreError>;
    /// Whether the caller may do this to the environment.
    async fn may(&self, caller: &Caller, verb: Verb, env: &EnvRef) -> Result<Access, StoreError>;
    /// Runs a command of Berth's, or greets when `argv` is empty; returns its exit status.
    async fn run(&self, caller: Caller, argv: Vec<String>, io: CommandIo) -> u8;
    /// Speaks git's wire protocol for an environment that the caller may read or push to; returns the exit status.
    async fn git(&self, request: GitRequest, io: WireIo) -> u8;
}

/// A git session that has passed authorisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitRequest {
    pub service: Service,
    pub env: EnvRef,
    pub user: UserName,
    /// The client's protocol version, checked.
    pub protocol: Option<&'static str>,
}

/// The answer of [`Backend::may`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Granted,
    /// The environment does not exist, or the caller may not know of it: the same answer.
    NotFound,
    /// The caller may see the environment, but not do this to it.
    NotPermitted,
}
