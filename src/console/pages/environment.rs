//! An environment: what runs, what is being deployed, what was.

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};

use super::{Failed, told};
use crate::console::{
    Console,
    client::Page,
    forms::{COUNT, Form},
    model::{App, Build, Deployment, Environment, Event, Events, ReleaseRow, Replica},
    session::Visitor,
    shell::{self, EnvPath, Query, Rendered, Shell, encode},
};

pub(super) fn routes() -> Router<Console> {
    Router::new()
        .route("/envs/{tenant}/{app}/{env}", get(overview))
        .route("/envs/{tenant}/{app}/{env}/settings", get(settings))
}

/// Releases and builds that the overview has.
const RECENT: usize = 6;

#[derive(Template)]
#[template(path = "environment.html", config = "src/console/askama.toml")]
struct Overview {
    shell: Shell,
    env: EnvPath,
    state: Environment,
    /// With the button to go back to it.
    releases: Vec<(ReleaseRow, Option<Form>)>,
    builds: Vec<Build>,
    /// The deployment under way or, when nothing is, the last one if it failed.
    deployment: Option<Deployment>,
    /// What was told of it, the oldest first.
    steps: Vec<Event>,
    scale: Option<Form>,
    restart: Option<Form>,
    redeploy: Option<Form>,
    give_up: Option<Form>,
    remote: String,
    manifest: String,
    /// Of the last minute.
    figures: Vec<(&'static str, String)>,
}

impl Overview {
    /// The build under way.
    fn building(&self) -> Option<&Build> {
        self.builds.first().filter(|build| build.is_under_way())
    }

