//! A push from first byte to accepted ref: policy, pin the commit, stream the outcome.
//!
//! git's `receive-pack` takes the pack into quarantine and runs our `pre-receive` hook, which asks [`Receive::pre_receive`] through the
//! control socket. There the push is judged, its objects are made permanent, a build is queued, and the build's output is relayed;
//! git moves the branch when the build has succeeded. Once queued, a push no longer needs its client, its `receive-pack` or this
//! process: `settle` moves the branch when nobody else does.

mod accept;
mod ended;
mod judge;
mod policy;
mod settle;
mod tell;
mod traced;
mod turn;
mod upload;
mod waiting;
mod wire;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    disk::{DiskFloor, NoRoom},
    domain::{AppRef, Build, BuildNumber, EnvRef, OpenSpan, QueuePlace, TenantName, UserName},
    events::EventSink,
    git::{Git, Repositories, Used, idle::Idle},
    places::{Place, Places},
    store::{Store, StoreError},
    traces::Traces,
};

pub use policy::{MAX_UPDATES, PushOptions, Refusal, RefusalKind, Update};
pub use upload::NewSource;

/// The hook that is installed to `DATA/hooks` at start.
pub const PRE_RECEIVE: &str = include_str!("../../hooks/pre-receive");

/// A build to be made of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPush {
    pub env: EnvRef,
    pub commit: String,
    /// The branch that moves with it, as in `refs/heads/main`; `None`: it came without git.
    pub branch: Option<String>,
    /// Where that branch was.
    pub old_commit: Option<String>,
    pub pushed_by: UserName,
    pub options: PushOptions,
    /// Milliseconds spent so far, stage by stage.
    pub timings: Vec<(String, u64)>,
    /// Its span, when its trace is recorded.
    pub trace: Option<OpenSpan>,
}

/// Why a push was not queued.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("build {} is running", .0.number)]
    Busy(Box<Build>),
    #[error("{limit} builds are waiting")]
    Full { limit: usize },
    #[error("{limit} builds of {tenant} are waiting")]
    TenantFull { tenant: TenantName, limit: usize },
    #[error(transparent)]
    NoRoom(NoRoom),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a pushed tree says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    pub has_manifest: bool,
    /// `app:` of the manifest.
    pub app: Option<AppRef>,
    /// `auth:` of the manifest.
    pub auth: Option<String>,
}

/// A pushed commit that is still in quarantine.
#[derive(Debug, Clone)]
pub struct PushedTree {
    pub env: EnvRef,
    pub repository: PathBuf,
    /// The quarantine's object directory.
    pub objects: Option<PathBuf>,
    pub commit: String,
    /// The commit that the branch points at now, which was checked before.
    pub known_good: Option<String>,
}

/// What receiving needs of what builds, logs and knows manifests.
#[async_trait]
pub trait Pipeline: Send + Sync + 'static {
    /// Reads and checks what the tree says of itself; the error is what is wrong, rendered for the pusher.
    async fn describe(&self, tree: PushedTree) -> Result<Description, String>;
    /// The app that a project token was made for; the error says why it does not count.
    fn token_app(&self, token: &str) -> Result<AppRef, String>;
    /// A manifest to add, with the app's token.
    fn manifest_template(&self, app: &AppRef) -> String;
    /// The build that is queued or running.
    async fn active(&self, env: &EnvRef) -> Result<Option<Build>, StoreError>;
    /// Queues a build, durably. It does not begin before [`Self::let_begin`], and can be cancelled until then.
    async fn enqueue(&self, push: NewPush) -> Result<Build, QueueError>;
    /// Lets a queued build begin once it has its turn, durably. `false`: it has ended already.
    async fn let_begin(&self, env: &EnvRef, number: BuildNumber) -> Result<bool, StoreError>;
    /// Cancels a build that is not final, and returns when it has ended.
    async fn cancel(&self, env: &EnvRef, number: BuildNumber, reason: &str) -> Result<(), StoreError>;
    /// Where a queued build stands, and follows it; nothing once it runs. `None`: it has ended.
    fn place(&self, env: &EnvRef, number: BuildNumber) -> Option<watch::Receiver<Option<QueuePlace>>>;
    /// The build's output, from its beginning to its end.
    async fn follow(&self, env: &EnvRef, number: BuildNumber) -> BoxStream<'static, Bytes>;
    /// The build once it is final.
    async fn wait(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, StoreError>;
}

