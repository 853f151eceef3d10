//! What is decided about a push between its pack and its refs.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Description, HookRequest, LivePush, NewPush, PushOptions, PushedTree, QueueError, Receive, Refusal, RefusalKind,
    Update, Verdict,
    ended::unrecorded,
    policy::decide,
    traced::Received,
    waiting::{in_queue, patiently},
};
use crate::{
    disk::NoRoom,
    domain::{Build, BuildNumber, BuildState, EnvRef, FailPoint, Tenant, fail_point::reached},
    git::{MAX_COMMIT, Obstacle, commit_obstacle, is_cut_off, short_branch},
    store::StoreError,
};

/// How long recording what a build came to may take before its push is answered without.
const RECORDED: Duration = Duration::from_secs(15);

/// Why the outcome of a build cannot be told.
enum Unknown {
    /// It has ended like this, and that is not written yet.
    Unrecorded(Box<Build>),
    Store(StoreError),
}

impl From<StoreError> for Unknown {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What a push that was let in has become.
pub(super) struct Queued {
    pub(super) build: Build,
    pub(super) detached: bool,
    /// A manifest to add, for a tree without one.
    manifest: Option<String>,
}

impl Receive {
    /// Judges a push for its hook. What the pusher is to see goes to `output`, which may fall behind but not for ever; when it is
    /// closed, what was queued goes on.
    pub async fn pre_receive(&self, request: HookRequest, output: mpsc::Sender<Bytes>) -> Verdict {
        let say = |text: String| {
            let output = &output;
            async move {
                if text.is_empty() {
                    return;
                }
                // Whoever is gone does not read it.
                let _ = output.send(Bytes::from(text)).await;
            }
        };
        let Some(push) = self.live(&request.token) else {
            say(Refusal::new("This hook belongs to no push that the server knows of.").render()).await;
            return Verdict::Reject;
        };
        push.judged.store(true, Ordering::Release);
        let received = Received::of(&push, Timestamp::now());
        self.tell_received(&push, &request);
        // In a task of its own: a hook that dies must not leave a push half-way between the queue and its pin.
        let (receive, judged) = (self.clone(), push.clone());
        let admitted = self.0.tasks.spawn(async move { receive.admit(&judged, &request).await });
        let admitted =
            patiently("checking the push", admitted, &output).await.unwrap_or_else(|error| Err(error.into()));
        let admitted = admitted.map_err(|error| refusal_for(&push.env, error));
        self.trace_judged(&received, admitted.as_ref().map(Option::as_ref));
        if let Ok(queued) = &admitted {
            self.tell_accepted(&push, queued.as_ref());
        }
        match admitted {
            Ok(None) => Verdict::Accept,
            Ok(Some(queued)) if queued.detached => {
                let env = &push.env;
                say(format!(
                    "-----> Queued as build {0}; not waiting for it\n       Follow it with: builds logs {env} {0} -f\n",
                    queued.build.number
                ))
                .await;
                say(offer(queued.manifest)).await;
                reached(FailPoint::Receive);
                Verdict::Accept
            }
            Ok(Some(queued)) => {
                push.give_place_back();
                let _excused = push.idle.excuse();
                // First: the output ends with what the build came to.
                say(offer(queued.manifest)).await;
                self.follow(&push, &queued.build, &output).await
            }
            Err(refusal) => {
                self.tell_refused(&push.env, &push.user, &refusal);
                say(refusal.render()).await;
                Verdict::Reject
            }
        }
    }