    /// Tells a replica from others on the page. While a release is restarted, two of the same name and release are there.
    fn replica_id(&self, replica: &Replica) -> String {
        let key = |replica: &Replica| format!("replica-{}-{}-{}", replica.process, replica.index, replica.release);
        let before = self.state.replicas.iter().take_while(|other| !std::ptr::eq(*other, replica));
        match before.filter(|other| key(other) == key(replica)).count() {
            0 => key(replica),
            same => format!("{}-{same}", key(replica)),
        }
    }
}

async fn overview(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let (client, secret) = (&console.client, &visitor.secret);
    let (here, releases) = (env.api(""), env.api(&format!("/releases?limit={RECENT}")));
    let (builds, deployments) = (env.api(&format!("/builds?limit={RECENT}")), env.api("/deployments?limit=1"));
    let app_path = format!("/v1/apps/{}/{}", shell::encode(&env.tenant), shell::encode(&env.app));
    let metrics = env.api("/metrics");
    let (state, releases, builds, deployments, app, metrics) = tokio::try_join!(
        client.get::<Environment>(secret, &here),
        client.get::<Page<ReleaseRow>>(secret, &releases),
        client.get::<Page<Build>>(secret, &builds),
        client.get::<Page<Deployment>>(secret, &deployments),
        client.get::<crate::console::model::App>(secret, &app_path),
        client.get::<serde_json::Value>(secret, &metrics),
    )
    .map_err(told(&visitor))?;
    let shown = |deployment: &Deployment| matches!(deployment.state.as_str(), "running" | "failed");
    let deployment = match deployments.items.into_iter().next().filter(shown) {
        // What it waits for is said of one alone.
        Some(newest) => {
            let path = env.api(&format!("/deployments/{}", newest.release));
            Some(client.get::<Deployment>(secret, &path).await.unwrap_or(newest))
        }
        None => None,
    };
    let steps = match &deployment {
        Some(deployment) => steps(&console, &visitor, &env, deployment).await,
        None => Vec::new(),
    };
    let shell = Shell::env(&visitor, &env, "Overview").live(&env.event_query()).done(&query);
    let counts: Vec<(String, String)> =
        state.processes.iter().map(|(name, process)| (format!("{COUNT}{name}"), process.wanted.to_string())).collect();
    let counts: Vec<(&str, &str)> = counts.iter().map(|(name, count)| (name.as_str(), count.as_str())).collect();
    let scale = shell.form("scale", &env.with(&counts)).filter(|_| !counts.is_empty());
    let releases = releases.items.into_iter().map(|row| with_rollback(&shell, &env, row)).collect();
    let give_up = deployment.as_ref().filter(|deployment| deployment.state == "running").and_then(|deployment| {
        shell.form("deployment-cancel", &env.with(&[("id", &deployment.release.to_string())])).map(Form::button)
    });
    let has_release = state.release.is_some();
    let remote = app.environments.iter().find(|one| one.name == env.to_string() || one.name == env.env);
    Ok(shell::page(&Overview {
        restart: shell.form("restart", &env.values()).map(Form::button).filter(|_| has_release),
        redeploy: shell.form("redeploy", &env.values()).map(Form::button).filter(|_| has_release),
        remote: remote.map(|one| one.remote.clone()).unwrap_or_default(),
        manifest: app.manifest,
        figures: super::parts::at_a_glance(&metrics),
        builds: builds.items,
        env,
        state,
        releases,
        deployment,
        steps,
        scale,
        give_up,
        shell,
    }))
}

/// What was told of a deployment since it began.
async fn steps(console: &Console, visitor: &Visitor, env: &EnvPath, deployment: &Deployment) -> Vec<Event> {
    let path = format!("/v1/events?{}&type=deployment.,replica.&limit=60", env.event_query());
    let events = console.client.get::<Events>(&visitor.secret, &path).await;
    // Without them the page says less, and is right all the same.
    let mut events = events.map(|events| events.items).unwrap_or_default();
    events.retain(|event| event.time >= deployment.started_at);
    events
}

/// A release, and the button to go back to it.
pub(super) fn with_rollback(shell: &Shell, env: &EnvPath, row: ReleaseRow) -> (ReleaseRow, Option<Form>) {
    let back = matches!(row.state.as_str(), "replaced" | "superseded" | "cancelled" | "-");
    let button = shell.form("rollback", &env.with(&[("version", &row.version.to_string())])).map(Form::button);
    (row, button.filter(|_| back))
}

#[derive(Template)]
#[template(path = "settings.html", config = "src/console/askama.toml")]
struct Settings {
    shell: Shell,
    forms: Vec<(&'static str, Form)>,
    destroy: Option<Form>,
}

/// What is done seldom.
const SELDOM: [(&str, &str); 5] = [
    ("redeploy", "The same code once more, as when what it is built with has changed."),
    ("promote", "What was built and tried there runs here too, without a build."),
    ("deploy-image", "An image that is in the registry already."),
    ("build-upload", "What git push does, for those who have no git at hand."),
    ("scale-reset", "The numbers that were set here are forgotten."),
];

async fn settings(
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
    State(console): State<Console>,
) -> Result<Rendered, Failed> {
    // It has to exist, and the visitor has to know of it.
    console.client.get::<Environment>(&visitor.secret, &env.api("")).await.map_err(told(&visitor))?;
    let shell = Shell::env(&visitor, &env, "Settings").done(&query);
    // Where there may be something to promote.
    let app = format!("/v1/apps/{}/{}", encode(&env.tenant), encode(&env.app));
    let app = console.client.get::<App>(&visitor.secret, &app).await.map_err(told(&visitor))?;
    let others = app.environments.into_iter().filter(|other| other.release.is_some() && other.name != env.to_string());
    let mut others = Some(others.map(|other| other.name).collect());
    let form = |(action, why): (&str, &'static str)| {
        let form = shell.form(action, &env.values())?;
        let others = others.take_if(|_| action == "promote");
        Some((why, others.into_iter().fold(form, |form, others| form.suggesting("from", others))))
    };
    let forms = SELDOM.into_iter().filter_map(form).collect();
    let destroy = shell.form("env-destroy", &env.values()).map(Form::button);
    Ok(shell::page(&Settings { forms, destroy, shell }))
}
