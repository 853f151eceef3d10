//! The data plane: its own process, fed by an atomically replaced routes file, acknowledging the generation it serves.
//!
//! It knows nothing of tenants' records, the engine or the store; what it is told is in [`table`].

pub mod table;
