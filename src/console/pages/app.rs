//! An app and its environments.

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};

use super::{Failed, told};
use crate::console::{
    Console,
    forms::Form,
    model::App,
    session::Visitor,
    shell::{self, Query, Rendered, Shell, encode},
};

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/apps/{tenant}/{app}", get(app))
}

#[derive(Template)]
#[template(path = "app.html", config = "src/console/askama.toml")]
struct AppPage {
    shell: Shell,
    name: String,
    app: App,
    make: Option<Form>,
    purge: Option<Form>,
    destroy: Option<Form>,
    /// Whether nothing was ever deployed.
    fresh: bool,
}

async fn app(
    State(console): State<Console>,
    visitor: Visitor,
    Path((tenant, app)): Path<(String, String)>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let path = format!("/v1/apps/{}/{}", encode(&tenant), encode(&app));
    let found = console.client.get::<App>(&visitor.secret, &path).await.map_err(told(&visitor))?;
    let name = format!("{tenant}/{app}");
    let shell = Shell::new(&visitor, &name)
        .below(&[(format!("/tenants/{tenant}"), tenant.clone()), (format!("/apps/{tenant}/{app}"), app.clone())]);
    let shell = shell.live(&format!("app={}", encode(&name))).done(&query);
    let values = [("tenant", tenant.as_str()), ("app", app.as_str())];
    Ok(shell::page(&AppPage {
        make: shell.form("env-create", &values),
        purge: shell.form("cache-purge", &values).map(Form::button),
        destroy: shell.form("app-destroy", &values).map(Form::button),
        fresh: found.environments.iter().all(|env| env.release.is_none()),
        app: found,
        name,
        shell,
    }))
}
