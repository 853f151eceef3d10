//! The image's configuration and manifest (OCI image spec), as bytes that are the same for the same content.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    domain::Digest,
    registry::{CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE},
};

/// A layer in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRef {
    /// Of the uncompressed tar.
    pub diff_id: Digest,
    /// Of the compressed blob.
    pub digest: Digest,
    /// Bytes of the compressed blob.
    pub size: u64,
}

/// What an image is, apart from its layers.
#[derive(Debug, Clone)]
pub struct ImageDescription {
    /// Variables of the stack.
    pub env: BTreeMap<String, String>,
    /// User that processes run as; numeric, so that no engine has to look it up.
    pub user: String,
    pub workdir: String,
    pub labels: BTreeMap<String, String>,
    /// The commit's time, so that the same commit gives the same image.
    pub created: Timestamp,
}

/// The two small files of an image.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    pub config: Vec<u8>,
    pub config_digest: Digest,
    pub manifest: Vec<u8>,
    /// The image's digest.
    pub digest: Digest,
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes))
}

impl ImageDescription {
    /// The image with these layers, from the bottom up. Neither entry point nor command: a process type brings its own.
    pub fn files(&self, layers: &[LayerRef]) -> ImageFiles {
        let env: Vec<String> = self.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let created = Timestamp::from_second(self.created.as_second()).unwrap_or_default().to_string();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": created,
            "config": {"User": self.user, "Env": env, "WorkingDir": self.workdir, "Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
            // One entry for each layer: engines refuse an image whose history and layers differ in number.
            "history": layers.iter().map(|_| json!({"created": created, "created_by": "berth"})).collect::<Vec<_>>(),
        });
        let config = config.to_string().into_bytes();
        let config_digest = digest_of(&config);
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| json!({"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": config.len()},
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        ImageFiles { digest: digest_of(&manifest), config, config_digest, manifest }
    }
}

/// The architecture of this machine in OCI's (Go's) words: stacks are built where they run.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_is_the_same_image() {
        let layer = |byte: u8| LayerRef {
            diff_id: Digest::from_sha256([byte; 32]),
            digest: Digest::from_sha256([byte + 1; 32]),
            size: 7,
        };
        let description = ImageDescription {
            env: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
            user: "10001".to_owned(),
            workdir: "/app".to_owned(),
            labels: BTreeMap::new(),
            created: Timestamp::from_second(1_700_000_000).unwrap(),
        };
        let one = description.files(&[layer(1), layer(3)]);
        assert_eq!(one.digest, description.files(&[layer(1), layer(3)]).digest);
        assert_ne!(one.digest, description.files(&[layer(3), layer(1)]).digest);
        let config: serde_json::Value = serde_json::from_slice(&one.config).unwrap();
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["config"]["Env"][0], "PATH=/bin");
        assert!(config["config"].get("Cmd").is_none() && config["config"].get("Entrypoint").is_none());
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), config["history"].as_array().unwrap().len());
    }
}