    /// All checks, then the queue. `None`: nothing is to be built.
    async fn admit(&self, push: &Arc<LivePush>, request: &HookRequest) -> anyhow::Result<Option<Queued>> {
        let env = &push.env;
        let options = PushOptions::parse(&request.options).map_err(Rejected)?;
        let _turn = match request.updates.iter().any(|update| update.name.starts_with("refs/heads/")) {
            true => Some(self.turn(env).await?.map_err(Rejected)?),
            false => None,
        };
        let environment = self.environment(env).await?;
        let deploy = decide(env, environment.deploy_branch.as_deref(), &request.updates).map_err(Rejected)?;
        if push.is_shallow() {
            self.refuse_shallow(env, request).await?;
        }
        let Some(update) = deploy else { return Ok(None) };
        self.refuse_moved(env, update).await?;
        let active = self.0.pipeline.active(env).await?;
        let replaced = match active {
            Some(active) if !options.supersede => return Err(Rejected(busy(&active).of(RefusalKind::Busy)).into()),
            active => active,
        };
        let known_good = update.old.bytes().any(|digit| digit != b'0').then(|| update.old.clone());
        let described = self.check_commit(env, request.quarantine.as_deref(), &update.new, known_good).await?;
        let new = NewPush {
            env: env.clone(),
            commit: update.new.clone(),
            branch: Some(update.name.clone()),
            old_commit: Some(update.old.clone()),
            pushed_by: push.user.clone(),
            options,
            timings: vec![("receive".to_owned(), millis(push.started))],
            trace: push.trace,
        };
        let fits = self.still_fits(push, request, update);
        let build = self.queue(new, request.quarantine.as_deref(), replaced.as_ref(), fits).await?;
        // Set once: a push has one hook, which asks once.
        let _ = push.queued.set((build.number, options.detach));
        if options.detach
            && let Err(error) = self.choose_branch(env, &update.name).await
        {
            // The build goes on, and its success chooses the branch once more.
            tracing::warn!(%env, error = format!("{error:#}"), "a deploy branch could not be recorded yet");
        }
        reached(FailPoint::Receive);
        self.settle_later(build.clone(), push.ended.clone());
        // Once is enough: with the first push of the branch.
        let first = update.old.bytes().all(|digit| digit == b'0');
        let manifest = (first && !described.has_manifest).then(|| self.0.pipeline.manifest_template(&env.app_ref()));
        Ok(Some(Queued { build, detached: options.detach, manifest }))
    }

    async fn refuse_shallow(&self, env: &EnvRef, request: &HookRequest) -> anyhow::Result<()> {
        let (path, quarantine) = (self.0.repositories.path(env), request.quarantine.clone());
        let is_new = |update: &&Update| update.new.bytes().any(|digit| digit != b'0');
        let tips: Vec<String> = request.updates.iter().filter(is_new).map(|update| update.new.clone()).collect();
        let cut_off = tokio::task::spawn_blocking(move || {
            let tips: Vec<&str> = tips.iter().map(String::as_str).collect();
            is_cut_off(&path, quarantine.as_deref(), &tips)
        });
        if cut_off.await?? {
            Err(Rejected(refusal_of(Obstacle::Shallow).of(RefusalKind::Commit)).into())
        } else {
            Ok(())
        }
    }

