//! What earlier observations found out, so that observing again costs one call, and stopping or reading a replica none more than it must.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bollard::models::ContainerInspectResponse;

use crate::domain::{ReplicaId, ReplicaState, Timestamp};

/// What inspection told about a container in a state that it does not leave without another event. A container is never started
/// twice, so what is known of a running one stays true until it ends.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) state: ReplicaState,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    /// Its process while it runs, as the host numbers it.
    pub(super) pid: Option<i64>,
}

impl Known {
    /// Made and never started.
    pub(super) const CREATED: Self =
        Self { state: ReplicaState::Created, started_at: None, finished_at: None, pid: None };

    /// What an inspection says; `None` when it says nothing of the state.
    pub(super) fn of(found: ContainerInspectResponse) -> Option<Self> {
        let state = found.state?;
        // The engine writes year 1 for "never".
        let moment =
            |text: Option<String>| text.and_then(|text| text.parse::<Timestamp>().ok()).filter(|at| at.as_second() > 0);
        let started_at = moment(state.started_at);
        let runs = state.running == Some(true);
        let (code, out_of_memory) = (state.exit_code.unwrap_or(0), state.oom_killed == Some(true));
        Some(Self {
            state: match started_at {
                _ if runs => ReplicaState::Running,
                None if code == 0 => ReplicaState::Created,
                _ => ReplicaState::Exited { code, out_of_memory },
            },
            started_at,
            // The engine notes the start when its part in it is over; a short-lived process has ended before that.
            pid: state.pid.filter(|pid| runs && *pid > 0),
            finished_at: if runs { None } else { moment(state.finished_at).max(started_at) },
        })
    }
}

/// What is remembered, by the containers' ids.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    states: HashMap<String, Known>,
    /// Names of this Berth's replicas as last listed.
    names: HashMap<String, String>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in which replicas there are, and forgets the others. Pairs of id and name.
    pub(super) fn listed(&self, replicas: impl Iterator<Item = (String, String)>) {
        let mut memory = self.lock();
        memory.names = replicas.collect();
        let Remembered { states, names } = &mut *memory;
        states.retain(|id, _| names.contains_key(id));
    }

    pub(super) fn state(&self, id: &str) -> Option<Known> {
        self.lock().states.get(id).cloned()
    }

    pub(super) fn remember(&self, id: &str, known: &Known) {
        self.lock().states.insert(id.to_owned(), known.clone());
    }

    /// Whether it was there, and this Berth's, at the last look.
    pub(super) fn knows(&self, replica: &ReplicaId) -> bool {
        self.lock().names.contains_key(&replica.0)
    }

    /// The name of a replica of this Berth, for whoever is about to change it: it is not told twice.
    pub(super) fn take_name(&self, replica: &ReplicaId) -> Option<String> {
        self.lock().names.remove(&replica.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_once_and_what_is_gone_is_forgotten() {
        let memory = Memory::default();
        let listed = |ids: &[&str]| memory.listed(ids.iter().map(|id| ((*id).to_owned(), format!("name-{id}"))));
        let (a, b) = (ReplicaId("a".to_owned()), ReplicaId("b".to_owned()));
        listed(&["a", "b"]);
        memory.remember("a", &Known::CREATED);
        memory.remember("b", &Known::CREATED);
        assert_eq!(memory.take_name(&a).as_deref(), Some("name-a"));
        assert_eq!(memory.take_name(&a), None);
        assert!(memory.knows(&b) && memory.state("a").is_some());
        listed(&["b"]);
        assert!(memory.state("a").is_none() && memory.state("b").is_some() && !memory.knows(&a));
    }
}
