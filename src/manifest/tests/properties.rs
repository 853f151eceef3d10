//! Properties over many manifests.

use std::time::Instant;

use proptest::{collection, option, prelude::*};
use serde_json::{Map, Value, json};

use super::*;
use crate::manifest::layer::{Layer, ProcessLayer, UpgradeLayer};

fn label() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,5}".prop_filter("the release phase is not a process type", |name| name != "release")
}

/// Without the line breaks that YAML 1.1 knew, which the writer here treats in the old way.
fn value() -> impl Strategy<Value = String> {
    "\\PC{0,20}".prop_map(|text| text.replace(['\u{85}', '\u{2028}', '\u{2029}'], " "))
}

fn duration(seconds: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    seconds.prop_map(Duration::from_secs)
}

prop_compose! {
    fn health(web: bool)(
        path in option::of("/[!\"$-~]{0,20}"),
        command in option::of("[a-z]{1,8} [!-~]{1,20}"),
        interval in option::of(duration(1..600)),
        timeout in option::of(duration(1..600)),
        grace in option::of(duration(0..3600)),
        failures in option::of(1..100u32),
    ) -> HealthDefinition {
        let path = path.filter(|_| web && command.is_none());
        HealthDefinition { path, command, interval, timeout, grace, failures }
    }
}

prop_compose! {
    fn process_layer(web: bool)(
        command in option::of("[!-~][ -~]{0,30}[!-~]"),
        replicas in option::of(0..=MAX_REPLICAS),
        cpu_millis in option::of(10..64_000u32),
        memory in option::of((16..9999u64).prop_map(|mebibytes| mebibytes << 20)),
        port in option::of(1..=u16::MAX),
        health in option::of(health(web)),
    ) -> ProcessLayer {
        ProcessLayer { command, replicas, cpu_millis, memory, port, health }
    }
}

fn processes() -> impl Strategy<Value = BTreeMap<ProcessType, ProcessLayer>> {
    let other = label().prop_filter("web is added beside", |name| name != "web");
    (collection::btree_map(other, process_layer(false), 0..4), option::of(process_layer(true))).prop_map(
        |(others, web)| {
            let web = web.map(|web| ("web".to_owned(), web));
            others.into_iter().chain(web).map(|(name, layer)| (name.parse().unwrap(), layer)).collect()
        },
    )
}

prop_compose! {
    fn layer()(
        root in option::of("[a-z]{1,5}(/[a-z]{1,5}){0,2}"),
        buildpacks in option::of(collection::btree_set("[a-z]{1,8}", 0..3)),
        build_env in collection::btree_map("[A-Z_]{1,6}", value(), 0..4),
        processes in processes(),
        release in option::of("[!-~][ -~]{0,30}[!-~]"),
        upgrade in (option::of(0..=100u32), option::of(0..=100u32), option::of(duration(1..86400))),
        domains in collection::btree_set("[a-z]{1,5}\\.[a-z]{2,5}", 0..3),
    ) -> Layer {
        let (min_healthy, max_over, progress_deadline) = upgrade;
        Layer {
            root,
            buildpacks: buildpacks.map(|names| names.into_iter().collect()),
            build_env,
            processes,
            release,
            upgrade: UpgradeLayer { min_healthy, max_over, progress_deadline },
            domains: domains.into_iter().collect(),
            cron: BTreeMap::new(),
        }
    }
}

prop_compose! {
    fn manifest()(
        app in option::of((label(), label())),
        mut base in layer(),
        mut environments in collection::btree_map(label(), layer(), 0..3),
    ) -> Manifest {
        base.domains.clear();
        let default = || Some("run".to_owned());
        base.processes.values_mut().for_each(|process| process.command = process.command.take().or_else(default));
        for (name, layer) in &mut environments {
            layer.domains.iter_mut().for_each(|domain| *domain = format!("{name}.{domain}"));
            let undeclared = layer.processes.iter_mut().filter(|(name, _)| !base.processes.contains_key(*name));
            undeclared.for_each(|(_, process)| process.command = process.command.take().or_else(default));
        }
        Manifest {
            app: app.map(|(tenant, app)| format!("{tenant}/{app}").parse().unwrap()),
            auth: None,
            base,
            environments: environments.into_iter().map(|(name, layer)| (name.parse().unwrap(), layer)).collect(),
        }
    }
}

/// A mapping of what is said.
fn mapping<const N: usize>(pairs: [(&str, Option<Value>); N]) -> Value {
    pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect::<Map<_, _>>().into()
}

fn written_process(process: &ProcessLayer) -> Value {
    let time = |time: Option<Duration>| time.map(|time| json!(format_duration(time)));
    let health = process.health.as_ref().map(|health| {
        mapping([
            ("path", health.path.as_ref().map(|path| json!(path))),
            ("command", health.command.as_ref().map(|command| json!(command))),
            ("interval", time(health.interval)),
            ("timeout", time(health.timeout)),
            ("grace", time(health.grace)),
            ("failures", health.failures.map(Value::from)),
        ])
    });
    mapping([
        ("command", process.command.as_ref().map(|text| json!(text))),
        ("replicas", process.replicas.map(Value::from)),
        ("cpu", process.cpu_millis.map(|millis| json!(f64::from(millis) / 1000.0))),
        ("memory", process.memory.map(|bytes| json!(format_memory(bytes)))),
        ("port", process.port.map(Value::from)),
        ("health", health),
    ])
}

