//! Who is at a repository: many who push, or one who clears up.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::Repositories;
use crate::domain::EnvRef;

/// The locks that somebody holds or waits for.
#[derive(Debug, Clone, Default)]
pub(super) struct Uses(Arc<Mutex<HashMap<EnvRef, Weak<RwLock<()>>>>>);

/// Objects are being brought or taken: nobody removes any meanwhile.
#[derive(Debug)]
pub struct Used {
    _held: OwnedRwLockReadGuard<()>,
}

/// Nobody else is at the repository.
#[derive(Debug)]
pub struct Owned {
    _held: OwnedRwLockWriteGuard<()>,
}

impl Uses {
    fn lock(&self, env: &EnvRef) -> Arc<RwLock<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(env).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(env.clone(), Arc::downgrade(&lock));
        lock
    }
}

impl Repositories {
    /// Keeps the environment's repository from being repacked or cleared away; waits while that is done.
    pub async fn use_of(&self, env: &EnvRef) -> Used {
        Used { _held: self.uses.lock(env).read_owned().await }
    }

    /// Keeps everybody else from the environment's repository; `None` when somebody is at it.
    pub fn try_own(&self, env: &EnvRef) -> Option<Owned> {
        self.uses.lock(env).try_write_owned().ok().map(|held| Owned { _held: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_use_or_one_owns() {
        let repositories = Repositories::new("/nonexistent");
        let (one, other): (EnvRef, EnvRef) = ("acme/shop/dev".parse().unwrap(), "acme/shop/prod".parse().unwrap());
        let used = (repositories.use_of(&one).await, repositories.clone().use_of(&one).await);
        assert!(repositories.try_own(&one).is_none());
        assert!(repositories.try_own(&other).is_some());
        drop(used);
        let owned = repositories.try_own(&one).unwrap();
        assert!(futures::FutureExt::now_or_never(repositories.use_of(&one)).is_none(), "used beside its owner");
        drop(owned);
        repositories.use_of(&one).await;
    }
}
