//! Smaller pages of an environment: host names, drains, jobs, one-off commands, charts.

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};
use serde::Deserialize;
use serde_json::Value;

use super::{Failed, told};
use crate::{
    console::{
        Console,
        client::Page,
        forms::Form,
        model::{Domain, Environment},
        session::Visitor,
        shell::{self, EnvPath, Query, Rendered, Shell},
    },
    domain::Timestamp,
};

pub(super) fn routes() -> Router<Console> {
    Router::new()
        .route("/envs/{tenant}/{app}/{env}/domains", get(domains))
        .route("/envs/{tenant}/{app}/{env}/drains", get(drains))
        .route("/envs/{tenant}/{app}/{env}/jobs", get(jobs))
        .route("/envs/{tenant}/{app}/{env}/run", get(run))
        .route("/envs/{tenant}/{app}/{env}/metrics", get(metrics))
}

#[derive(Template)]
#[template(path = "domains.html", config = "src/console/askama.toml")]
struct Domains {
    shell: Shell,
    domains: Vec<(Domain, Option<Form>)>,
    add: Option<Form>,
}

async fn domains(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let domains = console.client.get::<Vec<Domain>>(&visitor.secret, &env.api("/domains")).await;
    let shell = Shell::env(&visitor, &env, "Domains").live(&format!("{}&type=domain.", env.event_query())).done(&query);
    let domains = domains.map_err(told(&visitor))?.into_iter().map(|domain| {
        let remove = shell.form("domain-remove", &env.with(&[("id", &domain.domain)])).map(Form::button);
        let own = matches!(domain.from.as_str(), "added" | "kept");
        (domain, remove.filter(|_| own))
    });
    let (domains, add) = (domains.collect(), shell.form("domain-add", &env.values()));
    Ok(shell::page(&Domains { shell, domains, add }))
}

#[derive(Debug, Deserialize)]
struct Drain {
    id: u64,
    url: String,
    state: String,
    since: Option<Timestamp>,
    why: Option<String>,
    sent: u64,
    dropped: u64,
    lag: u64,
}

#[derive(Template)]
#[template(path = "drains.html", config = "src/console/askama.toml")]
struct Drains {
    shell: Shell,
    drains: Vec<(Drain, Option<Form>)>,
    add: Option<Form>,
}

async fn drains(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let drains = console.client.get::<Page<Drain>>(&visitor.secret, &env.api("/drains?limit=100")).await;
    let shell = Shell::env(&visitor, &env, "Drains").live(&format!("{}&type=drain.", env.event_query())).done(&query);
    let drains = drains.map_err(told(&visitor))?.items.into_iter().map(|drain| {
        let remove = shell.form("drain-remove", &env.with(&[("id", &drain.id.to_string())])).map(Form::button);
        (drain, remove)
    });
    let (drains, add) = (drains.collect(), shell.form("drain-add", &env.values()));
    Ok(shell::page(&Drains { shell, drains, add }))
}

#[derive(Debug, Deserialize)]
struct Job {
    job: String,
    schedule: String,
    timezone: String,
    command: String,
    next: Option<Timestamp>,
    problem: Option<String>,
}

#[derive(Debug, Deserialize)]
struct JobRun {
    job: String,
    number: u64,
    requested_by: Option<String>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    state: String,
    reason: Option<String>,
    repeats: u64,
    #[serde(default)]
    tail: Vec<String>,
}

#[derive(Template)]
#[template(path = "jobs.html", config = "src/console/askama.toml")]
struct Jobs {
    shell: Shell,
    jobs: Vec<(Job, Option<Form>)>,
    runs: Vec<JobRun>,
}

async fn jobs(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let (jobs, runs) = (env.api("/cron?limit=1000"), env.api("/cron-runs?limit=50"));
    let (jobs, runs) = tokio::try_join!(
        console.client.get::<Page<Job>>(&visitor.secret, &jobs),
        console.client.get::<Page<JobRun>>(&visitor.secret, &runs),
    )
    .map_err(told(&visitor))?;
    let shell = Shell::env(&visitor, &env, "Jobs").live(&format!("{}&type=cron.", env.event_query())).done(&query);
    let jobs = jobs.items.into_iter().map(|job| {
        let run = shell.form("job-run", &env.with(&[("id", &job.job)])).map(Form::button);
        (job, run)
    });
    let jobs = jobs.collect();
    Ok(shell::page(&Jobs { shell, jobs, runs: runs.items }))
}

#[derive(Template)]
#[template(path = "run.html", config = "src/console/askama.toml")]
struct Run {
    shell: Shell,
    env: EnvPath,
    form: Option<Form>,
    deployed: bool,
}

