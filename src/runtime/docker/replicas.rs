//! Keeping replica sets: what is there, what is missing, starting and stopping.

use std::{collections::HashMap, time::Duration};

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum as Status, ContainerSummary, ContainerSummaryStateEnum as State,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    Inner,
    engine::{Created, left_in_the_middle, no_such_network},
    memory::Known,
    names,
    stops::Stop,
};
use crate::domain::{FailPoint, Replica, ReplicaId, ReplicaSet, ReplicaState, SetId, fail_point::reached};
use crate::runtime::RuntimeError;

/// Containers being started at once for each core of the host: a start waits for the disk and for other processes for most of its time.
const STARTS_PER_CORE: usize = 4;
/// Containers being started at once at the least and at the most.
const STARTS_AT_ONCE: (usize, usize) = (8, 32);
/// Inspections under way at once.
const INSPECTIONS_AT_ONCE: usize = 8;
/// Tries to get one replica started: each conflict means that something of the same name was just made or removed.
const START_TRIES: u32 = 4;

/// One container of a set as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    id: String,
    name: String,
    index: u32,
    state: State,
    spec: String,
}

impl Seen {
    fn of(container: &ContainerSummary) -> Option<Self> {
        let labels = container.labels.as_ref()?;
        let (_, index) = names::replica_identity(labels)?;
        Some(Self {
            id: container.id.clone()?,
            name: container.names.as_ref()?.first()?.trim_start_matches('/').to_owned(),
            index,
            state: container.state.unwrap_or(State::EMPTY),
            spec: labels.get(names::SPEC).cloned().unwrap_or_default(),
        })
    }

    fn runs(&self) -> bool {
        matches!(self.state, State::RUNNING | State::PAUSED | State::RESTARTING)
    }

    fn is_retired(&self) -> bool {
        names::is_retired(&self.name)
    }
}

/// What is to be done so that an index runs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Create,
    /// Made and never started: a start that was cut short.
    Start(String),
    /// Remove this one, then make a new one.
    Replace(String),
}

/// What is to be done for a set.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    start: Vec<(u32, Step)>,
    /// To be stopped and removed: (id, name).
    retire: Vec<(String, String)>,
    /// Retired already, but perhaps by a process that did not live to stop them.
    retired: Vec<String>,
}

/// What makes `count` replicas with this spec out of what is there. Pure.
fn plan(seen: &[Seen], count: u32, spec: &str) -> Plan {
    let mut plan = Plan::default();
    let mut covered: HashMap<u32, &Seen> = HashMap::new();
    for one in seen {
        if one.is_retired() {
            plan.retired.push(one.id.clone());
        } else if one.index == 0 || one.index > count {
            plan.retire.push((one.id.clone(), one.name.clone()));
        } else if covered.get(&one.index).is_none_or(|other| !other.runs()) {
            covered.insert(one.index, one);
        }
    }
    for index in 1..=count {
        let step = match covered.get(&index) {
            Some(one) if one.runs() => continue,
            Some(one) if one.state == State::CREATED && one.spec == spec => Step::Start(one.id.clone()),
            Some(one) => Step::Replace(one.id.clone()),
            None => Step::Create,
        };
        plan.start.push((index, step));
    }
    plan
}

impl Inner {
    /// See [`crate::runtime::Runtime::apply`].
    pub(super) async fn apply(&self, set: &ReplicaSet) -> Result<(), RuntimeError> {
        let _turn = self.sets.lock(set.id.clone()).await;
        let listed = self.engine.list(self.engine.recipe.names.set_filter(&set.id)).await?;
        let seen: Vec<Seen> = listed.iter().filter_map(Seen::of).collect();
        let plan = plan(&seen, set.count, &names::spec_hash(set));
        for (id, name) in &plan.retire {
            self.retire(id, name, set.stop_grace).await?;
        }
        for id in &plan.retired {
            self.stops.begin(&self.engine, id, set.stop_grace);
        }
        if !plan.start.is_empty() && !self.networks.is_ready(&set.id.env.tenant) {
            self.prepare_tenant(&set.id.env.tenant).await?;
        }
        let starts = plan.start.into_iter().map(|(index, step)| self.start_index(set, index, step));
        let results: Vec<_> = stream::iter(starts).buffer_unordered(self.starts_at_once()).collect().await;
        // One that fails does not keep the others from being started.
        results.into_iter().collect()
    }

