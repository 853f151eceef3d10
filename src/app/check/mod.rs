//! Whether the records fit the repositories, the registry and the engine: what `berth doctor` asks a running server, and what `--repair`
//! mends.
//!
//! A repair never deletes what a record names, and looks at the record once more before it removes what no record names. What it
//! cannot mend it says, with the next step.
//!
//! The server goes on meanwhile: a record and what it names are never changed in the same moment, and a look may fall between them. What
//! does not fit is therefore told, and mended, only when it still does not fit a little later.

mod images;
mod repositories;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    commands::Commands,
    domain::{
        Build, CrashLoops, CronMark, CronRun, Deployment, DomainClaim, Drain, DrainMark, EnvRef, Environment, Release,
        Tombstone,
    },
    git::Repositories,
    logs::Logs,
    registry::Registry,
    runtime::Runtime,
    store::{Record, Store, Stored},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Between SIGTERM and SIGKILL for replicas that belong to nothing.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// After which what does not fit is looked at once more.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// How long the removal of a destroyed environment may take, its build's end and its replicas' grace included.
const DESTROYED_WITHIN: SignedDuration = SignedDuration::from_mins(15);

/// How often a repair looks again for what its mending has brought to light.
const ROUNDS: usize = 3;

/// Something that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Problem {
    /// What is wrong.
    pub(super) what: String,
    /// How a repair mends it (`delete them`); `None`: it cannot.
    pub(super) how: Option<String>,
    pub(super) state: MendState,
    /// What is left to the operator.
    pub(super) next: Option<String>,
}

/// What a repair has come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MendState {
    /// Nothing was tried.
    Found,
    Mended,
    /// Why mending it failed.
    Failed(String),
    /// It was mended, and is there again.
    Back,
}

impl Problem {
    /// For what only the operator can mend.
    fn new(what: String, next: impl Into<String>) -> Self {
        Self { what, how: None, state: MendState::Found, next: Some(next.into()) }
    }

    /// For what a repair mends by doing `how`.
    fn mendable(what: String, how: &str) -> Self {
        Self { what, how: Some(how.to_owned()), state: MendState::Found, next: None }
    }

    /// With what a repair leaves to do.
    fn then(self, next: &str) -> Self {
        Self { next: Some(next.to_owned()), ..self }
    }

    pub(super) fn is_mended(&self) -> bool {
        self.state == MendState::Mended
    }

    /// What came of mending it.
    fn tried(mut self, result: anyhow::Result<()>) -> Self {
        self.state = match result {
            Ok(()) => MendState::Mended,
            Err(error) => MendState::Failed(format!("{error:#}")),
        };
        self
    }
}

/// What a look may mend.
#[derive(Clone)]
struct Mending {
    now: Timestamp,
    repair: bool,
    /// What did not fit before, either.
    seen: BTreeSet<String>,
}

impl Mending {
    fn may(&self, problem: &Problem) -> bool {
        self.repair && problem.how.is_some() && self.seen.contains(&problem.what)
    }
}

/// What is compared.
pub(super) struct Check {
    pub(super) store: Store,
    pub(super) repositories: Repositories,
    pub(super) logs: Logs,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) registry: Arc<dyn Registry>,
    /// Knows how an environment is taken away.
    pub(super) remover: Arc<dyn Remover>,
}

/// Takes away what belongs to no environment.
#[async_trait]
pub(super) trait Remover: Send + Sync {
    /// Removes repository and logs of an environment that does not exist, and then its tombstone.
    async fn remove_leftovers(&self, env: &EnvRef) -> anyhow::Result<()>;
}

#[async_trait]
impl Remover for Commands {
    async fn remove_leftovers(&self, env: &EnvRef) -> anyhow::Result<()> {
        Ok(Commands::remove_leftovers(self, env).await?)
    }
}

/// All records about environments.
#[derive(Default)]
struct Records {
    environments: BTreeMap<EnvRef, Stored<Environment>>,
    releases: BTreeMap<EnvRef, Vec<Release>>,
    builds: BTreeMap<EnvRef, Vec<Build>>,
    tombstones: BTreeMap<EnvRef, Stored<Tombstone>>,
}

impl Records {
    /// Whether the environment is just being destroyed: what is left of it will go by itself.
    fn is_going(&self, env: &EnvRef, now: Timestamp) -> bool {
        self.tombstones.get(env).is_some_and(|stone| is_fresh(stone, now))
    }
}