/// Settings of receiving.
#[derive(Debug, Clone)]
pub struct ReceiveSettings {
    /// Our own binary, for the hook.
    pub berth: PathBuf,
    /// The control socket, for the hook.
    pub control_socket: PathBuf,
    /// git processes that may serve clients at once, in all and of one user; further clients wait. A push whose build is waited for
    /// is not counted: the queue bounds how many there are.
    pub sessions: usize,
    pub sessions_per_user: usize,
    /// How long a client waits for a free one.
    pub patience: Duration,
    /// A session in which nothing is sent or received for so long is ended.
    pub idle: Duration,
    /// Whether a tree must have a manifest.
    pub require_manifest: bool,
    /// The free space without which no push is taken.
    pub disk: DiskFloor,
    /// Where it is told what took how long.
    pub traces: Traces,
}

/// What the hook asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRequest {
    /// Which push it is: `BERTH_PUSH` as given to `receive-pack`.
    pub token: String,
    /// `GIT_QUARANTINE_PATH`; absent when the push brings no pack, since it only deletes.
    pub quarantine: Option<PathBuf>,
    pub updates: Vec<Update>,
    pub options: Vec<String>,
}

/// The answer to the hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Reject,
}

/// A push whose `receive-pack` is running.
struct LivePush {
    env: EnvRef,
    user: UserName,
    started: std::time::Instant,
    /// It comes from a shallow clone.
    shallow: AtomicBool,
    /// Its pack was taken, and its hook has asked.
    judged: AtomicBool,
    idle: Idle,
    /// Its build, and whether the branch moves without waiting for it. Set when it is queued.
    queued: OnceLock<(BuildNumber, bool)>,
    /// Until its build is queued.
    place: Mutex<Option<Place>>,
    /// Cancelled when `receive-pack` has ended.
    ended: CancellationToken,
    /// Its span, when its trace is recorded.
    trace: Option<OpenSpan>,
    /// Until its objects are pinned or given up.
    _repository: Used,
}

struct Inner {
    settings: ReceiveSettings,
    git: Git,
    repositories: Repositories,
    store: Store,
    pipeline: Arc<dyn Pipeline>,
    events: EventSink,
    live: Mutex<HashMap<String, Arc<LivePush>>>,
    sessions: Places<UserName>,
    /// Who may judge a push to an environment: one at a time.
    turns: Places<EnvRef>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// Receives pushes and serves clones. Clones share it.
#[derive(Clone)]
pub struct Receive(Arc<Inner>);

impl Receive {
    /// Must be called in a runtime, in which events are written. Once `shutdown` is cancelled, waiting pushes are told that their builds go on without them.
    pub fn new(
        settings: ReceiveSettings,
        git: Git,
        repositories: Repositories,
        store: Store,
        pipeline: Arc<dyn Pipeline>,
        shutdown: CancellationToken,
    ) -> Self {
        let sessions = Places::new(settings.sessions, settings.sessions_per_user);
        let turns = Places::new(turn::ALL, 1);
        let (live, tasks) = (Mutex::default(), TaskTracker::new());
        let (events, writer) = EventSink::new(store.clone());
        tasks.spawn(writer.run(shutdown.clone()));
        Self(Arc::new(Inner {
            settings,
            git,
            repositories,
            store,
            pipeline,
            events,
            live,
            sessions,
            turns,
            tasks,
            shutdown,
        }))
    }

    /// Waits, after `shutdown`, until no push needs this process any more.
    pub async fn finish(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn live(&self, token: &str) -> Option<Arc<LivePush>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }
}

impl LivePush {
    fn is_shallow(&self) -> bool {
        self.shallow.load(Ordering::Acquire)
    }

    /// Lets somebody else have its place among the git sessions.
    fn give_place_back(&self) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Puts our hook into `hooks` (`DATA/hooks`), whole or not at all.
pub fn install_hooks(hooks: &Path) -> std::io::Result<()> {
    use std::{fs, os::unix::fs::PermissionsExt};
    fs::create_dir_all(hooks)?;
    let path = hooks.join("pre-receive");
    let executable = |path: &Path| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o755);
    // Writing what is there would keep a server with a full disk from starting.
    if fs::read(&path).is_ok_and(|found| found == PRE_RECEIVE.as_bytes()) && executable(&path) {
        return Ok(());
    }
    let mut file = tempfile::NamedTempFile::new_in(hooks)?;
    std::io::Write::write_all(&mut file, PRE_RECEIVE.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
