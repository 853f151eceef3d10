//! Replica sets as the deployer asks for them, replicas as the runtime sees them.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{EnvRef, ImageRef, ProcessType, ReleaseVersion, Timestamp};

/// Identity of a replica set: one process type of one release of one environment, restarted `restarts` times.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SetId {
    pub env: EnvRef,
    pub process: ProcessType,
    pub release: ReleaseVersion,
    /// The environment's restart count that this set was made for.
    pub restarts: u64,
}

/// The sets of an environment that are in a crash loop, for the next server: their delay goes on to grow where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashLoops {
    pub env: EnvRef,
    pub loops: Vec<CrashLoop>,
}

/// A set whose replicas die again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashLoop {
    pub set: SetId,
    /// In a row.
    pub failures: u32,
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} r{}", self.env, self.process, self.release, self.restarts)
    }
}

/// Resource limits of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes; swap is not added.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// What the runtime is asked to keep: `count` containers alike but for their index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSet {
    pub id: SetId,
    pub image: ImageRef,
    /// Run by the image's launcher.
    pub command: String,
    /// Environment variables, byte for byte. The runtime adds `BERTH_REPLICA` (the index, from 1) for each.
    pub environment: BTreeMap<String, String>,
    pub count: u32,
    pub limits: Limits,
    /// Time between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
}

/// The runtime's name for a replica (a container id); opaque.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub String);

/// Whether a replica runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ReplicaState {
    /// Made, not started (or starting).
    Created,
    Running,
    Exited {
        code: i64,
        out_of_memory: bool,
    },
}

/// One container, as observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub id: ReplicaId,
    pub set: SetId,
    /// From 1 to the set's count.
    pub index: u32,
    #[serde(flatten)]
    pub state: ReplicaState,
    /// Address within the tenant's network, reachable from the host; present while it runs.
    pub address: Option<IpAddr>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}