fn written_layer(layer: &Layer) -> Map<String, Value> {
    let build = mapping([
        ("root", layer.root.as_ref().map(|root| json!(root))),
        ("buildpacks", layer.buildpacks.as_ref().map(|names| json!(names))),
        ("env", Some(json!(layer.build_env))),
    ]);
    let upgrade = mapping([
        ("min_healthy", layer.upgrade.min_healthy.map(|share| json!(format!("{share}%")))),
        ("max_over", layer.upgrade.max_over.map(|share| json!(format!("{share}%")))),
        ("progress_deadline", layer.upgrade.progress_deadline.map(|time| json!(format_duration(time)))),
    ]);
    let processes: Map<_, _> =
        layer.processes.iter().map(|(name, process)| (name.to_string(), written_process(process))).collect();
    let all = mapping([
        ("build", Some(build)),
        ("processes", Some(processes.into())),
        ("release", layer.release.as_ref().map(|text| json!(text))),
        ("upgrade", Some(upgrade)),
        ("domains", (!layer.domains.is_empty()).then(|| json!(layer.domains))),
    ]);
    all.as_object().cloned().unwrap_or_default()
}

fn written(manifest: &Manifest) -> Value {
    let mut all = written_layer(&manifest.base);
    if let Some(app) = &manifest.app {
        all.insert("app".into(), json!(app));
    }
    let environments: Map<_, _> =
        manifest.environments.iter().map(|(name, layer)| (name.to_string(), written_layer(layer).into())).collect();
    all.insert("environments".into(), environments.into());
    all.into()
}

proptest! {
    // A failure prints its input; a file of past ones would be a folder of its own.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered_in_bounded_time(text in "(?s).{0,400}", bytes in collection::vec(any::<u8>(), 0..400)) {
        let begin = Instant::now();
        for given in [text.as_bytes(), &bytes] {
            if let Err(problems) = parse(given, FILE_NAME) {
                prop_assert!(!render_problems(&problems).is_empty());
            }
            if let Err(problems) = parse_procfile(given) {
                prop_assert!(!render_problems(&problems).is_empty());
            }
        }
        prop_assert!(begin.elapsed() < Duration::from_secs(1));
    }

    /// Text from YAML's own signs gets further than random text does.
    #[test]
    fn any_yaml_like_text_is_answered(text in "([\\[\\]{}:,&*?!|>'\"%@#~<-]|a|web|processes|: |- |\n|  |\t|\r|1){0,60}") {
        if let Err(problems) = parse(&text, FILE_NAME) {
            for problem in &problems {
                let width = problem.excerpt.as_ref().map_or(0, |excerpt| excerpt.chars().count());
                prop_assert!(problem.caret.unwrap_or(0) <= width, "{problem:?}");
            }
        }
    }

    /// A valid manifest with one piece of it replaced.
    #[test]
    fn a_damaged_manifest_is_answered(at in 0..CONTRACT.len(), length in 0..40usize, piece in "[\\[\\]{}:,&*?!|>'\"%@# \n\ta1-]{0,5}") {
        let mut bytes = CONTRACT.as_bytes().to_vec();
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, piece.bytes());
        if let Err(problems) = parse(&bytes, FILE_NAME) {
            prop_assert!(!render_problems(&problems).is_empty());
        }
    }

    #[test]
    fn a_valid_manifest_survives_writing_and_reading(manifest in manifest()) {
        let value = written(&manifest);
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap(), serde_yaml::to_string(&value).unwrap()] {
            match parse(&text, FILE_NAME) {
                Ok(read) => prop_assert_eq!(&read, &manifest),
                Err(problems) => prop_assert!(false, "{}\n{}", render_problems(&problems), text),
            }
        }
        prop_assert!(super::schema::takes(&value), "the schema refuses {value}");
    }

    #[test]
    fn merging_keeps_what_is_not_overridden(base in layer(), over in layer(), third in layer()) {
        let nothing = Layer::default();
        prop_assert_eq!(&base.overridden_by(&nothing), &base);
        prop_assert_eq!(&nothing.overridden_by(&base), &base);
        prop_assert_eq!(&base.overridden_by(&base), &base);
        let left = base.overridden_by(&over).overridden_by(&third);
        prop_assert_eq!(&left, &base.overridden_by(&over.overridden_by(&third)));
        let merged = base.overridden_by(&over);
        prop_assert_eq!(merged.release, over.release.or(base.release));
        for (name, process) in &merged.processes {
            let said = |processes: &BTreeMap<ProcessType, ProcessLayer>| processes.get(name).and_then(|process| process.replicas);
            prop_assert_eq!(process.replicas, said(&over.processes).or(said(&base.processes)));
        }
    }

    #[test]
    fn an_environment_without_a_section_is_the_base(manifest in manifest()) {
        let other = "zzzzzzzz".parse().unwrap();
        let empty = Manifest { environments: BTreeMap::new(), ..manifest.clone() };
        prop_assert_eq!(manifest.for_environment(&other), empty.for_environment(&other));
        for env in manifest.environments() {
            let definition = manifest.for_environment(env);
            prop_assert!(definition.processes.len() >= manifest.base.processes.len());
        }
    }
}
