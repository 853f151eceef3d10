//! Whose turn it is to be built.
//!
//! The next build is of the tenant with the fewest builds running, in the order they were queued; no tenant may have more than its share
//! of the line. Of one app, one build runs at a time: its environments share a cache, and the second may find the first one's slug.

use std::collections::{BTreeSet, VecDeque};

use crate::domain::EnvRef;

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

/// The builds that wait and those that run, at most one of each environment.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    waiting: VecDeque<EnvRef>,
    running: BTreeSet<EnvRef>,
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
        if self.running.len() >= limits.running {
            return None;
        }
        let of_tenant = |env: &EnvRef| self.running.iter().filter(|other| other.tenant == env.tenant).count();
        let may_run = self.waiting.iter().enumerate().filter(|(_, env)| !self.is_app_running(env));
        // Of several that are as low, the first.
        let (at, _) = may_run.min_by_key(|(_, env)| of_tenant(env))?;
        let env = self.waiting.remove(at)?;
        self.running.insert(env.clone());
        Some(env)
    }

    /// This build needs its slot no more; `false` when it holds none.
    pub(super) fn ended(&mut self, env: &EnvRef) -> bool {
        self.running.remove(env)
    }

    /// What would become of a build of this environment that joins now.
    pub(super) fn room(&self, env: &EnvRef, limits: &LineLimits) -> Room {
        // Some of those in line only wait to be noticed.
        let mut soon = self.clone();
        while soon.next(limits).is_some() {}
        if soon.running.len() < limits.running && !soon.is_app_running(env) {
            return Room::Runs;
        }
        let of_tenant = soon.waiting.iter().filter(|other| other.tenant == env.tenant).count();
        match () {
            () if soon.waiting.len() >= limits.waiting => Room::Full,
            () if of_tenant >= limits.per_tenant => Room::TenantFull,
            () => Room::Waits,
        }
    }

    /// Those that wait, in the order in which they would have their turn if every build that runs went on for ever.
    pub(super) fn turns(&self) -> Vec<EnvRef> {
        let (mut line, limits) = (self.clone(), LineLimits { running: usize::MAX, waiting: 0, per_tenant: 0 });
        let mut turns: Vec<EnvRef> = std::iter::from_fn(|| line.next(&limits)).collect();
        // Left are those that wait for another build of their app.
        turns.extend(line.waiting);
        turns
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    fn is_app_running(&self, env: &EnvRef) -> bool {
        self.running.iter().any(|other| (&other.tenant, &other.app) == (&env.tenant, &env.app))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LineLimits = LineLimits { running: 2, waiting: 4, per_tenant: 3 };

    /// `a/1` is an environment of an app of its own, `a/1/x` another one of that app.
    fn env(name: &str) -> EnvRef {
        let mut parts = name.split('/');
        let (tenant, app) = (parts.next().unwrap(), parts.next().unwrap());
        format!("{tenant}/app{app}/{}", parts.next().unwrap_or("dev")).parse().unwrap()
    }

    fn line(names: &[&str]) -> Line {
        let mut line = Line::default();
        names.iter().for_each(|name| line.join(env(name)));
        line
    }

    #[test]
    fn no_tenant_holds_all_slots_while_another_waits() {
        let mut line = line(&["a/1", "a/2", "a/3", "b/1", "c/1"]);
        assert_eq!(line.turns(), ["a/1", "b/1", "c/1", "a/2", "a/3"].map(env));
        assert_eq!(line.next(&LIMITS), Some(env("a/1")));
        assert_eq!(line.next(&LIMITS), Some(env("b/1")));
        assert_eq!(line.next(&LIMITS), None);
        assert_eq!(line.turns(), ["c/1", "a/2", "a/3"].map(env));
        assert!(line.ended(&env("b/1")) && !line.ended(&env("b/1")));
        assert_eq!(line.next(&LIMITS), Some(env("c/1")));
        line.ended(&env("a/1"));
        assert_eq!(line.next(&LIMITS), Some(env("a/2")));
        line.ended(&env("c/1"));
        // Nobody else waits: the slot is not left empty.
        assert_eq!(line.next(&LIMITS), Some(env("a/3")));
        line.join(env("b/2"));
        assert_eq!(line.next(&LIMITS), None);
        line.ended(&env("a/2"));
        line.ended(&env("a/3"));
        assert_eq!(line.next(&LIMITS), Some(env("b/2")));
        assert_eq!(line.running(), 1);
    }

    #[test]
    fn one_build_of_an_app_at_a_time() {
        let mut line = line(&["a/1/dev", "a/1/prod", "a/2"]);
        assert_eq!(line.next(&LIMITS), Some(env("a/1/dev")));
        assert_eq!(line.room(&env("a/1/test"), &LIMITS), Room::Waits);
        assert_eq!(line.next(&LIMITS), Some(env("a/2")));
        line.ended(&env("a/2"));
        assert_eq!(line.next(&LIMITS), None, "the other of the same app waits, though there is a slot");
        assert_eq!(line.room(&env("a/3"), &LIMITS), Room::Runs);
        line.ended(&env("a/1/dev"));
        assert_eq!(line.next(&LIMITS), Some(env("a/1/prod")));
    }

    #[test]
    fn the_line_is_bounded_in_all_and_for_each_tenant() {
        let mut line = line(&["a/1"]);
        let (a, b, c) = (env("a/9"), env("b/9"), env("c/9"));
        assert_eq!(line.room(&a, &LIMITS), Room::Runs);
        line.join(env("a/2"));
        assert_eq!(line.room(&a, &LIMITS), Room::Waits);
        ["a/3", "a/4", "a/5"].iter().for_each(|name| line.join(env(name)));
        assert_eq!(line.room(&a, &LIMITS), Room::TenantFull);
        assert_eq!(line.room(&b, &LIMITS), Room::Waits);
        assert_eq!(line.next(&LIMITS), Some(env("a/1")));
        assert_eq!(line.room(&a, &LIMITS), Room::TenantFull);
        line.join(env("b/1"));
        // The slot that is free is b's next, so it leaves another of a's waiting.
        assert_eq!(line.room(&c, &LIMITS), Room::Full);
        assert!(line.leave(&env("a/5")) && !line.leave(&env("a/5")));
        assert_eq!(line.room(&a, &LIMITS), Room::TenantFull);
        assert_eq!(line.room(&c, &LIMITS), Room::Waits);
    }
}
