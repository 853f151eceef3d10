//! The JSON Schema of `berth.yaml`, for editors and other checkers.
//!
//! The types here describe the file as it is written; nothing is read through them. Tests hold them and the parser
//! together: same keys, and the same verdict on a table of documents. What depends on several places at once (a
//! process of an environment must be declared) is beyond a schema and left to the parser.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Value, json};

use super::{
    checks::{
        AUTH_PATTERN, BUILDPACK_PATTERN, DOMAIN_PATTERN, HEALTH_PATH_PATTERN, MAX_COMMAND, MAX_VALUE, ROOT_PATTERN,
        VARIABLE_PATTERN,
    },
    cron::{MAX_CRON_JOBS, SCHEDULE_PATTERN, TIMEZONE_PATTERN},
    read::{CORES, FAILURES, MAX_BUILDPACKS, MAX_DOMAINS, MAX_PROCESS_TYPES, MAX_REPLICAS},
    units::{DURATION_PATTERN, MEMORY_PATTERN, PERCENT_PATTERN},
};

use crate::domain::Overlap;

const LABEL_PATTERN: &str = "^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$";
const PROCESS_TYPE_PATTERN: &str = "^[a-z]([a-z0-9_-]{0,28}[a-z0-9])?$";
const APP_PATTERN: &str = "^[a-z]([a-z0-9-]{0,28}[a-z0-9])?/[a-z]([a-z0-9-]{0,28}[a-z0-9])?$";
const COMMAND_PATTERN: &str = "\\S";

/// The schema, draft 2020-12.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(as_the_parser_takes_it));
    settings.into_generator().into_root_schema_for::<ManifestFile>().to_value()
}

/// A key may be left out but not be null, and Rust's number formats mean nothing to a reader.
fn as_the_parser_takes_it(schema: &mut Schema) {
    let null = json!("null");
    schema.remove("format");
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| *kind != null);
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type") != Some(&null));
        if let [only] = choices.as_slice()
            && let Some(reference) = only.get("$ref").cloned()
        {
            schema.remove("anyOf");
            schema.insert("$ref".into(), reference);
        }
    }
}

/// What this repository is, how Berth builds it and how it runs it.
#[derive(JsonSchema)]
#[schemars(title = "berth.yaml", deny_unknown_fields)]
pub struct ManifestFile {
    /// The app that this repository belongs to, `TENANT/APP`; must match the remote that is pushed to.
    #[schemars(regex(pattern = APP_PATTERN), example = "acme/shop")]
    pub app: Option<String>,
    /// The project token that `apps create` printed. Signed, not a secret.
    #[schemars(regex(pattern = AUTH_PATTERN))]
    pub auth: Option<String>,
    pub build: Option<BuildSection>,
    /// Process types by name. Without any, the Procfile's, else the buildpack's default.
    #[schemars(extend("propertyNames" = {"pattern": PROCESS_TYPE_PATTERN, "not": {"const": "release"}}, "maxProperties" = MAX_PROCESS_TYPES))]
    pub processes: Option<BTreeMap<String, Process>>,
    /// Command of the release phase: runs once in the new image before any replica starts.
    #[schemars(regex(pattern = COMMAND_PATTERN), length(max = MAX_COMMAND), example = "node migrate.js")]
    pub release: Option<String>,
    /// Jobs by name that run by the clock, in the current release.
    #[schemars(extend("propertyNames" = {"pattern": PROCESS_TYPE_PATTERN}, "maxProperties" = MAX_CRON_JOBS))]
    pub cron: Option<BTreeMap<String, CronSection>>,
    pub upgrade: Option<UpgradeSection>,
    /// What is different in an environment, merged over the above.
    #[schemars(extend("propertyNames" = {"pattern": LABEL_PATTERN}, "maxProperties" = 20))]
    pub environments: Option<BTreeMap<String, EnvironmentSection>>,
}

