//! What was built before and need not be built again: a whole slug, or all of it below the source.

use super::{Below, Records, Reused, Run, Source};
use crate::{
    build::{
        error::BuildError,
        inputs,
        records::{CompileRecord, CompileResult, SlugRecord},
        slug::{PublishError, Shadow},
        stacks::Stacks,
    },
    deploy::Progress,
    domain::{Digest, ImageRef},
};

impl Run<'_> {
    /// The very same tree, built before with the same means.
    pub(super) async fn reuse_slug(&self, key: &Digest) -> Result<Option<(ImageRef, SlugRecord)>, BuildError> {
        let parts = &self.pipeline.parts;
        let id = (self.build.env.app_ref(), key.clone());
        let Some(known) = parts.store.get::<SlugRecord>(&id).await? else { return Ok(None) };
        let there = parts.registry.resolve(&known.image.repository, known.image.digest.as_str()).await;
        if there.map_err(PublishError::from)?.is_none() {
            return Ok(None);
        }
        self.output.step(&format!("Reusing the slug built for {} (build #{})", known.env, known.build));
        Ok(Some((known.image.clone(), known.record)))
    }

    /// Other source, but none of the files that the compile step reads: only the source layer is new.
    pub(super) async fn reuse_compile(
        &mut self,
        source: &Source,
        stacks: &Stacks,
        slug_key: &Digest,
        compile_key: &Digest,
    ) -> Result<Option<Reused>, BuildError> {
        let id = (self.build.env.app_ref(), compile_key.clone());
        let Some(record) = self.pipeline.parts.store.get::<CompileRecord>(&id).await? else { return Ok(None) };
        let fits = |result: &&CompileResult| {
            let shadow = Shadow::from_texts(&result.shadow);
            inputs::digest(&source.entries, &result.inputs, &shadow).as_ref() == Some(&result.digest)
        };
        let Some(result) = record.results.iter().rev().find(fits).cloned() else { return Ok(None) };
        let mut publisher = self.publisher();
        for layer in &result.layers {
            if !publisher.reuse(layer, None, true).await? {
                return Ok(None);
            }
        }
        let buildpacks = result.buildpacks.join(", ");
        self.output.step(&format!("Reusing the last build: nothing that it depends on has changed ({buildpacks})"));
        self.stopwatch.lap("decide");
        let shadow = Shadow::from_texts(&result.shadow);
        let below = Below { shadow, layers: result.layers, files_size: result.files_size, trust: true };
        let (image, layers) = self.publish(publisher, source, stacks, below).await?;
        let slug_record = self.slug_record(slug_key, &image, &result.defaults, &result.buildpacks);
        let records = Records { layers, slug: Some(slug_record), compile: None };
        Ok(Some(Reused { image, defaults: result.defaults, buildpacks: result.buildpacks, records }))
    }
}
