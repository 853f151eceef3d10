//! Keeps those who publish images and whoever collects what is not needed any more apart.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// A registry's collector takes blobs for garbage that no manifest names yet, and an image is only kept once a record names it. So nobody
/// is between the first blob and the record while a collection runs. Clones share the gate.
#[derive(Debug, Clone, Default)]
pub struct PublishGate(Arc<RwLock<()>>);

/// Held from the first use of a blob or an image until a record names the image.
#[derive(Debug)]
pub struct Publishing {
    _held: OwnedRwLockReadGuard<()>,
}

/// Held while what is not needed is taken away.
#[derive(Debug)]
pub struct Collecting {
    _held: OwnedRwLockWriteGuard<()>,
}

impl PublishGate {
    /// Waits for the end of a collection, if one is under way.
    pub async fn enter(&self) -> Publishing {
        Publishing { _held: self.0.clone().read_owned().await }
    }

    /// Waits until nobody publishes, and keeps others from it meanwhile; `None` when that takes longer than `patience`.
    pub async fn close(&self, patience: Duration) -> Option<Collecting> {
        let held = tokio::time::timeout(patience, self.0.clone().write_owned()).await.ok()?;
        Some(Collecting { _held: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn publishing_and_collecting_exclude_each_other() {
        let gate = PublishGate::default();
        let (one, two) = (gate.enter().await, gate.enter().await);
        assert!(gate.close(Duration::from_secs(1)).await.is_none(), "closed beside somebody who publishes");
        drop(one);
        let late = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close(Duration::from_secs(9)).await.is_some() }
        });
        drop(two);
        assert!(late.await.unwrap());
        let collecting = gate.close(Duration::from_secs(1)).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(60), gate.enter()).await.is_err());
        drop(collecting);
        gate.enter().await;
    }
}
