//! Jobs: builds, release phases and one-off commands, each in a container of its own.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::Duration,
};

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
        if spec.cache {
            self.used_caches.lock().unwrap_or_else(PoisonError::into_inner).insert(spec.env.app_ref());
        }
        clear_name(&self.engine, &self.stops, &name).await?;
        let made = match create_or_remove(&self.engine, &self.stops, &name, spec).await? {
            Created::Exists => {
                self.remove_orphan(&name).await?;
                create_or_remove(&self.engine, &self.stops, &name, spec).await?
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

    /// Removes a job of this name that an earlier server process left.
    async fn remove_orphan(&self, name: &str) -> Result<(), RuntimeError> {
        let Some(found) = self.engine.inspect(name).await? else { return Ok(()) };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let orphan = labels.get(names::BOOT).is_none_or(|boot| boot != self.engine.recipe.names.boot());
        match found.id {
            Some(id) if orphan => self.engine.remove(&id).await,
            // Ended and about to be removed by its owner, or its removal waits for an engine that was away.
            Some(id) if found.state.and_then(|state| state.running) != Some(true) || self.stops.is_under_way(&id) => {
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
                // One that the engine does not let go of must not keep a server from starting; the next start tries again.
                Err(error) => tracing::warn!(%error, "a job that an earlier server left cannot be removed"),
            }
        }
        Ok(ended)
    }
}

/// Creates a job's container. Whoever gives up waiting for it leaves none behind, nor does an engine that was killed after it had made it
/// and before it said so.
async fn create_or_remove(
    engine: &Arc<Engine>,
    stops: &Stops,
    name: &str,
    spec: &JobSpec,
) -> Result<Created, RuntimeError> {
    let (engine, stops, name, image) = (engine.clone(), stops.clone(), name.to_owned(), spec.image.clone());
    let body = engine.recipe.job(spec);
    let (reply, made) = oneshot::channel();
    tokio::spawn(async move {
        let made = engine.create(&name, &image, body).await;
        if let Err(RuntimeError::Unavailable(_)) = made {
            // By its name, which no other running job has. One that is not there is fine.
            stops.begin(&engine, &name, Duration::ZERO);
        }
        if let Err(Ok(Created::New(id))) = reply.send(made) {
            stops.begin(&engine, &id, Duration::ZERO);
        }
    });
    made.await.unwrap_or_else(|_| Err(RuntimeError::Unavailable("the container's creation was broken off".into())))
}

/// Waits until nothing is going to be removed by this name, which would take a new container of it for the old one.
async fn clear_name(engine: &Arc<Engine>, stops: &Stops, name: &str) -> Result<(), RuntimeError> {
    match stops.is_under_way(name) {
        true => stops.begin(engine, name, Duration::ZERO).finished().await,
        false => Ok(()),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{
        super::testing::{Answers, NO_CONTENT, engine, json},
        *,
    };
    use crate::{
        domain::{Digest, ImageRef, Limits},
        runtime::JobKind,
    };

    fn spec() -> JobSpec {
        JobSpec {
            kind: JobKind::Build,
            env: "acme/shop/dev".parse().unwrap(),
            name: "build-1".to_owned(),
            image: ImageRef { repository: "berth/stack".to_owned(), digest: Digest::from_sha256([0; 32]) },
            argv: vec!["true".to_owned()],
            environment: [].into(),
            limits: Limits { cpu_millis: 100, memory: 1 << 20, pids: 10 },
            cache: false,
            read_only_mounts: Vec::new(),
            tty: None,
            stdin: false,
            stop_grace: Duration::from_secs(1),
        }
    }

    #[tokio::test]
    async fn a_container_whose_creation_lost_its_answer_goes_before_the_next_of_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("engine.sock");
        let (engine, stops) = (engine(&socket), Stops::new());
        std::fs::remove_file(&socket).unwrap();
        let killed = Arc::new(AtomicBool::new(true));
        let is_killed = killed.clone();
        let answers = Answers::serve(&socket, move |request| {
            let answer =
                if request.starts_with("POST ") { json(r#"{"Id":"c1","Warnings":[]}"#) } else { NO_CONTENT.to_owned() };
            (!is_killed.load(Ordering::SeqCst)).then_some(answer)
        });
        let name = engine.recipe.names.job(&spec());
        let made = create_or_remove(&engine, &stops, &name, &spec()).await;
        assert!(made.is_err_and(|error| error.is_passing()));
        // The engine is back, and has it.
        killed.store(false, Ordering::SeqCst);
        clear_name(&engine, &stops, &name).await.unwrap();
        assert!(!stops.is_under_way(&name));
        assert!(matches!(create_or_remove(&engine, &stops, &name, &spec()).await, Ok(Created::New(_))));
        let asked: Vec<String> = answers.asked();
        let removed = asked.iter().rposition(|asked| asked.starts_with("DELETE ") && asked.contains(&name));
        let (removed, last) = (removed.expect("it was not removed"), asked.last().unwrap());
        assert!(removed + 2 == asked.len() && last.starts_with("POST "), "{asked:?}");
    }
}