/// Of a destruction that may still be under way. One from the future was written before the clock was set back.
fn is_fresh(stone: &Tombstone, now: Timestamp) -> bool {
    stone.destroyed_at.is_some_and(|at| at <= now && now.duration_since(at) < DESTROYED_WITHIN)
}

impl Check {
    /// Everything that does not fit, and still does not `LOOK_AGAIN` later; mends what may be mended, when asked to, and then looks again
    /// for what that has brought to light. What was mended comes first.
    pub(super) async fn run(&self, repair: bool, now: Timestamp) -> anyhow::Result<Vec<Problem>> {
        let began = Instant::now();
        let (mut mended, mut left) = (Vec::<Problem>::new(), Vec::new());
        for round in 0..=ROUNDS {
            // After the last round it is only told what is left.
            let found = self.look_twice(repair && round < ROUNDS, now + began.elapsed()).await?;
            let done;
            (done, left) = found.into_iter().partition::<Vec<_>, _>(Problem::is_mended);
            if done.is_empty() {
                break;
            }
            mended.extend(done);
        }
        for problem in &mut left {
            if mended.iter().any(|before| before.what == problem.what) {
                problem.state = MendState::Back;
            }
        }
        mended.retain(|problem| !left.iter().any(|again| again.what == problem.what));
        mended.append(&mut left);
        self.images(&mut mended, &self.records().await?, repair).await?;
        Ok(mended)
    }

