//! The unix socket that hooks and host commands use.
//!
//! Whoever may open the socket owns the server (mode 0600, and the peer's user is checked), so commands that come this way have the
//! operator's rights. [`client`] is the other end; it is what `berth hook` and host commands run.

pub mod client;
mod protocol;
mod server;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use server::ControlServer;

use crate::{
    commands::{Caller, CommandIo},
    receive::{HookRequest, Verdict},
};

/// What the control socket needs of what is behind it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Judges a push.
    async fn pre_receive(&self, request: HookRequest, output: mpsc::Sender<Bytes>) -> Verdict;
    /// Runs a command of Berth's; returns its exit status.
    async fn run(&self, caller: Caller, argv: Vec<String>, io: CommandIo) -> u8;
    /// All records at one moment, as [`crate::store::Snapshot`] writes them.
    async fn snapshot(&self) -> anyhow::Result<Vec<u8>> {
        anyhow::bail!("this server keeps no records")
    }
    /// Keeps collections away while what is returned lives.
    async fn hold(&self) -> anyhow::Result<Box<dyn Send>> {
        anyhow::bail!("this server collects nothing")
    }
    /// What the server lacks to do all that it should, as JSON.
    async fn status(&self) -> anyhow::Result<Vec<u8>> {
        anyhow::bail!("this server does not know")
    }
    /// Compares the records with what is there, and mends what it may; the findings as JSON.
    async fn check(&self, _repair: bool) -> anyhow::Result<Vec<u8>> {
        anyhow::bail!("this server keeps no records")
    }
}
