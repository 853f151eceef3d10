//! The platform's metrics in the text format that Prometheus reads (version 0.0.4, "Exposition formats" of its documentation). Pure but for
//! [`Process::look`].
//!
//! Own code, since the values come as readings of other parts and of another process; libraries for this keep counters themselves.

use std::{collections::BTreeMap, fmt::Write, fs};

use crate::{
    domain::{EnvRef, Timestamp},
    router::meter::{CLASSES, Counts, LATENCY_BOUNDS, Reading},
};

/// What environments that are not named are called.
const OTHERS: &str = "(other)";

/// The platform at one moment.
#[derive(Debug, Clone, Default)]
pub struct Platform {
    /// `None`: nothing was measured yet.
    pub sampled_at: Option<Timestamp>,
    pub environments: usize,
    /// Replicas wanted and ready, of all environments.
    pub wanted: u64,
    pub ready: u64,
    /// Containers of replicas by state.
    pub replicas: BTreeMap<&'static str, u64>,
    pub engine_up: bool,
    pub registry_up: Option<bool>,
    /// What the router has counted; `None`: it does not answer.
    pub reading: Option<Reading>,
    pub builds_queued: usize,
    pub builds_running: usize,
    pub deployments_running: usize,
    /// Ends since the server began, by result.
    pub builds_finished: BTreeMap<&'static str, u64>,
    pub deployments_finished: BTreeMap<&'static str, u64>,
    /// Events since the server began, by kind.
    pub events: BTreeMap<String, u64>,
    pub log_lines_dropped: u64,
    /// Free bytes by place.
    pub disk: Vec<(String, u64)>,
    pub disk_floor: u64,
    pub environments_kept: usize,
    pub history_bytes: usize,
    pub process: Process,
}

/// This process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Bytes of memory that it has.
    pub resident: u64,
    /// Seconds of processor time.
    pub cpu_seconds: f64,
    pub open_files: usize,
}

impl Process {
    /// As it is now; zeros where that cannot be seen.
    pub(super) fn look() -> Self {
        use nix::sys::resource::{UsageWho, getrusage};
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let cpu_seconds = getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
            [usage.user_time(), usage.system_time()]
                .iter()
                .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
                .sum()
        });
        let open_files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self { resident: resident.unwrap_or(0) * 1024, cpu_seconds, open_files }
    }
}

/// Families, one after another.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to memory cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn by<'t>(&mut self, family: [&str; 3], label: &str, samples: impl IntoIterator<Item = (&'t str, f64)>) {
        let [name, kind, help] = family;
        self.family(name, kind, help);
        for (text, value) in samples {
            self.sample(name, &[(label, text)], value);
        }
    }
}

