//! One build, source to image: reuse what can be reused, build the rest.

mod again;
mod image;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use self::image::finished;
use super::{
    BuildParts, BuildSettings,
    buildpacks::Buildpacks,
    container::{CompileSpec, Compiled, compile},
    definition::{Description, definition},
    error::BuildError,
    inputs,
    listing::Listing,
    output::BuildOutput,
    records::{CompileRecord, CompileResult, LayerRecord, SlugRecord},
    reuse::Recipe,
    slug::{LayerRef, PublishError, Shadow},
    source::{SourceEntry, SourceTree},
    stacks::{self, Stacks},
};
use crate::{
    deploy::Progress,
    domain::{Build, Digest, FailPoint, ImageRef, ProcessType, fail_point::reached},
    manifest::{Definition, Problem, render_problems},
    registry::Publishing,
    traces::Measure,
};

/// Slugs remembered for each app.
const SLUGS: usize = 32;

/// Makes images; shared by all builds.
pub struct Pipeline {
    pub parts: BuildParts,
    pub settings: BuildSettings,
    buildpacks: Buildpacks,
    stacks: OnceCell<Stacks>,
    /// Containers that are being removed.
    endings: TaskTracker,
}

/// How long a container that is no longer needed may take to go before nobody waits for it any more.
const ENDING_DEADLINE: Duration = Duration::from_secs(20);

/// A finished slug.
pub struct Slug {
    pub image: ImageRef,
    pub description: Description,
    /// What the buildpack would start.
    pub defaults: BTreeMap<ProcessType, String>,
    pub buildpacks: Vec<String>,
    pub subject: String,
    /// To be remembered once the build has come this far.
    pub records: Records,
    /// Until a release names the image, nothing else keeps it from being collected.
    pub published: Publishing,
}

/// What is to be written to the store, off the way to the deployment.
#[derive(Default)]
pub struct Records {
    layers: Vec<LayerRecord>,
    slug: Option<SlugRecord>,
    compile: Option<CompileRecord>,
}

/// The pushed tree, read.
struct Source {
    description: Description,
    entries: Vec<SourceEntry>,
    tree: git2::Oid,
    commit: String,
    committed_at: jiff::Timestamp,
    subject: String,
    warnings: Vec<String>,
}

/// One build's way through the pipeline.
struct Run<'b> {
    pipeline: &'b Pipeline,
    build: &'b Build,
    output: &'b BuildOutput,
    stopwatch: &'b mut Stopwatch,
    repository: PathBuf,
    image_repository: String,
}

/// An image of which only the source layer is new.
struct Reused {
    image: ImageRef,
    defaults: BTreeMap<ProcessType, String>,
    buildpacks: Vec<String>,
    records: Records,
}

/// What the source layer goes on top of.
struct Below {
    /// What the source layer leaves out.
    shadow: Shadow,
    /// Layers of the compile step, from the bottom.
    layers: Vec<LayerRef>,
    /// Bytes of their files.
    files_size: u64,
    /// Whether the records of what the registry has are believed.
    trust: bool,
}

/// Milliseconds by stage, for the record and for the trace.
pub struct Stopwatch {
    since: Instant,
    pub stages: Vec<(String, u64)>,
    trace: Measure,
    /// What is probably being done, in case it comes to nothing.
    doing: &'static str,
}

impl Stopwatch {
    /// Starts now; the stages are parts of what `trace` measures.
    pub fn start(trace: Measure) -> Self {
        Self { since: Instant::now(), stages: Vec::new(), trace, doing: "read" }
    }

