//! The stack images: made by `scripts/stacks` as files, kept in the registry.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::slug::{ImageDescription, LayerRef};
use crate::{
    domain::{Digest, ImageRef},
    registry::Registry,
};

/// A base image in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    pub image: ImageRef,
    /// Its one layer.
    pub layer: LayerRef,
    pub env: BTreeMap<String, String>,
    pub workdir: String,
}

/// The pair of stacks in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stacks {
    /// What slugs are built in.
    pub build: Stack,
    /// What slugs run on.
    pub run: Stack,
}

/// `current.json`.
#[derive(Deserialize)]
struct Current {
    run: String,
    build: String,
}

/// What `scripts/stacks` writes beside each tar.
#[derive(Deserialize)]
struct Described {
    name: String,
    stack: String,
    hash: String,
    tar: String,
    diff_id: Digest,
    digest: Digest,
    size: u64,
    env: BTreeMap<String, String>,
    user: String,
    workdir: String,
}

/// Makes sure that the registry has the stacks described in `directory` (`DATA/stacks`), and says what they are.
pub async fn ensure(directory: &Path, registry: &dyn Registry) -> anyhow::Result<Stacks> {
    let current: Current = read(&directory.join("current.json")).with_context(|| {
        format!(
            "there are no stacks in {}; make them with: scripts/stacks {}",
            directory.display(),
            directory.display()
        )
    })?;
    let (run, build) = futures::try_join!(
        ensure_one(directory, &current.run, registry),
        ensure_one(directory, &current.build, registry)
    )?;
    Ok(Stacks { build, run })
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not as scripts/stacks writes it", path.display()))
}

/// A file beside `current.json`, by its bare name.
fn beside(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    if name.contains('/') || name.starts_with('.') {
        bail!("{name:?} in {} is no file name", directory.display());
    }
    Ok(directory.join(name))
}

async fn ensure_one(directory: &Path, file: &str, registry: &dyn Registry) -> anyhow::Result<Stack> {
    let described: Described = read(&beside(directory, file)?)?;
    let repository = format!("berth/stacks/{}", described.name);
    let layer = LayerRef { diff_id: described.diff_id, digest: described.digest, size: described.size };
    let labels = BTreeMap::from([
        ("org.opencontainers.image.title".to_owned(), format!("{} {}", described.stack, described.name)),
        ("org.opencontainers.image.version".to_owned(), described.hash.clone()),
    ]);
    let description = ImageDescription {
        env: described.env.clone(),
        user: described.user,
        workdir: described.workdir.clone(),
        labels,
        created: jiff::Timestamp::UNIX_EPOCH,
    };
    let files = description.files(std::slice::from_ref(&layer));
    if registry.resolve(&repository, &described.hash).await?.as_ref() != Some(&files.digest) {
        let tar = beside(directory, &described.tar)?;
        tracing::info!(stack = %repository, hash = %described.hash, "pushing the stack to the registry");
        if !registry.has(&repository, &layer.digest).await? {
            let pushed = registry.push_blob(&repository, &layer.digest, &tar).await;
            pushed.with_context(|| format!("cannot push the stack {}", tar.display()))?;
        }
        registry.push_bytes(&repository, &files.config_digest, files.config).await?;
        registry.push_manifest(&repository, &described.hash, files.manifest).await?;
    }
    let image = ImageRef { repository, digest: files.digest };
    Ok(Stack { image, layer, env: described.env, workdir: described.workdir })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{build::testing::fake_stacks, registry::FakeRegistry};

    #[tokio::test]
    async fn are_pushed_once() {
        let directory = tempfile::tempdir().unwrap();
        let registry = FakeRegistry::new();
        let missing = ensure(directory.path(), &registry).await.unwrap_err();
        assert!(missing.to_string().contains("scripts/stacks"), "{missing}");
        fake_stacks(directory.path());
        let stacks = ensure(directory.path(), &registry).await.unwrap();
        assert_eq!(stacks.run.image.repository, "berth/stacks/run");
        let uploads = registry.uploads();
        assert_eq!(uploads, 4);
        assert_eq!(ensure(directory.path(), &registry).await.unwrap(), stacks);
        assert_eq!(registry.uploads(), uploads);
    }

    #[tokio::test]
    async fn a_name_that_leads_elsewhere_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("current.json"), r#"{"run":"../x.json","build":"b.json"}"#).unwrap();
        assert!(ensure(directory.path(), &FakeRegistry::new()).await.is_err());
    }
}
