//! The console over the API over services in memory.