async fn run(State(console): State<Console>, visitor: Visitor, Path(env): Path<EnvPath>) -> Result<Rendered, Failed> {
    let here = console.client.get::<Environment>(&visitor.secret, &env.api("")).await.map_err(told(&visitor))?;
    let shell = Shell::env(&visitor, &env, "Run");
    let form = shell.form("run", &env.values()).filter(|_| here.release.is_some());
    Ok(shell::page(&Run { shell, env, form, deployed: here.release.is_some() }))
}

#[derive(Template)]
#[template(path = "metrics.html", config = "src/console/askama.toml")]
struct Metrics {
    shell: Shell,
    env: EnvPath,
    /// Where the series come from, and how far back.
    data: String,
    hours: u32,
    now: Vec<(&'static str, String, String)>,
}

impl Metrics {
    /// What can be looked at: hours, and how that is said.
    fn ranges(&self) -> [(u32, &'static str); 3] {
        [(1, "1 hour"), (6, "6 hours"), (24, "24 hours")]
    }
}

async fn metrics(
    State(console): State<Console>,
    visitor: Visitor,
    Path(env): Path<EnvPath>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let hours =
        query.get("hours").and_then(|hours| hours.parse().ok()).filter(|hours| (1..=24).contains(hours)).unwrap_or(1);
    let now = Timestamp::now();
    let from = now - jiff::SignedDuration::from_hours(i64::from(hours));
    // About 360 points, whatever the time.
    let (step, from) = (hours * 10, from.strftime("%Y-%m-%dT%H:%M:%SZ"));
    let path = env.api(&format!("/metrics?from={from}&step={step}"));
    let found = console.client.get::<Value>(&visitor.secret, &path).await.map_err(told(&visitor))?;
    let shell = Shell::env(&visitor, &env, "Metrics");
    let shell = Shell { charts: true, ..shell };
    let data = format!("/relay{}", env.api(&format!("/metrics?step={step}")));
    let now = FIGURES.iter().map(|figure| figure.row(&found)).collect();
    Ok(shell::page(&Metrics { shell, env, data, hours, now }))
}

/// What the table says of the last minute and of the whole time.
struct Figure {
    label: &'static str,
    field: &'static str,
    unit: Unit,
}

enum Unit {
    Number(&'static str),
    Share,
    Bytes(&'static str),
}

const FIGURES: [Figure; 9] = [
    Figure { label: "Requests", field: "requests_per_second", unit: Unit::Number("/s") },
    Figure { label: "Answers 5xx", field: "error_share", unit: Unit::Share },
    Figure { label: "Latency p50", field: "p50_ms", unit: Unit::Number(" ms") },
    Figure { label: "Latency p99", field: "p99_ms", unit: Unit::Number(" ms") },
    Figure { label: "Replicas ready", field: "replicas_ready", unit: Unit::Number("") },
    Figure { label: "Crashes", field: "crashes", unit: Unit::Number("") },
    Figure { label: "Processor", field: "cpu_cores", unit: Unit::Number(" cores") },
    Figure { label: "Memory", field: "memory_bytes", unit: Unit::Bytes("") },
    Figure { label: "Sent", field: "sent_bytes_per_second", unit: Unit::Bytes("/s") },
];

impl Figure {
    /// Its name, the last minute, all of the time.
    fn row(&self, found: &Value) -> (&'static str, String, String) {
        let text = |of: &str| match found[of][self.field].as_f64() {
            None => "–".to_owned(),
            Some(value) => match self.unit {
                Unit::Number(unit) => format!("{}{unit}", rounded(value)),
                Unit::Share => format!("{} %", rounded(value * 100.0)),
                Unit::Bytes(unit) => format!("{}{unit}", bytes(value)),
            },
        };
        (self.label, text("now"), text("total"))
    }
}

/// A few of them, of the last minute, for the overview.
pub(super) fn at_a_glance(found: &Value) -> Vec<(&'static str, String)> {
    let few = ["requests_per_second", "p99_ms", "error_share", "cpu_cores", "memory_bytes"];
    let of = |field: &str| FIGURES.iter().find(|figure| figure.field == field);
    few.into_iter().filter_map(of).map(|figure| figure.row(found)).map(|(label, now, _)| (label, now)).collect()
}

/// Three figures.
fn rounded(value: f64) -> String {
    match value {
        v if v == v.trunc() => format!("{v:.0}"),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// `1.5 MiB`
pub(super) fn bytes(value: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (value, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", rounded(value), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(0.0, "0"), (3.0, "3"), (3.456, "3.46"), (34.56, "34.6"), (345.6, "346")] {
            assert_eq!(rounded(value), text);
        }
        assert_eq!(
            (bytes(512.0), bytes(1536.0), bytes(3.0 * 1024.0 * 1024.0)),
            ("512 B".into(), "1.50 KiB".into(), "3 MiB".into())
        );
    }
}
