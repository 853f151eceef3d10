//! What every [`Registry`] adapter must do; run by each adapter's tests. Panics when the adapter does not.

use sha2::{Digest as _, Sha256};

use super::{CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, Registry, RegistryError};
use crate::domain::Digest;

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes))
}

fn manifest_of(config: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| serde_json::json!({"mediaType": LAYER_TYPE, "digest": digest_of(layer), "size": layer.len()}))
        .collect();
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(config), "size": config.len()},
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

/// Runs the suite against an empty registry. Panics at the first thing that is not as it should be.
pub async fn check(registry: &dyn Registry) {
    blobs(registry).await;
    mounts(registry).await;
    manifests(registry).await;
}

async fn blobs(registry: &dyn Registry) {
    let small = b"a small blob".to_vec();
    let digest = digest_of(&small);
    assert!(!registry.has("t/one", &digest).await.expect("has before"));
    registry.push_bytes("t/one", &digest, small.clone()).await.expect("push");
    assert!(registry.has("t/one", &digest).await.expect("has after"));
    registry.push_bytes("t/one", &digest, small.clone()).await.expect("pushing twice is the same as once");
    assert_eq!(registry.small_blob("t/one", &digest, small.len()).await.expect("its bytes"), Some(small.clone()));
    assert_eq!(registry.small_blob("t/one", &digest_of(b"nothing"), 100).await.expect("no blob"), None);
    let large = registry.small_blob("t/one", &digest, small.len() - 1).await;
    assert!(matches!(large, Err(RegistryError::Refused { .. })), "a blob that is too large: {large:?}");

    let large: Vec<u8> = (0..3_000_017u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &large).expect("written");
    let digest = digest_of(&large);
    registry.push_blob("t/one", &digest, file.path()).await.expect("push of a file");
    assert!(registry.has("t/one", &digest).await.expect("has the file"));

    let wrong = registry.push_bytes("t/one", &digest_of(b"other"), b"not other".to_vec()).await;
    assert!(matches!(wrong, Err(RegistryError::Refused { .. })), "a blob that is not its digest: {wrong:?}");
    let absent = registry.push_blob("t/one", &digest, std::path::Path::new("/nonexistent/blob")).await;
    assert!(matches!(absent, Err(RegistryError::Local(_))), "a file that is not there: {absent:?}");
}

async fn mounts(registry: &dyn Registry) {
    let blob = b"shared by two repositories".to_vec();
    let digest = digest_of(&blob);
    registry.push_bytes("t/one", &digest, blob).await.expect("push");
    assert!(registry.mount("t/two", &digest, "t/one").await.expect("mount"));
    assert!(registry.has("t/two", &digest).await.expect("mounted"));
    assert!(registry.mount("t/two", &digest, "t/one").await.expect("mounting twice is the same as once"));
    assert!(!registry.mount("t/two", &digest_of(b"nowhere"), "t/one").await.expect("nothing to mount"));
}

async fn manifests(registry: &dyn Registry) {
    let (config, layer) = (b"{}".to_vec(), b"layer".to_vec());
    let manifest = manifest_of(&config, &[&layer]);
    let digest = digest_of(&manifest);
    assert_eq!(registry.resolve("t/images", "v1").await.expect("resolve in an unknown repository"), None);
    registry.push_bytes("t/images", &digest_of(&layer), layer).await.expect("layer");
    let early = registry.push_manifest("t/images", "v1", manifest.clone()).await;
    assert!(matches!(early, Err(RegistryError::Refused { .. })), "a manifest without its blobs: {early:?}");
    registry.push_bytes("t/images", &digest_of(&config), config).await.expect("config");

    assert_eq!(registry.push_manifest("t/images", "v1", manifest.clone()).await.expect("by tag"), digest);
    assert_eq!(registry.push_manifest("t/images", digest.as_str(), manifest.clone()).await.expect("by digest"), digest);
    assert_eq!(registry.resolve("t/images", "v1").await.expect("tag"), Some(digest.clone()));
    assert_eq!(registry.resolve("t/images", digest.as_str()).await.expect("digest"), Some(digest.clone()));
    assert_eq!(registry.manifest("t/images", "v1").await.expect("bytes"), Some(manifest));
    assert_eq!(registry.manifest("t/images", "v2").await.expect("unknown tag"), None);
    assert_eq!(registry.resolve("t/images", "v2").await.expect("unknown tag"), None);

    registry.delete("t/images", &digest).await.expect("delete");
    assert_eq!(registry.resolve("t/images", digest.as_str()).await.expect("deleted"), None);
    registry.delete("t/images", &digest).await.expect("deleting twice is the same as once");
}
