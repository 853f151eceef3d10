//! Where images are kept: an OCI registry (OCI distribution spec), as Berth needs it.
//!
//! [`OciRegistry`] speaks to any registry, [`ManagedRegistry`] runs Debian's `docker-registry` for it, [`FakeRegistry`] is for tests. One
//! contract suite ([`contract`]) runs against every adapter.

pub mod contract;
mod fake;
mod gate;
mod layout;
mod managed;
mod oci;
mod patience;
mod process;
mod room;

use std::path::Path;

use async_trait::async_trait;

use crate::domain::{Digest, ImageRef};

pub use fake::FakeRegistry;
pub use gate::{PublishGate, Publishing};
pub use layout::{RegistryFiles, StoredImage};
pub use managed::{Keeper, ManagedRegistry, ManagedSettings};
pub use oci::{Credentials, OciRegistry};

/// Media type of an image manifest (OCI image spec, "Media Types").
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image configuration.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer.
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Why the registry did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not answer; worth trying again.
    #[error("the registry at {registry} does not answer: {reason}")]
    Unavailable { registry: String, reason: String },
    /// It answered with a refusal.
    #[error("the registry at {registry} refused {what}: {reason}")]
    Refused { registry: String, what: String, reason: String },
    /// A local file could not be read.
    #[error("{0}")]
    Local(#[from] std::io::Error),
}

/// An OCI registry. All operations are idempotent; repositories are paths such as `berth/acme/shop`.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Address as an engine would write it, `127.0.0.1:5000`.
    fn address(&self) -> &str;
    /// Whether the blob is there.
    async fn has(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError>;
    /// The content of a small blob; one of more than `limit` bytes is refused.
    async fn small_blob(
        &self,
        repository: &str,
        digest: &Digest,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, RegistryError>;
    /// Uploads a file as a blob, streaming. The registry verifies the digest.
    async fn push_blob(&self, repository: &str, digest: &Digest, file: &Path) -> Result<(), RegistryError>;
    /// Uploads a small blob from memory.
    async fn push_bytes(&self, repository: &str, digest: &Digest, bytes: Vec<u8>) -> Result<(), RegistryError>;
    /// Makes a blob of `from` available in `repository` without moving it; `false` when the registry cannot.
    async fn mount(&self, repository: &str, digest: &Digest, from: &str) -> Result<bool, RegistryError>;
    /// Stores an image manifest under a tag or its own digest.
    async fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: Vec<u8>,
    ) -> Result<Digest, RegistryError>;
    /// The manifest's bytes by tag or digest.
    async fn manifest(&self, repository: &str, reference: &str) -> Result<Option<Vec<u8>>, RegistryError>;
    /// The digest that a tag names.
    async fn resolve(&self, repository: &str, reference: &str) -> Result<Option<Digest>, RegistryError>;
    /// Removes a manifest; that it is not there is no error.
    async fn delete(&self, repository: &str, digest: &Digest) -> Result<(), RegistryError>;
}

/// What only who runs a registry can do: look at all of it, and take away what no manifest needs.
#[async_trait]
pub trait RegistryRoom: Send + Sync {
    /// Every manifest that is there, tagged or not.
    async fn images(&self) -> Result<Vec<ImageRef>, RegistryError>;
    /// Takes away the blobs that no manifest needs, abandoned uploads, and repositories without a manifest; bytes freed. Nothing may be
    /// uploaded meanwhile (see [`PublishGate`]); images can be pulled but for moments.
    async fn collect(&self) -> Result<u64, RegistryError>;
}
