//! The compile step: `/buildpacks/bin/build` in a container of the build stack (`buildpacks/README.md` is the contract).

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::PathBuf,
    time::Duration,
};

use futures::StreamExt;
use tokio_util::task::TaskTracker;

use super::{
    bridge,
    buildpacks::Buildpacks,
    error::BuildError,
    inputs::parse_globs,
    output::BuildOutput,
    slug::{LayerDirectory, Sizes, SplitError, SplitPlan, SplitSlug, Splitter, TarWriter, write_source},
    source::{SourceEntry, SourceError, SourceTree},
};
use crate::{
    deploy::Progress,
    domain::{EnvRef, FailPoint, ImageRef, Limits, ProcessType, fail_point::reached},
    runtime::{Job, JobKind, JobSpec, Runtime},
};

/// Exit status of `bin/build` when no buildpack fits; it has said so.
const NO_BUILDPACK: i64 = 10;
/// Largest file in `/meta`, and of all together, bytes.
const META_FILE: u64 = 1 << 20;
const META: u64 = 8 << 20;
/// Files in `/meta`, those below it included.
const META_FILES: usize = 10_000;
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Where the host's CA bundle is in the container.
const CA_BUNDLE: &str = "/etc/berth/ca.crt";
/// Variables by which tools find it.
const CA_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];

/// One compile step.
pub struct CompileSpec {
    pub env: EnvRef,
    /// Unique among running jobs: `build-12`.
    pub name: String,
    pub stack: ImageRef,
    /// Repository and commit, to stream the source from.
    pub repository: PathBuf,
    pub commit: String,
    pub entries: Vec<SourceEntry>,
    pub buildpacks: Buildpacks,
    /// Buildpacks to run in this order; empty: detect.
    pub names: Vec<String>,
    /// `build.env` of the manifest.
    pub build_env: BTreeMap<String, String>,
    /// The operator's variables for all builds.
    pub operator_env: BTreeMap<String, String>,
    pub ca_bundle: Option<PathBuf>,
    pub limits: Limits,
    pub scratch: PathBuf,
    pub slug_limit: u64,
}

/// What the compile step left.
pub struct Compiled {
    pub slug: SplitSlug,
    /// Globs of the files it read; `None`: it may have read everything.
    pub inputs: Option<Vec<String>>,
    /// What the last buildpack would start.
    pub defaults: BTreeMap<ProcessType, String>,
    /// Buildpacks that ran, with what they detected.
    pub buildpacks: Vec<(String, String)>,
}

/// A job that is ended in order even when the build is given up: by a task of its own, which `endings` knows of.
struct Ending<'t> {
    job: Option<Box<dyn Job>>,
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

/// Runs the compile step. Afterwards, or when the future is dropped, the container is killed and removed by a task in `endings`.
pub async fn compile(
    runtime: &dyn Runtime,
    endings: &TaskTracker,
    spec: CompileSpec,
    output: &BuildOutput,
) -> Result<Compiled, BuildError> {
    let mut ending = Ending { job: Some(runtime.job(&job_spec(&spec)).await?), endings };
    match &mut ending.job {
        Some(job) => compile_in(&mut **job, spec, output).await,
        None => Err(anyhow::anyhow!("the build container is gone").into()),
    }
}

