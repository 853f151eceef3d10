//! The unix socket that hooks and host commands use.