    /// Ends a stage, begins the next.
    pub fn lap(&mut self, stage: &'static str) {
        let spent = self.since.elapsed();
        self.since = Instant::now();
        let millis = u64::try_from(spent.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        self.stages.push((stage.to_owned(), millis));
        self.trace.lap(span_name(stage), |span| span);
        self.doing = "prepare";
    }

    /// Says what the stage under way is.
    pub fn doing(&mut self, stage: &'static str) {
        self.doing = stage;
    }

    /// The stage under way has failed.
    pub fn failed(&mut self) {
        self.trace.lap(span_name(self.doing), |span| span.failed(true));
    }
}

/// What a stage is called in traces, where others read of it than those who know the timings.
fn span_name(stage: &'static str) -> &'static str {
    match stage {
        "read" => "checkout",
        "layers" => "slug",
        "source layer" => "image",
        "push" => "registry push",
        other => other,
    }
}

impl Pipeline {
    /// Reads the buildpacks; the stacks are looked at when the first build needs them, or by [`Self::stacks`].
    pub fn new(parts: BuildParts, settings: BuildSettings) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&settings.scratch)?;
        settings.custom_buildpacks.clean()?;
        let buildpacks = match &settings.buildpacks {
            Some(directory) => Buildpacks::from_directory(directory)?,
            None => Buildpacks::embedded(),
        };
        let endings = TaskTracker::new();
        endings.close();
        Ok(Self { parts, settings, buildpacks, stacks: OnceCell::new(), endings })
    }

    /// Waits until the containers of builds that were given up are gone.
    pub async fn containers_gone(&self) {
        if tokio::time::timeout(ENDING_DEADLINE, self.endings.wait()).await.is_err() {
            tracing::warn!("build containers are still being removed");
        }
    }

    /// The stacks, put into the registry if they are not there.
    pub async fn stacks(&self) -> anyhow::Result<&Stacks> {
        self.stacks.get_or_try_init(|| stacks::ensure(&self.settings.stacks, &*self.parts.registry)).await
    }

    /// From commit to image in the registry.
    pub async fn run(
        &self,
        build: &Build,
        output: &BuildOutput,
        stopwatch: &mut Stopwatch,
    ) -> Result<Slug, BuildError> {
        if let Err(no_room) = self.settings.disk.check() {
            return Err(BuildError::rejected(no_room.to_string()));
        }
        let repository = self.parts.repositories.path(&build.env);
        let image_repository = ImageRef::repository_of(&build.env.app_ref());
        Run { pipeline: self, build, output, stopwatch, repository, image_repository }.slug().await
    }

    /// Writes what a build has learned. That it cannot is no reason to fail: it costs the next build time.
    pub async fn remember(&self, records: &Records) {
        if let Err(error) = self.try_remember(records).await {
            tracing::warn!(%error, "what a build has learned cannot be written down");
        }
    }

    async fn try_remember(&self, records: &Records) -> Result<(), crate::store::StoreError> {
        let mut transaction = self.parts.store.transaction();
        for layer in &records.layers {
            transaction = transaction.put(layer);
        }
        if let Some(slug) = &records.slug {
            transaction = transaction.put(slug);
            let mut known = self.parts.store.list::<SlugRecord>(&format!("{}/", slug.app)).await?;
            known.retain(|other| other.key != slug.key);
            known.sort_by_key(|other| other.made_at);
            for old in &known[..known.len().saturating_sub(SLUGS - 1)] {
                transaction = transaction.delete(old);
            }
        }
        if let Some(compile) = &records.compile {
            transaction = transaction.put(compile);
        }
        transaction.commit().await.map(drop)
    }
}