async fn compile_in(job: &mut dyn Job, spec: CompileSpec, output: &BuildOutput) -> Result<Compiled, BuildError> {
    output.doing("preparing the build container");
    upload(job, &spec).await?;
    reached(FailPoint::Checkout);
    output.doing("running the buildpack");
    job.start().await?;
    reached(FailPoint::Compile);
    let mut chunks = job.output();
    while let Some(chunk) = chunks.next().await {
        output.raw(&chunk?.bytes);
    }
    let exit = job.wait().await?;
    reached(FailPoint::Compile);
    let memory = spec.limits.memory >> 20;
    match exit.code {
        // The kernel may have taken a process that the build could do without.
        code if code != 0 && exit.out_of_memory => {
            return Err(BuildError::Rejected {
                reason: format!("the build ran out of memory: it may use {memory} MiB"),
                lines: vec![
                    "Let it do less at a time (fewer parallel jobs), or ask the operator for more (builds.memory)."
                        .to_owned(),
                ],
            });
        }
        0 => {}
        NO_BUILDPACK => return Err(BuildError::rejected("no buildpack fits this app")),
        code @ 129..=192 => return Err(BuildError::rejected(format!("the build was ended by signal {}", code - 128))),
        code => return Err(BuildError::rejected(format!("the build failed (exit status {code})"))),
    }
    output.doing("taking the slug apart");
    collect(job, spec).await
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
async fn upload(job: &mut dyn Job, spec: &CompileSpec) -> Result<(), BuildError> {
    let (repository, commit, entries) = (spec.repository.clone(), spec.commit.clone(), spec.entries.clone());
    let source = bridge::produce(move |out| {
        let tree = SourceTree::open(&repository, None, &commit)?;
        let mut tar = TarWriter::new(out);
        write_source(&tree, &entries, b"", &mut tar, &mut Sizes::default())?;
        tar.finish()?;
        Ok::<(), SourceError>(())
    });
    job.upload("/app", Box::new(source)).await?;
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

/// What the container holds now, as layers and facts.
async fn collect(job: &mut dyn Job, spec: CompileSpec) -> Result<Compiled, BuildError> {
    let meta = bridge::consume(job.download("/meta").await?, |stream| read_meta(stream)).await??;
    let text = |name: &str| meta.get(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
    let plan = SplitPlan {
        directories: LayerDirectory::parse(&text("layers")),
        source: &spec.entries,
        scratch: spec.scratch.clone(),
        limit: spec.slug_limit,
    };
    let mut splitter = Splitter::new(plan)?;
    let read = bridge::consume(job.download("/app").await?, move |stream| {
        let result = splitter.read(stream);
        (splitter, result)
    });
    let (mut splitter, result) = read.await?;
    result?;
    for copy in splitter.take_copies() {
        let path = format!("/app/{}", super::source::lossy(&copy.target));
        let stream = job.download(&path).await?;
        let copied = bridge::consume(stream, move |stream| {
            let result = splitter.copy(&copy, stream);
            (splitter, result)
        });
        let (back, result) = copied.await?;
        splitter = back;
        result?;
    }
    reached(FailPoint::Slug);
    let slug = tokio::task::spawn_blocking(move || splitter.finish()).await.map_err(std::io::Error::other)??;
    Ok(Compiled {
        slug,
        inputs: parse_globs(&text("inputs")),
        defaults: parse_release(&text("release.yml"))?,
        buildpacks: text("buildpacks")
            .lines()
            .map(|line| line.split_once('\t').unwrap_or((line, "")))
            .map(|(name, said)| (name.to_owned(), said.to_owned()))
            .collect(),
    })
}

/// The small files at the top of `/meta`.
fn read_meta(stream: &mut dyn Read) -> Result<BTreeMap<String, Vec<u8>>, SplitError> {
    let mut files = BTreeMap::new();
    let mut total = 0;
    for (count, entry) in tar::Archive::new(stream).entries()?.enumerate() {
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        total += entry.size();
        if count >= META_FILES || total > META {
            return Err(too_much_meta(&name));
        }
        let Some(name) = name.strip_prefix("meta/").filter(|name| !name.is_empty() && !name.contains('/')) else {
            continue;
        };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if entry.size() > META_FILE {
            return Err(too_much_meta(&format!("meta/{name}")));
        }
        let mut content = Vec::new();
        entry.take(META_FILE).read_to_end(&mut content)?;
        files.insert(name.to_owned(), content);
    }
    Ok(files)
}

fn too_much_meta(name: &str) -> SplitError {
    SplitError::Refused { path: format!("/{}", name.trim_start_matches('/')), what: "too much" }
}

/// What `bin/release` printed: `default_process_types`. Nothing at all is fine.
fn parse_release(text: &str) -> Result<BTreeMap<ProcessType, String>, BuildError> {
    #[derive(serde::Deserialize, Default)]
    struct Release {
        #[serde(default)]
        default_process_types: Option<BTreeMap<String, String>>,
    }
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    let release: Option<Release> = serde_yaml::from_str(text).map_err(|error| {
        BuildError::rejected(format!("the buildpack's bin/release printed what cannot be read: {error}"))
    })?;
    let types = release.unwrap_or_default().default_process_types.unwrap_or_default();
    let parse = |(name, command): (String, String)| match name.parse() {
        Ok(name) => Ok((name, command)),
        Err(error) => Err(BuildError::rejected(format!("the buildpack's bin/release names a process type: {error}"))),
    };
    types.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bin_release_prints() {
        let web: ProcessType = "web".parse().unwrap();
        for (text, command) in [
            ("---\ndefault_process_types:\n  web: node server.js\n", Some("node server.js")),
            ("--- {}\n", None),
            ("", None),
            ("addons: []\n", None),
        ] {
            let found = parse_release(text).unwrap();
            assert_eq!(found.get(&web).map(String::as_str), command, "{text}");
        }
        assert!(parse_release("default_process_types: [1]").is_err());
        assert!(parse_release("default_process_types: {Web: x}").is_err());
    }

    #[test]
    fn meta_is_bounded_whatever_is_in_it() {
        let large = vec![b'x'; 1 << 20];
        let meta = |files: &[(&str, &[u8])]| {
            let mut tar = TarWriter::new(Vec::new());
            for (path, content) in files {
                tar.file(path.as_bytes(), 0o644, content.len() as u64, *content).unwrap();
            }
            read_meta(&mut tar.finish().unwrap().0.as_slice())
        };
        let files = meta(&[("meta/inputs", b"*.js"), ("meta/more/x", b"1")]).unwrap();
        assert_eq!(files, BTreeMap::from([("inputs".to_owned(), b"*.js".to_vec())]));
        let deep: Vec<String> = (0..9).map(|number| format!("meta/deep/{number}")).collect();
        let deep: Vec<_> = deep.iter().map(|path| (path.as_str(), large.as_slice())).collect();
        let many: Vec<String> = (0..META_FILES + 1).map(|number| format!("meta/{number}")).collect();
        let many: Vec<_> = many.iter().map(|path| (path.as_str(), &b""[..])).collect();
        for files in [&deep, &many] {
            let error = meta(files).unwrap_err().to_string();
            assert!(error.starts_with("the build left too much at /meta/"), "{error}");
        }
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
