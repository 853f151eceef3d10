//! Running `receive-pack` and `upload-pack` for a client.

use std::{
    sync::{Arc, OnceLock, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{LivePush, Receive, Refusal, RefusalKind, judge::full_disk, waiting::patiently_from};
use crate::{
    domain::{EnvRef, UserName},
    git::{
        Used,
        idle::Idle,
        settings::Service,
        wire::{Frame, WhenGone, WireIo, is_shallow_push, serve},
    },
    places::{NoPlace, Place},
};

/// Exit statuses of the contract.
const FAILED: u8 = 1;
const TRY_LATER: u8 = 75;
/// After so long a pusher is told what is waited for.
const TELL_AFTER: Duration = Duration::from_secs(2);
/// How long a push waits while its repository is packed anew: a little longer than git may take for both steps of it.
pub(super) const PACKING: Duration = Duration::from_secs(630);

/// Takes a push off the list when its `receive-pack` has ended.
struct Registered<'a> {
    receive: &'a Receive,
    token: String,
    push: Arc<LivePush>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.receive.0.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
        self.push.give_place_back();
        self.push.ended.cancel();
    }
}

impl Receive {
    /// Serves one client that may do this; returns the exit status to tell it. A push goes on when its client is gone.
    pub async fn serve(
        &self,
        service: Service,
        env: &EnvRef,
        user: &UserName,
        protocol: Option<&'static str>,
        io: WireIo,
    ) -> u8 {
        let output = io.output.clone();
        // Before git is started: its quarantine would be the first to need room.
        if service == Service::ReceivePack
            && let Err(no_room) = self.0.settings.disk.check()
        {
            tracing::warn!(%env, %user, %no_room, "a push was refused");
            let refusal = full_disk(&no_room);
            self.tell_refused(env, user, &refusal);
            say(&output, &refusal).await;
            return TRY_LATER;
        }
        let place = match self.0.sessions.take(user, self.0.settings.patience).await {
            Ok(place) => place,
            Err(reason) => {
                say(&output, &no_place(reason, user)).await;
                return TRY_LATER;
            }
        };
        let served = match service {
            Service::ReceivePack => self.receive_pack(env, user, protocol, place, io).await,
            Service::UploadPack => self.upload_pack(env, protocol, place, io).await,
        };
        match served {
            Ok(status) => status,
            Err(error) if is_idle(&error) => {
                tracing::info!(%env, %user, service = service.name(), "a git session was ended: nothing moved in it");
                let seconds = self.0.settings.idle.as_secs();
                let text =
                    format!("Nothing was sent or received for {seconds} s, so the session was ended; try again.");
                // A client that reads nothing must not be waited for.
                let _ = output.try_send(Frame::Err(Bytes::from(Refusal::new(text).render())));
                FAILED
            }
            Err(error) => {
                tracing::error!(%env, %error, service = service.name(), "git could not be run");
                say(&output, &Refusal::new(format!("The server cannot run git {}; its log says why.", service.name())))
                    .await;
                FAILED
            }
        }
    }

    async fn upload_pack(
        &self,
        env: &EnvRef,
        protocol: Option<&'static str>,
        _place: Place,
        io: WireIo,
    ) -> anyhow::Result<u8> {
        let path = self.ensure(env).await?;
        let command = self.0.git.serve(Service::UploadPack, &path, protocol);
        let idle = Idle::new(self.0.settings.idle);
        Ok(match serve(command, io, WhenGone::Kill, &idle, |_| {}).await {
            Ok(served) => exit_status(served.status),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => FAILED,
            Err(error) => return Err(error.into()),
        })
    }

