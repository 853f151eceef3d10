//! The end of the pipeline: the source layer, the image into the registry, and what is to be remembered of it.

use std::collections::BTreeMap;

use super::{Below, Records, Run, Slug, Source};
use crate::{
    build::{
        error::BuildError,
        records::{CompileRecord, CompileResult, LayerRecord, SlugRecord},
        slug::{ImageDescription, OWNER, Publisher, Sizes, SplitError, human_size, source_layer},
        source::SourceTree,
        stacks::{self, Stacks},
    },
    deploy::Progress,
    domain::{Digest, FailPoint, ImageRef, ProcessType, fail_point::reached},
    registry::Publishing,
};

impl Run<'_> {
    /// The source layer on top, and the image into the registry.
    pub(super) async fn publish(
        &mut self,
        mut publisher: Publisher,
        source: &Source,
        stacks: &Stacks,
        below: Below,
    ) -> Result<(ImageRef, Vec<LayerRecord>), BuildError> {
        self.stopwatch.doing("source layer");
        let base = stacks.run.layer.clone();
        let stack = Some(stacks.run.image.repository.as_str());
        if !publisher.reuse(&base, stack, below.trust).await? {
            stacks::ensure(&self.pipeline.settings.stacks, &*self.pipeline.parts.registry).await?;
            if !publisher.reuse(&base, stack, false).await? {
                return Err(anyhow::anyhow!("the run stack cannot be brought into {}", self.image_repository).into());
            }
        }
        let (repository, commit, entries) = (self.repository.clone(), source.commit.clone(), source.entries.clone());
        let (shadow, scratch) = (below.shadow, self.pipeline.settings.scratch.clone());
        let made = tokio::task::spawn_blocking(move || {
            let tree = SourceTree::open(&repository, None, &commit)?;
            let mut sizes = Sizes::default();
            source_layer(&tree, &entries, &shadow, &scratch, &mut sizes).map(|layer| (layer, sizes))
        });
        let (raw, sizes) = made.await.map_err(std::io::Error::other)??;
        let (size, limit) = (below.files_size + sizes.total(), self.pipeline.settings.slug_limit);
        if size > limit {
            return Err(SplitError::TooLarge { size, limit, largest: sizes.largest() }.into());
        }
        let mut layers = vec![base];
        layers.extend(below.layers);
        reached(FailPoint::Slug);
        layers.push(publisher.add_fresh(raw).await?);
        self.stopwatch.lap("source layer");
        self.stopwatch.doing("push");
        let image = self.image_description(source, stacks).files(&layers);
        let image = publisher.finish(image, &layers).await?;
        let (pushed, reused) = publisher.counts();
        self.output.detail(&format!(
            "slug of {}: {} pushed, {reused} of {} layers reused",
            human_size(size),
            human_size(pushed),
            layers.len()
        ));
        self.stopwatch.lap("push");
        Ok((image, publisher.into_records()))
    }

    pub(super) fn publisher(&self) -> Publisher {
        let (parts, settings) = (&self.pipeline.parts, &self.pipeline.settings);
        Publisher::new(parts.registry.clone(), parts.store.clone(), &self.image_repository, &settings.scratch)
    }

    fn image_description(&self, source: &Source, stacks: &Stacks) -> ImageDescription {
        let label = |name: &str, value: String| (format!("org.opencontainers.image.{name}"), value);
        let created = jiff::Timestamp::from_second(source.committed_at.as_second()).unwrap_or_default();
        ImageDescription {
            env: stacks.run.env.clone(),
            user: OWNER.to_string(),
            workdir: stacks.run.workdir.clone(),
            labels: BTreeMap::from([
                label("revision", source.commit.clone()),
                label("created", created.to_string()),
                label("title", self.build.env.app_ref().to_string()),
                label("base.digest", stacks.run.image.digest.to_string()),
            ]),
            created,
        }
    }

    pub(super) fn slug_record(
        &self,
        key: &Digest,
        image: &ImageRef,
        defaults: &BTreeMap<ProcessType, String>,
        buildpacks: &[String],
    ) -> SlugRecord {
        SlugRecord {
            app: self.build.env.app_ref(),
            key: key.clone(),
            image: image.clone(),
            defaults: defaults.clone(),
            buildpacks: buildpacks.to_vec(),
            env: self.build.env.clone(),
            build: self.build.number,
            made_at: jiff::Timestamp::now(),
        }
    }

    pub(super) async fn compile_record(
        &self,
        key: &Digest,
        result: CompileResult,
    ) -> Result<CompileRecord, BuildError> {
        let app = self.build.env.app_ref();
        let known = self.pipeline.parts.store.get::<CompileRecord>(&(app.clone(), key.clone())).await?;
        let mut record =
            known.map_or_else(|| CompileRecord { app, key: key.clone(), results: Vec::new() }, |known| known.record);
        record.add(result);
        Ok(record)
    }
}

/// A slug whose image is in the registry.
pub(super) fn finished(
    source: &Source,
    image: ImageRef,
    defaults: BTreeMap<ProcessType, String>,
    buildpacks: Vec<String>,
    records: Records,
    published: Publishing,
) -> Slug {
    let (description, subject) = (source.description.clone(), source.subject.clone());
    Slug { image, description, defaults, buildpacks, subject, records, published }
}
