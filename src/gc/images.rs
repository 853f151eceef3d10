//! The second step: what could be reused, manifests and blobs of the registry, and the engine's copies of images.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::SignedDuration;
use serde::Deserialize;
use tokio::time::Instant;

use super::{GcService, Kind, Report, records::Plan};
use crate::{
    build::{CompileRecord, LayerRecord, SlugRecord},
    domain::{Digest, ImageRef, Timestamp},
    registry::RegistryError,
    store::{Record, StoreError, Stored},
};

/// How long a moment is waited for in which no build publishes an image.
const PATIENCE: Duration = Duration::from_secs(120);
/// What could be reused is remembered so long although nothing that is kept uses it, where the layers stay for all that: in a registry
/// that somebody else runs, or since there are none.
const UNUSED: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Manifests read at the same time.
const READERS: usize = 8;

/// The part of an image manifest that says what it needs (OCI image spec, "Image Manifest").
#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    size: u64,
}

/// Blobs by repository, with their bytes.
type Blobs = BTreeMap<(String, Digest), u64>;

impl GcService {
    /// Nobody publishes meanwhile; builds wait with that. The images of all records that are there stay.
    pub(super) async fn images(&self, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
        let closed = match report.dry_run {
            true => None,
            false => match self.parts.publishing.close(PATIENCE).await {
                Some(closed) => Some(closed),
                None => {
                    report.fail("images", anyhow::anyhow!("builds publish all the time"));
                    return Ok(());
                }
            },
        };
        let began = Instant::now();
        let named = self.named_images(plan, report.dry_run).await?;
        let mut keep: BTreeSet<(String, Digest)> = named.into_iter().map(|i| (i.repository, i.digest)).collect();
        let stacks = self.parts.stacks.images().await.context("the stacks are not known")?;
        keep.extend(stacks.into_iter().map(|image| (image.repository, image.digest)));
        if let Err(error) = self.registry_images(&keep, report).await {
            report.fail("the registry's images", error);
        }
        report.registry_millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let keep: Vec<ImageRef> =
            keep.into_iter().map(|(repository, digest)| ImageRef { repository, digest }).collect();
        if let Err(error) = self.engine_images(&keep, report).await {
            report.fail("the engine's images", error);
        }
        drop(closed);
        Ok(())
    }

