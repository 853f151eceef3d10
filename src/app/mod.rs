//! Wires everything, owns the tasks, shuts down in order.

pub mod cli_validate;
pub mod config;
pub mod telemetry;