/// How the repository is built.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct BuildSection {
    /// Subdirectory that holds the app, for a repository with several.
    #[schemars(regex(pattern = ROOT_PATTERN), length(max = 1024), example = "services/web")]
    pub root: Option<String>,
    /// Buildpacks to run, in this order, instead of detection: names, or https URLs of git repositories that the operator allows.
    #[schemars(length(max = MAX_BUILDPACKS), inner(regex(pattern = BUILDPACK_PATTERN)), example = ["nodejs"], extend("uniqueItems" = true))]
    pub buildpacks: Option<Vec<String>>,
    /// Variables that the build sees. Those of the running app are set with `config set`.
    #[schemars(example = json!({"NODE_ENV": "production"}), extend("propertyNames" = {"pattern": VARIABLE_PATTERN}, "maxProperties" = 256))]
    pub env: Option<BTreeMap<String, Variable>>,
}

/// Text; a number or truth value is taken as it is written.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Variable {
    Text(#[schemars(length(max = MAX_VALUE))] String),
    Number(f64),
    Truth(bool),
}

/// One process type: its command, or a mapping with more.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Process {
    /// The command alone.
    Command(
        #[schemars(regex(pattern = COMMAND_PATTERN), length(max = MAX_COMMAND), example = "node server.js")] String,
    ),
    Full(ProcessSection),
}

/// One process type.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ProcessSection {
    /// What to run, by a shell in the container. `web` listens on `$PORT`.
    #[schemars(regex(pattern = COMMAND_PATTERN), length(max = MAX_COMMAND), example = "node server.js")]
    pub command: String,
    /// How many replicas to keep running, unless `scale` says otherwise. Default: 1.
    #[schemars(range(max = MAX_REPLICAS), example = 2)]
    pub replicas: Option<u32>,
    /// CPU limit of a replica in cores.
    #[schemars(range(min = *CORES.start(), max = *CORES.end()), example = 0.5)]
    pub cpu: Option<f64>,
    /// Memory limit of a replica, 16Mi to 1Ti.
    #[schemars(regex(pattern = MEMORY_PATTERN), example = "256Mi", example = "1Gi")]
    pub memory: Option<String>,
    /// The port that the process listens on, and the value of `PORT`.
    #[schemars(range(min = 1, max = 65535), example = 3000)]
    pub port: Option<u32>,
    pub health: Option<HealthSection>,
}

/// A job that runs by the clock.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CronSection {
    /// Minute, hour, day of month, month and day of week; or @hourly, @daily, @weekly, @monthly, @yearly.
    #[schemars(regex(pattern = SCHEDULE_PATTERN), length(max = 100), example = "*/5 * * * *", example = "@daily")]
    pub schedule: String,
    /// What to run, by a shell in the container.
    #[schemars(regex(pattern = COMMAND_PATTERN), length(max = MAX_COMMAND), example = "node cleanup.js")]
    pub command: String,
    /// When it is due while a run is under way: leave the new one out, end the old one, or run both. Default: skip.
    pub overlap: Option<OverlapWord>,
    /// A run that takes longer is ended, 1s to 24h. Default: 1h.
    #[schemars(regex(pattern = DURATION_PATTERN), example = "10m")]
    pub timeout: Option<String>,
    /// CPU limit in cores.
    #[schemars(range(min = *CORES.start(), max = *CORES.end()), example = 0.5)]
    pub cpu: Option<f64>,
    /// Memory limit, 16Mi to 1Ti.
    #[schemars(regex(pattern = MEMORY_PATTERN), example = "256Mi")]
    pub memory: Option<String>,
    /// Time zone of the schedule, by its name in the IANA database. Default: UTC.
    #[schemars(regex(pattern = TIMEZONE_PATTERN), example = "Europe/Berlin")]
    pub timezone: Option<String>,
}

/// [`CronSection`] with nothing required.
pub struct CronChanges;

impl JsonSchema for CronChanges {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CronChanges".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = CronSection::json_schema(generator);
        schema.remove("required");
        schema
    }
}

