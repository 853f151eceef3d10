//! The deployer's routes, by way of the files that the router watches.

use std::{net::SocketAddr, path::PathBuf};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    deploy::RoutePublisher,
    router::table::{self, Ack, AckOutcome, AckWatch, RoutesTable},
};

/// Publishes to `DATA/router`.
pub(super) struct RouteFiles {
    directory: PathBuf,
    acks: AckWatch,
}

impl RouteFiles {
    /// The files in `directory`.
    pub(super) fn new(directory: PathBuf) -> anyhow::Result<Self> {
        Ok(Self { acks: AckWatch::new(&directory)?, directory })
    }
}

#[async_trait]
impl RoutePublisher for RouteFiles {
    fn load(&self) -> anyhow::Result<Option<RoutesTable>> {
        table::load(&self.directory)
    }

    fn acknowledged(&self) -> Option<Ack> {
        self.acks.current()
    }

    async fn publish(&self, table: &RoutesTable) -> anyhow::Result<()> {
        let (directory, table) = (self.directory.clone(), table.clone());
        tokio::task::spawn_blocking(move || table::publish(&directory, &table)).await?
    }

    async fn in_force(&self, generation: u64, removed: &[SocketAddr], deadline: Instant) -> bool {
        self.acks.wait_for(generation, removed, deadline).await == AckOutcome::Acked
    }
}