    /// What does not fit twice in a row; mends it the second time, when asked to.
    async fn look_twice(&self, repair: bool, now: Timestamp) -> anyhow::Result<Vec<Problem>> {
        let problems = self.look(&Mending { now, repair: false, seen: BTreeSet::new() }).await?;
        if problems.is_empty() {
            return Ok(problems);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        let seen = problems.into_iter().map(|problem| problem.what).collect();
        let mending = Mending { now: now + LOOK_AGAIN, repair, seen };
        let mut problems = self.look(&mending).await?;
        problems.retain(|problem| mending.seen.contains(&problem.what));
        Ok(problems)
    }

    /// One look at everything but images; mends what `mending` lets it.
    async fn look(&self, mending: &Mending) -> anyhow::Result<Vec<Problem>> {
        // What is on disk before the records: what a new environment brings is then not taken for left over.
        let repositories = self.with_repositories(|repositories| Ok(repositories.environments()?)).await?;
        let logs = self.logs.environments().await?;
        let records = self.records().await?;
        let mut problems = self.orphaned_records(&records, mending).await?;
        let left: BTreeSet<EnvRef> = repositories.iter().chain(&logs).cloned().collect();
        self.leftovers(&mut problems, &records, repositories, logs, mending).await?;
        self.stale_tombstones(&mut problems, &records, &left, mending).await?;
        for env in records.environments.values() {
            problems.extend(self.repository(env, &records, mending).await);
        }
        self.replicas(&mut problems, &records, mending).await?;
        Ok(problems)
    }

    async fn with_repositories<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Repositories) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let repositories = self.repositories.clone();
        tokio::task::spawn_blocking(move || work(&repositories)).await?
    }

    async fn records(&self) -> anyhow::Result<Records> {
        let mut records = Records::default();
        for stored in self.store.list::<Release>("").await? {
            records.releases.entry(stored.env.clone()).or_default().push(stored.record);
        }
        for stored in self.store.list::<Build>("").await? {
            records.builds.entry(stored.env.clone()).or_default().push(stored.record);
        }
        // Last, for the same reason.
        for stored in self.store.list::<Environment>("").await? {
            records.environments.insert(stored.name.clone(), stored);
        }
        // And these after them: what goes meanwhile has left one.
        for stored in self.store.list::<Tombstone>("").await? {
            records.tombstones.insert(stored.env.clone(), stored);
        }
        Ok(records)
    }

    /// Records about environments that do not exist.
    async fn orphaned_records(&self, records: &Records, mending: &Mending) -> anyhow::Result<Vec<Problem>> {
        let mut problems = Vec::new();
        let known = |env: &EnvRef| records.environments.contains_key(env);
        self.orphans::<Release>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        self.orphans::<Build>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        self.orphans::<Deployment>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        self.orphans::<DomainClaim>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        self.orphans::<CronRun>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        self.orphans::<CrashLoops>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        self.orphans::<Drain>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        self.orphans::<DrainMark>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        self.orphans::<CronMark>(&mut problems, |record| (!known(&record.env)).then(|| record.env.clone()), mending)
            .await?;
        Ok(problems)
    }

    async fn orphans<R: Record>(
        &self,
        problems: &mut Vec<Problem>,
        orphan: impl Fn(&R) -> Option<EnvRef>,
        mending: &Mending,
    ) -> anyhow::Result<()> {
        let mut of_env: BTreeMap<EnvRef, Vec<Stored<R>>> = BTreeMap::new();
        for stored in self.store.list::<R>("").await? {
            if let Some(env) = orphan(&stored) {
                of_env.entry(env).or_default().push(stored);
            }
        }
        for (env, stored) in of_env {
            let what = format!("{} {} records of {env}, which does not exist", stored.len(), R::KIND);
            let mut problem = Problem::mendable(what, "delete them");
            if mending.may(&problem) {
                let mut transaction = self.store.transaction().expect_absent::<Environment>(&env);
                for record in &stored {
                    transaction = transaction.delete(record);
                }
                problem = problem.tried(transaction.commit().await.map(drop).map_err(Into::into));
            }
            problems.push(problem);
        }
        Ok(())
    }

    /// Repositories and logs of environments that do not exist: a server that died in the middle of destroying one.
    async fn leftovers(
        &self,
        problems: &mut Vec<Problem>,
        records: &Records,
        repositories: Vec<EnvRef>,
        logs: Vec<EnvRef>,
        mending: &Mending,
    ) -> anyhow::Result<()> {
        let (repositories, logs): (BTreeSet<EnvRef>, BTreeSet<EnvRef>) =
            (repositories.into_iter().collect(), logs.into_iter().collect());
        let belongs_to_nothing =
            |env: &&EnvRef| !records.environments.contains_key(*env) && !records.is_going(env, mending.now);
        for env in repositories.union(&logs).filter(belongs_to_nothing) {
            let which = match (repositories.contains(env), logs.contains(env)) {
                (true, true) => "repository and logs",
                (true, false) => "repository",
                _ => "logs",
            };
            let why = match records.tombstones.contains_key(env) {
                true => "which was destroyed and should be gone",
                false => "which does not exist",
            };
            let mut problem = Problem::mendable(format!("{which} of {env}, {why}"), "remove them");
            // Somebody may have made it since.
            if mending.may(&problem) && self.store.get::<Environment>(env).await?.is_none() {
                problem = problem.tried(self.remover.remove_leftovers(env).await);
            }
            problems.push(problem);
        }
        Ok(())
    }

    /// Tombstones that explain nothing: of what is gone, or of an environment that was made anew and has begun.
    async fn stale_tombstones(
        &self,
        problems: &mut Vec<Problem>,
        records: &Records,
        left: &BTreeSet<EnvRef>,
        mending: &Mending,
    ) -> anyhow::Result<()> {
        for (env, stone) in records.tombstones.iter().filter(|(_, stone)| !is_fresh(stone, mending.now)) {
            let why = match records.environments.get(env) {
                Some(new) if new.last_build > 0 => "which was made anew since",
                // It has not begun; the next start removes what is left.
                Some(_) => continue,
                None if left.contains(env) => continue,
                None => "of which nothing is left",
            };
            let mut problem = Problem::mendable(format!("a tombstone of {env}, {why}"), "delete it");
            if mending.may(&problem) {
                // Guarded: one of a later destruction stays.
                problem =
                    problem.tried(self.store.transaction().delete(stone).commit().await.map(drop).map_err(Into::into));
            }
            problems.push(problem);
        }
        Ok(())
    }

    /// Replicas that no record asks for.
    async fn replicas(&self, problems: &mut Vec<Problem>, records: &Records, mending: &Mending) -> anyhow::Result<()> {
        let mut sets = BTreeMap::new();
        let found = match self.runtime.observe().await {
            Ok(found) => found,
            Err(error) => {
                let what = "what runs cannot be compared with the records: the engine does not answer".to_owned();
                problems.push(Problem::new(what, format!("see that the engine answers, then look again ({error})")));
                return Ok(());
            }
        };
        for replica in found {
            if !records.environments.contains_key(&replica.set.env) && !records.is_going(&replica.set.env, mending.now)
            {
                *sets.entry(replica.set).or_insert(0_usize) += 1;
            }
        }
        for (set, count) in sets {
            if self.store.get::<Environment>(&set.env).await?.is_some() {
                continue;
            }
            let mut problem =
                Problem::mendable(format!("{count} replicas of {set}, which does not exist"), "remove them");
            if mending.may(&problem) {
                problem = problem.tried(self.runtime.remove(&set, STOP_GRACE).await.map_err(Into::into));
            }
            problems.push(problem);
        }
        Ok(())
    }
}