/// `skip`, `replace` or `allow`.
pub struct OverlapWord;

impl JsonSchema for OverlapWord {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OverlapWord".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({"type": "string", "pattern": format!("^({})$", Overlap::NAMES.join("|"))})
    }
}

/// When a replica counts as ready and alive.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HealthSection {
    /// Path that answers 200 to 399 when the replica is ready (`web` only). Without one, its port must take a connection.
    #[schemars(regex(pattern = HEALTH_PATH_PATTERN), example = "/healthz")]
    pub path: Option<String>,
    /// Shell command line that is run in the replica's container and ends with status 0 when the replica is ready; instead of `path`.
    #[schemars(regex(pattern = COMMAND_PATTERN), length(max = MAX_COMMAND), example = "bin/check")]
    pub command: Option<String>,
    /// Time between two checks, 100ms to 10m.
    #[schemars(regex(pattern = DURATION_PATTERN), example = "5s")]
    pub interval: Option<String>,
    /// How long one check may take, 100ms to 10m.
    #[schemars(regex(pattern = DURATION_PATTERN), example = "2s")]
    pub timeout: Option<String>,
    /// How long a replica may take to become ready after its start, up to 1h.
    #[schemars(regex(pattern = DURATION_PATTERN), example = "30s")]
    pub grace: Option<String>,
    /// Consecutive failures after which a replica is replaced.
    #[schemars(range(min = *FAILURES.start(), max = *FAILURES.end()), example = 3)]
    pub failures: Option<u32>,
}

/// How a deployment replaces replicas.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct UpgradeSection {
    /// Share of the wanted replicas kept healthy throughout.
    #[schemars(regex(pattern = PERCENT_PATTERN), example = "100%")]
    pub min_healthy: Option<String>,
    /// Share of the wanted replicas that may run in addition.
    #[schemars(regex(pattern = PERCENT_PATTERN), example = "100%")]
    pub max_over: Option<String>,
    /// Without progress for this long (1s to 24h), the deployment fails and is rolled back.
    #[schemars(regex(pattern = DURATION_PATTERN), example = "10m")]
    pub progress_deadline: Option<String>,
}

/// What is different in one environment.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct EnvironmentSection {
    pub build: Option<BuildSection>,
    /// Changes to process types, merged key by key. One that the top level does not declare needs a command.
    #[schemars(extend("propertyNames" = {"pattern": PROCESS_TYPE_PATTERN, "not": {"const": "release"}}, "maxProperties" = MAX_PROCESS_TYPES))]
    pub processes: Option<BTreeMap<String, ProcessOverride>>,
    /// Command of the release phase in this environment.
    #[schemars(regex(pattern = COMMAND_PATTERN), length(max = MAX_COMMAND))]
    pub release: Option<String>,
    /// Changes to jobs, merged key by key. One that the top level does not declare needs a schedule and a command.
    #[schemars(extend("propertyNames" = {"pattern": PROCESS_TYPE_PATTERN}, "maxProperties" = MAX_CRON_JOBS))]
    pub cron: Option<BTreeMap<String, CronChanges>>,
    pub upgrade: Option<UpgradeSection>,
    /// Host names at which this environment answers, besides its own.
    #[schemars(length(max = MAX_DOMAINS), inner(regex(pattern = DOMAIN_PATTERN), length(max = 253)), example = ["shop.example.com"], extend("uniqueItems" = true))]
    pub domains: Option<Vec<String>>,
}

/// Changes to one process type: another command, or a mapping.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum ProcessOverride {
    /// Another command.
    Command(#[schemars(regex(pattern = COMMAND_PATTERN), length(max = MAX_COMMAND))] String),
    Changes(ProcessChanges),
}

/// [`ProcessSection`] with nothing required.
pub struct ProcessChanges;

impl JsonSchema for ProcessChanges {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ProcessChanges".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = ProcessSection::json_schema(generator);
        schema.remove("required");
        schema
    }
}
