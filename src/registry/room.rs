//! The room of the managed registry: what is in it, and its own garbage collector.
//!
//! The distribution spec has no way to list untagged manifests, and Berth tags none; so this looks at the registry's files
//! (`docker/registry/v2` below its root, a layout that has been the same since 2015).

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    RegistryError, RegistryRoom,
    managed::{ManagedSettings, Mode, config_path},
    process::Process,
};
use crate::{
    disk::size_of,
    domain::{Digest, ImageRef},
};

/// How long the collector may take; it reads every manifest once.
const COLLECT_DEADLINE: Duration = Duration::from_secs(600);
/// How long a collector of an earlier server may take to end.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Parts of a repository's name at most: `berth/acme/shop` has three.
const DEPTH: usize = 6;

/// Where the answer to "collect now" goes.
pub type CollectRequest = oneshot::Sender<anyhow::Result<u64>>;

/// Looks after the room of a managed registry. Clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    settings: ManagedSettings,
    asks: mpsc::Sender<CollectRequest>,
}

impl Keeper {
    pub(super) fn new(settings: &ManagedSettings, asks: mpsc::Sender<CollectRequest>) -> Self {
        Self { settings: settings.clone(), asks }
    }

    fn unavailable(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { registry: self.settings.address(), reason }
    }
}

#[async_trait]
impl RegistryRoom for Keeper {
    async fn images(&self) -> Result<Vec<ImageRef>, RegistryError> {
        let root = tree(&self.settings).join("repositories");
        let list = tokio::task::spawn_blocking(move || {
            let mut images = Vec::new();
            for (name, path) in repositories(&root)? {
                let there = manifests(&path)?.into_iter();
                images.extend(there.map(|digest| ImageRef { repository: name.clone(), digest }));
            }
            Ok(images)
        });
        list.await.map_err(io::Error::other)?
    }

    async fn collect(&self) -> Result<u64, RegistryError> {
        let (done, collected) = oneshot::channel();
        self.asks.try_send(done).map_err(|_| self.unavailable("its supervisor is busy or has ended".into()))?;
        let collected = collected.await.map_err(|_| self.unavailable("it is being stopped".into()))?;
        collected.map_err(|error| self.unavailable(format!("{error:#}")))
    }
}

fn tree(settings: &ManagedSettings) -> PathBuf {
    settings.directory.join("data/docker/registry/v2")
}

/// The lock that a collector has for as long as it lives: it inherits the open file. Waits for one of an earlier server, which is killed
/// with it, but not in the same moment.
pub(super) async fn collector_lock(settings: &ManagedSettings) -> anyhow::Result<fs::File> {
    let path = settings.directory.join("collector.lock");
    let file = fs::File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => tokio::time::sleep(LOOK_AGAIN).await,
            Err(fs::TryLockError::WouldBlock) => bail!(
                "the registry's collector of an earlier server still runs; end it (see: fuser {}) and start again",
                path.display()
            ),
            Err(fs::TryLockError::Error(error)) => return Err(error).context("the collector's lock cannot be taken"),
        }
    }
}

/// Runs `docker-registry garbage-collect` and clears away what it leaves; bytes freed. The registry serves read-only or not at all.
pub(super) async fn collect(settings: &ManagedSettings) -> anyhow::Result<u64> {
    let (root, blobs) = (tree(settings), tree(settings).join("blobs"));
    let sized = blobs.clone();
    let before = tokio::task::spawn_blocking(move || size_of(&sized)).await??;
    let config = config_path(settings, Mode::ReadOnly);
    let words = [OsStr::new("garbage-collect"), config.as_os_str()];
    // It must not outlive this server: the next one takes uploads that its list of what is in use does not have.
    let mut collector =
        Process::spawn(&settings.program, words, Signal::SIGKILL, collector_lock(settings).await?.into()).await?;
    let Ok(status) = tokio::time::timeout(COLLECT_DEADLINE, collector.ended()).await else {
        collector.stop().await;
        bail!("the registry's collector took too long and was ended");
    };
    ensure!(collector.succeeded(), "the registry's collector failed ({status}); its messages are in Berth's log");
    tokio::task::spawn_blocking(move || -> io::Result<u64> {
        remove_leftovers(&root.join("repositories"))?;
        Ok(before.saturating_sub(size_of(&blobs)?))
    })
    .await?
    .context("what the registry's collector leaves cannot be removed")
}

