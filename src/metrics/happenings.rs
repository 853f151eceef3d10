//! What happens on the platform, counted as the store tells of it: events by kind, ends of builds and deployments, deaths of replicas.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Duration,
};

use futures::StreamExt;

use super::Metrics;
use crate::{
    domain::{Build, BuildState, Deployment, DeploymentState, EnvName, EnvRef, Event, EventKind, Timestamp},
    store::{Store, StoreError},
};

/// Pause before the store is watched anew.
const AGAIN: Duration = Duration::from_secs(1);
/// Ends that are remembered, so that a record which is written again counts once.
const ENDS: usize = 4096;
/// A record that ended longer ago was written again for another reason.
const LATELY: Duration = Duration::from_secs(600);

/// Counts since the server began.
#[derive(Debug, Clone, Default)]
pub(super) struct Happenings {
    /// By the kinds' dotted names.
    pub(super) events: BTreeMap<String, u64>,
    pub(super) builds: BTreeMap<&'static str, u64>,
    pub(super) deployments: BTreeMap<&'static str, u64>,
    /// Replicas that died since the last interval that was recorded of their environment.
    pub(super) died: HashMap<EnvRef, u32>,
    ends: HashSet<String>,
    order: VecDeque<String>,
}

impl Happenings {
    fn event(&mut self, event: &Event) {
        let kind = serde_json::to_value(event.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
        *self.events.entry(kind.unwrap_or_default()).or_default() += 1;
        if event.kind == EventKind::ReplicaDied
            && let (Some(tenant), Some(app), Some(env)) = (&event.tenant, &event.app, &event.env)
        {
            let (tenant, app, env): (_, _, EnvName) = (tenant.clone(), app.clone(), env.clone());
            *self.died.entry(EnvRef { tenant, app, env }).or_default() += 1;
        }
    }

    /// Whether an end is a new one.
    fn is_new(&mut self, key: String, finished_at: Option<Timestamp>, now: Timestamp) -> bool {
        if finished_at.is_some_and(|at| at + LATELY < now) || !self.ends.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > ENDS
            && let Some(oldest) = self.order.pop_front()
        {
            self.ends.remove(&oldest);
        }
        true
    }

    pub(super) fn build(&mut self, key: &str, build: &Build, now: Timestamp) {
        let result = match build.state {
            BuildState::Queued | BuildState::Running { .. } => return,
            BuildState::Succeeded => "succeeded",
            BuildState::Failed { .. } => "failed",
            BuildState::Cancelled { .. } => "cancelled",
        };
        if self.is_new(format!("build {key}"), build.finished_at, now) {
            *self.builds.entry(result).or_default() += 1;
        }
    }

    fn deployment(&mut self, key: &str, deployment: &Deployment, now: Timestamp) {
        let result = match deployment.state {
            DeploymentState::Running => return,
            DeploymentState::Succeeded => "succeeded",
            DeploymentState::Failed { .. } => "failed",
            DeploymentState::Cancelled { .. } => "cancelled",
            DeploymentState::Superseded { .. } => "superseded",
        };
        if self.is_new(format!("deployment {key}"), deployment.finished_at, now) {
            *self.deployments.entry(result).or_default() += 1;
        }
    }
}

/// Counts until it is dropped. What happens while the store cannot be watched is not counted.
pub(super) async fn count(store: Store, metrics: Metrics) {
    loop {
        if let Err(error) = watch(&store, &metrics).await {
            tracing::debug!(%error, "the store cannot be watched for metrics; trying again");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Until changes were lost.
async fn watch(store: &Store, metrics: &Metrics) -> Result<(), StoreError> {
    let from = store.revision().await?;
    let mut events = store.watch::<Event>("", from).await?;
    let mut builds = store.watch::<Build>("", from).await?;
    let mut deployments = store.watch::<Deployment>("", from).await?;
    loop {
        tokio::select! {
            change = events.next() => match change {
                Some(Ok((_, event))) => event.iter().for_each(|event| metrics.happenings().event(event)),
                Some(Err(_)) | None => return Ok(()),
            },
            change = builds.next() => match change {
                Some(Ok((key, build))) => {
                    build.iter().for_each(|build| metrics.happenings().build(&key, build, Timestamp::now()));
                }
                Some(Err(_)) | None => return Ok(()),
            },
            change = deployments.next() => match change {
                Some(Ok((key, deployment))) => {
                    deployment.iter().for_each(|one| metrics.happenings().deployment(&key, one, Timestamp::now()));
                }
                Some(Err(_)) | None => return Ok(()),
            },
        }
    }
}
