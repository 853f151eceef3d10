//! Golden error messages: what a person sees for each mistake.

use super::*;

/// Renders the problems of each text, divided by what was given.
fn rendered(texts: &[&str]) -> String {
    texts.iter().map(refused).collect::<Vec<_>>().join("--\n")
}

#[test]
fn unknown_and_misplaced_keys() {
    let texts = [
        "app: acme/shop\nproceses:\n  web: x\n",
        "processes:\n  web:\n    command: x\n    replica: 2\n",
        "processes:\n  web: {cmd: x}\n",
        "processes:\n  web: {command: x, env: {A: b}}\n",
        "env:\n  A: b\n",
        "domains: [a.example]\n",
        "upgrade: {minHealthy: 50%}\n",
        "environments:\n  prod:\n    auth: x\n    zzz: 1\n",
    ];
    insta::assert_snapshot!(rendered(&texts));
}

#[test]
fn values_of_the_wrong_type_or_out_of_range() {
    let texts = [
        "processes: {web: {command: x, cpu: -1}}",
        "processes: {web: {command: x, cpu: 500m}}",
        "processes: {web: {command: x, replicas: 10000}}",
        "processes: {web: {command: x, replicas: \"2\"}}",
        "processes: {web: {command: x, replicas: 1.5}}",
        "processes: {web: {command: x, memory: 256}}",
        "processes: {web: {command: x, memory: 256MB}}",
        "processes: {web: {command: x, memory: 1Mi}}",
        "processes: {web: {command: x, port: 70000}}",
        "processes: {web: {command: x, health: /up}}",
        "processes: {web: {command: x, health: {interval: 5}}}",
        "processes: {web: {command: x, health: {timeout: 2h}}}",
        "processes: {web: {command: true}}",
        "processes: {web: {command: [node, server.js]}}",
        "processes: {web: 8080}",
        "processes: [web]",
        "upgrade: {min_healthy: 0.5, max_over: 150%}",
        "release:\n",
        "build: {env: {A: , B: [1], 2C: x}}",
        "just text",
        "- a",
        "app: acme\nauth: bt1.…\n",
    ];
    insta::assert_snapshot!(rendered(&texts));
}

#[test]
fn what_does_not_fit_together() {
    let texts = [
        "processes:\n  web:\n    replicas: 2\n",
        "processes:\n  web: x\nenvironments:\n  prod:\n    processes:\n      wev: {replicas: 2}\n      other: {replicas: 2}\n",
        "processes:\n  release: node migrate.js\n",
        "processes:\n  Web: x\n",
        "processes:\n  worker: {command: x, health: {path: /up}}\n",
        "processes:\n  web: {command: x, health: {path: /up, command: bin/check}}\n",
        "processes:\n  worker: {command: x, health: {command: ' '}}\n",
        "build: {root: ../other}\n",
        "build: {buildpacks: [nodejs, nodejs, 'git@host:x']}\n",
        "environments:\n  prod: {domains: [https://a.example/x, '*.a.example', a.example, A.example]}\n",
        "environments:\n  Prod: {}\n",
        "environments:\n  dev: {domains: [a.example]}\n  prod: {domains: [b.example, a.example]}\n",
    ];
    insta::assert_snapshot!(rendered(&texts));
}

#[test]
fn text_that_is_not_yaml() {
    let texts = [
        "processes:\n\tweb: x\n",
        "processes:\n  web: echo: x\n",
        "processes:\n  web: \"echo\n",
        "processes: {web: x\n",
        "processes:\n  web: x\n worker: y\n",
        "app: acme/shop\napp: acme/other\nprocesses:\n  web: x\n  web: y\n",
        "release: *migrate\n",
        "release: @x\n",
        "release: !!str 5\n",
        "a: 1\n---\nb: 2\n",
        "app: {{ app }}\n",
        "",
        "# only a comment\n",
        "app acme/shop\nprocesses:\n  web: x\n",
    ];
    insta::assert_snapshot!(rendered(&texts));
}

#[test]
fn all_problems_are_reported_at_once_in_order() {
    let text =
        "zzz: 1\nprocesses:\n  web: {command: x, cpu: -1, memory: 5}\nenvironments:\n  prod: {domains: [localhost]}\n";
    let problems = parse(text, FILE_NAME).unwrap_err();
    let lines: Vec<_> = problems.iter().map(|problem| (problem.line, problem.column)).collect();
    assert_eq!(lines, [(Some(1), Some(1)), (Some(3), Some(26)), (Some(3), Some(38)), (Some(5), Some(20))]);

    let many: String = (0..100).map(|n| format!("k{n}: 1\n")).collect();
    let problems = parse(&many, FILE_NAME).unwrap_err();
    assert_eq!(problems.len(), 21);
    assert_eq!(problems[20].message, "… and 80 more problems");
}

#[test]
fn cron_jobs() {
    let texts = [
        "cron:\n  nightly:\n    schedule: \"0 25 * * *\"\n    command: x\n",
        "cron:\n  nightly:\n    schedul: \"@daily\"\n    command: x\n",
        "cron:\n  nightly: {schedule: \"@dayly\", command: x}\n",
        "cron:\n  nightly: {schedule: \"*/10 * * * * *\", command: x}\n",
        "cron:\n  nightly: {schedule: \"0 0 31 2 *\", command: x}\n",
        "cron:\n  nightly: {schedule: \"@daily\", command: x, overlap: Forbid}\n",
        "cron:\n  nightly: {schedule: \"@daily\", command: x, overlap: replac, timeout: 2d}\n",
        "cron:\n  nightly: {schedule: \"@daily\", command: x, timezone: Europe/Belin}\n",
        "cron:\n  Nightly Job: {schedule: \"@daily\", command: x}\n",
        "cron:\n  nightly: \"@daily\"\n",
        "cron:\n  nightly: {command: x, concurrencyPolicy: Forbid}\n",
        "crons: {}\n",
        "cron:\n  nightly: {schedule: \"@daily\", command: x}\nenvironments:\n  prod:\n    cron: {nigthly: {timeout: 5m}}\n",
    ];
    insta::assert_snapshot!(rendered(&texts));
    let many: String = (0..=MAX_CRON_JOBS).map(|n| format!("  j{n}: {{schedule: \"@daily\", command: x}}\n")).collect();
    assert!(refused(format!("cron:\n{many}")).contains("names 21 jobs; at most 20"));
}