    fn starts_at_once(&self) -> usize {
        let cores = usize::try_from(self.engine.recipe.cores).unwrap_or(1);
        cores.saturating_mul(STARTS_PER_CORE).clamp(STARTS_AT_ONCE.0, STARTS_AT_ONCE.1)
    }

    async fn start_index(&self, set: &ReplicaSet, index: u32, mut step: Step) -> Result<(), RuntimeError> {
        let mut failure = None;
        for _ in 0..START_TRIES {
            let id = match &step {
                Step::Start(id) => id.clone(),
                Step::Create | Step::Replace(_) => {
                    if let Step::Replace(old) = &step {
                        self.engine.remove(old).await?;
                    }
                    let name = self.engine.recipe.names.replica(&set.id, index);
                    let body = self.engine.recipe.replica(set, index);
                    match self.engine.create(&name, &set.image, body).await? {
                        Created::New(id) => id,
                        Created::Exists => match self.resolve_conflict(&name, &names::spec_hash(set)).await? {
                            None => return Ok(()),
                            Some(next) => {
                                step = next;
                                continue;
                            }
                        },
                    }
                }
            };
            reached(FailPoint::Start);
            match self.engine.start(&id).await {
                Ok(()) => {
                    reached(FailPoint::Start);
                    return Ok(());
                }
                Err(error) => {
                    // The network may have been removed by hand; what was made for it is of no use either.
                    if no_such_network(&error) {
                        self.networks.doubt(&set.id.env.tenant);
                        self.prepare_tenant(&set.id.env.tenant).await?;
                    } else if !matches!(error, RuntimeError::Gone(_)) && !left_in_the_middle(&error) {
                        return Err(error);
                    }
                    failure = Some(error);
                    step = Step::Replace(id);
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            RuntimeError::Refused(format!(
                "replica {index} of {}: its name is always taken; look at `docker ps -a`",
                set.id
            ))
        }))
    }

    /// What to do about a container that has the name already, though it was not there when the set was listed: another process has just
    /// made it. `None` when there is nothing to do.
    async fn resolve_conflict(&self, name: &str, spec: &str) -> Result<Option<Step>, RuntimeError> {
        let Some(found) = self.engine.inspect(name).await? else { return Ok(Some(Step::Create)) };
        let (Some(id), Some(state)) = (found.id, found.state) else { return Ok(Some(Step::Create)) };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let same = labels.get(names::SPEC).is_some_and(|other| other == spec);
        Ok(match state.status {
            // Starting what another process starts too is no conflict; removing it would be.
            Some(Status::CREATED) if same => Some(Step::Start(id)),
            Some(Status::CREATED | Status::REMOVING | Status::DEAD) => Some(Step::Replace(id)),
            // It runs, or it did and failed: then when to try again is the deployer's decision.
            _ => None,
        })
    }

    /// See [`crate::runtime::Runtime::observe`].
    pub(super) async fn observe(&self) -> Result<Vec<Replica>, RuntimeError> {
        let listed = self.engine.list(self.engine.recipe.names.role_filter(names::ROLE_REPLICA)).await?;
        self.memory.listed(listed.iter().filter_map(Seen::of).map(|seen| (seen.id, seen.name)));
        let looks = listed.into_iter().map(|container| self.observe_one(container));
        let replicas: Vec<Option<Replica>> = stream::iter(looks).buffered(INSPECTIONS_AT_ONCE).try_collect().await?;
        Ok(replicas.into_iter().flatten().collect())
    }

    async fn observe_one(&self, container: ContainerSummary) -> Result<Option<Replica>, RuntimeError> {
        let Some(seen) = Seen::of(&container) else { return Ok(None) };
        if seen.is_retired() {
            // By an earlier process that did not live to see it stopped; or by this one, which is just about to begin that.
            self.stops.adopt(&self.engine, &seen.id);
            return Ok(None);
        }
        let identity = container.labels.as_ref().and_then(names::replica_identity);
        let Some((set, index)) = identity else { return Ok(None) };
        let known = match seen.state {
            State::REMOVING | State::DEAD => return Ok(None),
            State::CREATED => Known::CREATED,
            _ => match self.know(&seen).await? {
                Some(known) => known,
                None => return Ok(None),
            },
        };
        let address = match known.state {
            ReplicaState::Running => address(&container),
            _ => None,
        };
        let Known { state, started_at, finished_at, .. } = known;
        Ok(Some(Replica { id: ReplicaId(seen.id), set, index, state, address, started_at, finished_at }))
    }

