//! The task that owns the drains: which there are, and a task for each.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::{Duration, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, http, ndjson,
    source::{Fault, Source},
    stream, syslog,
};
use crate::{
    domain::{Drain, DrainScheme, EnvRef},
    store::{Revision, StoreError, Stored},
};

/// Pause before something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long drains may take to end.
const STOPPING: Duration = Duration::from_secs(5);
/// More lines are waited for so long before they are sent as syslog; each message is by itself, and a batch saves little.
const SYSLOG_LINGER: Duration = Duration::from_millis(100);

type Key = (EnvRef, u64);
type Changes = BoxStream<'static, Result<(String, Option<Drain>), Revision>>;

struct Running {
    /// Of the record that it was begun with.
    revision: Revision,
    stop: CancellationToken,
}

/// Sends what drains are to send; run it for as long as the server lives.
pub struct DrainService {
    shared: Arc<Shared>,
    running: BTreeMap<Key, Running>,
    tasks: JoinSet<()>,
    ids: HashMap<Id, Key>,
}

impl DrainService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, running: BTreeMap::new(), tasks: JoinSet::new(), ids: HashMap::new() }
    }

    /// Runs until `shutdown`. Drains go on from their marks at the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.serve()).await.is_some() {
            // Changes were lost, or could not be read.
            if shutdown.run_until_cancelled(sleep(AGAIN)).await.is_none() {
                break;
            }
        }
        self.running.values().for_each(|running| running.stop.cancel());
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOPPING, ended).await.is_err() {
            tracing::warn!("log drains did not end in time; lines that they have sent may be sent again");
        }
    }

    /// Works until changes are not heard of any more.
    async fn serve(&mut self) {
        let mut changes = match self.changes().await {
            Ok(changes) => changes,
            Err(error) => return tracing::error!(%error, "the log drains cannot be read; trying again"),
        };
        loop {
            if let Err(error) = self.take_in().await {
                return tracing::error!(%error, "the log drains cannot be read; trying again");
            }
            tokio::select! {
                change = changes.next() => if !matches!(change, Some(Ok(_))) {
                    return;
                },
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(ended).await,
            }
        }
    }

    async fn changes(&self) -> Result<Changes, StoreError> {
        let from = self.shared.store.revision().await?;
        self.shared.store.watch::<Drain>("", from).await
    }

    /// Ends the drains that are not there any more, and begins new ones. One that was replaced begins when the old one has ended.
    async fn take_in(&mut self) -> Result<(), StoreError> {
        let drains = self.shared.store.list::<Drain>("").await?;
        let wanted: BTreeMap<Key, Stored<Drain>> =
            drains.into_iter().map(|drain| ((drain.env.clone(), drain.id), drain)).collect();
        for (key, running) in &self.running {
            if wanted.get(key).is_none_or(|drain| drain.revision != running.revision) {
                running.stop.cancel();
            }
        }
        for (key, drain) in wanted {
            if !self.running.contains_key(&key) {
                let (stop, revision) = (CancellationToken::new(), drain.revision);
                let task = self.tasks.spawn(drive(self.shared.clone(), drain, stop.clone()));
                self.ids.insert(task.id(), key.clone());
                self.running.insert(key, Running { revision, stop });
            }
        }
        Ok(())
    }

    async fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let Some(key) = self.ids.remove(&id) else { return };
        let asked = self.running.remove(&key).is_some_and(|running| running.stop.is_cancelled());
        self.shared.states.forget(&key.0, key.1);
        if let Err(error) = ended {
            tracing::error!(env = %key.0, drain = key.1, %error, "the task of a log drain failed; it is begun anew");
        }
        if !asked {
            // Removed, which is heard of in a moment, or failed.
            sleep(AGAIN).await;
        }
    }
}

/// One drain, until it is stopped or gone.
async fn drive(shared: Arc<Shared>, drain: Stored<Drain>, stop: CancellationToken) {
    let is_http = matches!(drain.url.scheme(), DrainScheme::Http | DrainScheme::Https);
    let Some(mut source) = stop.run_until_cancelled(open(&shared, &drain, is_http)).await else { return };
    loop {
        let fault = match is_http {
            true => stop.run_until_cancelled(http::attend(&mut source)).await.unwrap_or(Fault::Stopped),
            false => stream::attend(&mut source, &stop).await,
        };
        let paused = match fault {
            Fault::Failed { why, after } => stop.run_until_cancelled(source.pause(why, after)).await,
            Fault::Removed => return,
            Fault::Stopped => None,
        };
        match paused {
            Some(Ok(())) => {}
            Some(Err(_)) => return,
            None => return source.close().await,
        }
    }
}

async fn open(shared: &Arc<Shared>, drain: &Stored<Drain>, is_http: bool) -> Source {
    let linger = shared.settings.linger;
    let linger = if is_http { linger } else { linger.min(SYSLOG_LINGER) };
    let encode: super::source::Encode = if is_http { ndjson::line } else { syslog::frame };
    loop {
        match Source::open(shared.clone(), drain.clone(), encode, linger).await {
            Ok(source) => return source,
            Err(error) => {
                let (env, drain, error) = (&drain.env, drain.id, format!("{error:#}"));
                tracing::warn!(%env, drain, error, "a log drain cannot begin; trying again");
                sleep(AGAIN).await;
            }
        }
    }
}