    /// The commit itself, then what its tree says. Its objects may still be in `quarantine`; `known_good` is a commit of the environment
    /// that was checked before.
    pub(super) async fn check_commit(
        &self,
        env: &EnvRef,
        quarantine: Option<&Path>,
        commit: &str,
        known_good: Option<String>,
    ) -> anyhow::Result<Description> {
        let (repositories, owner, path) = (self.0.repositories.clone(), env.clone(), self.0.repositories.path(env));
        let (objects, commit) = (quarantine.map(Path::to_owned), commit.to_owned());
        let tree = PushedTree { env: env.clone(), repository: path.clone(), objects, commit, known_good };
        let (objects, commit) = (tree.objects.clone(), tree.commit.clone());
        let obstacle = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            if let Some(quarantine) = &objects {
                repositories.objects_of_quarantine(&owner, quarantine)?;
            }
            Ok(commit_obstacle(&path, objects.as_deref(), &commit)?)
        });
        if let Some(obstacle) = obstacle.await?? {
            return Err(Rejected(refusal_of(obstacle).of(RefusalKind::Commit)).into());
        }
        let description = self.0.pipeline.describe(tree).await.map_err(|problems| {
            let mut refusal = Refusal::new("The pushed tree cannot be built as it is:");
            refusal.details.extend(problems.lines().map(str::to_owned));
            Rejected(refusal.of(RefusalKind::Manifest).unchanged())
        })?;
        let of_tenant = self.0.store.get::<Tenant>(&env.tenant).await?.is_some_and(|tenant| tenant.require_manifest);
        let required_by = match (self.0.settings.require_manifest, of_tenant) {
            (true, _) => Some("This server".to_owned()),
            (false, true) => Some(format!("The tenant {}", env.tenant)),
            (false, false) => None,
        };
        self.check_description(env, &description, required_by)
            .map_err(|refusal| Rejected(refusal.of(RefusalKind::Manifest)))?;
        Ok(description)
    }

    /// `required_by`: who wants a manifest, if anybody does.
    fn check_description(
        &self,
        env: &EnvRef,
        description: &Description,
        required_by: Option<String>,
    ) -> Result<(), Refusal> {
        let app = env.app_ref();
        if let Some(who) = required_by.filter(|_| !description.has_manifest) {
            let mut refusal =
                Refusal::new(format!("{who} wants a berth.yaml at the root of the repository. Add this one:"));
            refusal.details.extend(self.0.pipeline.manifest_template(&app).lines().map(str::to_owned));
            return Err(refusal);
        }
        if let Some(named) = description.app.as_ref().filter(|named| **named != app) {
            return Err(Refusal::new(format!("berth.yaml says `app: {named}`, but this remote is {env}."))
                .detail("Push to the remote of that app, or correct `app:` in berth.yaml."));
        }
        let Some(token) = &description.auth else { return Ok(()) };
        let hint = format!("`apps info {app}` prints the right one; without `auth:` the push is taken as well.");
        match self.0.pipeline.token_app(token) {
            Ok(owner) if owner == app => Ok(()),
            Ok(owner) => {
                Err(Refusal::new(format!("`auth:` in berth.yaml is the token of {owner}, not of {app}.")).detail(hint))
            }
            Err(reason) => Err(Refusal::new(format!("`auth:` in berth.yaml does not count: {reason}.")).detail(hint)),
        }
    }

    /// What the build came to, once that is recorded; or that it has ended, when recording it takes long.
    async fn outcome(&self, env: &EnvRef, number: BuildNumber) -> Result<Build, Unknown> {
        let mut wait = std::pin::pin!(self.0.pipeline.wait(env, number));
        loop {
            if let Ok(build) = timeout(RECORDED, &mut wait).await {
                return Ok(build?);
            }
            let active = self.0.pipeline.active(env).await?.filter(|build| build.number == number);
            if let Some(ended) = active.filter(|build| build.state.is_final()) {
                return Err(Unknown::Unrecorded(Box::new(ended)));
            }
        }
    }

    /// Relays the build's output until it is final.
    async fn follow(&self, push: &LivePush, build: &Build, output: &mpsc::Sender<Bytes>) -> Verdict {
        let (env, number) = (&push.env, build.number);
        let relay = async {
            if let Some(place) = self.0.pipeline.place(env, number) {
                in_queue(number, place, output).await;
            }
            let mut lines = self.0.pipeline.follow(env, number).await;
            while let Some(bytes) = lines.next().await {
                if output.send(bytes).await.is_err() {
                    break;
                }
            }
            self.outcome(env, number).await
        };
        let text = tokio::select! {
            ended = relay => match ended.map(|build| (build.state.clone(), build)) {
                Err(Unknown::Unrecorded(build)) => unrecorded(&build),
                Ok((BuildState::Succeeded, _)) => match self.settled(push, build).await {
                    Ok(()) => return Verdict::Accept,
                    Err(error) => {
                        tracing::error!(%env, %number, error = format!("{error:#}"), "a push could not be completed");
                        Refusal::new("The build succeeded, but the branch could not be recorded; push again.")
                    }
                },
                Ok((BuildState::Cancelled { reason }, _)) => Refusal::new(format!("Push rejected: build {number} was cancelled: {reason}")),
                Ok((_, failed)) => self.failure(&failed).await,
                Err(Unknown::Store(error)) => {
                    tracing::error!(%env, %number, %error, "the outcome of a build could not be read");
                    Refusal::new(format!("The outcome of build {number} could not be read; see builds info {env} {number}"))
                }
            },
            () = self.0.shutdown.cancelled() => {
                Refusal::new(format!("The server is restarting. Build {number} goes on without this push, and the branch moves when it succeeds."))
                    .detail(format!("Follow it with: builds logs {env} {number} -f"))
            }
        };
        let _ = output.send(Bytes::from(text.render())).await;
        Verdict::Reject
    }
}