impl Run<'_> {
    async fn slug(mut self) -> Result<Slug, BuildError> {
        let source = self.read().await?;
        reached(FailPoint::Checkout);
        for warning in &source.warnings {
            self.output.detail(warning);
        }
        check_size(&source.description.definition, self.pipeline.settings.largest_process)?;
        self.stopwatch.lap("read");
        // From here on nothing is collected that may be reused; a compile step, which takes long, begins without it.
        let published = self.pipeline.settings.publishing.enter().await;
        let asked = &source.description.definition.build.buildpacks;
        let (packs, names) = self.pipeline.settings.custom_buildpacks.resolve(&self.pipeline.buildpacks, asked).await?;
        let stacks = self.pipeline.stacks().await?;
        let recipe = Recipe {
            buildpacks: packs.hash(),
            names: &names,
            stacks,
            build_env: &source.description.definition.build.env,
            operator_env: &self.pipeline.settings.operator_env,
        };
        let (slug_key, compile_key) = (recipe.slug_key(source.tree), recipe.key());
        if !self.build.no_cache {
            if let Some((image, known)) = self.reuse_slug(&slug_key).await? {
                self.stopwatch.lap("reuse");
                let (defaults, buildpacks) = (known.defaults, known.buildpacks);
                return Ok(finished(&source, image, defaults, buildpacks, Records::default(), published));
            }
            match self.reuse_compile(&source, stacks, &slug_key, &compile_key).await {
                Ok(Some(reused)) => {
                    let Reused { image, defaults, buildpacks, records } = reused;
                    return Ok(finished(&source, image, defaults, buildpacks, records, published));
                }
                Ok(None) => {}
                Err(BuildError::Platform(error)) if error.downcast_ref::<PublishError>().is_some_and(is_lost) => {
                    self.output.detail("the registry has lost layers of the last build; building anew");
                }
                Err(error) => return Err(error),
            }
        }
        drop(published);
        self.compile(source, stacks, packs, names, &slug_key, &compile_key).await
    }

    async fn read(&self) -> Result<Source, BuildError> {
        let (repository, commit, env) = (self.repository.clone(), self.build.commit.clone(), self.build.env.clone());
        let limit = self.pipeline.settings.slug_limit;
        let read = tokio::task::spawn_blocking(move || {
            let tree = SourceTree::open(&repository, None, &commit)?;
            let description = definition(&tree, &env).map_err(|problems| invalid(&problems))?;
            let Listing { entries, tree: root, warnings } =
                Listing::of(&tree, &description.definition.build.root, limit)?;
            let (committed_at, subject) = (tree.committed_at(), tree.subject().to_owned());
            Ok::<_, BuildError>(Source { description, entries, tree: root, commit, committed_at, subject, warnings })
        });
        read.await.map_err(std::io::Error::other)?
    }

    /// The whole way, through the build container.
    async fn compile(
        &mut self,
        source: Source,
        stacks: &Stacks,
        packs: Buildpacks,
        names: Vec<String>,
        slug_key: &Digest,
        compile_key: &Digest,
    ) -> Result<Slug, BuildError> {
        let detect = packs.detect_globs(&names);
        let spec = self.compile_spec(&source, stacks, packs, names);
        self.stopwatch.doing("compile");
        let compiled = compile(&*self.pipeline.parts.runtime, &self.pipeline.endings, spec, self.output).await?;
        self.stopwatch.lap("compile");
        self.stopwatch.doing("layers");
        self.output.step("Making the slug");
        self.output.doing("compressing and pushing the slug");
        let Compiled { slug, inputs, defaults, buildpacks } = compiled;
        let files_size = slug.sizes.total();
        let published = self.pipeline.settings.publishing.enter().await;
        let mut publisher = self.publisher();
        let mut layers = Vec::new();
        for raw in slug.layers {
            layers.push(publisher.add(raw, self.output).await?);
        }
        self.stopwatch.lap("layers");
        let buildpacks: Vec<String> = buildpacks.into_iter().map(|(name, _)| name).collect();
        let result = (|| {
            let mut globs = inputs?;
            globs.extend(detect?);
            globs.sort();
            globs.dedup();
            let digest = inputs::digest(&source.entries, &globs, &slug.shadow)?;
            let (shadow, layers) = (slug.shadow.to_texts()?, layers.clone());
            let (defaults, buildpacks) = (defaults.clone(), buildpacks.clone());
            let made_at = jiff::Timestamp::now();
            Some(CompileResult { made_at, inputs: globs, shadow, digest, layers, files_size, defaults, buildpacks })
        })();
        let below = Below { shadow: slug.shadow, layers, files_size, trust: false };
        let (image, layer_records) = self.publish(publisher, &source, stacks, below).await?;
        let compile = match result {
            Some(result) => Some(self.compile_record(compile_key, result).await?),
            None => None,
        };
        let slug_record = self.slug_record(slug_key, &image, &defaults, &buildpacks);
        let records = Records { layers: layer_records, slug: Some(slug_record), compile };
        Ok(finished(&source, image, defaults, buildpacks, records, published))
    }

    fn compile_spec(&self, source: &Source, stacks: &Stacks, packs: Buildpacks, names: Vec<String>) -> CompileSpec {
        let settings = &self.pipeline.settings;
        CompileSpec {
            env: self.build.env.clone(),
            name: format!("build-{}", self.build.number),
            stack: stacks.build.image.clone(),
            repository: self.repository.clone(),
            commit: source.commit.clone(),
            entries: source.entries.clone(),
            buildpacks: packs,
            names,
            build_env: source.description.definition.build.env.clone(),
            operator_env: settings.operator_env.clone(),
            ca_bundle: settings.ca_bundle.clone(),
            limits: settings.limits.clone(),
            scratch: settings.scratch.clone(),
            slug_limit: settings.slug_limit,
        }
    }
}

