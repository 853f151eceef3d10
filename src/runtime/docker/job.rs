//! Jobs: builds, release phases and one-off commands, each in a container of its own.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use bollard::{
    body_try_stream,
    errors::Error,
    query_parameters::{
        DownloadFromContainerOptionsBuilder, KillContainerOptionsBuilder, ResizeContainerTTYOptionsBuilder,
        UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};
use tokio_util::io::{ReaderStream, StreamReader};

use super::{
    Inner, attach,
    engine::{Created, Engine, failed, status},
    names,
    stops::Stops,
};
use crate::runtime::{Job, JobControl, JobExit, JobSpec, Output, RuntimeError};

/// How much of an archive is read at once.
const CHUNK: usize = 128 << 10;
/// How often waiting is taken up again after the engine went away, and the pause before that.
const WAIT_TRIES: u32 = 20;
const WAIT_PAUSE: Duration = Duration::from_secs(1);
/// Exit statuses of what an engine ends that stops or was killed: by SIGTERM, by SIGKILL, or in a way that it was not there to see.
const ENDED_BY_ENGINE: [i64; 3] = [128 + 15, 128 + 9, 255];

impl Inner {
    /// See [`crate::runtime::Runtime::job`].
    pub(super) async fn make_job(&self, spec: &JobSpec) -> Result<DockerJob, RuntimeError> {
        // Looked at for each job: nothing of the tenant may have run for long, and `docker network prune` takes what nothing uses.
        self.networks.doubt(&spec.env.tenant);
        self.prepare_tenant(&spec.env.tenant).await?;
        let name = self.engine.recipe.names.job(spec);
        let made = match self.create_or_remove(&name, spec).await? {
            Created::Exists => {
                self.remove_orphan(&name).await?;
                self.create_or_remove(&name, spec).await?
            }
            made => made,
        };
        match made {
            Created::New(id) => Ok(DockerJob {
                engine: self.engine.clone(),
                stops: self.stops.clone(),
                id,
                terminal: spec.tty,
                wants_stdin: spec.stdin,
                output: None,
                input: None,
                finished: false,
            }),
            Created::Exists => {
                Err(RuntimeError::Refused(format!("a job called {} runs already in {}", spec.name, spec.env)))
            }
        }
    }

    /// Creates the container. Whoever gives up waiting for it leaves none behind.
    async fn create_or_remove(&self, name: &str, spec: &JobSpec) -> Result<Created, RuntimeError> {
        let (engine, stops, name, image) =
            (self.engine.clone(), self.stops.clone(), name.to_owned(), spec.image.clone());
        let body = self.engine.recipe.job(spec);
        let (reply, made) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(Ok(Created::New(id))) = reply.send(engine.create(&name, &image, body).await) {
                stops.begin(&engine, &id, Duration::ZERO);
            }
        });
        made.await.unwrap_or_else(|_| Err(RuntimeError::Unavailable("the container's creation was broken off".into())))
    }

    /// Removes a job of this name that an earlier server process left.
    async fn remove_orphan(&self, name: &str) -> Result<(), RuntimeError> {
        let Some(found) = self.engine.inspect(name).await? else { return Ok(()) };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let orphan = labels.get(names::BOOT).is_none_or(|boot| boot != self.engine.recipe.names.boot());
        match found.id {
            Some(id) if orphan => self.engine.remove(&id).await,
            // Ended and about to be removed by its owner.
            Some(id) if found.state.and_then(|state| state.running) != Some(true) => {
                self.stops.begin(&self.engine, &id, Duration::ZERO).finished().await
            }
            _ => Ok(()),
        }
    }

    /// See [`crate::runtime::Runtime::end_orphaned_jobs`].
    pub(super) async fn end_orphaned_jobs(&self) -> Result<usize, RuntimeError> {
        let jobs = self.engine.list(self.engine.recipe.names.role_filter(names::ROLE_JOB)).await?;
        let boot = self.engine.recipe.names.boot();
        let orphans = jobs.into_iter().filter(|job| {
            job.labels.as_ref().is_none_or(|labels| labels.get(names::BOOT).is_none_or(|owner| owner != boot))
        });
        let stops: Vec<_> =
            orphans.filter_map(|job| job.id).map(|id| self.stops.begin(&self.engine, &id, Duration::ZERO)).collect();
        let mut ended = 0;
        for stop in stops {
            match stop.finished().await {
                Ok(()) => ended += 1,
                // One that the engine does not let go of must not keep a server from starting; the next collection tries again.
                Err(error) => tracing::warn!(%error, "a job that an earlier server left cannot be removed"),
            }
        }
        Ok(ended)
    }
}

/// A job's container.
pub struct DockerJob {
    engine: Arc<Engine>,
    stops: Stops,
    id: String,
    /// Columns and rows, when it has a terminal.
    terminal: Option<(u16, u16)>,
    wants_stdin: bool,
    /// From start until taken.
    output: Option<BoxStream<'static, Result<Output, RuntimeError>>>,
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    finished: bool,
}

