//! Berth: a self-hosted, multi-tenant git-push build-and-deploy server.
//!
//! A folder is one thing; its `mod.rs` is its face. Imports point down only: `app` → `ssh`, `api`, `console`, `control` → `receive`, `build`, `deploy`,
//! `cron`, `jobs`, `commands`, `logs`, `events`, `drains`, `webhooks`, `metrics` → `runtime`, `registry`, `store`, `git`, `router`,
//! `outbound` → `plan`, `manifest` → `domain`. ARCHITECTURE.md is the map.

pub mod api;
pub mod app;
pub mod build;
pub mod commands;
pub mod console;
pub mod control;
pub mod cron;
pub mod deploy;
pub mod disk;
pub mod domain;
pub mod drains;
pub mod events;
pub mod gc;
pub mod git;
pub mod jobs;
pub mod keys;
pub mod logs;
pub mod manifest;
pub mod metrics;
pub mod open_files;
pub mod outbound;
pub mod places;
pub mod plan;
pub mod receive;
pub mod registry;
pub mod router;
pub mod runtime;
pub mod ssh;
pub mod store;
pub mod token;
pub mod traces;
pub mod webhooks;