/// What the error is for whoever sent what was not taken.
pub(super) fn refusal_for(env: &EnvRef, error: anyhow::Error) -> Refusal {
    error.downcast::<Rejected>().map(|rejected| rejected.0).unwrap_or_else(|error| failed(env, &error))
}

/// What a push is told that the server could not judge.
pub(super) fn failed(env: &EnvRef, error: &anyhow::Error) -> Refusal {
    tracing::error!(%env, error = format!("{error:#}"), "a push could not be judged");
    Refusal::new("The server failed to take the push; its log says why.").of(RefusalKind::Internal).unchanged()
}

/// Why a push was not queued, for the pusher.
pub(super) fn not_queued(error: QueueError) -> anyhow::Error {
    let refusal = match error {
        QueueError::Busy(active) => busy(&active).of(RefusalKind::Busy),
        QueueError::Full { limit } => {
            Refusal::new(format!("{limit} builds are waiting already; try again in a few minutes."))
                .of(RefusalKind::QueueFull)
                .unchanged()
        }
        QueueError::TenantFull { tenant, limit } => {
            Refusal::new(format!("{limit} builds of {tenant} are waiting already, as many as one tenant may have."))
                .of(RefusalKind::QueueFull)
                .detail("Try again when some of them have ended.")
                .unchanged()
        }
        QueueError::NoRoom(no_room) => full_disk(&no_room),
        QueueError::Store(error) => return error.into(),
    };
    Rejected(refusal).into()
}

/// A refusal on its way out as an error.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.reason)]
pub(super) struct Rejected(pub(super) Refusal);

/// What a push without a manifest is shown: the one to add.
fn offer(manifest: Option<String>) -> String {
    let Some(manifest) = manifest else { return String::new() };
    let lines: String = manifest.lines().map(|line| format!("       {line}").trim_end().to_owned() + "\n").collect();
    format!(
        "-----> There is no berth.yaml yet. Add this one at the root of the repository (optional, recommended):\n{lines}"
    )
}

/// What a push is told that there is no room for.
pub(super) fn full_disk(no_room: &NoRoom) -> Refusal {
    Refusal::new(format!("Push refused: {no_room}.")).of(RefusalKind::Disk).unchanged()
}

pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn refusal_of(obstacle: Obstacle) -> Refusal {
    match obstacle {
        Obstacle::NotACommit => Refusal::new("A branch must point at a commit, and what was pushed is none."),
        Obstacle::HugeCommit => {
            let limit = MAX_COMMIT >> 20;
            Refusal::new(format!("The pushed commit is larger than {limit} MiB, apart from its files: its message is."))
                .detail("Shorten it with `git commit --amend`, then push again.")
        }
        Obstacle::EmptyTree => Refusal::new("The pushed commit has no files in it, so there is nothing to build.")
            .detail("Is the work committed? `git add -A && git commit`, then push again."),
        Obstacle::Shallow => {
            Refusal::new("The push comes from a shallow clone, and the server lacks the rest of its history.")
                .detail("Fetch it with `git fetch --unshallow` (in CI: fetch-depth: 0), then push again.")
        }
    }
}

pub(super) fn busy(active: &Build) -> Refusal {
    if active.state.is_final() {
        let (env, number) = (&active.env, active.number);
        let text = format!("Build {number} of {env} has ended, and that is not recorded yet.");
        return Refusal::new(text)
            .of(RefusalKind::Later)
            .detail("Push again: it takes a moment, or until the server's store takes something again.")
            .unchanged();
    }
    let (env, number, branch) = (&active.env, active.number, active.branch.as_deref().map_or("main", short_branch));
    let since = active.started_at.unwrap_or(active.queued_at);
    let seconds = (Timestamp::now().as_second() - since.as_second()).max(0);
    let state = if active.started_at.is_some() { "running" } else { "queued" };
    let duration = if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds / 60) };
    Refusal::new(format!("Build {number} of {env}, pushed by {}, has been {state} for {duration}.", active.pushed_by))
        .of(RefusalKind::Busy)
        .detail(format!("Follow it with:        builds logs {env} {number} -f"))
        .detail(format!("Cancel and replace it: git push -o supersede paas-{} HEAD:{branch}", env.env))
        .unchanged()
}
