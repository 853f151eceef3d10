//! Wires everything, owns the tasks, shuts down in order.
//!
//! [`cli`] is what is typed on the host. `serve` is the control plane, `data_plane` the router. Only this module names concrete
//! adapters.

mod allocator;
mod backup;
mod check;
pub mod cli;
pub mod cli_validate;
pub mod config;
mod data_dir;
mod data_plane;
mod doctor;
mod doors;
mod engine;
#[cfg(feature = "fail-points")]
mod fail_points;
mod layer;
mod leftovers;
mod parts;
mod pipeline;
mod reserve;
mod room;
mod routes;
mod secrets;
mod serve;
mod settings;
mod status;
mod teardown;
pub mod telemetry;
mod told_registry;