    /// First what says that an image or a layer can be reused, then the image.
    async fn registry_images(&self, keep: &BTreeSet<(String, Digest)>, report: &mut Report) -> anyhow::Result<()> {
        let (store, registry) = (&self.parts.store, &self.parts.registry);
        let mut doomed: BTreeSet<(String, Digest)> = BTreeSet::new();
        let slugs = store.list::<SlugRecord>("").await?;
        for slug in &slugs {
            doomed.insert((slug.image.repository.clone(), slug.image.digest.clone()));
        }
        if let Some(room) = &self.parts.room {
            doomed.extend(room.images().await?.into_iter().map(|image| (image.repository, image.digest)));
        }
        doomed.retain(|image| !keep.contains(image));
        let needed = self.blobs_of(keep).await?;
        let going = self.blobs_of(&doomed).await?;
        let gone_slug =
            |slug: &&Stored<SlugRecord>| doomed.contains(&(slug.image.repository.clone(), slug.image.digest.clone()));
        self.forget(slugs.iter().filter(gone_slug), |slug| format!("slug of {} #{}", slug.env, slug.build), report)
            .await?;
        self.forget_layers(&needed, report).await?;
        for (repository, digest) in &doomed {
            if !report.dry_run {
                registry.delete(repository, digest).await?;
            }
            report.add(Kind::RegistryImage, format!("{repository}@{digest}"), 0);
        }
        let shared: BTreeSet<&Digest> = needed.keys().map(|(_, digest)| digest).collect();
        let alone: BTreeMap<&Digest, u64> = going.iter().map(|((_, digest), size)| (digest, *size)).collect();
        let bytes = alone.iter().filter(|(digest, _)| !shared.contains(*digest)).map(|(_, size)| size).sum();
        report.add_bytes(Kind::RegistryImage, bytes);
        match &self.parts.room {
            Some(room) if !(report.dry_run || doomed.is_empty() && self.collected.load(Ordering::Relaxed)) => {
                room.collect().await?;
                self.collected.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(())
    }

    /// The blobs that these images need. One that the registry does not have needs none.
    async fn blobs_of(&self, images: &BTreeSet<(String, Digest)>) -> Result<Blobs, RegistryError> {
        let registry = &self.parts.registry;
        let read = |(repository, digest): &(String, Digest)| {
            let (repository, digest) = (repository.clone(), digest.clone());
            async move { Ok::<_, RegistryError>((registry.manifest(&repository, digest.as_str()).await?, repository)) }
        };
        let read: Vec<_> = images.iter().map(read).collect();
        let found: Vec<(Option<Vec<u8>>, String)> = stream::iter(read).buffer_unordered(READERS).try_collect().await?;
        let mut blobs = Blobs::new();
        for (bytes, repository) in found {
            let Some(manifest) = bytes.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok()) else {
                continue;
            };
            for blob in manifest.layers.into_iter().chain([manifest.config]) {
                blobs.insert((repository.clone(), blob.digest), blob.size);
            }
        }
        Ok(blobs)
    }

    /// What says of layers that they are in the registry, or of what they were made, when no image that stays needs them. The blobs go
    /// only where the registry is ours; elsewhere what was noted lately may still be of use.
    async fn forget_layers(&self, needed: &Blobs, report: &mut Report) -> anyhow::Result<()> {
        let store = &self.parts.store;
        let now = Timestamp::now();
        // One from the future was noted by a clock that was wrong.
        let is_recent = |made_at: Timestamp| now.duration_since(made_at).abs() < UNUSED;
        let blobs_stay = self.parts.room.is_none();
        let mut lost: BTreeSet<Digest> = BTreeSet::new();
        let mut gone = Vec::new();
        for stored in store.list::<LayerRecord>("").await? {
            if blobs_stay && is_recent(stored.made_at) {
                continue;
            }
            let mut record = stored.record.clone();
            record
                .repositories
                .retain(|repository| needed.contains_key(&(repository.clone(), record.layer.digest.clone())));
            if record.repositories.is_empty() {
                lost.insert(record.layer.digest.clone());
                gone.push(stored);
            } else if record != stored.record && !report.dry_run {
                ignore_conflict(store.transaction().update(&stored, &record).commit().await.map(drop))?;
            }
        }
        let used: BTreeSet<&Digest> = needed.keys().map(|(_, digest)| digest).collect();
        let name = |layer: &LayerRecord| format!("layer {}", layer.layer.digest);
        self.forget(gone.iter(), name, report).await?;
        for stored in store.list::<CompileRecord>("").await? {
            let mut record = stored.record.clone();
            record.results.retain(|result| {
                let is_lost = result.layers.iter().any(|layer| lost.contains(&layer.digest));
                let is_used = result.layers.iter().any(|layer| used.contains(&layer.digest));
                !is_lost && (is_used || is_recent(result.made_at))
            });
            if record.results.is_empty() {
                let name = |compile: &CompileRecord| format!("compile result of {}", compile.app);
                self.forget([&stored].into_iter(), name, report).await?;
            } else if record != stored.record && !report.dry_run {
                ignore_conflict(store.transaction().update(&stored, &record).commit().await.map(drop))?;
            }
        }
        Ok(())
    }

    /// Deletes records of what could be reused, but for those that a build has just written anew.
    async fn forget<'r, R: Record>(
        &self,
        records: impl Iterator<Item = &'r Stored<R>>,
        name: impl Fn(&R) -> String,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        for record in records {
            if !report.dry_run {
                ignore_conflict(self.parts.store.transaction().delete(record).commit().await.map(drop))?;
            }
            report.add(Kind::ReuseRecord, name(&record.record), 0);
        }
        Ok(())
    }

    async fn engine_images(&self, keep: &[ImageRef], report: &mut Report) -> anyhow::Result<()> {
        let surplus = self.parts.runtime.surplus_images(keep).await?;
        if !report.dry_run {
            self.parts.runtime.collect_images(keep).await?;
        }
        surplus.into_iter().for_each(|(name, bytes)| report.add(Kind::EngineImage, name, bytes));
        Ok(())
    }
}

fn ignore_conflict(written: Result<(), StoreError>) -> Result<(), StoreError> {
    match written {
        Err(StoreError::Conflict(_)) => Ok(()),
        written => written,
    }
}
