//! What one sees first: everything that runs.

use std::collections::BTreeMap;

use askama::Template;
use axum::{
    Router,
    extract::{Query as UrlQuery, State},
    routing::get,
};

use super::{Failed, told};
use crate::console::{
    Console,
    client::Page,
    forms::Form,
    model::{AppRow, Running, TenantRow},
    session::Visitor,
    shell::{self, Query, Rendered, Shell},
};

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/", get(home))
}

#[derive(Template)]
#[template(path = "home.html", config = "src/console/askama.toml")]
struct Home {
    shell: Shell,
    tenants: Vec<Shown>,
    join: Option<Form>,
    make: Option<Form>,
    /// Whether not everything is shown.
    more: bool,
}

/// A tenant with what runs.
struct Shown {
    row: TenantRow,
    apps: BTreeMap<String, Vec<Running>>,
    /// To make the first app with.
    make: Option<Form>,
}

/// What one page of the API has at the most.
const MOST: usize = 1000;

async fn home(
    State(console): State<Console>,
    visitor: Visitor,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let (tenants_path, apps_path) = (format!("/v1/tenants?limit={MOST}"), format!("/v1/apps?limit={MOST}"));
    let running_path = format!("/v1/running?limit={MOST}");
    let (tenants, apps, running) = tokio::try_join!(
        console.client.get::<Page<TenantRow>>(&visitor.secret, &tenants_path),
        console.client.get::<Page<AppRow>>(&visitor.secret, &apps_path),
        console.client.get::<Page<Running>>(&visitor.secret, &running_path),
    )
    .map_err(told(&visitor))?;
    let shell = Shell::new(&visitor, "Overview").live("").done(&query);
    let mut by_app: BTreeMap<String, BTreeMap<String, Vec<Running>>> = BTreeMap::new();
    for app in &apps.items {
        if let Some((tenant, app)) = app.name.split_once('/') {
            by_app.entry(tenant.to_owned()).or_default().entry(app.to_owned()).or_default();
        }
    }
    for env in running.items {
        let parts: Vec<String> = env.env.split('/').map(str::to_owned).collect();
        if let [tenant, app, _] = &parts[..] {
            by_app.entry(tenant.clone()).or_default().entry(app.clone()).or_default().push(env);
        }
    }
    let mut shown: Vec<Shown> = tenants
        .items
        .into_iter()
        .map(|row| {
            let apps = by_app.remove(&row.name).unwrap_or_default();
            let make = shell.form("app-create", &[("tenant", &row.name)]).filter(|_| apps.is_empty());
            Shown { apps, make, row }
        })
        .collect();
    // One's own first.
    shown.sort_by_key(|tenant| tenant.row.role.is_none());
    let more = tenants.next.is_some() || apps.next.is_some() || running.next.is_some();
    let (join, make) = (shell.form("tenant-join", &[]), shell.form("tenant-create", &[]));
    Ok(shell::page(&Home { tenants: shown, join, make, more, shell }))
}
