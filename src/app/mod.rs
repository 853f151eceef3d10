//! Wires everything, owns the tasks, shuts down in order.

pub mod cli_validate;
pub mod config;
mod data_dir;
pub mod telemetry;
