//! From nothing to a build container that runs, with everything in it.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::task::TaskTracker;

use super::CompileSpec;
use crate::{
    build::{
        bridge,
        error::BuildError,
        output::BuildOutput,
        slug::{Sizes, TarWriter, write_source},
        source::{SourceError, SourceTree},
    },
    deploy::Progress,
    domain::{FailPoint, fail_point::reached},
    runtime::{Job, JobKind, JobSpec, Patience, Runtime, RuntimeError},
};

const STOP_GRACE: Duration = Duration::from_secs(5);
/// Where the host's CA bundle is in the container.
const CA_BUNDLE: &str = "/etc/berth/ca.crt";
/// Variables by which tools find it.
const CA_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];
/// How long a build waits for an engine that does not answer; its time limit goes on meanwhile. Longer than a restart of the engine or of the
/// whole machine takes: those that wait in the line behind it have been accepted, and would fail one after the other.
pub(in crate::build) const ENGINE_PATIENCE: Duration = Duration::from_secs(300);

/// A job that is ended in order even when the build is given up: by a task of its own, which `endings` knows of.
pub(super) struct Ending<'t> {
    pub(super) job: Option<Box<dyn Job>>,
    endings: &'t TaskTracker,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.endings.spawn(async move {
                if let Err(error) = job.finish().await {
                    tracing::warn!(%error, "a build container could not be removed; it is ended with the orphans at the next start");
                }
            });
        }
    }
}

impl Ending<'_> {
    /// Ends it now, and waits until it is gone: its name is free then.
    async fn end(&mut self) {
        if let Some(job) = self.job.take() {
            // In a task, so that it goes on when nobody waits. That it cannot be removed yet, making the next one tells.
            let _ = self.endings.spawn(job.finish()).await;
        }
    }
}

/// Why there is no container that runs.
enum Cut {
    /// Something that the engine was asked for.
    Engine(RuntimeError),
    /// The commit cannot be read.
    Source(SourceError),
}

impl From<RuntimeError> for Cut {
    fn from(error: RuntimeError) -> Self {
        Self::Engine(error)
    }
}

impl From<SourceError> for Cut {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

/// Makes the container, fills it and starts it. An engine that does not answer is waited for: nothing has been built yet, and a container
/// that was made is made anew.
pub(super) async fn begin<'t>(
    runtime: &dyn Runtime,
    endings: &'t TaskTracker,
    spec: &CompileSpec,
    output: &BuildOutput,
) -> Result<Ending<'t>, BuildError> {
    let mut patience = Patience::new(runtime, ENGINE_PATIENCE);
    loop {
        output.doing("preparing the build container");
        let mut ending = Ending { job: None, endings };
        match start(runtime, spec, &mut ending).await {
            Ok(()) => return Ok(ending),
            Err(Cut::Source(error)) => return Err(error.into()),
            Err(Cut::Engine(error)) => {
                let tell = |error: &RuntimeError| output.detail(&error.waiting());
                output.doing("waiting for the engine");
                patience.again(error, tell).await?;
                ending.end().await;
            }
        }
    }
}

async fn start(runtime: &dyn Runtime, spec: &CompileSpec, ending: &mut Ending<'_>) -> Result<(), Cut> {
    let job = ending.job.insert(runtime.job(&job_spec(spec)).await?);
    upload(&mut **job, spec).await?;
    reached(FailPoint::Checkout);
    job.start().await?;
    reached(FailPoint::Compile);
    Ok(())
}

