//! From a pushed commit to healthy replicas: a durable queue, and the pipeline that it feeds.
//!
//! [`Builds`] is the handle that callers clone; [`BuildService`] owns the work. A build reads the pushed tree from git, makes or reuses a
//! slug, puts it into the registry, makes a release and hands it to the deployer. All that a person sees of it goes to the build's log.
//!
//! Errors: [`EnqueueError`] is for callers; inside, `BuildError` tells what the author of the push can mend from what the operator must.

mod bridge;
mod buildpacks;
mod container;
mod definition;
mod delivery;
mod error;
mod inputs;
mod line;
mod listing;
mod output;
mod pipeline;
mod queue;
mod records;
mod reuse;
pub mod slug;
pub mod source;
mod stacks;
mod walk;
mod work;

#[cfg(test)]
mod testing;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

pub use buildpacks::{BuildpackError, Buildpacks, CustomBuildpacks};
pub use definition::{Description, check_push, definition};
pub use delivery::{BuildLogs, Delivery};
pub use output::{BuildOutput, Transcript, human_duration};
pub use pipeline::oversized;
pub use queue::{BuildService, Builds, BuildsUnderWay};
pub use records::{CompileRecord, CompileResult, LayerRecord, SlugRecord};
pub use stacks::{Stack, Stacks};

use crate::{
    disk::{DiskFloor, NoRoom},
    domain::{Build, EnvRef, Limits, OpenSpan, TenantName, UserName},
    git::Repositories,
    manifest,
    registry::{PublishGate, Registry},
    runtime::Runtime,
    store::{Store, StoreError},
    traces::Traces,
};

/// A push that was accepted and is to be built.
#[derive(Debug, Clone)]
pub struct NewBuild {
    pub env: EnvRef,
    /// 40 hexadecimal digits; its objects are in the environment's repository for good.
    pub commit: String,
    /// As in [`Build::branch`].
    pub branch: Option<String>,
    pub old_commit: Option<String>,
    pub pushed_by: UserName,
    pub no_cache: bool,
    pub detached: bool,
    /// Cancel the environment's build that is queued or running, if there is one.
    pub supersede: bool,
    /// It does not begin before [`Builds::let_begin`]: whether it may is still being checked.
    pub held: bool,
    /// Milliseconds that receiving took, stage by stage.
    pub timings: Vec<(String, u64)>,
    /// Its span, when its trace is recorded already; else one may be begun.
    pub trace: Option<OpenSpan>,
}

/// Why a build was not queued.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The environment has a build already.
    #[error("build #{} of {} is not finished", .0.number, .0.env)]
    Busy(Box<Build>),
    /// Too many builds wait.
    #[error("{limit} builds are waiting already; try again later")]
    Full { limit: usize },
    /// Too many builds of its tenant wait.
    #[error(
        "{limit} builds of {tenant} are waiting already, as many as one tenant may have; try again when some have ended"
    )]
    TenantFull { tenant: TenantName, limit: usize },
    /// There is too little room on disk.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How builds are done; from the server's configuration.
#[derive(Debug, Clone)]
pub struct BuildSettings {
    /// Builds at the same time over all environments.
    pub concurrency: usize,
    /// Builds that may wait, in all and of one tenant.
    pub queue_limit: usize,
    pub queue_limit_per_tenant: usize,
    /// How long source to image may take.
    pub time_limit: Duration,
    /// What one build container may use.
    pub limits: Limits,
    /// Largest slug, bytes of all its files.
    pub slug_limit: u64,
    /// `DATA/tmp`: where layers are spooled.
    pub scratch: PathBuf,
    /// `DATA/stacks`.
    pub stacks: PathBuf,
    /// A directory to take buildpacks from instead of those compiled in.
    pub buildpacks: Option<PathBuf>,
    pub custom_buildpacks: CustomBuildpacks,
    /// The most that one replica may have: thousandths of a core, and bytes.
    pub largest_process: (u32, u64),
    /// Certificates that builds trust; `None`: the stack's own.
    pub ca_bundle: Option<PathBuf>,
    /// Variables that every build sees.
    pub operator_env: BTreeMap<String, String>,
    /// What processes get that do not say.
    pub process_defaults: manifest::Defaults,
    /// Whether the output ends with the time of each stage.
    pub print_timings: bool,
    /// The free space without which no build begins.
    pub disk: DiskFloor,
    /// Keeps what builds publish and what a collection removes apart.
    pub publishing: PublishGate,
    /// Where it is told what took how long.
    pub traces: Traces,
}

impl BuildSettings {
    /// The defaults of `config/berth.yaml`, with everything below `data`.
    pub fn new(data: &std::path::Path) -> Self {
        Self {
            concurrency: 2,
            queue_limit: 100,
            queue_limit_per_tenant: 20,
            time_limit: Duration::from_secs(900),
            limits: Limits { cpu_millis: 2000, memory: 2 << 30, pids: 4096 },
            slug_limit: 500 << 20,
            scratch: data.join("tmp"),
            stacks: data.join("stacks"),
            buildpacks: None,
            custom_buildpacks: CustomBuildpacks {
                allow: Vec::new(),
                protocols: vec!["https".to_owned()],
                directory: data.join("buildpacks"),
                ca_bundle: None,
            },
            largest_process: (4000, 4 << 30),
            ca_bundle: None,
            operator_env: BTreeMap::new(),
            process_defaults: manifest::Defaults::default(),
            print_timings: std::env::var_os("BERTH_TIMINGS").is_some(),
            disk: DiskFloor::none(),
            publishing: PublishGate::default(),
            traces: Traces::off(),
        }
    }
}

/// What builds work with.
#[derive(Clone)]
pub struct BuildParts {
    pub store: Store,
    pub runtime: Arc<dyn Runtime>,
    pub registry: Arc<dyn Registry>,
    pub repositories: Repositories,
    /// The deployer.
    pub delivery: Arc<dyn Delivery>,
    /// The build logs.
    pub logs: Arc<dyn BuildLogs>,
}
