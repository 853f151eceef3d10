//! The router as a process, between real clients and real replicas.

mod attacks;
mod dying;
mod harness;
mod metering;
mod requests;
mod streams;
mod switching;