/// No process may ask for more than one may have.
fn check_size(definition: &Definition, largest: (u32, u64)) -> Result<(), BuildError> {
    let lines = oversized(definition, largest);
    if lines.is_empty() {
        return Ok(());
    }
    Err(BuildError::Rejected { reason: "a process wants more than this server gives".to_owned(), lines })
}

/// What asks for more than the `largest` process may have (thousandths of a core, bytes of memory), and what to do about it.
pub fn oversized(definition: &Definition, (cpu, memory): (u32, u64)) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, process) in &definition.processes {
        if let Some(wanted) = process.cpu_millis.filter(|wanted| *wanted > cpu) {
            lines.push(format!("{name} wants {} cores; one replica may have {}.", cores(wanted), cores(cpu)));
        }
        if let Some(wanted) = process.memory.filter(|wanted| *wanted > memory) {
            let (wanted, memory) = (wanted >> 20, memory >> 20);
            lines.push(format!("{name} wants {wanted} MiB of memory; one replica may have {memory} MiB."));
        }
    }
    for (name, job) in &definition.cron {
        if let Some(wanted) = job.cpu_millis.filter(|wanted| *wanted > cpu) {
            lines.push(format!("cron job {name} wants {} cores; one may have {}.", cores(wanted), cores(cpu)));
        }
        if let Some(wanted) = job.memory.filter(|wanted| *wanted > memory) {
            let (wanted, memory) = (wanted >> 20, memory >> 20);
            lines.push(format!("cron job {name} wants {wanted} MiB of memory; one may have {memory} MiB."));
        }
    }
    if !lines.is_empty() {
        let advice = "Ask for less in berth.yaml, or ask the operator for more (deploy.max_cpu, deploy.max_memory).";
        lines.push(advice.to_owned());
    }
    lines
}

fn cores(millis: u32) -> f64 {
    f64::from(millis) / 1000.0
}

fn is_lost(error: &PublishError) -> bool {
    matches!(error, PublishError::Lost(_))
}

fn invalid(problems: &[Problem]) -> BuildError {
    let lines = render_problems(problems).lines().map(str::to_owned).collect();
    BuildError::Rejected { reason: "the manifest is not valid".to_owned(), lines }
}

/// For messages that name a limit.
pub fn time_limit_error(limit: Duration) -> BuildError {
    BuildError::Rejected {
        reason: format!("the build took longer than {}", super::output::human_duration(limit)),
        lines: vec!["Make it shorter, or ask the operator for more time (builds.time_limit).".to_owned()],
    }
}
