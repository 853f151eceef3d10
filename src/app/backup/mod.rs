//! `berth backup` and `berth restore`.
//!
//! A backup is a gzipped tar that is written as a stream: what cannot be made anew, then `manifest.json` with the size and SHA-256 of every
//! member ([`archive`]). It is taken while the server runs ([`collect`]); a restore checks all of it before the data directory becomes
//! one that `berth serve` takes ([`restore()`]).
//!
//! Members: `instance`; `keys/NAME`; `store/N` (the records, [`crate::store::Snapshot`]); per environment
//! `repositories/TENANT/APP/ENV.git/refs.json` and `…/pack/N`; with a managed registry `registry/images.json` and `registry/blobs/HEX` of the
//! images of releases that may be rolled back to. What is long comes in numbered pieces. Not in it: logs, build caches, the stacks.

mod archive;
mod collect;
mod restore;
#[cfg(test)]
mod tests;

pub(super) use collect::run as backup;
pub(super) use restore::{is_interrupted, run as restore};
