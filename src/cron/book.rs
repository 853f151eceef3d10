//! The records: how far each schedule has been dealt with, and what became of the runs.

use super::CronSettings;
use crate::{
    domain::{CronJob, CronMark, CronRun, CronState, EnvRef, Environment, JobName, Timestamp},
    store::{Record, Store, StoreError, Stored},
};

/// Records deleted in one commit.
const BATCH: usize = 100;
/// Why a run has failed that was under way when the server died.
const RESTARTED: &str = "the server was restarted while it ran";

pub(super) struct Book<'a> {
    pub(super) store: &'a Store,
    pub(super) settings: &'a CronSettings,
}

impl Book<'_> {
    /// The marks of the jobs of an environment as they are in its release, begun anew where the schedule is another one than before. What is
    /// recorded of jobs that the release does not have any more goes, unless `busy` says that one of them runs.
    pub(super) async fn marks(
        &self,
        env: &Environment,
        jobs: &[(JobName, CronJob)],
        now: Timestamp,
        busy: impl Fn(&JobName) -> bool,
    ) -> Result<Vec<CronMark>, StoreError> {
        let mut known = self.store.list::<CronMark>(&format!("{}/", env.name)).await?;
        if known.iter().any(|mark| mark.env_created_at != env.created_at) {
            self.forget(&env.name).await?;
            known.clear();
        }
        for gone in known.iter().filter(|mark| jobs.iter().all(|(name, _)| *name != mark.job) && !busy(&mark.job)) {
            self.delete_all::<CronRun>(&format!("{}/{}/", env.name, gone.job)).await?;
            self.store.transaction().delete(gone).commit().await?;
        }
        let mut marks = Vec::with_capacity(jobs.len());
        let mut transaction = self.store.transaction();
        let mut changed = false;
        for (name, job) in jobs {
            let old = known.iter().find(|mark| mark.job == *name);
            if let Some(old) = old.filter(|old| old.schedule == job.schedule && old.timezone == job.timezone) {
                marks.push(old.record.clone());
                continue;
            }
            let mark = CronMark {
                env: env.name.clone(),
                job: name.clone(),
                considered: now,
                schedule: job.schedule.clone(),
                timezone: job.timezone.clone(),
                last_number: old.map_or(0, |old| old.last_number),
                env_created_at: env.created_at,
            };
            transaction = transaction.put(&mark);
            marks.push(mark);
            changed = true;
        }
        if changed {
            transaction.commit().await?;
        }
        Ok(marks)
    }

    /// Writes down that a moment is dealt with, and the run that it led to, if the environment is still as it was read. Drops the run that
    /// is now too old.
    pub(super) async fn enter(
        &self,
        env: &Stored<Environment>,
        mark: &CronMark,
        run: &CronRun,
    ) -> Result<(), StoreError> {
        let mut transaction = self.store.transaction().expect(env).put(mark).put(run);
        if let Some(old) = run.number.checked_sub(self.settings.history).filter(|number| *number > 0) {
            let id = (run.env.clone(), run.job.clone(), old);
            // One that still runs goes when it ends.
            if let Some(old) = self.store.get::<CronRun>(&id).await?.filter(|old| !old.state.is_running()) {
                transaction = transaction.delete(&old);
            }
        }
        transaction.commit().await.map(drop)
    }

    /// Writes a mark alone.
    pub(super) async fn mark(&self, env: &Stored<Environment>, mark: &CronMark) -> Result<(), StoreError> {
        self.store.transaction().expect(env).put(mark).commit().await.map(drop)
    }

    /// Writes down how a run ended; nothing when its record is gone.
    pub(super) async fn close(&self, run: &CronRun, newest: u64) -> Result<(), StoreError> {
        let id = (run.env.clone(), run.job.clone(), run.number);
        let Some(stored) = self.store.get::<CronRun>(&id).await? else { return Ok(()) };
        let transaction = self.store.transaction();
        let transaction = match run.number + self.settings.history <= newest {
            true => transaction.delete(&stored),
            false => transaction.update(&stored, run),
        };
        match transaction.commit().await {
            // The environment was destroyed in between.
            Ok(_) | Err(StoreError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A run's record.
    pub(super) async fn run(&self, env: &EnvRef, job: &JobName, number: u64) -> Result<Option<CronRun>, StoreError> {
        let id = (env.clone(), job.clone(), number);
        Ok(self.store.get::<CronRun>(&id).await?.map(|stored| stored.record))
    }

    /// Ends the runs that a server left under way which was killed: their containers have been ended.
    pub(super) async fn end_orphans(&self, now: Timestamp) -> Result<usize, StoreError> {
        let mut ended = 0;
        for stored in self.store.list::<CronRun>("").await?.iter().filter(|run| run.state.is_running()) {
            let mut run = stored.record.clone();
            run.state = CronState::Failed { reason: RESTARTED.to_owned(), exit: None };
            run.finished_at = Some(now);
            self.store.transaction().update(stored, &run).commit().await?;
            ended += 1;
        }
        Ok(ended)
    }

    /// Removes all that is recorded of an environment's jobs.
    pub(super) async fn forget(&self, env: &EnvRef) -> Result<(), StoreError> {
        self.delete_all::<CronRun>(&format!("{env}/")).await?;
        self.delete_all::<CronMark>(&format!("{env}/")).await
    }

    async fn delete_all<R: Record>(&self, prefix: &str) -> Result<(), StoreError> {
        for batch in self.store.list::<R>(prefix).await?.chunks(BATCH) {
            let transaction = batch.iter().fold(self.store.transaction(), |all, one| all.delete(one));
            match transaction.commit().await {
                // Whoever destroyed the environment was faster.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
