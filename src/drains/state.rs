//! How drains are, for whoever asks.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use crate::domain::{EnvRef, Timestamp};

/// What a drain is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DrainState {
    /// Nothing has been sent yet.
    Starting,
    /// The receiver takes what comes.
    Connected,
    /// It does not; tried again at `next`.
    Retrying { why: String, next: Timestamp },
}

/// How a drain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DrainStatus {
    #[serde(flatten)]
    pub state: DrainState,
    /// Since when it connects, or does not.
    pub since: Timestamp,
    /// Lines taken by the receiver, and those it will never get.
    pub sent: u64,
    pub dropped: u64,
    /// Lines that were ever written before the place it has come to.
    pub line: u64,
    /// Why lines were refused last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl DrainStatus {
    /// Nothing has been sent since the server was started.
    pub(super) fn starting() -> Self {
        let (state, since) = (DrainState::Starting, Timestamp::now());
        Self { state, since, sent: 0, dropped: 0, line: 0, refused: None }
    }

    pub(super) fn enter(&mut self, state: DrainState) {
        let goes_on = std::mem::discriminant(&self.state) == std::mem::discriminant(&state);
        if !goes_on {
            self.since = Timestamp::now();
        }
        self.state = state;
    }
}

type ByDrain = BTreeMap<(EnvRef, u64), DrainStatus>;

/// Of all drains that are under way.
#[derive(Debug, Default)]
pub(super) struct States(Mutex<ByDrain>);

impl States {
    fn lock(&self) -> MutexGuard<'_, ByDrain> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, env: &EnvRef, id: u64, change: impl FnOnce(&mut DrainStatus)) {
        change(self.lock().entry((env.clone(), id)).or_insert_with(DrainStatus::starting));
    }

    pub(super) fn forget(&self, env: &EnvRef, id: u64) {
        self.lock().remove(&(env.clone(), id));
    }

    pub(super) fn of(&self, env: &EnvRef) -> BTreeMap<u64, DrainStatus> {
        let range = (env.clone(), 0)..=(env.clone(), u64::MAX);
        self.lock().range(range).map(|((_, id), status)| (*id, status.clone())).collect()
    }
}
