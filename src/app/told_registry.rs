//! A registry whose absence is told in events.

use std::path::Path;

use async_trait::async_trait;

use crate::{
    domain::{Digest, EventKind},
    events::{EventSink, Presence},
    registry::{Registry, RegistryError},
};

/// Tells when the registry below does not answer those who use it, and when it does again. It asks nothing itself.
pub(super) struct ToldRegistry<R> {
    registry: R,
    presence: Presence,
}

impl<R: Registry> ToldRegistry<R> {
    pub(super) fn new(registry: R, events: EventSink) -> Self {
        let presence = Presence::new((EventKind::RegistryLost, EventKind::RegistryBack), events);
        Self { registry, presence }
    }

    fn told<T>(&self, answer: Result<T, RegistryError>) -> Result<T, RegistryError> {
        match &answer {
            Err(RegistryError::Unavailable { reason, .. }) => {
                self.presence.lost("the registry does not answer", reason);
            }
            // It may not have been asked.
            Err(RegistryError::Local(_)) => {}
            Ok(_) | Err(RegistryError::Refused { .. }) => self.presence.back("the registry answers again"),
        }
        answer
    }
}

#[async_trait]
impl<R: Registry> Registry for ToldRegistry<R> {
    fn address(&self) -> &str {
        self.registry.address()
    }
    async fn has(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        self.told(self.registry.has(repository, digest).await)
    }
    async fn small_blob(
        &self,
        repository: &str,
        digest: &Digest,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        self.told(self.registry.small_blob(repository, digest, limit).await)
    }
    async fn push_blob(&self, repository: &str, digest: &Digest, file: &Path) -> Result<(), RegistryError> {
        self.told(self.registry.push_blob(repository, digest, file).await)
    }
    async fn push_bytes(&self, repository: &str, digest: &Digest, bytes: Vec<u8>) -> Result<(), RegistryError> {
        self.told(self.registry.push_bytes(repository, digest, bytes).await)
    }
    async fn mount(&self, repository: &str, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        self.told(self.registry.mount(repository, digest, from).await)
    }
    async fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        self.told(self.registry.push_manifest(repository, reference, manifest).await)
    }
    async fn manifest(&self, repository: &str, reference: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        self.told(self.registry.manifest(repository, reference).await)
    }
    async fn resolve(&self, repository: &str, reference: &str) -> Result<Option<Digest>, RegistryError> {
        self.told(self.registry.resolve(repository, reference).await)
    }
    async fn delete(&self, repository: &str, digest: &Digest) -> Result<(), RegistryError> {
        self.told(self.registry.delete(repository, digest).await)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        domain::Event,
        registry::FakeRegistry,
        store::{MemoryKv, Store},
    };

    #[tokio::test]
    async fn its_absence_is_told_once_and_not_without_bound() {
        let store = Store::new(Arc::new(MemoryKv::new()));
        let (sink, writer) = EventSink::new(store.clone());
        let below = FakeRegistry::new();
        let registry = ToldRegistry::new(below.clone(), sink);
        let digest = Digest::from_sha256([0; 32]);
        for answers in [true, false, false, true, true] {
            below.go_away(!answers);
            assert_eq!(registry.has("any", &digest).await.is_ok(), answers);
        }
        for flap in 0..100 {
            below.go_away(flap % 2 == 0);
            let _ = registry.has("any", &digest).await;
        }
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        writer.run(shutdown).await;
        let events = store.list::<Event>("").await.unwrap();
        let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds[..2], [EventKind::RegistryLost, EventKind::RegistryBack]);
        assert_eq!(kinds.len(), 10, "five losses and five returns: {kinds:?}");
        assert_eq!(events[0].data.get("reason"), Some(&"connection refused".into()));
    }
}
