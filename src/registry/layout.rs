//! Where the managed registry keeps things: the file layout of the reference implementation's `filesystem` driver. Backups read it, and
//! write one that the registry then serves.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::domain::{Digest, ImageRef};

/// An image with everything it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredImage {
    pub image: ImageRef,
    /// Configuration and layers.
    pub blobs: Vec<Digest>,
}

/// The files of a managed registry.
#[derive(Debug, Clone)]
pub struct RegistryFiles {
    root: PathBuf,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

impl RegistryFiles {
    /// Of the registry in this directory (`DATA/registry`).
    pub fn new(directory: &Path) -> Self {
        Self { root: directory.join("data/docker/registry/v2") }
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// `None`: the image is not there, or not all of it.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn image(&self, image: &ImageRef) -> anyhow::Result<Option<StoredImage>> {
        let link = self.links(&image.repository, "_manifests/revisions").join(image.digest.hex()).join("link");
        if !link.exists() {
            return Ok(None);
        }
        let path = self.blob(&image.digest);
        let manifest = match fs::read(&path) {
            Ok(manifest) => manifest,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let manifest: Manifest =
            serde_json::from_slice(&manifest).with_context(|| format!("{} is no image manifest", path.display()))?;
        let blobs = [manifest.config].into_iter().chain(manifest.layers).map(|blob| blob.digest).collect();
        let stored = StoredImage { image: image.clone(), blobs };
        let whole = stored.blobs.iter().all(|blob| self.blob(blob).is_file());
        Ok(whole.then_some(stored))
    }

    /// Makes an image, whose blobs are in their files already, known to the registry.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn link(&self, stored: &StoredImage) -> io::Result<()> {
        let repository = &stored.image.repository;
        let layers = stored.blobs.iter().map(|blob| (self.links(repository, "_layers"), blob));
        let manifest = (self.links(repository, "_manifests/revisions"), &stored.image.digest);
        for (directory, digest) in layers.chain([manifest]) {
            let directory = directory.join(digest.hex());
            fs::create_dir_all(&directory)?;
            fs::write(directory.join("link"), digest.as_str())?;
        }
        Ok(())
    }

    fn links(&self, repository: &str, kind: &str) -> PathBuf {
        self.root.join("repositories").join(repository).join(kind).join("sha256")
    }
}
