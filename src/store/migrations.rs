//! The shapes that the records had, and how old ones become new. Pure.
//!
//! A store says which version it is of ([`super::seal::Seal`]). When it is opened, the steps from there to [`newest`] are applied, each in
//! one durable batch together with its version number: a server that dies in between goes on with the next step. A store of a later
//! version is refused. New fields that have a default need no step; a step is for what can no longer be read, or would be read wrongly.

use std::collections::BTreeMap;

use super::{Revision, Write, seal::UNSEALED};

/// All records, by key: value and revision.
pub type Contents = BTreeMap<String, (Vec<u8>, Revision)>;

/// One step.
#[derive(Clone, Copy)]
pub struct Migration {
    /// The version that it leads to, from the one before.
    pub to: u32,
    /// For the log: what it does.
    pub what: &'static str,
    /// The writes that it takes. An error refuses the store; nothing is written then.
    pub step: fn(&Contents) -> anyhow::Result<Vec<Write>>,
}

/// Every step, in order. Never change one that was released.
pub const MIGRATIONS: &[Migration] =
    &[Migration { to: 2, what: "seal the records, so that damage is noticed", step: |_| Ok(Vec::new()) }];

/// The version that these steps lead to.
pub fn newest(steps: &[Migration]) -> u32 {
    steps.last().map_or(UNSEALED, |last| last.to)
}

/// The steps that a store of this version still needs.
pub fn after(steps: &[Migration], version: u32) -> impl Iterator<Item = &Migration> {
    steps.iter().filter(move |step| step.to > version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_numbered_without_gaps() {
        let numbers: Vec<u32> = MIGRATIONS.iter().map(|step| step.to).collect();
        assert_eq!(numbers, (UNSEALED + 1..=newest(MIGRATIONS)).collect::<Vec<_>>());
        assert_eq!(after(MIGRATIONS, UNSEALED).count(), MIGRATIONS.len());
        assert_eq!(after(MIGRATIONS, newest(MIGRATIONS)).count(), 0);
    }
}
