//! Whose turn it is to be built.
//!
//! The next build is of the tenant with the fewest builds running, in the order they were queued; no tenant may have more than its share
//! of the line.

use std::collections::{BTreeMap, VecDeque};

use crate::domain::{EnvRef, TenantName};

/// How much may run and wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LineLimits {
    /// Running at once.
    pub(super) running: usize,
    /// Waiting in all.
    pub(super) waiting: usize,
    /// Waiting, of one tenant.
    pub(super) per_tenant: usize,
}

/// What becomes of a build that joins the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It can run at once.
    Runs,
    Waits,
    /// Too many wait.
    Full,
    /// Too many of its tenant wait.
    TenantFull,
}

/// The builds that wait, one of each environment, and how many run.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    waiting: VecDeque<EnvRef>,
    running: BTreeMap<TenantName, usize>,
}

impl Line {
    /// Puts a build at the end.
    pub(super) fn join(&mut self, env: EnvRef) {
        self.waiting.push_back(env);
    }

    /// Takes a build out that is not to run any more; `false` when it does not wait.
    pub(super) fn leave(&mut self, env: &EnvRef) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|other| other != env);
        self.waiting.len() < before
    }

    /// Takes the next build out that may run, and counts it as running until [`Line::ended`].
    pub(super) fn next(&mut self, limits: &LineLimits) -> Option<EnvRef> {
        if self.running() >= limits.running {
            return None;
        }
        let of_tenant = |env: &EnvRef| self.running.get(&env.tenant).copied().unwrap_or_default();
        // Of several that are as low, the first.
        let (at, _) = self.waiting.iter().enumerate().min_by_key(|(_, env)| of_tenant(env))?;
        let env = self.waiting.remove(at)?;
        *self.running.entry(env.tenant.clone()).or_default() += 1;
        Some(env)
    }

    /// A build of this tenant runs no more.
    pub(super) fn ended(&mut self, tenant: &TenantName) {
        if let Some(count) = self.running.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(tenant);
            }
        }
    }

    /// What would become of a build that joins now.
    pub(super) fn room(&self, tenant: &TenantName, limits: &LineLimits) -> Room {
        // Some of those in line only wait to be noticed.
        let mut soon = self.clone();
        while soon.next(limits).is_some() {}
        if soon.running() < limits.running {
            return Room::Runs;
        }
        let of_tenant = soon.waiting.iter().filter(|env| env.tenant == *tenant).count();
        match () {
            () if soon.waiting.len() >= limits.waiting => Room::Full,
            () if of_tenant >= limits.per_tenant => Room::TenantFull,
            () => Room::Waits,
        }
    }

    fn running(&self) -> usize {
        self.running.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LineLimits = LineLimits { running: 2, waiting: 4, per_tenant: 3 };

    fn env(name: &str) -> EnvRef {
        let (tenant, env) = name.split_once('/').unwrap();
        format!("{tenant}/app/e{env}").parse().unwrap()
    }

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    fn line(names: &[&str]) -> Line {
        let mut line = Line::default();
        names.iter().for_each(|name| line.join(env(name)));
        line
    }

    #[test]
    fn no_tenant_holds_all_slots_while_another_waits() {
        let mut line = line(&["a/1", "a/2", "a/3", "b/1", "c/1"]);
        assert_eq!(line.next(&LIMITS), Some(env("a/1")));
        assert_eq!(line.next(&LIMITS), Some(env("b/1")));
        assert_eq!(line.next(&LIMITS), None);
        line.ended(&tenant("b"));
        assert_eq!(line.next(&LIMITS), Some(env("c/1")));
        line.ended(&tenant("a"));
        assert_eq!(line.next(&LIMITS), Some(env("a/2")));
        line.ended(&tenant("c"));
        // Nobody else waits: the slot is not left empty.
        assert_eq!(line.next(&LIMITS), Some(env("a/3")));
        line.join(env("b/2"));
        assert_eq!(line.next(&LIMITS), None);
        line.ended(&tenant("a"));
        line.ended(&tenant("a"));
        assert_eq!(line.next(&LIMITS), Some(env("b/2")));
        assert_eq!(line.running(), 1);
    }

    #[test]
    fn the_line_is_bounded_in_all_and_for_each_tenant() {
        let mut line = line(&["a/1"]);
        assert_eq!(line.room(&tenant("a"), &LIMITS), Room::Runs);
        line.join(env("a/2"));
        assert_eq!(line.room(&tenant("a"), &LIMITS), Room::Waits);
        ["a/3", "a/4", "a/5"].iter().for_each(|name| line.join(env(name)));
        assert_eq!(line.room(&tenant("a"), &LIMITS), Room::TenantFull);
        assert_eq!(line.room(&tenant("b"), &LIMITS), Room::Waits);
        assert_eq!(line.next(&LIMITS), Some(env("a/1")));
        assert_eq!(line.room(&tenant("a"), &LIMITS), Room::TenantFull);
        line.join(env("b/1"));
        // The slot that is free is b's next, so it leaves another of a's waiting.
        assert_eq!(line.room(&tenant("c"), &LIMITS), Room::Full);
        assert!(line.leave(&env("a/5")) && !line.leave(&env("a/5")));
        assert_eq!(line.room(&tenant("a"), &LIMITS), Room::TenantFull);
        assert_eq!(line.room(&tenant("c"), &LIMITS), Room::Waits);
    }
}