    async fn receive_pack(
        &self,
        env: &EnvRef,
        user: &UserName,
        protocol: Option<&'static str>,
        place: Place,
        io: WireIo,
    ) -> anyhow::Result<u8> {
        let Some(used) = self.use_of(env, &io.output).await else {
            say(&io.output, &long_packed(env)).await;
            return Ok(TRY_LATER);
        };
        let path = self.ensure(env).await?;
        let token = hex::encode(rand::random::<[u8; 16]>());
        let push = Arc::new(LivePush {
            env: env.clone(),
            user: user.clone(),
            started: Instant::now(),
            shallow: false.into(),
            judged: false.into(),
            idle: Idle::new(self.0.settings.idle),
            queued: OnceLock::new(),
            place: Some(place).into(),
            ended: CancellationToken::new(),
            trace: self.0.settings.traces.begin(None),
            _repository: used,
        });
        let settings = &self.0.settings;
        let mut command = self.0.git.serve(Service::ReceivePack, &path, protocol);
        command
            .env("BERTH_BIN", &settings.berth)
            .env("BERTH_CONTROL", &settings.control_socket)
            .env("BERTH_PUSH", &token);
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), push.clone());
        let registered = Registered { receive: self, token, push };
        let output = io.output.clone();
        let shallow = &registered.push.shallow;
        let look = |first: &[u8]| shallow.store(is_shallow_push(first), Ordering::Release);
        let served = serve(command, io, WhenGone::Finish, &registered.push.idle, look).await?;
        // receive-pack does not tell by its status that index-pack gave up.
        let judged = registered.push.judged.load(Ordering::Acquire);
        if !judged && served.received > self.0.git.max_input {
            say(&output, &too_large(self.0.git.max_input)).await;
        }
        if judged {
            // Before the client hears that git has ended, and with that that its push has come in.
            let (repositories, owner) = (self.0.repositories.clone(), env.clone());
            tokio::task::spawn_blocking(move || repositories.sync_references(&owner)).await??;
        }
        tracing::debug!(%env, %user, received = served.received, status = %served.status, "receive-pack ended");
        Ok(exit_status(served.status))
    }

    /// Waits while the repository is packed anew, and says so; `None` when that takes too long.
    async fn use_of(&self, env: &EnvRef, output: &mpsc::Sender<Frame>) -> Option<Used> {
        // Full or gone: it is waited for either way.
        let tell = |sign| drop(output.try_send(Frame::Err(Bytes::from(sign))));
        let activity = "waiting for the repository, which is being packed anew";
        let used = tokio::time::timeout(PACKING, self.0.repositories.use_of(env));
        patiently_from(TELL_AFTER, activity, used, tell).await.ok()
    }

    pub(super) async fn ensure(&self, env: &EnvRef) -> anyhow::Result<std::path::PathBuf> {
        let (repositories, env) = (self.0.repositories.clone(), env.clone());
        Ok(tokio::task::spawn_blocking(move || repositories.ensure(&env)).await??)
    }
}

pub(super) fn long_packed(env: &EnvRef) -> Refusal {
    Refusal::new(format!("The repository of {env} is being packed anew, which takes long; try again in some minutes."))
        .of(RefusalKind::Later)
        .unchanged()
}

pub(super) fn no_place(reason: NoPlace, user: &UserName) -> Refusal {
    let refusal = match reason {
        NoPlace::All => Refusal::new("The server is serving as many git clients as it can; try again in a minute."),
        NoPlace::Share(limit) => Refusal::new(format!(
            "{user} has {limit} git sessions open already, as many as one user may; try again when one of them has ended."
        )),
    };
    refusal.of(RefusalKind::Later)
}

fn is_idle(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

fn exit_status(status: std::process::ExitStatus) -> u8 {
    // Ended by a signal: no code.
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

fn too_large(limit: u64) -> Refusal {
    let mebibytes = limit / (1024 * 1024);
    Refusal::new(format!("The push is larger than this server takes: the limit is {mebibytes} MiB."))
        .detail("Large files in the history? `git filter-repo --strip-blobs-bigger-than 10M` takes them out;")
        .detail("build results and data belong into .gitignore. Nothing was changed.")
}

async fn say(output: &mpsc::Sender<Frame>, refusal: &Refusal) {
    // A client that is gone does not read it.
    let _ = output.send(Frame::Err(Bytes::from(refusal.render()))).await;
}
