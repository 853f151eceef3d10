//! What Prometheus reads, line by line.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::router::meter::{Counts, Reading};

fn platform() -> Platform {
    let counts = |answered, failed| {
        let mut latency = [0; LATENCY_BUCKETS];
        (latency[2], latency[14]) = (answered, failed);
        Counts { classes: [0, answered, 0, 0, failed], latency, latency_micros: 1_500_000, bytes: 99, under_way: 2 }
    };
    let environments = [("acme/shop/dev", 7, 1), ("acme/shop/prod", 5, 0), ("other/app/dev", 3, 0)]
        .map(|(name, answered, failed)| (env(name), counts(answered, failed)));
    let reading =
        Reading { environments: environments.into(), departed: counts(10, 0), connections: 4, ..Reading::default() };
    Platform {
        sampled_at: Some(at(START)),
        replicas: [("running", 3)].into(),
        registry_up: Some(true),
        reading: Some(reading),
        events: [("replica.died".to_owned(), 2)].into(),
        disk: vec![("/srv/\"odd\"\\place\nhere".to_owned(), 1 << 40)],
        ..Platform::default()
    }
}

/// The samples, after a look at every line; panics at one that is not as the format has it.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let name = r"[a-zA-Z_:][a-zA-Z0-9_:]*";
    let label = r#"[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*""#;
    let sample =
        regex::Regex::new(&format!(r"^({name})(\{{{label}(?:,{label})*\}})? (-?[0-9.]+(?:e[0-9]+)?)$")).unwrap();
    let (mut families, mut samples, mut current) = (BTreeSet::new(), BTreeMap::new(), (String::new(), String::new()));
    let mut helped = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split(' ').next().unwrap().to_owned();
            assert!(rest.len() > helped.len() + 1, "no help: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(name == helped && ["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned()), "{name} comes twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            current = (name.to_owned(), kind.to_owned());
        } else {
            let found = sample.captures(line).unwrap_or_else(|| panic!("no sample: {line}"));
            let ours = match current.1.as_str() {
                "histogram" => {
                    ["_bucket", "_sum", "_count"].iter().any(|end| found[1] == format!("{}{end}", current.0))
                }
                _ => found[1] == current.0,
            };
            assert!(ours, "{line} is not of {current:?}");
            let (key, value) = line.rsplit_once(' ').unwrap();
            assert!(samples.insert(key.to_owned(), value.parse().unwrap()).is_none(), "{key} comes twice");
        }
    }
    samples
}

#[test]
fn every_line_is_as_prometheus_reads_it() {
    let samples = parse(&text::render(&platform(), 100));
    let requests = |labels: &str| samples.get(&format!("berth_router_requests_total{{{labels}}}")).copied();
    assert_eq!(requests(r#"tenant="acme",app="shop",env="dev",class="2xx""#), Some(7.0));
    assert_eq!(requests(r#"tenant="acme",app="shop",env="dev",class="5xx""#), Some(1.0));
    assert_eq!(samples[r#"berth_disk_free_bytes{path="/srv/\"odd\"\\place\nhere"}"#], (1_u64 << 40) as f64);
    let bucket = |le: &str| samples[&format!("berth_router_request_duration_seconds_bucket{{le=\"{le}\"}}")];
    assert_eq!((bucket("0.002"), bucket("0.005"), bucket("30"), bucket("+Inf")), (0.0, 25.0, 25.0, 26.0));
    assert_eq!(samples["berth_router_request_duration_seconds_count"], 26.0);
    assert_eq!(samples["berth_router_request_duration_seconds_sum"], 6.0);
    assert_eq!((samples["berth_router_up"], samples["berth_registry_up"], samples["berth_engine_up"]), (1.0, 1.0, 0.0));
    assert_eq!(samples[r#"berth_events_total{kind="replica.died"}"#], 2.0);
}

#[test]
fn environments_beyond_the_bound_are_added_up() {
    let samples = parse(&text::render(&platform(), 1));
    let named: Vec<_> = samples.iter().filter(|(key, _)| key.starts_with("berth_router_requests_total")).collect();
    assert_eq!(named.len(), 3, "{named:?}");
    assert_eq!(
        samples[r#"berth_router_requests_total{tenant="(other)",app="(other)",env="(other)",class="2xx"}"#],
        8.0
    );
}

#[test]
fn before_and_without_the_router() {
    let samples = parse(&text::render(&Platform::default(), 1));
    assert_eq!(samples.len(), 1, "{samples:?}");
    let samples = parse(&text::render(&Platform { reading: None, ..platform() }, 1));
    assert!(samples["berth_router_up"] == 0.0 && !samples.keys().any(|key| key.starts_with("berth_router_requests")));
    let process = text::Process::look();
    assert!(process.resident > 1 << 20 && process.cpu_seconds > 0.0 && process.open_files > 2, "{process:?}");
}
