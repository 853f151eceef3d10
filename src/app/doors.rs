//! The two doors (ssh, control socket) and what is behind them: commands and receiving.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{check::Check, status::Status};
use crate::{
    commands::{Caller, CommandError, CommandIo, Commands},
    control,
    domain::{EnvRef, Verb},
    gc::Gc,
    git::wire::WireIo,
    receive::{HookRequest, Receive, Verdict},
    ssh::{self, Access, GitRequest},
    store::StoreError,
};

/// How long a backup waits for a collection that runs.
const COLLECTION: std::time::Duration = std::time::Duration::from_secs(600);

/// What the doors lead to.
#[derive(Clone)]
pub(super) struct Doors {
    pub(super) commands: Commands,
    pub(super) receive: Receive,
    pub(super) check: Arc<Check>,
    pub(super) status: Arc<Status>,
    pub(super) gc: Gc,
}

#[async_trait]
impl ssh::Backend for Doors {
    async fn authenticate(&self, fingerprint: &str) -> Result<Option<Caller>, StoreError> {
        self.commands.authenticate(fingerprint).await
    }

    async fn may(&self, caller: &Caller, verb: Verb, env: &EnvRef) -> Result<Access, StoreError> {
        match self.commands.may(caller, verb, env).await {
            Ok(_) => Ok(Access::Granted),
            Err(CommandError::Denied(_)) => Ok(Access::NotPermitted),
            Err(CommandError::NotFound(_)) => Ok(Access::NotFound),
            Err(error) => Err(StoreError::Failed(error.to_string())),
        }
    }

    async fn run(&self, caller: Caller, argv: Vec<String>, io: CommandIo) -> u8 {
        self.commands.run(caller, argv, io).await
    }

    async fn git(&self, request: GitRequest, io: WireIo) -> u8 {
        self.receive.serve(request.service, &request.env, &request.user, request.protocol, io).await
    }
}

#[async_trait]
impl control::Backend for Doors {
    async fn snapshot(&self) -> anyhow::Result<Vec<u8>> {
        self.commands.store.snapshot().await?.to_lines()
    }

    async fn hold(&self) -> anyhow::Result<Box<dyn Send>> {
        Ok(Box::new(self.gc.hold(COLLECTION).await?))
    }

    async fn status(&self) -> anyhow::Result<Vec<u8>> {
        Ok(serde_json::to_vec(&self.status.missing().await)?)
    }

    async fn check(&self, repair: bool) -> anyhow::Result<Vec<u8>> {
        Ok(serde_json::to_vec(&self.check.run(repair, jiff::Timestamp::now()).await?)?)
    }

    async fn pre_receive(&self, request: HookRequest, output: mpsc::Sender<Bytes>) -> Verdict {
        self.receive.pre_receive(request, output).await
    }

    async fn run(&self, caller: Caller, argv: Vec<String>, io: CommandIo) -> u8 {
        self.commands.run(caller, argv, io).await
    }
}
