//! Puts every new routes table in force, and acknowledges it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;

use super::{
    live::Routes,
    table::{self, ACK_FILE, Ack, ROUTES_FILE, RoutesTable},
    watch::FileWatch,
};

/// Pause before an acknowledgement that could not be written is tried again.
const ACK_AGAIN: Duration = Duration::from_secs(1);

/// Follows `routes.json` of a directory.
pub(super) struct Reloader {
    directory: PathBuf,
    routes: Arc<Routes>,
    watch: FileWatch,
    /// The table in force, as it was read.
    current: Option<RoutesTable>,
    acknowledged: Option<Ack>,
}

impl Reloader {
    /// Watches `directory`, which must exist, and puts the table that is there in force.
    pub(super) fn new(directory: &Path, routes: Arc<Routes>) -> anyhow::Result<Self> {
        let watch = FileWatch::new(directory, ROUTES_FILE)?;
        let mut reloader = Self { directory: directory.to_owned(), routes, watch, current: None, acknowledged: None };
        reloader.load();
        Ok(reloader)
    }

    /// Acknowledges the table in force, and every one that comes, and every replica that has drained. Ends with its owner.
    pub(super) async fn run(mut self) {
        loop {
            let changed = self.watch.changed();
            self.load();
            let acknowledged = self.acknowledge();
            if let Err(error) = &acknowledged {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the acknowledgement cannot be written; deployments will wait for it"
                );
            }
            tokio::select! {
                () = changed => {}
                () = self.routes.drained() => {}
                () = tokio::time::sleep(ACK_AGAIN), if acknowledged.is_err() => {}
            }
        }
    }

    /// Puts the table on disk in force if it is a new one. One that cannot be read changes nothing.
    fn load(&mut self) {
        match table::load(&self.directory) {
            Ok(Some(table)) if self.current.as_ref() != Some(&table) => {
                self.routes.apply(&table);
                tracing::debug!(generation = table.generation, "new routes are in force");
                self.current = Some(table);
            }
            Ok(Some(_)) => {}
            Ok(None) => tracing::debug!("there is no routes table; what is in force stays"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the routes in force stay"),
        }
    }

    /// Writes the acknowledgement if it says something new. Not synced: after a crash of the machine no router runs that it speaks of.
    fn acknowledge(&mut self) -> anyhow::Result<()> {
        let ack =
            Ack { generation: self.routes.generation(), draining: self.routes.draining(), pid: std::process::id() };
        if self.acknowledged.as_ref() == Some(&ack) {
            return Ok(());
        }
        let path = self.directory.join(ACK_FILE);
        let text = serde_json::to_vec(&ack)?;
        table::replace(&path, &text, false).with_context(|| format!("{} cannot be written", path.display()))?;
        self.acknowledged = Some(ack);
        Ok(())
    }
}
