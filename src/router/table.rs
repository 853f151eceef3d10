//! The routes table: written by the deployer, read by the router, and the router's acknowledgement.
//!
//! Files below `DATA/router/`: `routes.json` ([`RoutesTable`]) is replaced atomically by the control plane; `ack.json` ([`Ack`]) by the
//! router. Each side watches the other's file, so nobody polls. Access log lines go as datagrams ([`AccessRecord`], JSON) to the
//! unix socket `access.sock`, which the control plane binds; with nobody listening they are dropped and counted.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::domain::{EnvRef, ReleaseVersion, Timestamp};

/// Every route the platform serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesTable {
    /// Grows by at least one with every change.
    pub generation: u64,
    /// Host name (lower case, no port) → environment.
    pub hosts: BTreeMap<String, EnvRef>,
    pub environments: BTreeMap<EnvRef, Route>,
}

/// Where an environment's requests go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Whether it has ever had a release; without one the page says how to push.
    pub released: bool,
    /// Ready replicas.
    pub upstreams: Vec<Upstream>,
}

/// One ready replica.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Upstream {
    pub address: SocketAddr,
    /// For the access log: `web.2`.
    pub replica: String,
    pub release: ReleaseVersion,
}

/// What the router serves now. Rewritten when a new generation is in force, and when an upstream that is no longer in the table
/// has answered its last request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    pub generation: u64,
    /// Upstreams that are not in that generation and still have requests under way, with their number.
    pub draining: BTreeMap<SocketAddr, u64>,
    /// Process id of the router.
    pub pid: u32,
}

/// One request, for the app's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    pub env: EnvRef,
    pub at: Timestamp,
    pub request_id: String,
    pub method: String,
    pub host: String,
    /// Path and query, control characters escaped, cut at 2 KiB.
    pub path: String,
    pub status: u16,
    /// `web.2`, or empty when none was asked.
    pub replica: String,
    /// Client address.
    pub client: String,
    /// Milliseconds to connect to the replica, and in all.
    pub connect_ms: u64,
    pub total_ms: u64,
    pub bytes: u64,
    /// Why it failed, in a word as Heroku's router has them (`no-healthy-replica`, `timeout`, `refused`), if it did.
    pub error: Option<String>,
}
