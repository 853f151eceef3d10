//! Wires everything, owns the tasks, shuts down in order.

pub mod config;
pub mod telemetry;
