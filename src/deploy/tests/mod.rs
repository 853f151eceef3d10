//! The deployer as a whole, against an engine and a router made of memory, in time that is not waited for.

mod domains;
mod engine;
mod failures;
mod faults;
mod promises;
mod rollouts;
pub(crate) mod support;
mod telling;
mod traced;
