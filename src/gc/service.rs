//! When a collection runs, and its steps in order.

use std::{sync::atomic::AtomicBool, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, interval_at},
};
use tokio_util::sync::CancellationToken;

use super::{Ask, GcError, GcParts, GcSettings, Report, Turn, Turns};
use crate::{
    domain::{EventKind, Timestamp},
    store::NewEvent,
};

/// How often free space is looked at: nothing tells when it gets low.
const LOOK: Duration = Duration::from_secs(15);
/// Between two early collections.
const EARLY: Duration = Duration::from_secs(300);
/// The first collection comes so long after the start, which is busy enough.
const FIRST: Duration = Duration::from_secs(60);

/// Does the collections.
pub struct GcService {
    pub(super) parts: GcParts,
    pub(super) settings: GcSettings,
    /// Whether the registry's collector has run since the start: a server that was killed may have left it work.
    pub(super) collected: AtomicBool,
    asks: mpsc::Receiver<Ask>,
    turns: Turns,
}

impl GcService {
    pub(super) fn new(parts: GcParts, settings: GcSettings, asks: mpsc::Receiver<Ask>, turns: Turns) -> Self {
        Self { parts, settings, collected: false.into(), asks, turns }
    }

    /// Works until `stop`, which ends a collection where it is: that is safe at any moment.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut regular = interval_at(Instant::now() + FIRST.min(self.settings.every), self.settings.every);
        let mut looks = interval(LOOK);
        regular.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut early: Option<Instant> = None;
        let mut low = false;
        loop {
            let (turn, dry_run, reply) = tokio::select! {
                () = stop.cancelled() => return,
                Some(ask) = self.asks.recv() => (ask._turn, ask.dry_run, Some(ask.reply)),
                _ = regular.tick() => match self.turns.take() {
                    Some(turn) => (turn, false, None),
                    None => continue,
                },
                _ = looks.tick() => {
                    self.tell_room(&mut low).await;
                    match self.when_low(&mut early) {
                        Some(turn) => (turn, false, None),
                        None => continue,
                    }
                }
                () = self.parts.disk.refused() => match self.when_low(&mut early) {
                    Some(turn) => (turn, false, None),
                    None => continue,
                },
            };
            let report = tokio::select! {
                () = stop.cancelled() => Err(GcError::Stopping),
                report = self.collect(dry_run) => report,
            };
            drop(turn);
            tell(&report);
            self.tell_end(&report).await;
            if let Some(reply) = reply {
                // Whoever asked may be gone.
                let _ = reply.send(report);
            }
        }
    }

    /// Records that space has become low, or is not any more.
    async fn tell_room(&self, low: &mut bool) {
        let is_low = self.parts.disk.is_low();
        if std::mem::replace(low, is_low) == is_low {
            return;
        }
        let (kind, message) = match is_low {
            true => {
                (EventKind::DiskLow, "disk space is low: what is not needed is collected, or pushes will be refused")
            }
            false => (EventKind::DiskOk, "there is enough disk space again"),
        };
        self.record(NewEvent::new(kind, Timestamp::now(), message)).await;
    }

    /// Records a collection that did something, or could not.
    async fn tell_end(&self, report: &Result<Report, GcError>) {
        let (kind, at) = (EventKind::CollectionFinished, Timestamp::now());
        let event = match report {
            Ok(report) if report.dry_run || report.count() == 0 && report.failures.is_empty() => return,
            Err(GcError::Stopping) => return,
            Ok(report) => {
                let (count, bytes) = (report.count(), report.bytes());
                NewEvent::new(
                    kind,
                    at,
                    format!("{count} things that are not needed any more were removed ({bytes} bytes)"),
                )
                .data("outcome", "finished")
                .data("count", count)
                .data("bytes", bytes)
                .data("millis", report.millis)
                .data("failures", report.failures.len())
            }
            Err(_) => {
                NewEvent::new(kind, at, "a collection ended early; the server's log says why").data("outcome", "failed")
            }
        };
        self.record(event).await;
    }

    async fn record(&self, event: NewEvent) {
        if let Err(error) = self.parts.store.record(event).await {
            tracing::warn!(%error, "an event could not be recorded");
        }
    }

    /// A turn for an early collection, when space is low and the last one is some time ago.
    fn when_low(&self, early: &mut Option<Instant>) -> Option<Turn> {
        if early.is_some_and(|last| last.elapsed() < EARLY) || !self.parts.disk.is_low() {
            return None;
        }
        let turn = self.turns.take()?;
        *early = Some(Instant::now());
        tracing::warn!(free = ?self.parts.disk.look(), "disk space is low: collecting early");
        Some(turn)
    }

    /// All steps. One that fails does not keep the others from being done, but for the first: what is in use must be known.
    pub(super) async fn collect(&self, dry_run: bool) -> Result<Report, GcError> {
        let began = Instant::now();
        let mut report = Report { dry_run, ..Report::default() };
        if !dry_run {
            // What the engine was still making when an earlier server was killed came after this one looked.
            if let Err(error) = self.parts.runtime.end_orphaned_jobs().await {
                report.fail("jobs of an earlier server", error);
            }
        }
        let plan = self.records(&mut report).await?;
        if let Err(error) = self.images(&plan, &mut report).await {
            report.fail("images", error);
        }
        self.caches(&mut report).await;
        self.files(&plan, &mut report).await;
        report.millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(report)
    }
}

fn tell(report: &Result<Report, GcError>) {
    match report {
        Ok(report) if report.dry_run || report.count() == 0 => {}
        Ok(report) => {
            let (count, bytes, millis) = (report.count(), report.bytes(), report.millis);
            tracing::info!(
                count,
                bytes,
                millis,
                failures = report.failures.len(),
                "collected what is not needed any more"
            );
        }
        Err(error) => tracing::warn!("a collection ended early: {error:#}"),
    }
}