/// All of it; at most `named` environments by their names.
pub(super) fn render(platform: &Platform, named: usize) -> String {
    let mut text = Text::default();
    text.family("berth_build_info", "gauge", "Always 1; the version of this server.");
    text.sample("berth_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let Some(at) = platform.sampled_at else { return text.0 };
    let at = at.as_millisecond() as f64 / 1000.0;
    text.one("berth_sampled_timestamp_seconds", "gauge", "When these values were measured.", at);
    render_work(&mut text, platform);
    render_replicas(&mut text, platform);
    render_server(&mut text, platform);
    text.one(
        "berth_router_up",
        "gauge",
        "Whether the router tells what it has counted.",
        flag(platform.reading.is_some()),
    );
    if let Some(reading) = &platform.reading {
        render_router(&mut text, reading, named);
    }
    text.0
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn render_work(text: &mut Text, platform: &Platform) {
    let count = |counts: &BTreeMap<&'static str, u64>, result: &'static str| {
        (result, counts.get(result).copied().unwrap_or(0) as f64)
    };
    let builds = [("queued", platform.builds_queued as f64), ("running", platform.builds_running as f64)];
    text.by(["berth_builds", "gauge", "Builds under way by state."], "state", builds);
    let results = ["succeeded", "failed", "cancelled"].map(|result| count(&platform.builds_finished, result));
    text.by(["berth_builds_finished_total", "counter", "Builds that ended since the server began."], "result", results);
    let running = platform.deployments_running as f64;
    text.one("berth_deployments_running", "gauge", "Deployments under way.", running);
    let results = ["succeeded", "failed", "cancelled", "superseded"];
    let results = results.map(|result| count(&platform.deployments_finished, result));
    let family = ["berth_deployments_finished_total", "counter", "Deployments that ended since the server began."];
    text.by(family, "result", results);
    let events = platform.events.iter().map(|(kind, count)| (kind.as_str(), *count as f64));
    text.by(["berth_events_total", "counter", "Events recorded since the server began."], "kind", events);
}

fn render_replicas(text: &mut Text, platform: &Platform) {
    text.one("berth_environments", "gauge", "Environments.", platform.environments as f64);
    text.one("berth_replicas_wanted", "gauge", "Replicas that should run.", platform.wanted as f64);
    text.one("berth_replicas_ready", "gauge", "Replicas that serve, of those wanted.", platform.ready as f64);
    let states = platform.replicas.iter().map(|(state, count)| (*state, *count as f64));
    text.by(["berth_replicas", "gauge", "Containers of replicas by state."], "state", states);
}

fn render_server(text: &mut Text, platform: &Platform) {
    text.one("berth_engine_up", "gauge", "Whether the container engine answers.", flag(platform.engine_up));
    if let Some(up) = platform.registry_up {
        text.one("berth_registry_up", "gauge", "Whether the registry answers.", flag(up));
    }
    let dropped = platform.log_lines_dropped as f64;
    text.one(
        "berth_log_lines_dropped_total",
        "counter",
        "Log lines that came faster than they could be written, or found the disk full.",
        dropped,
    );
    let places = platform.disk.iter().map(|(path, free)| (path.as_str(), *free as f64));
    text.by(["berth_disk_free_bytes", "gauge", "Free space by place."], "path", places);
    let floor = platform.disk_floor as f64;
    text.one("berth_disk_min_free_bytes", "gauge", "Free space below which pushes and builds are refused.", floor);
    let kept = platform.environments_kept as f64;
    text.one("berth_metrics_environments", "gauge", "Environments that the last 24 hours are remembered of.", kept);
    text.one("berth_metrics_bytes", "gauge", "Memory that takes.", platform.history_bytes as f64);
    let process = &platform.process;
    text.one("process_resident_memory_bytes", "gauge", "Memory of this server.", process.resident as f64);
    text.one("process_cpu_seconds_total", "counter", "Processor time of this server.", process.cpu_seconds);
    text.one("process_open_fds", "gauge", "Open files of this server.", process.open_files as f64);
}

fn render_router(text: &mut Text, reading: &Reading, named: usize) {
    text.one("berth_router_connections", "gauge", "Connections of clients.", reading.connections as f64);
    let unrouted = reading.unrouted as f64;
    text.one("berth_router_unrouted_requests_total", "counter", "Requests for no environment there is.", unrouted);
    let dropped = reading.access_dropped as f64;
    text.one("berth_router_access_records_dropped_total", "counter", "Access records that nobody read.", dropped);
    let under_way: u64 = reading.environments.values().map(|counts| counts.under_way).sum();
    text.one("berth_router_requests_under_way", "gauge", "Requests under way.", under_way as f64);
    render_requests(text, reading, named);
    let mut all = reading.departed;
    reading.environments.values().for_each(|counts| all.add(counts));
    let name = "berth_router_request_duration_seconds";
    text.family(name, "histogram", "Time from a request's first byte to the last of its answer.");
    let (bucket, mut below) = (format!("{name}_bucket"), 0);
    for (index, count) in all.latency.iter().enumerate() {
        below += count;
        let bound =
            LATENCY_BOUNDS.get(index).map_or("+Inf".to_owned(), |millis| (f64::from(*millis) / 1000.0).to_string());
        text.sample(&bucket, &[("le", &bound)], below as f64);
    }
    text.sample(&format!("{name}_sum"), &[], all.latency_micros as f64 / 1e6);
    text.sample(&format!("{name}_count"), &[], below as f64);
    text.one("berth_router_response_bytes_total", "counter", "Bytes of answers' bodies.", all.bytes as f64);
}

/// Requests by environment and class; beyond so many environments, the others together.
fn render_requests(text: &mut Text, reading: &Reading, named: usize) {
    const NAME: &str = "berth_router_requests_total";
    text.family(NAME, "counter", "Requests answered, by environment and class of status.");
    let mut classes = |[tenant, app, env]: [&str; 3], counts: &Counts| {
        for (index, count) in counts.classes.iter().enumerate().filter(|(_, count)| **count > 0) {
            let class = ["1xx", "2xx", "3xx", "4xx", "5xx"][index.min(CLASSES - 1)];
            text.sample(NAME, &[("tenant", tenant), ("app", app), ("env", env), ("class", class)], *count as f64);
        }
    };
    for (EnvRef { tenant, app, env }, counts) in reading.environments.iter().take(named) {
        classes([tenant.as_str(), app.as_str(), env.as_str()], counts);
    }
    let mut others = Counts::default();
    reading.environments.values().skip(named).for_each(|counts| others.add(counts));
    classes([OTHERS; 3], &others);
}
