//! The compile step: `/buildpacks/bin/build` in a container of the build stack (`buildpacks/README.md` is the contract).

mod start;

use std::{collections::BTreeMap, io::Read, path::PathBuf};

use futures::StreamExt;
use tokio_util::task::TaskTracker;

use super::{
    bridge,
    buildpacks::Buildpacks,
    error::BuildError,
    inputs::parse_globs,
    output::BuildOutput,
    slug::{LayerDirectory, SplitError, SplitPlan, SplitSlug, Splitter},
    source::SourceEntry,
};
use crate::{
    deploy::Progress,
    domain::{EnvRef, FailPoint, ImageRef, Limits, ProcessType, fail_point::reached},
    runtime::{Job, Runtime},
};

pub(super) use self::start::ENGINE_PATIENCE;

/// Exit status of `bin/build` when no buildpack fits; it has said so.
const NO_BUILDPACK: i64 = 10;
/// Largest file in `/meta`, and of all together, bytes.
const META_FILE: u64 = 1 << 20;
const META: u64 = 8 << 20;
/// Files in `/meta`, those below it included.
const META_FILES: usize = 10_000;

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

/// Runs the compile step. Afterwards, or when the future is dropped, the container is killed and removed by a task in `endings`.
pub async fn compile(
    runtime: &dyn Runtime,
    endings: &TaskTracker,
    spec: CompileSpec,
    output: &BuildOutput,
) -> Result<Compiled, BuildError> {
    let mut ending = start::begin(runtime, endings, &spec, output).await?;
    match &mut ending.job {
        Some(job) => follow(&mut **job, spec, output).await,
        None => Err(anyhow::anyhow!("the build container is gone").into()),
    }
}

/// From its start to what it left.
async fn follow(job: &mut dyn Job, spec: CompileSpec, output: &BuildOutput) -> Result<Compiled, BuildError> {
    output.doing("running the buildpack");
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
    use crate::build::slug::TarWriter;

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
}
