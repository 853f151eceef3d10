//! A registry in memory, for tests. It refuses what a real one refuses: blobs that are not what their digest says, manifests that name
//! blobs which are not there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::{Registry, RegistryError, RegistryRoom};
use crate::domain::{Digest, ImageRef};

#[derive(Default)]
struct State {
    blobs: BTreeMap<Digest, Vec<u8>>,
    /// Which repository shows which blob.
    links: BTreeSet<(String, Digest)>,
    manifests: BTreeMap<(String, Digest), Vec<u8>>,
    tags: BTreeMap<(String, String), Digest>,
    uploads: u64,
    mounts: u64,
    away: bool,
}

/// A [`Registry`] that forgets everything when it is dropped. Clones share it.
#[derive(Clone, Default)]
pub struct FakeRegistry {
    state: Arc<Mutex<State>>,
}

impl FakeRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many blobs were uploaded so far, not counting those mounted.
    pub fn uploads(&self) -> u64 {
        self.state().uploads
    }

    /// How many blobs were mounted so far.
    pub fn mounts(&self) -> u64 {
        self.state().mounts
    }

    /// The content of a blob, wherever it is shown.
    pub fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.state().blobs.get(digest).cloned()
    }

    /// Loses everything, as when the registry's disk is replaced.
    pub fn wipe(&self) {
        *self.state() = State::default();
    }

    /// Lets nobody reach it, or lets them again.
    pub fn go_away(&self, away: bool) {
        self.state().away = away;
    }

    /// What is asked for over the network.
    fn reach(&self) -> Result<MutexGuard<'_, State>, RegistryError> {
        let state = self.state();
        match state.away {
            false => Ok(state),
            true => Err(RegistryError::Unavailable {
                registry: "memory".to_owned(),
                reason: "connection refused".to_owned(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between statements: a panic of another test thread does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(what: impl Into<String>, reason: impl Into<String>) -> RegistryError {
        RegistryError::Refused { registry: "memory".to_owned(), what: what.into(), reason: reason.into() }
    }

    fn store(&self, repository: &str, digest: &Digest, bytes: Vec<u8>) -> Result<(), RegistryError> {
        if Digest::from_sha256(Sha256::digest(&bytes)) != *digest {
            return Err(Self::refused(format!("the blob {digest}"), "DIGEST_INVALID"));
        }
        let mut state = self.reach()?;
        state.uploads += 1;
        state.links.insert((repository.to_owned(), digest.clone()));
        state.blobs.insert(digest.clone(), bytes);
        Ok(())
    }
}

/// Digests that a manifest refers to.
fn referred(manifest: &[u8]) -> Option<Vec<Digest>> {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    let digest = |descriptor: &serde_json::Value| descriptor["digest"].as_str()?.parse().ok();
    let layers = manifest["layers"].as_array()?.iter().map(digest);
    std::iter::once(digest(&manifest["config"])).chain(layers).collect()
}

#[async_trait]
impl Registry for FakeRegistry {
    fn address(&self) -> &str {
        "memory"
    }

    async fn has(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        Ok(self.reach()?.links.contains(&(repository.to_owned(), digest.clone())))
    }

    async fn small_blob(
        &self,
        repository: &str,
        digest: &Digest,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let state = self.reach()?;
        let shown = state.links.contains(&(repository.to_owned(), digest.clone()));
        match state.blobs.get(digest).filter(|_| shown) {
            Some(bytes) if bytes.len() > limit => Err(Self::refused(format!("the blob {digest}"), "it is too large")),
            found => Ok(found.cloned()),
        }
    }

    async fn push_blob(&self, repository: &str, digest: &Digest, file: &Path) -> Result<(), RegistryError> {
        self.store(repository, digest, tokio::fs::read(file).await?)
    }

    async fn push_bytes(&self, repository: &str, digest: &Digest, bytes: Vec<u8>) -> Result<(), RegistryError> {
        self.store(repository, digest, bytes)
    }

    async fn mount(&self, repository: &str, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let mut state = self.reach()?;
        let there = state.links.contains(&(from.to_owned(), digest.clone()));
        if there {
            state.mounts += 1;
            state.links.insert((repository.to_owned(), digest.clone()));
        }
        Ok(there)
    }

    async fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        let blobs = referred(&manifest).ok_or_else(|| Self::refused("the manifest", "MANIFEST_INVALID"))?;
        let mut state = self.reach()?;
        if let Some(unknown) =
            blobs.iter().find(|blob| !state.links.contains(&(repository.to_owned(), (*blob).clone())))
        {
            return Err(Self::refused("the manifest", format!("MANIFEST_BLOB_UNKNOWN: {unknown}")));
        }
        let digest = Digest::from_sha256(Sha256::digest(&manifest));
        state.manifests.insert((repository.to_owned(), digest.clone()), manifest);
        if !reference.starts_with("sha256:") {
            state.tags.insert((repository.to_owned(), reference.to_owned()), digest.clone());
        }
        Ok(digest)
    }

    async fn manifest(&self, repository: &str, reference: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        let digest = self.resolve(repository, reference).await?;
        Ok(digest.and_then(|digest| self.state().manifests.get(&(repository.to_owned(), digest)).cloned()))
    }

    async fn resolve(&self, repository: &str, reference: &str) -> Result<Option<Digest>, RegistryError> {
        let state = self.reach()?;
        let named = match reference.parse() {
            Ok(digest) => Some(digest),
            Err(_) => state.tags.get(&(repository.to_owned(), reference.to_owned())).cloned(),
        };
        Ok(named.filter(|digest| state.manifests.contains_key(&(repository.to_owned(), digest.clone()))))
    }

    async fn delete(&self, repository: &str, digest: &Digest) -> Result<(), RegistryError> {
        let mut state = self.reach()?;
        state.manifests.remove(&(repository.to_owned(), digest.clone()));
        state.tags.retain(|(tagged, _), target| tagged != repository || target != digest);
        Ok(())
    }
}

#[async_trait]
impl RegistryRoom for FakeRegistry {
    async fn images(&self) -> Result<Vec<ImageRef>, RegistryError> {
        let state = self.state();
        let image = |(repository, digest): &(String, Digest)| ImageRef {
            repository: repository.clone(),
            digest: digest.clone(),
        };
        Ok(state.manifests.keys().map(image).collect())
    }

    async fn collect(&self) -> Result<u64, RegistryError> {
        let mut state = self.state();
        let needed: BTreeSet<Digest> = state.manifests.values().filter_map(|bytes| referred(bytes)).flatten().collect();
        let before: usize = state.blobs.values().map(Vec::len).sum();
        state.blobs.retain(|digest, _| needed.contains(digest));
        state.links.retain(|(_, digest)| needed.contains(digest));
        let after: usize = state.blobs.values().map(Vec::len).sum();
        Ok((before - after) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        super::super::contract::check(&FakeRegistry::new()).await;
    }
}
