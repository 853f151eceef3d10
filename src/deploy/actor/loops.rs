//! Crash loops outlive the server: what keeps dying is not to be tried once a second again because of a restart.

use super::Actor;
use crate::{
    domain::{CrashLoop, CrashLoops, Environment},
    plan::Backoff,
    store::StoreError,
};

impl Actor {
    /// Reads what the last server knew, once.
    pub(super) async fn resume_loops(&mut self) -> Result<(), StoreError> {
        if self.loops.is_some() {
            return Ok(());
        }
        let found = self.parts.store.get::<CrashLoops>(&self.env).await?;
        let loops = found.map(|stored| stored.record.loops).unwrap_or_default();
        for known in &loops {
            self.sets.entry(known.set.clone()).or_default().backoff = Backoff::resumed(known.failures);
        }
        self.loops = Some(loops);
        Ok(())
    }

    /// Writes down what has changed. That it cannot costs the next server some needless starts.
    pub(super) async fn keep_loops(&mut self) {
        let looping = self.sets.iter().filter(|(_, state)| state.backoff.is_crash_looping());
        let loops: Vec<CrashLoop> =
            looping.map(|(set, state)| CrashLoop { set: set.clone(), failures: state.backoff.failures() }).collect();
        if self.loops.as_ref() == Some(&loops) {
            return;
        }
        match self.write_loops(loops.clone()).await {
            Ok(()) => self.loops = Some(loops),
            Err(error) => tracing::warn!(env = %self.env, %error, "a crash loop cannot be written down; trying again"),
        }
    }

    async fn write_loops(&self, loops: Vec<CrashLoop>) -> Result<(), StoreError> {
        let store = &self.parts.store;
        // Of an environment that is gone nothing is to be left.
        let Some(environment) = store.get::<Environment>(&self.env).await? else { return Ok(()) };
        let transaction = store.transaction().expect(&environment);
        let transaction = match loops.is_empty() {
            false => transaction.put(&CrashLoops { env: self.env.clone(), loops }),
            true => match store.get::<CrashLoops>(&self.env).await? {
                Some(stored) => transaction.delete(&stored),
                None => return Ok(()),
            },
        };
        transaction.commit().await.map(drop)
    }
}