    /// From memory, or by inspection; `None` when it is gone.
    async fn know(&self, seen: &Seen) -> Result<Option<Known>, RuntimeError> {
        let remembered = self.memory.state(&seen.id);
        if let Some(known) = remembered
            && matches!(known.state, ReplicaState::Running) == seen.runs()
        {
            return Ok(Some(known));
        }
        let Some(found) = self.engine.inspect(&seen.id).await? else { return Ok(None) };
        let is_free = self.let_go_of_left(&seen.id, &found).await;
        let Some(known) = Known::of(found) else { return Ok(None) };
        if known.state != ReplicaState::Created && is_free {
            self.memory.remember(&seen.id, &known);
        }
        Ok(Some(known))
    }

    /// See [`crate::runtime::Runtime::remove`].
    pub(super) async fn remove_set(&self, set: &SetId, grace: Duration) -> Result<(), RuntimeError> {
        let mut stops = Vec::new();
        {
            let _turn = self.sets.lock(set.clone()).await;
            let listed = self.engine.list(self.engine.recipe.names.set_filter(set)).await?;
            for one in listed.iter().filter_map(Seen::of) {
                stops.push(self.retire(&one.id, &one.name, grace).await?);
            }
        }
        for stop in stops {
            stop.finished().await?;
        }
        Ok(())
    }

    /// Begins to stop a replica. Its new name says so to every process, whether or not this one lives to see it stopped.
    async fn retire(&self, id: &str, name: &str, grace: Duration) -> Result<Stop, RuntimeError> {
        if !names::is_retired(name) {
            self.engine.rename(id, &names::retired_name(name, id)).await?;
        }
        reached(FailPoint::Retire);
        Ok(self.stops.begin(&self.engine, id, grace))
    }

    /// See [`crate::runtime::Runtime::stop_replica`].
    pub(super) async fn stop_replica(&self, replica: &ReplicaId, grace: Duration) -> Result<(), RuntimeError> {
        // What was listed by this Berth's own label need not be looked at again; but once its name changes, it must.
        let name = self.memory.take_name(replica);
        let name = match name {
            Some(name) => name,
            None => match self.own_replica(replica).await? {
                Some(found) => found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
                None => return Ok(()),
            },
        };
        self.retire(&replica.0, &name, grace).await?.finished().await
    }

    /// The container, if there is one and it is a replica of this Berth: an id alone is no right to touch it.
    pub(super) async fn own_replica(
        &self,
        replica: &ReplicaId,
    ) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        let found = self.engine.inspect(&replica.0).await?;
        let ours = &self.engine.recipe.settings.instance;
        Ok(found.filter(|found| {
            let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
            labels.is_some_and(|labels| labels.get(names::INSTANCE) == Some(ours))
        }))
    }
}

fn address(container: &ContainerSummary) -> Option<std::net::IpAddr> {
    let networks = container.network_settings.as_ref()?.networks.as_ref()?;
    networks.values().find_map(|endpoint| endpoint.ip_address.as_ref()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: &str, index: u32, state: State, spec: &str) -> Seen {
        Seen { id: id.to_owned(), name: format!("x.{index}"), index, state, spec: spec.to_owned() }
    }

    #[test]
    fn plans() {
        let retired = Seen { name: "x.2.gone-abc".to_owned(), ..seen("old", 2, State::RUNNING, "s") };
        let world = [
            seen("a", 1, State::RUNNING, "s"),
            retired,
            seen("c", 3, State::CREATED, "s"),
            seen("d", 4, State::CREATED, "other"),
            seen("e", 5, State::EXITED, "s"),
            seen("f", 6, State::REMOVING, "s"),
            seen("g", 7, State::DEAD, "s"),
            seen("h", 8, State::PAUSED, "s"),
            seen("i", 9, State::RUNNING, "other"),
        ];
        let text = |value: &str| value.to_owned();
        let made = plan(&world, 10, "s");
        let want = vec![
            (2, Step::Create),
            (3, Step::Start(text("c"))),
            (4, Step::Replace(text("d"))),
            (5, Step::Replace(text("e"))),
            (6, Step::Replace(text("f"))),
            (7, Step::Replace(text("g"))),
            (10, Step::Create),
        ];
        assert_eq!(made, Plan { start: want, retire: vec![], retired: vec![text("old")] });
        let made = plan(&world, 0, "s");
        assert!(made.start.is_empty());
        assert_eq!((made.retire.len(), made.retired.len()), (8, 1));
        assert_eq!(plan(&[], 2, "s").start, [(1, Step::Create), (2, Step::Create)]);
        assert_eq!(plan(&world[..1], 1, "s"), Plan::default());
    }
}