/// How a job ended, and how often the engine went away while that was waited for.
async fn exit_code(engine: &Engine, id: &str) -> Result<(i64, u32), RuntimeError> {
    let mut tries = 0;
    loop {
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut answer = Box::pin(engine.docker.wait_container(id, Some(options)));
        let error = match answer.next().await {
            Some(Ok(exit)) => return Ok((exit.status_code, tries)),
            Some(Err(Error::DockerContainerWaitError { code, .. })) => return Ok((code, tries)),
            Some(Err(error)) => failed(&format!("waiting for job {id}"), &error),
            None => RuntimeError::Unavailable(format!("waiting for job {id}: no answer")),
        };
        tries += 1;
        if tries > WAIT_TRIES || !matches!(error, RuntimeError::Unavailable(_)) {
            return Err(error);
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
}

#[async_trait]
impl Job for DockerJob {
    async fn upload(&mut self, directory: &str, tar: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), RuntimeError> {
        let options = UploadToContainerOptionsBuilder::default().path(directory).build();
        let body = body_try_stream(ReaderStream::with_capacity(tar, CHUNK));
        let sent = self.engine.transfers().upload_to_container(&self.id, Some(options), body).await;
        sent.map_err(|error| failed(&format!("unpacking files into {directory} of job {}", self.id), &error))
    }

    async fn start(&mut self) -> Result<(), RuntimeError> {
        let version = self.engine.docker.client_version().to_string();
        let socket = &self.engine.recipe.settings.socket;
        let attached = attach::attach(socket, &version, &self.id, self.terminal.is_some(), self.wants_stdin).await?;
        self.output = Some(attach::chunks(attached.output).boxed());
        // Without standard input, the write half is kept for nothing but the connection's sake: dropping it would half-close it.
        if self.wants_stdin {
            self.input = Some(Box::new(attached.input));
        } else {
            attached.input.forget();
        }
        self.engine.start(&self.id).await?;
        if let Some((columns, rows)) = self.terminal {
            // Engines before 23 take no size at creation. One that ended at once has no use for it.
            if let Err(error) = self.control().resize(columns, rows).await {
                tracing::debug!(%error, "the terminal's size was not set");
            }
        }
        Ok(())
    }

    fn output(&mut self) -> BoxStream<'static, Result<Output, RuntimeError>> {
        self.output.take().unwrap_or_else(|| stream::empty().boxed())
    }

    fn stdin(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        self.input.take()
    }

    fn control(&self) -> Box<dyn JobControl> {
        Box::new(Control { engine: self.engine.clone(), id: self.id.clone() })
    }

    async fn wait(&mut self) -> Result<JobExit, RuntimeError> {
        let (code, interruptions) = exit_code(&self.engine, &self.id).await?;
        // The engine counts a kill within the container's memory limit whichever of its processes it hit.
        let found = self.engine.inspect(&self.id).await?;
        let out_of_memory = found.and_then(|found| found.state?.oom_killed).unwrap_or(false);
        let killed = !out_of_memory && ENDED_BY_ENGINE.contains(&code);
        if killed && (interruptions > 0 || !self.engine.takes_connections().await) {
            let reason = format!("it was stopped or restarted while job {} ran, and ended the job with it", self.id);
            return Err(RuntimeError::Unavailable(reason));
        }
        Ok(JobExit { code, out_of_memory })
    }

    async fn download(&mut self, path: &str) -> Result<Box<dyn AsyncRead + Send + Unpin>, RuntimeError> {
        let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
        let engine = self.engine.transfers();
        let mut chunks = engine.download_from_container(&self.id, Some(options)).boxed();
        // The first chunk tells whether there is such a path.
        let first = match chunks.next().await {
            Some(Err(error)) if status(&error) == Some(404) => {
                return Err(RuntimeError::Gone(format!("{path} in job {}", self.id)));
            }
            Some(Err(error)) => return Err(failed(&format!("reading {path} of job {}", self.id), &error)),
            Some(Ok(first)) => Some(Ok(first)),
            None => None,
        };
        let all = stream::iter(first).chain(chunks.map(|chunk| chunk.map_err(io::Error::other)));
        Ok(Box::new(StreamReader::new(all.boxed())))
    }

    async fn finish(mut self: Box<Self>) -> Result<(), RuntimeError> {
        self.finished = true;
        self.stops.begin(&self.engine, &self.id, Duration::ZERO).finished().await
    }
}

impl Drop for DockerJob {
    fn drop(&mut self) {
        if !self.finished {
            drop(self.stops.begin(&self.engine, &self.id, Duration::ZERO));
        }
    }
}

struct Control {
    engine: Arc<Engine>,
    id: String,
}

#[async_trait]
impl JobControl for Control {
    async fn signal(&self, name: &str) -> Result<(), RuntimeError> {
        let signal = format!("SIG{}", name.trim_start_matches("SIG"));
        let options = KillContainerOptionsBuilder::default().signal(&signal).build();
        match self.engine.docker.kill_container(&self.id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(status(&error), Some(404 | 409)) => {
                Err(RuntimeError::Gone(format!("job {}", self.id)))
            }
            Err(error) => Err(failed(&format!("sending {signal} to job {}", self.id), &error)),
        }
    }

    async fn resize(&self, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        let options = ResizeContainerTTYOptionsBuilder::default().w(i32::from(columns)).h(i32::from(rows)).build();
        let resized = self.engine.docker.resize_container_tty(&self.id, options).await;
        resized.map_err(|error| failed(&format!("resizing the terminal of job {}", self.id), &error))
    }
}
