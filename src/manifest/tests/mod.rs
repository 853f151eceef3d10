//! Tests of the whole way from text to definition.

mod errors;
mod hostile;
mod properties;
mod schema;

use super::*;
use crate::domain::Overlap;

/// The example of the contract.
const CONTRACT: &str = "\
app: acme/shop            # must match the remote
auth: bt1.e30.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
build:                    # all optional
  root: services/web      # monorepo: subdirectory
  buildpacks: [nodejs]    # else detected
  env: {NODE_ENV: production, LEVEL: 3, DEBUG: true, VERSION: 1.10}
processes:                # else Procfile, else the buildpack's default
  web:
    command: node server.js
    replicas: 2
    cpu: 0.5              # cores
    memory: 256Mi
    health: {path: /healthz, interval: 5s, timeout: 2s, grace: 30s, failures: 3}
  worker: {command: node worker.js}
  clock: node clock.js
release: node migrate.js  # release phase: runs once in the new image before any replica
upgrade: {min_healthy: 100%, max_over: 100%, progress_deadline: 10m}
environments:             # per-environment overrides, merged over the above
  prod: {processes: {web: {replicas: 4}}, domains: [Shop.Example.com]}
  test:
    build: {env: {NODE_ENV: test}}
    processes:
      worker: node slow.js
      mail: {command: mailcatcher, replicas: 0}
    release: node seed.js
    upgrade: {min_healthy: 50%}
";

fn parsed(text: &str) -> Manifest {
    parse(text, FILE_NAME).unwrap_or_else(|problems| panic!("{}\n{text}", render_problems(&problems)))
}

fn refused(text: impl AsRef<[u8]>) -> String {
    match parse(text.as_ref(), FILE_NAME) {
        Ok(_) => panic!("taken: {}", String::from_utf8_lossy(text.as_ref())),
        Err(problems) => {
            assert!(!problems.is_empty());
            render_problems(&problems)
        }
    }
}

fn process(text: &str) -> ProcessType {
    text.parse().unwrap()
}

#[test]
fn the_contract_s_example() {
    let manifest = parsed(CONTRACT);
    assert_eq!(manifest.environments().map(|env| env.as_str()).collect::<Vec<_>>(), ["prod", "test"]);

    let dev = manifest.for_environment(&"dev".parse().unwrap());
    assert_eq!(dev.app, Some("acme/shop".parse().unwrap()));
    assert_eq!(dev.build.root, "services/web");
    assert_eq!(dev.build.buildpacks, ["nodejs"]);
    let env = [("DEBUG", "true"), ("LEVEL", "3"), ("NODE_ENV", "production"), ("VERSION", "1.10")];
    assert_eq!(dev.build.env, env.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    let web = &dev.processes[&process("web")];
    assert_eq!((web.replicas, web.cpu_millis, web.memory), (Some(2), Some(500), Some(256 << 20)));
    assert_eq!(web.health.as_ref().unwrap().grace, Some(Duration::from_secs(30)));
    assert_eq!(dev.processes[&process("clock")].command, "node clock.js");
    assert_eq!(dev.release.as_deref(), Some("node migrate.js"));
    assert_eq!(dev.upgrade, UpgradePolicy::default());
    assert!(dev.domains.is_empty());

    let prod = manifest.for_environment(&"prod".parse().unwrap());
    let web = &prod.processes[&process("web")];
    assert_eq!((web.replicas, web.command.as_str()), (Some(4), "node server.js"));
    assert_eq!(prod.domains, ["shop.example.com"]);

    let test = manifest.for_environment(&"test".parse().unwrap());
    assert_eq!(test.build.env["NODE_ENV"], "test");
    assert_eq!(test.build.env["LEVEL"], "3");
    assert_eq!(test.processes[&process("worker")].command, "node slow.js");
    assert_eq!(test.processes[&process("mail")].replicas, Some(0));
    assert_eq!(test.release.as_deref(), Some("node seed.js"));
    assert_eq!((test.upgrade.min_healthy, test.upgrade.max_over), (50, 100));
}

#[test]
fn anchors_aliases_and_merge_keys() {
    let text = "
processes:
  web: &base {command: node server.js, cpu: 0.5, health: &health {grace: 10s}}
  worker:
    <<: *base
    command: node worker.js
  clock: {<<: [*base], cpu: 0.25, health: *health}
";
    let dev = parsed(text).for_environment(&"dev".parse().unwrap());
    let worker = &dev.processes[&process("worker")];
    assert_eq!((worker.command.as_str(), worker.cpu_millis), ("node worker.js", Some(500)));
    let clock = &dev.processes[&process("clock")];
    assert_eq!((clock.command.as_str(), clock.cpu_millis), ("node server.js", Some(250)));
}

#[test]
fn ways_to_write_the_same() {
    let want = parsed("processes: {web: {command: \"node server.js\", memory: 1Gi}}");
    for text in [
        "---\nprocesses:\n  web:\n    command: node server.js\n    memory: \"1Gi\"\n...\n",
        "\u{feff}processes:\r\n  web:\r\n    command: 'node server.js'\r\n    memory: 1024Mi\r\n",
        "processes:\n  web:\n    command: |\n      node server.js\n    memory: 1Gi\n",
        "{\"processes\": {\"web\": {\"command\": \"node server.js\", \"memory\": \"1Gi\"}}}",
        "processes:\n  web:\n    command: >-\n      node\n      server.js\n    memory: 1Gi",
    ] {
        assert_eq!(parsed(text), want, "{text}");
    }
}

#[test]
fn cron_jobs_with_defaults_and_overrides() {
    let text = "
cron:
  sync: {schedule: ' */5  * * * * ', command: node sync.js}
  report: {schedule: '@daily', command: node report.js, overlap: replace, timeout: 5m, cpu: 0.25, timezone: Europe/Berlin}
environments:
  prod:
    cron:
      sync: {schedule: '* * * * *', memory: 1Gi}
      extra: {schedule: '@weekly', command: x}
";
    let manifest = parsed(text);
    let jobs = |env: &str| manifest.for_environment(&env.parse().unwrap()).cron_jobs(&Defaults::default());
    let (dev, prod) = (jobs("dev"), jobs("prod"));
    let name = |text: &str| -> JobName { text.parse().unwrap() };
    let sync = &dev[&name("sync")];
    assert_eq!((sync.schedule.as_str(), sync.timezone.as_str()), ("*/5 * * * *", "UTC"));
    assert_eq!((sync.overlap, sync.timeout, sync.cpu_millis), (Overlap::Skip, Duration::from_secs(3600), 1000));
    let report = &dev[&name("report")];
    assert_eq!((report.overlap, report.timeout, report.cpu_millis), (Overlap::Replace, Duration::from_secs(300), 250));
    assert_eq!(dev.len(), 2);
    assert_eq!(prod[&name("sync")].schedule, "* * * * *");
    assert_eq!((prod[&name("sync")].memory, prod[&name("sync")].command.as_str()), (1 << 30, "node sync.js"));
    assert_eq!((prod.len(), &prod[&name("report")]), (3, report));
}
