//! Jobs of the in-memory engine: a function with streams, files and signals instead of a container.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;

use super::world::Engine;
use crate::runtime::{Job, JobControl, JobExit, JobSpec, Output, RuntimeError, Source};

/// Chunks of output that wait for a reader; then the job waits.
const OUTPUT: usize = 16;
/// Bytes of standard input that wait for the job.
const INPUT: usize = 64 << 10;

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// What a job's function works with.
pub struct JobContext {
    /// What was asked for.
    pub spec: JobSpec,
    /// Standard input, if the spec asked for it.
    pub stdin: Option<DuplexStream>,
    output: mpsc::Sender<Result<Output, RuntimeError>>,
    files: Files,
}

impl JobContext {
    /// Prints; waits while nobody reads.
    pub async fn print(&self, source: Source, bytes: impl Into<Bytes>) {
        // Nobody will read any more: then nobody misses it.
        let _ = self.output.send(Ok(Output { source, bytes: bytes.into() })).await;
    }

    /// A file by its absolute path.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    /// Writes a file.
    pub fn write(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), content.into());
    }
}

/// One job.
pub struct FakeJob {
    engine: Arc<Engine>,
    key: String,
    spec: JobSpec,
    files: Files,
    /// Its end: told by its function, by a signal, or by its removal.
    end: watch::Sender<Option<i64>>,
    output: Option<mpsc::Receiver<Result<Output, RuntimeError>>>,
    input: Option<DuplexStream>,
}

impl FakeJob {
    pub(super) fn new(engine: &Arc<Engine>, boot: u64, spec: &JobSpec) -> Result<Self, RuntimeError> {
        let key = format!("{} {}", spec.env, spec.name);
        let mut state = engine.lock();
        if state.jobs.contains_key(&key) {
            return Err(RuntimeError::Refused(format!("a job called {} runs already in {}", spec.name, spec.env)));
        }
        let end = watch::Sender::new(None);
        state.jobs.insert(key.clone(), (boot, end.clone()));
        Ok(Self {
            engine: engine.clone(),
            key,
            spec: spec.clone(),
            files: Files::default(),
            end,
            output: None,
            input: None,
        })
    }

    fn forget(&self) {
        self.end.send_if_modified(|end| end.is_none().then(|| *end = Some(137)).is_some());
        let mut state = self.engine.lock();
        // Another job of the same name may have been made after this one was ended from outside.
        if state.jobs.get(&self.key).is_some_and(|(_, end)| end.same_channel(&self.end)) {
            state.jobs.remove(&self.key);
        }
    }
}

#[async_trait]
impl Job for FakeJob {
    async fn upload(
        &mut self,
        directory: &str,
        mut tar: Box<dyn AsyncRead + Send + Unpin>,
    ) -> Result<(), RuntimeError> {
        let mut bytes = Vec::new();
        let failed = |error: std::io::Error| RuntimeError::Refused(format!("unpacking into {directory}: {error}"));
        tar.read_to_end(&mut bytes).await.map_err(failed)?;
        let mut archive = tar::Archive::new(Cursor::new(bytes));
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = format!("{}/{}", directory.trim_end_matches('/'), entry.path().map_err(failed)?.display());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(failed)?;
            self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(path, content);
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<(), RuntimeError> {
        let (output, reader) = mpsc::channel(OUTPUT);
        self.output = Some(reader);
        let stdin = self.spec.stdin.then(|| {
            let (near, far) = tokio::io::duplex(INPUT);
            self.input = Some(near);
            far
        });
        let context = JobContext { spec: self.spec.clone(), stdin, output, files: self.files.clone() };
        let work = (self.engine.behaviour.jobs)(context);
        let end = self.end.clone();
        tokio::spawn(async move {
            let mut ended = end.subscribe();
            let code = tokio::select! {
                code = work => code,
                _ = ended.wait_for(Option::is_some) => return,
            };
            end.send_if_modified(|end| end.is_none().then(|| *end = Some(code)).is_some());
        });
        Ok(())
    }

    fn output(&mut self) -> BoxStream<'static, Result<Output, RuntimeError>> {
        match self.output.take() {
            Some(output) => ReceiverStream::new(output).boxed(),
            None => futures::stream::empty().boxed(),
        }
    }

    fn stdin(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        self.input.take().map(|input| Box::new(input) as Box<dyn AsyncWrite + Send + Unpin>)
    }

    fn control(&self) -> Box<dyn JobControl> {
        Box::new(Control(self.end.clone()))
    }

    async fn wait(&mut self) -> Result<JobExit, RuntimeError> {
        let code = self.end.subscribe().wait_for(Option::is_some).await.ok().and_then(|end| *end);
        let code = code.ok_or_else(|| RuntimeError::Gone(format!("job {}", self.spec.name)))?;
        Ok(JobExit { code, out_of_memory: false })
    }

    async fn download(&mut self, path: &str) -> Result<Box<dyn AsyncRead + Send + Unpin>, RuntimeError> {
        let failed = |error: std::io::Error| RuntimeError::Refused(format!("reading {path}: {error}"));
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let below = format!("{path}/");
        let mut tar = tar::Builder::new(Vec::new());
        let mut found = false;
        {
            let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, content) in files.iter().filter(|(name, _)| *name == path || name.starts_with(&below)) {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                let entry = name[parent.len()..].trim_start_matches('/');
                tar.append_data(&mut header, entry, content.as_slice()).map_err(failed)?;
                found = true;
            }
        }
        if !found {
            return Err(RuntimeError::Gone(format!("{path} in job {}", self.spec.name)));
        }
        Ok(Box::new(Cursor::new(tar.into_inner().map_err(failed)?)))
    }

    async fn finish(self: Box<Self>) -> Result<(), RuntimeError> {
        Ok(())
    }
}

impl Drop for FakeJob {
    fn drop(&mut self) {
        self.forget();
    }
}

struct Control(watch::Sender<Option<i64>>);

#[async_trait]
impl JobControl for Control {
    async fn signal(&self, name: &str) -> Result<(), RuntimeError> {
        let number = match name.trim_start_matches("SIG") {
            "HUP" => 1,
            "INT" => 2,
            "QUIT" => 3,
            "KILL" => 9,
            "TERM" => 15,
            _ => return if self.0.borrow().is_none() { Ok(()) } else { Err(gone()) },
        };
        let ended = self.0.send_if_modified(|end| end.is_none().then(|| *end = Some(128 + number)).is_some());
        if ended { Ok(()) } else { Err(gone()) }
    }

    async fn resize(&self, _: u16, _: u16) -> Result<(), RuntimeError> {
        Ok(())
    }
}

fn gone() -> RuntimeError {
    RuntimeError::Gone("the job".to_owned())
}