/// Uploads that nobody goes on with, and repositories whose last manifest is gone.
fn remove_leftovers(root: &Path) -> io::Result<()> {
    for (_, path) in repositories(root)? {
        if manifests(&path)?.is_empty() {
            // Its blobs are gone, or are others' too.
            for part in ["_manifests", "_layers", "_uploads"] {
                remove(&path.join(part))?;
            }
            for parent in path.ancestors().take_while(|parent| *parent != root) {
                // Only empty ones go.
                if fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        } else {
            remove(&path.join("_uploads"))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Every repository by name. Names cannot begin with `_`, parts of a repository do.
fn repositories(root: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), root.to_owned(), 0)];
    while let Some((name, path, depth)) = open.pop() {
        for child in directories(&path)? {
            if child.starts_with('_') {
                if child == "_manifests" || child == "_uploads" && !path.join("_manifests").exists() {
                    found.push((name.clone(), path.clone()));
                }
            } else if depth < DEPTH {
                let full = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
                open.push((full, path.join(child), depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn manifests(repository: &Path) -> io::Result<Vec<Digest>> {
    let revisions = repository.join("_manifests/revisions/sha256");
    let names = directories(&revisions)?.into_iter();
    // A deleted one leaves its directory, without the link.
    let there = names.filter(|hex| revisions.join(hex).join("link").exists());
    Ok(there.filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect())
}

fn directories(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::registry::{CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, ManagedRegistry, OciRegistry, Registry};

    fn digest(bytes: &[u8]) -> Digest {
        Digest::from_sha256(Sha256::digest(bytes))
    }

    async fn push(registry: &OciRegistry, repository: &str, layers: &[&[u8]]) -> ImageRef {
        let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        for blob in layers.iter().copied().chain([b"{}".as_slice()]) {
            registry.push_bytes(repository, &digest(blob), blob.to_vec()).await.unwrap();
        }
        let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER_TYPE, layer)).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": descriptor(CONFIG_TYPE, b"{}"), "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let name = digest(&manifest);
        registry.push_manifest(repository, name.as_str(), manifest).await.unwrap();
        ImageRef { repository: repository.to_owned(), digest: name }
    }

    #[tokio::test]
    async fn writing_begins_when_no_collector_lives() {
        let directory = tempfile::tempdir().unwrap();
        let settings = ManagedSettings::new(directory.path(), 1);
        let lock = collector_lock(&settings).await.unwrap();
        let words = [OsStr::new("600"), OsStr::new("1")];
        let collector = Process::spawn(Path::new("/bin/sleep"), words, Signal::SIGKILL, lock.into()).await.unwrap();
        let mut next = Box::pin(collector_lock(&settings));
        let short = Duration::from_millis(100);
        assert!(tokio::time::timeout(short, &mut next).await.is_err(), "the collector does not hold the lock");
        drop(collector);
        next.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_real_collector_takes_only_what_no_manifest_needs() {
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let managed = ManagedRegistry::start(ManagedSettings::new(directory.path(), port)).await.unwrap();
        let (keeper, address, stop) = (managed.keeper(), managed.address(), CancellationToken::new());
        let running = tokio::spawn(managed.run(stop.clone()));
        let registry = OciRegistry::new(&address, None).unwrap();
        let (shared, alone) = (vec![1; 50_000], vec![2; 70_000]);
        let kept = push(&registry, "berth/acme/shop", &[&shared]).await;
        let gone = push(&registry, "berth/acme/shop", &[&shared, &alone]).await;
        let destroyed = push(&registry, "berth/acme/old", &[&shared]).await;
        let mut all = keeper.images().await.unwrap();
        all.sort_by_key(ToString::to_string);
        let mut wanted = vec![kept.clone(), gone.clone(), destroyed.clone()];
        wanted.sort_by_key(ToString::to_string);
        assert_eq!(all, wanted);
        for image in [&gone, &destroyed] {
            registry.delete(&image.repository, &image.digest).await.unwrap();
        }
        let freed = keeper.collect().await.unwrap();
        assert!((70_000..75_000).contains(&freed), "{freed}");
        assert_eq!(keeper.images().await.unwrap(), std::slice::from_ref(&kept));
        assert!(registry.has("berth/acme/shop", &digest(&shared)).await.unwrap());
        assert!(!registry.has("berth/acme/shop", &digest(&alone)).await.unwrap());
        assert!(!tree(&keeper.settings).join("repositories/berth/acme/old").exists());
        // It takes uploads again, of the same blobs too; and there is nothing left to collect.
        assert_eq!(push(&registry, "berth/acme/shop", &[&shared, &alone]).await, gone);
        assert_eq!(keeper.collect().await.unwrap(), 0);
        assert_eq!(keeper.images().await.unwrap().len(), 2);
        stop.cancel();
        running.await.unwrap();
    }
}