fn job_spec(spec: &CompileSpec) -> JobSpec {
    let mut environment = spec.operator_env.clone();
    let mut mounts = Vec::new();
    if let Some(bundle) = &spec.ca_bundle {
        mounts.push((bundle.to_string_lossy().into_owned(), CA_BUNDLE.to_owned()));
        environment.extend(CA_VARIABLES.map(|name| (name.to_owned(), CA_BUNDLE.to_owned())));
    }
    environment.extend(
        [
            ("SOURCE_VERSION", spec.commit.as_str()),
            ("BERTH_BUILD", "1"),
            ("HOME", "/home/app"),
            ("BUILD_DIR", "/app"),
            ("CACHE_DIR", "/cache"),
            ("ENV_DIR", "/env"),
            ("BERTH_META", "/meta"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let mut argv = vec!["/buildpacks/bin/build".to_owned()];
    argv.extend(spec.names.iter().cloned());
    JobSpec {
        kind: JobKind::Build,
        env: spec.env.clone(),
        name: spec.name.clone(),
        image: spec.stack.clone(),
        argv,
        environment,
        limits: spec.limits.clone(),
        cache: true,
        read_only_mounts: mounts,
        tty: None,
        stdin: false,
        stop_grace: STOP_GRACE,
    }
}

/// Source, buildpacks and build variables into the container, streamed.
async fn upload(job: &mut dyn Job, spec: &CompileSpec) -> Result<(), Cut> {
    let (repository, commit, entries) = (spec.repository.clone(), spec.commit.clone(), spec.entries.clone());
    let unreadable = Arc::<Mutex<Option<SourceError>>>::default();
    let tell = unreadable.clone();
    let source = bridge::produce(move |out| {
        let read = || {
            let tree = SourceTree::open(&repository, None, &commit)?;
            let mut tar = TarWriter::new(out);
            write_source(&tree, &entries, b"", &mut tar, &mut Sizes::default())?;
            tar.finish()?;
            Ok::<(), SourceError>(())
        };
        read().map_err(|error| {
            let text = error.to_string();
            // The engine's client would only say that the connection broke, as it does when the engine goes away.
            if !matches!(error, SourceError::Output(_)) {
                *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
            std::io::Error::other(text)
        })
    });
    let uploaded = job.upload("/app", Box::new(source)).await;
    if let Some(error) = unreadable.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error.into());
    }
    uploaded?;
    let buildpacks = spec.buildpacks.clone();
    job.upload("/buildpacks", Box::new(bridge::produce(move |out| buildpacks.write(out)))).await?;
    if !spec.build_env.is_empty() {
        let variables = spec.build_env.clone();
        job.upload("/env", Box::new(bridge::produce(move |out| write_env(&variables, out)))).await?;
    }
    Ok(())
}

fn write_env(variables: &BTreeMap<String, String>, out: &mut dyn Write) -> std::io::Result<()> {
    let mut tar = TarWriter::new(out);
    // A name with a slash or dots would be a path; the manifest's parser lets none through.
    let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    for (name, value) in variables.iter().filter(|(name, _)| !name.is_empty() && plain(name)) {
        tar.file(name.as_bytes(), 0o600, value.len() as u64, value.as_bytes())?;
    }
    tar.finish().map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        build::{buildpacks::Buildpacks, output::Transcript},
        domain::{Digest, ImageRef, Limits},
        runtime::fake::{Behaviour, FakeRuntime},
    };

    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<String>>);

    impl Transcript for Said {
        fn write(&self, bytes: &[u8]) {
            self.0.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        }
        fn finish(&self) {}
    }

    fn spec(repository: PathBuf) -> CompileSpec {
        CompileSpec {
            env: "acme/shop/dev".parse().unwrap(),
            name: "build-1".to_owned(),
            stack: ImageRef { repository: "berth/stack".to_owned(), digest: Digest::from_sha256([0; 32]) },
            scratch: repository.clone(),
            repository,
            commit: "0".repeat(40),
            entries: Vec::new(),
            buildpacks: Buildpacks::embedded(),
            names: Vec::new(),
            build_env: BTreeMap::new(),
            operator_env: BTreeMap::new(),
            ca_bundle: None,
            limits: Limits { cpu_millis: 100, memory: 1 << 20, pids: 10 },
            slug_limit: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_stays_away_is_not_waited_for_for_ever() {
        let (runtime, endings, said) = (FakeRuntime::new(Behaviour::default()), TaskTracker::new(), Said::default());
        runtime.set_dead(true);
        let output = BuildOutput::new(Box::new(said.clone()));
        let began = tokio::time::Instant::now();
        let begun = begin(&runtime, &endings, &spec(PathBuf::from("/nonexistent")), &output).await;
        assert!(matches!(begun, Err(BuildError::Platform(error)) if error.is::<RuntimeError>()));
        assert_eq!(began.elapsed(), ENGINE_PATIENCE);
        assert_eq!(said.0.lock().unwrap().matches("waiting for the engine: the engine is dead").count(), 1);
    }

    #[tokio::test]
    async fn a_commit_that_cannot_be_read_is_not_the_engine() {
        let (runtime, endings) = (FakeRuntime::new(Behaviour::default()), TaskTracker::new());
        let output = BuildOutput::new(Box::new(Said::default()));
        let begun = begin(&runtime, &endings, &spec(PathBuf::from("/nonexistent")), &output).await;
        let Err(error) = begun else { panic!("it began") };
        assert!(error.to_string().starts_with("the repository cannot be read: "), "{error}");
    }

    #[test]
    fn variables_become_files() {
        let variables =
            BTreeMap::from([("A_1".to_owned(), "x\ny".to_owned()), ("../../etc/x".to_owned(), "no".to_owned())]);
        let mut tar = Vec::new();
        write_env(&variables, &mut tar).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [PathBuf::from("A_1")]);
    }
}
