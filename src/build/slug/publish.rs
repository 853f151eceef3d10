//! Layers into the registry, doing nothing twice.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::try_join_all;
use tokio::task::JoinSet;

use super::{
    image::{ImageFiles, LayerRef},
    layer::RawLayer,
    sizes::human_size,
};
use crate::{
    build::records::LayerRecord,
    deploy::Progress,
    domain::{Digest, FailPoint, ImageRef, fail_point::reached},
    registry::{Registry, RegistryError},
    store::{Store, StoreError},
};

/// Why an image is not in the registry.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a layer could not be compressed: {0}")]
    Io(#[from] io::Error),
    /// The registry has lost layers that it once had.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Blobs that the records say are in the registry, and are not.
#[derive(Debug, thiserror::Error)]
#[error("the registry has lost layers that were pushed before ({})", self.0.len())]
pub struct Lost(pub Vec<Digest>);

fn tell_new(progress: &dyn Progress, name: &str, files_size: u64, packed: u64) {
    progress.detail(&format!("{name}: {}, {} compressed", human_size(files_size), human_size(packed)));
}

/// Puts the layers of one image into one repository.
pub struct Publisher {
    pub registry: Arc<dyn Registry>,
    pub store: Store,
    pub repository: String,
    /// Where compressed layers are spooled.
    pub scratch: PathBuf,
    /// What became of layers, to be written with the build's other records.
    records: BTreeMap<Digest, LayerRecord>,
    uploads: JoinSet<Result<(), PublishError>>,
    /// Bytes that went to the registry, and layers that did not have to.
    pushed: u64,
    reused: usize,
}

impl Publisher {
    /// For `repository`.
    pub fn new(registry: Arc<dyn Registry>, store: Store, repository: &str, scratch: &Path) -> Self {
        Self {
            registry,
            store,
            repository: repository.to_owned(),
            scratch: scratch.to_owned(),
            records: BTreeMap::new(),
            uploads: JoinSet::new(),
            pushed: 0,
            reused: 0,
        }
    }

    /// Makes a layer that is somewhere in the registry available in this repository, without a request when it is known to be. `from`: a
    /// repository that is known to all to have it. One that only others have counts as pushed: what they build is not told. `trust`:
    /// whether the records are believed; else the registry is asked. `false` when it is nowhere.
    pub async fn reuse(&mut self, layer: &LayerRef, from: Option<&str>, trust: bool) -> Result<bool, PublishError> {
        let record = self.store.get::<LayerRecord>(&layer.diff_id).await?;
        let mut record = record.map_or_else(|| LayerRecord::new(layer.clone()), |stored| stored.record);
        if record.layer.digest != layer.digest {
            record = LayerRecord::new(layer.clone());
        }
        let known = record.is_in(&self.repository);
        if !known || !(trust || self.registry.has(&self.repository, &layer.digest).await?) {
            let mut available = false;
            let others = record.repositories.iter().filter(|other| **other != self.repository).cloned();
            for other in from.into_iter().map(str::to_owned).chain(others) {
                if self.registry.mount(&self.repository, &layer.digest, &other).await? {
                    available = true;
                    break;
                }
            }
            if !available {
                return Ok(false);
            }
            record.add(&self.repository);
            self.records.insert(layer.diff_id.clone(), record);
        }
        if known || from.is_some() {
            self.reused += 1;
        } else {
            self.pushed += layer.size;
        }
        Ok(true)
    }

    /// Compresses and pushes the layer, unless one of that content is there. The upload goes on while the next layer is made;
    /// [`Self::finish`] waits for it.
    pub async fn add(&mut self, raw: RawLayer, progress: &dyn Progress) -> Result<LayerRef, PublishError> {
        if let Some(known) = self.store.get::<LayerRecord>(&raw.diff_id).await? {
            let own = known.record.is_in(&self.repository);
            let layer = known.record.layer;
            // The record is from some time ago: one question is cheaper than an image that cannot be pulled.
            if self.reuse(&layer, None, false).await? {
                if own {
                    progress.detail(&format!("{}: {} unchanged", raw.name, human_size(raw.files_size)));
                } else {
                    tell_new(progress, &raw.name, raw.files_size, layer.size);
                }
                return Ok(layer);
            }
        }
        let layer = self.upload(raw, Some(progress)).await?;
        let mut record = LayerRecord::new(layer.clone());
        record.add(&self.repository);
        self.records.insert(layer.diff_id.clone(), record);
        Ok(layer)
    }

    /// As [`Self::add`] for a layer that is new each time, and so not worth a look or a record.
    pub async fn add_fresh(&mut self, raw: RawLayer) -> Result<LayerRef, PublishError> {
        self.upload(raw, None).await
    }

    async fn upload(&mut self, raw: RawLayer, progress: Option<&dyn Progress>) -> Result<LayerRef, PublishError> {
        let scratch = self.scratch.clone();
        let (name, files_size, diff_id) = (raw.name.clone(), raw.files_size, raw.diff_id.clone());
        let packed = tokio::task::spawn_blocking(move || raw.pack(&scratch)).await.map_err(io::Error::other)??;
        reached(FailPoint::Slug);
        if let Some(progress) = progress {
            tell_new(progress, &name, files_size, packed.size);
        }
        self.pushed += packed.size;
        let layer = LayerRef { diff_id, digest: packed.digest, size: packed.size };
        let (registry, repository, digest) = (self.registry.clone(), self.repository.clone(), layer.digest.clone());
        self.uploads.spawn(async move {
            match packed.content.into_parts() {
                Ok(bytes) => registry.push_bytes(&repository, &digest, bytes).await?,
                Err(file) => registry.push_blob(&repository, &digest, file.path()).await?,
            }
            Ok(())
        });
        Ok(layer)
    }

    /// Waits for the uploads and stores the image.
    pub async fn finish(&mut self, image: ImageFiles, layers: &[LayerRef]) -> Result<ImageRef, PublishError> {
        let config = self.registry.push_bytes(&self.repository, &image.config_digest, image.config);
        let uploads = async {
            while let Some(upload) = self.uploads.join_next().await {
                upload.map_err(io::Error::other)??;
            }
            Ok::<_, PublishError>(())
        };
        let (config, uploads) = futures::join!(config, uploads);
        config?;
        uploads?;
        reached(FailPoint::Push);
        let reference = image.digest.as_str();
        match self.registry.push_manifest(&self.repository, reference, image.manifest).await {
            Ok(digest) => {
                reached(FailPoint::Push);
                Ok(ImageRef { repository: self.repository.clone(), digest })
            }
            Err(refusal @ RegistryError::Refused { .. }) => match self.lost(layers).await? {
                lost if lost.is_empty() => Err(refusal.into()),
                lost => Err(Lost(lost).into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Which of the layers are not in the repository. What the records say of them is taken back.
    async fn lost(&mut self, layers: &[LayerRef]) -> Result<Vec<Digest>, PublishError> {
        let looks = layers.iter().map(|layer| self.registry.has(&self.repository, &layer.digest));
        let there = try_join_all(looks).await?;
        let lost: Vec<&LayerRef> =
            layers.iter().zip(there).filter(|(_, there)| !there).map(|(layer, _)| layer).collect();
        for layer in &lost {
            if let Some(record) = self.store.get::<LayerRecord>(&layer.diff_id).await? {
                self.store.transaction().delete(&record).commit().await?;
            }
        }
        Ok(lost.into_iter().map(|layer| layer.digest.clone()).collect())
    }

    /// The records to be written; and bytes pushed, layers reused.
    pub fn into_records(self) -> Vec<LayerRecord> {
        self.records.into_values().collect()
    }

    /// Bytes that went to the registry, and layers that did not have to.
    pub fn counts(&self) -> (u64, usize) {
        (self.pushed, self.reused)
    }
}
