//! The platform as a whole, for its operators.

use askama::Template;
use axum::{
    Router,
    extract::{Query as UrlQuery, State},
    routing::get,
};
use serde::Deserialize;

use super::{Failed, parts::bytes, told};
use crate::{
    console::{
        Console,
        forms::Form,
        session::Visitor,
        shell::{self, Query, Rendered, Shell},
    },
    domain::Timestamp,
};

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/platform", get(platform))
}

#[derive(Debug, Deserialize)]
struct Platform {
    server: Server,
    missing: Vec<Missing>,
    engine: Engine,
    registry: Registry,
    router: RouterState,
    disk: Disk,
    queue: Queue,
    jobs: Jobs,
    counts: Counts,
}

#[derive(Debug, Deserialize)]
struct Server {
    version: String,
    started_at: Timestamp,
}

#[derive(Debug, Deserialize)]
struct Missing {
    what: String,
    why: String,
    next: String,
}

#[derive(Debug, Deserialize)]
struct Engine {
    name: String,
    answers: bool,
    why: Option<String>,
    containers: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Registry {
    address: String,
    managed: bool,
    answers: bool,
    why: Option<String>,
    bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct RouterState {
    alive: bool,
    wanted: Option<u64>,
    acknowledged: Option<u64>,
    why: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Disk {
    floor: u64,
    file_systems: Vec<FileSystem>,
    why: Option<String>,
}

#[derive(Debug, Deserialize)]
struct FileSystem {
    path: String,
    free: u64,
    total: u64,
}

impl FileSystem {
    fn used(&self) -> u64 {
        self.total.saturating_sub(self.free)
    }
}

#[derive(Debug, Deserialize)]
struct Queue {
    running: Vec<Queued>,
    waiting: Vec<Queued>,
    building: u64,
    places: u64,
    waiting_places: u64,
}

#[derive(Debug, Deserialize)]
struct Queued {
    env: String,
    number: u64,
    state: String,
    since: Timestamp,
}

#[derive(Debug, Deserialize)]
struct Jobs {
    one_off: Places,
    cron: Places,
}

#[derive(Debug, Deserialize)]
struct Places {
    running: u64,
    places: u64,
}

#[derive(Debug, Deserialize)]
struct Counts {
    tenants: u64,
    apps: u64,
    environments: u64,
    replicas_wanted: Option<u64>,
    replicas_healthy: Option<u64>,
}

#[derive(Template)]
#[template(path = "platform.html", config = "src/console/askama.toml")]
struct PlatformPage {
    shell: Shell,
    platform: Platform,
    collect: Option<Form>,
    make_tenant: Option<Form>,
    add_key: Option<Form>,
}

impl PlatformPage {
    fn size(&self, value: &u64) -> String {
        bytes(*value as f64)
    }
}

async fn platform(
    State(console): State<Console>,
    visitor: Visitor,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let platform = console.client.get::<Platform>(&visitor.secret, "/v1/platform").await.map_err(told(&visitor))?;
    let shell = Shell::new(&visitor, "Platform").below(&[("/platform".into(), "platform".into())]);
    let shell = shell.live("type=build.,disk.,collection.,engine.,registry.").done(&query);
    let (collect, make_tenant) = (shell.form("collect", &[("dry_run", "on")]), shell.form("tenant-create", &[]));
    let add_key = shell.form("key-add", &[]).map(Form::linked);
    Ok(shell::page(&PlatformPage { shell, platform, collect, make_tenant, add_key }))
}
