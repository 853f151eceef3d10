//! A source that comes without git: made a commit, then judged, kept and queued as a push is. No branch moves with it, so that the next
//! push goes on from the last one.

mod metered;
#[cfg(test)]
mod tests;

use std::time::Instant;

use tokio::{
    io::{AsyncRead, BufReader},
    time::timeout,
};
use tokio_util::io::SyncIoBridge;

use self::metered::{Fault, Metered};
use super::{
    NewPush, PushOptions, Receive, Refusal, RefusalKind,
    judge::{Rejected, busy, failed, full_disk, millis, refusal_for},
    traced::Received,
    wire::{PACKING, long_packed, no_place},
};
use crate::{
    domain::{Build, EnvRef, TraceContext, UserName},
    git::{Author, ImportError, ImportLimits, Quarantined},
};

/// How much is read at once, bytes.
const CHUNK: usize = 256 * 1024;

/// A source that somebody who may do this sends.
pub struct NewSource {
    pub env: EnvRef,
    pub user: UserName,
    /// What the commit is to say; without NUL bytes.
    pub message: String,
    pub no_cache: bool,
    /// A tar archive, as it is or in gzip. An error is told; an early end that is none may not be noticed.
    pub content: Box<dyn AsyncRead + Send + Unpin>,
    /// What its trace is a part of.
    pub trace: Option<TraceContext>,
}

impl Receive {
    /// Takes a source in and queues its build. What has come in goes on should whoever asked be gone.
    ///
    /// # Errors
    /// Why it is not taken; then nothing is left of it.
    pub async fn upload(&self, source: NewSource) -> Result<Build, Refusal> {
        let (receive, env) = (self.clone(), source.env.clone());
        // In a task of its own: who is gone must not leave it half-way between the queue and its pin.
        let taken = self.0.tasks.spawn(async move { receive.take_traced(source).await });
        taken.await.unwrap_or_else(|error| Err(failed(&env, &error.into())))
    }

    async fn take_traced(&self, source: NewSource) -> Result<Build, Refusal> {
        let (env, user) = (source.env.clone(), source.user.clone());
        let trace = self.0.settings.traces.begin(source.trace.as_ref());
        let mut received = Received { env: &env, user: &user, trace, taken: None };
        let taken = self.take_source(source, &mut received).await.map_err(|error| refusal_for(&env, error));
        match &taken {
            Ok(_) => self.trace_received(&received, None),
            Err(refusal) => self.trace_refused(&received, refusal),
        }
        taken
    }

    async fn take_source(&self, source: NewSource, received: &mut Received<'_>) -> anyhow::Result<Build> {
        let (env, user, started) = (source.env.clone(), source.user.clone(), Instant::now());
        self.0.settings.disk.check().map_err(|no_room| Rejected(full_disk(&no_room)))?;
        let place = self.0.sessions.take(&user, self.0.settings.patience).await;
        let place = place.map_err(|reason| Rejected(no_place(reason, &user)))?;
        self.environment(&env).await?;
        // Before all of it is read.
        self.refuse_busy(&env).await?;
        // Until it is pinned: nothing that it shares with what is there may be cleared away.
        let used = timeout(PACKING, self.0.repositories.use_of(&env)).await;
        let _used = used.map_err(|_| Rejected(long_packed(&env)))?;
        self.ensure(&env).await?;
        let options = PushOptions { no_cache: source.no_cache, ..PushOptions::default() };
        let brought = self.import(source).await?;
        received.taken = Some(jiff::Timestamp::now());
        drop(place);
        let _turn = self.turn(&env).await?.map_err(Rejected)?;
        self.environment(&env).await?;
        self.refuse_busy(&env).await?;
        self.check_commit(&env, Some(brought.path()), &brought.commit, None).await?;
        let new = NewPush {
            env: env.clone(),
            commit: brought.commit.clone(),
            branch: None,
            old_commit: None,
            pushed_by: user,
            options,
            timings: vec![("receive".to_owned(), millis(started))],
            trace: received.trace,
        };
        let fits = async { self.environment(&env).await.map(drop) };
        self.queue(new, Some(brought.path()), None, fits).await
    }

    async fn refuse_busy(&self, env: &EnvRef) -> anyhow::Result<()> {
        match self.0.pipeline.active(env).await? {
            Some(active) => Err(Rejected(busy(&active)).into()),
            None => Ok(()),
        }
    }

    /// The source as a commit in quarantine.
    async fn import(&self, source: NewSource) -> anyhow::Result<Quarantined> {
        let limit = self.0.git.max_input;
        let (metered, fault) =
            Metered::new(source.content, limit, self.0.settings.idle, self.0.shutdown.clone().cancelled_owned());
        let content = SyncIoBridge::new(BufReader::with_capacity(CHUNK, metered));
        let (repositories, git, env) = (self.0.repositories.clone(), self.0.git.clone(), source.env);
        let seconds = jiff::Timestamp::now().as_second();
        let author = Author { user: source.user, seconds, message: source.message };
        let imported = tokio::task::spawn_blocking(move || {
            repositories.import(&git, &env, content, &ImportLimits::for_input(limit), &author)
        });
        let error = match imported.await? {
            Ok(quarantined) => return Ok(quarantined),
            Err(error) => error,
        };
        Err(match (fault.get(), error) {
            (Some(fault), _) => Rejected(faulty(fault, limit, self.0.settings.idle.as_secs())).into(),
            (None, ImportError::Platform(reason)) => anyhow::anyhow!("a source could not be made a commit: {reason}"),
            (None, unfit) => Rejected(unfit_source(&unfit)).into(),
        })
    }
}

/// What keeps a source from coming in.
fn faulty(fault: &Fault, limit: u64, idle: u64) -> Refusal {
    match fault {
        Fault::TooLarge => {
            Refusal::new(format!("The source is larger than this server takes: the limit is {} MiB.", limit >> 20))
                .detail("Dependencies, build results and data do not belong into it.")
        }
        Fault::Idle => Refusal::new(format!("Nothing was sent for {idle} s, so the upload was ended; try again."))
            .of(RefusalKind::Later),
        Fault::Stopping => {
            Refusal::new("The server is restarting; send the source again in a moment.").of(RefusalKind::Later)
        }
        Fault::Lost(reason) => Refusal::new(format!("The source did not come to its end: {reason}.")),
    }
    .unchanged()
}

fn unfit_source(error: &ImportError) -> Refusal {
    let refusal = Refusal::new(format!("The source cannot be taken: {error}."));
    let refusal = match error {
        ImportError::NotAnArchive(_) => {
            refusal.detail("Make one with: git archive --format=tar.gz HEAD > source.tar.gz")
        }
        ImportError::TooMany { .. } | ImportError::TooMuch { .. } => {
            refusal.detail("Send what people write; dependencies, build results and data do not belong into it.")
        }
        _ => refusal,
    };
    refusal.unchanged()
}
