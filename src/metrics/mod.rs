//! Metrics: what the environments are asked, use and run, each ten seconds, for 24 hours; and the platform as a whole, for Prometheus.
//!
//! A [`Sampler`] asks the router (`router::meter`), the engine (`Runtime::usage`) and the deployer, all three cheap, and puts a [`Point`] for
//! each environment into the [`History`], which packs them (`block`) and is kept over restarts (`file`). `rates` makes what happened in
//! an interval of counters that began somewhere else; `happenings` counts what the store tells of; `query` answers; `text` writes the platform's
//! metrics as Prometheus reads them.

mod block;
mod file;
mod happenings;
mod history;
mod point;
mod ports;
mod query;
mod rates;
mod sampler;
#[cfg(test)]
mod tests;
mod text;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

pub use self::{
    history::{History, HistoryLimits, Remembered},
    point::{INTERVAL, KEPT, Point, Replicas, Requests, Used},
    ports::Running,
    query::{MetricsQuery, MetricsView, Series, Step},
    sampler::{MetricsParts, Sampler},
    text::Platform,
};

use self::{block::Block, file::Files, happenings::Happenings};
use crate::domain::{EnvRef, Timestamp};

/// How metrics are kept; from the server's configuration.
#[derive(Debug, Clone)]
pub struct MetricsSettings {
    /// Environments and memory; on disk there may be twice as much.
    pub limits: HistoryLimits,
    /// `DATA/metrics`.
    pub directory: PathBuf,
    /// Environments that the platform's metrics name; the others are added up.
    pub named: usize,
}

impl MetricsSettings {
    /// The usual bounds.
    pub fn new(directory: PathBuf) -> Self {
        Self { limits: HistoryLimits { environments: 2000, memory: 128 << 20 }, directory, named: 2000 }
    }
}

struct Shared {
    settings: MetricsSettings,
    history: Mutex<History>,
    platform: RwLock<Arc<Platform>>,
    happenings: Mutex<Happenings>,
}

/// All metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

impl Metrics {
    /// Nothing yet, and nothing comes without a [`Sampler`].
    pub fn new(settings: MetricsSettings) -> Self {
        let history = Mutex::new(History::new(settings.limits));
        let (platform, happenings) = (RwLock::default(), Mutex::default());
        Self(Arc::new(Shared { settings, history, platform, happenings }))
    }

    /// Metrics and what measures them; nothing happens before [`Sampler::run`].
    pub fn start(parts: MetricsParts, settings: MetricsSettings) -> (Self, Sampler) {
        let metrics = Self::new(settings);
        (metrics.clone(), Sampler::new(metrics, parts))
    }

    /// An environment over time; one that nothing is known of has empty series.
    ///
    /// # Errors
    /// What is wrong with the query, for people.
    pub fn history(&self, env: &EnvRef, query: &MetricsQuery, now: Timestamp) -> Result<MetricsView, String> {
        let range = query.range(now)?;
        let last = range.to.saturating_sub(1);
        let remembered = self.lock().recall(env, range.from, last);
        Ok(query::view(env, range, &remembered.points(range.from, last)))
    }

    /// The platform as it was at the last sample, at most ten seconds ago, in Prometheus' text format 0.0.4
    /// (`text/plain; version=0.0.4; charset=utf-8`).
    pub fn platform_text(&self) -> String {
        let platform = self.0.platform.read().unwrap_or_else(PoisonError::into_inner).clone();
        text::render(&platform, self.0.settings.named)
    }

    /// Forgets an environment that was destroyed, on disk too.
    pub async fn forget(&self, env: &EnvRef) {
        self.happenings().died.remove(env);
        let known = {
            let mut history = self.lock();
            let known = history.environments().any(|known| known == env);
            history.forget(env);
            known
        };
        if known {
            let (metrics, entry) = (self.clone(), (env.clone(), None));
            sampler::in_background(move || metrics.append(sampler::tick_now(), &[entry])).await;
        }
    }

    /// Remembers a point of the interval `tick`.
    pub fn record(&self, env: &EnvRef, tick: u32, point: Point) {
        self.lock().record(env, tick, point);
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn happenings(&self) -> MutexGuard<'_, Happenings> {
        self.0.happenings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_platform(&self, platform: Platform) {
        *self.0.platform.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(platform);
    }

    fn files(&self) -> std::io::Result<Files> {
        let settings = &self.0.settings;
        Files::open(settings.directory.clone(), (settings.limits.memory as u64).saturating_mul(2))
    }

    /// Takes back what an earlier server wrote. Blocks.
    fn load(&self, tick: u32) {
        let take = |(env, block): file::Entry| match block {
            Some(block) => self.lock().restore(env, block),
            None => self.lock().forget(&env),
        };
        if let Err(error) = self.files().and_then(|files| files.load(tick, take)) {
            tracing::warn!(%error, "the metrics of before cannot be read; they begin anew");
        }
        self.lock().advance(tick);
    }

    /// Writes entries to disk. Blocks. What cannot be written is lost with this process.
    fn append(&self, tick: u32, entries: &[file::Entry]) {
        if let Err(error) = self.files().and_then(|files| files.append(tick, entries)) {
            tracing::warn!(%error, "metrics cannot be written; they are lost if the server ends");
        }
    }

    /// Writes blocks to disk. Blocks.
    fn write(&self, tick: u32, blocks: Vec<(EnvRef, Block)>) {
        let entries: Vec<file::Entry> = blocks.into_iter().map(|(env, block)| (env, Some(block))).collect();
        if !entries.is_empty() {
            self.append(tick, &entries);
        }
    }
}
