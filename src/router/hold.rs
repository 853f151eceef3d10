//! Requests for an app whose last replica has just gone. Its replacement is being started, so they wait for it, for as long as connecting to
//! a replica may take, instead of being refused. One that has been gone for longer is nothing to wait for.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout_at;

use super::live::{LiveRoute, Routes};
use crate::{domain::EnvRef, places::Places};

/// Requests that may wait at a time.
const WAITING: usize = 1024;
/// Of these, requests of one environment; more are refused at once.
const WAITING_OF_ONE: usize = 256;

/// The requests that wait.
#[derive(Debug)]
pub(super) struct Holds(Places<EnvRef>);

impl Default for Holds {
    fn default() -> Self {
        Self(Places::new(WAITING, WAITING_OF_ONE))
    }
}

impl Routes {
    /// The route once it has a replica, at once if it has; `None` when it has had none for `limit`, or too many wait for one already.
    pub(super) async fn with_replica(&self, route: &LiveRoute, limit: Duration) -> Option<Arc<LiveRoute>> {
        let mut place = None;
        loop {
            // Before the look, so that no table is missed.
            let changed = self.changed();
            let current = self.current(&route.env)?;
            if current.has_replicas() {
                return Some(current);
            }
            let until = current.empty_since? + limit;
            if place.is_none() {
                place = Some(self.holds.0.try_take(&route.env).ok()?);
            }
            timeout_at(until, changed).await.ok()?;
        }
    }
}
