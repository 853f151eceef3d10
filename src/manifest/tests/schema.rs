//! The published schema says what the parser does.

use serde_json::{Value, json};

use super::*;
use crate::manifest::cron::CRON_KEYS;
use crate::manifest::read::{BUILD_KEYS, ENVIRONMENT_KEYS, HEALTH_KEYS, PROCESS_KEYS, TOP_KEYS, UPGRADE_KEYS};

const PUBLISHED: &str = include_str!("../../../config/berth.schema.json");

/// Whether our schema takes `value`.
pub(super) fn takes(value: &Value) -> bool {
    let root = schema();
    valid(&root, &root, value)
}

/// The keywords of JSON Schema that ours uses; any other fails the test rather than being passed over.
fn valid(root: &Value, schema: &Value, value: &Value) -> bool {
    let number = |limit: &Value| limit.as_f64().unwrap();
    let text = value.as_str();
    let map = value.as_object();
    let list = value.as_array();
    let properties = &schema["properties"];
    schema.as_object().unwrap().iter().all(|(keyword, limit)| match keyword.as_str() {
        "$schema" | "$defs" | "title" | "description" | "examples" => true,
        "$ref" => valid(root, root.pointer(limit.as_str().unwrap().trim_start_matches('#')).unwrap(), value),
        "type" => match limit.as_str().unwrap() {
            "string" => value.is_string(),
            "number" => value.is_number(),
            "integer" => value.is_u64(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("the type {other}"),
        },
        "anyOf" => limit.as_array().unwrap().iter().any(|choice| valid(root, choice, value)),
        "not" => !valid(root, limit, value),
        "const" => value == limit,
        "pattern" => text.is_none_or(|text| regex::Regex::new(limit.as_str().unwrap()).unwrap().is_match(text)),
        "maxLength" => text.is_none_or(|text| text.chars().count() as f64 <= number(limit)),
        "minimum" => value.as_f64().is_none_or(|value| value >= number(limit)),
        "maximum" => value.as_f64().is_none_or(|value| value <= number(limit)),
        "maxItems" => list.is_none_or(|items| items.len() as f64 <= number(limit)),
        "uniqueItems" => list.is_none_or(|items| (1..items.len()).all(|n| !items[..n].contains(&items[n]))),
        "items" => list.is_none_or(|items| items.iter().all(|item| valid(root, limit, item))),
        "maxProperties" => map.is_none_or(|map| map.len() as f64 <= number(limit)),
        "propertyNames" => map.is_none_or(|map| map.keys().all(|key| valid(root, limit, &json!(key)))),
        "required" => {
            map.is_none_or(|map| limit.as_array().unwrap().iter().all(|key| map.contains_key(key.as_str().unwrap())))
        }
        "properties" => map.is_none_or(|map| {
            map.iter().all(|(key, value)| limit.get(key).is_none_or(|schema| valid(root, schema, value)))
        }),
        "additionalProperties" => map.is_none_or(|map| {
            let mut others = map.iter().filter(|(key, _)| properties.get(key).is_none());
            others.all(|(_, value)| if limit.is_object() { valid(root, limit, value) } else { *limit == json!(true) })
        }),
        other => panic!("the keyword {other}"),
    })
}

#[test]
fn the_published_schema_is_current() {
    let published: Value = serde_json::from_str(PUBLISHED).unwrap();
    assert_eq!(published, schema(), "run `berth schema > config/berth.schema.json`");
    assert_eq!(published["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn both_know_the_same_keys() {
    let schema = schema();
    let keys = |pointer: &str| {
        let properties = schema.pointer(pointer).unwrap()["properties"].as_object().unwrap();
        properties.keys().cloned().collect::<std::collections::BTreeSet<_>>()
    };
    for (pointer, known) in [
        ("", TOP_KEYS),
        ("/$defs/EnvironmentSection", ENVIRONMENT_KEYS),
        ("/$defs/BuildSection", BUILD_KEYS),
        ("/$defs/ProcessSection", PROCESS_KEYS),
        ("/$defs/ProcessChanges", PROCESS_KEYS),
        ("/$defs/CronSection", CRON_KEYS),
        ("/$defs/CronChanges", CRON_KEYS),
        ("/$defs/HealthSection", HEALTH_KEYS),
        ("/$defs/UpgradeSection", UPGRADE_KEYS),
    ] {
        assert_eq!(keys(pointer), known.iter().map(|key| (*key).to_owned()).collect(), "{pointer}");
    }
}

#[test]
fn every_key_is_described() {
    fn walk(path: &str, schema: &Value) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let described = property["description"].is_string() || property["$ref"].is_string();
            assert!(described, "{path}.{key} has no description");
        }
        for (key, definition) in schema["$defs"].as_object().into_iter().flatten() {
            assert!(definition["description"].is_string(), "{key} has no description");
            walk(key, definition);
        }
    }
    walk("", &schema());
}

#[test]
fn both_give_the_same_verdict() {
    let cases = [
        (true, "app: acme/shop"),
        (true, CONTRACT),
        (true, "{}"),
        (true, "processes: {}\nenvironments: {prod: {}}"),
        (true, "processes: {web: node server.js}"),
        (true, "environments: {prod: {processes: {web: x}}}"),
        (true, "upgrade: {min_healthy: 0%, progress_deadline: 1m30s}"),
        (true, "build: {env: {A: 1, B: true, C: '', D: 1.5}, buildpacks: []}"),
        (true, "cron: {a: {schedule: '*/5 * * * *', command: x}}"),
        (
            true,
            "cron: {a_b: {schedule: '@daily', command: x, overlap: replace, timeout: 5m, cpu: 1, memory: 1Gi, timezone: Europe/Berlin}}",
        ),
        (
            true,
            "cron: {a: {schedule: '0 4 * * MON-FRI', command: x}}\nenvironments: {prod: {cron: {a: {schedule: '@hourly'}}}}",
        ),
        (false, "cron: {a: '* * * * *'}"),
        (false, "cron: {a: {schedule: '* * * * *'}}"),
        (false, "cron: {a: {command: x}}"),
        (false, "cron: {a: {schedule: '* * * *', command: x}}"),
        (false, "cron: {a: {schedule: '0 * * * * *', command: x}}"),
        (false, "cron: {a: {schedule: '@reboot', command: x}}"),
        (false, "cron: {a: {schedule: '@daily', command: x, overlap: forbid}}"),
        (false, "cron: {a: {schedule: '@daily', command: x, timeout: 5}}"),
        (false, "cron: {a: {schedule: '@daily', command: x, timezone: 'Europe Berlin'}}"),
        (false, "cron: {a: {schedule: '@daily', command: x, replicas: 2}}"),
        (false, "cron: {A: {schedule: '@daily', command: x}}"),
        (false, "environments: {prod: {cron: {a: '@daily'}}}"),
        (false, ""),
        (false, "[]"),
        (false, "app: acme"),
        (false, "app:"),
        (false, "auth: x"),
        (false, "other: 1"),
        (false, "domains: [a.example]"),
        (false, "release: 5"),
        (false, "release: ''"),
        (false, "processes: {web: {}}"),
        (false, "processes: {web: 5}"),
        (false, "processes: {web: }"),
        (false, "processes: {Web: x}"),
        (false, "processes: {release: x}"),
        (false, "processes: {web: {command: x, cpu: 0}}"),
        (false, "processes: {web: {command: x, cpu: '1'}}"),
        (false, "processes: {web: {command: x, replicas: 101}}"),
        (false, "processes: {web: {command: x, replicas: -1}}"),
        (false, "processes: {web: {command: x, replicas: 1.5}}"),
        (false, "processes: {web: {command: x, memory: 5}}"),
        (false, "processes: {web: {command: x, memory: 5Q}}"),
        (false, "processes: {web: {command: x, port: 0}}"),
        (false, "processes: {web: {command: x, port: }}"),
        (false, "processes: {web: {command: x, health: {path: up}}}"),
        (false, "processes: {web: {command: x, health: {grace: 5}}}"),
        (false, "processes: {web: {command: x, health: {failures: 0}}}"),
        (false, "processes: {web: {command: x, env: {}}}"),
        (false, "build: {root: /etc}"),
        (false, "build: {buildpacks: nodejs}"),
        (false, "build: {buildpacks: [a, a]}"),
        (false, "build: {buildpacks: ['ext::x']}"),
        (false, "build: {env: {A-B: x}}"),
        (false, "build: {env: {A: }}"),
        (false, "build: {env: {A: [x]}}"),
        (false, "upgrade: {min_healthy: 50}"),
        (false, "upgrade: {max_over: 101%}"),
        (false, "environments: {Prod: {}}"),
        (false, "environments: {prod: }"),
        (false, "environments: {prod: {app: a/b}}"),
        (false, "environments: {prod: {domains: [localhost]}}"),
    ];
    for (good, text) in cases {
        assert_eq!(parse(text, FILE_NAME).is_ok(), good, "the parser on {text:?}");
        let value: Value = serde_yaml::from_str(text).unwrap_or(Value::Null);
        assert_eq!(takes(&value), good, "the schema on {text:?}");
    }
}
