//! Manifests made to hurt: refused at once, with a message, whatever they hold.

use std::time::Instant;

use super::*;

/// Far above what any of these takes (a few milliseconds), far below what a bomb would.
const AT_ONCE: Duration = Duration::from_millis(500);

fn refused_at_once(name: &str, bytes: &[u8], message: &str) {
    let begin = Instant::now();
    let rendering = refused(bytes);
    let took = begin.elapsed();
    assert!(took < AT_ONCE, "{name} took {took:?}");
    assert!(rendering.contains(message), "{name}: {rendering}");
    assert!(rendering.len() < 20_000, "{name}: a message of {} bytes", rendering.len());
    assert!(!rendering.contains(|c: char| c.is_control() && c != '\n'), "{name}: {rendering:?}");
}

#[test]
fn bombs_and_giants() {
    let laughs: String = (1..10)
        .map(|n| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 10].join(", ")))
        .fold("l0: &l0 lol\n".to_owned(), |all, line| all + &line);
    let merges: String = (1..30)
        .map(|n| format!("m{n}: &m{n} {{a: *m{0}, b: *m{0}}}\n", n - 1))
        .fold("m0: &m0 {x: 1}\n".to_owned(), |all, line| all + &line);
    let copies = format!("a: &a [{}]\n{}", "1,".repeat(5000), "b: *a\n".repeat(3));
    let keys: String = (0..4500).map(|n| format!("k{n}:\n")).collect();
    let same_key = "k: 1\n".repeat(9000);
    let cases: [(&str, Vec<u8>, &str); 20] = [
        ("laughs", laughs.into_bytes(), "more than 10000 values"),
        ("merges", merges.into_bytes(), "more than 10000 values"),
        ("copies", copies.into_bytes(), "more than 10000 values"),
        ("itself", b"a: &a [*a]".to_vec(), "stands inside what it refers to"),
        ("megabytes", vec![b'a'; 8 << 20], "at most 65536 are read"),
        ("flow depth", "[".repeat(60_000).into_bytes(), "nested deeper than 16"),
        ("mapping depth", "{a: ".repeat(15_000).into_bytes(), "nested deeper than 16"),
        ("block depth", "- ".repeat(30_000).into_bytes(), "nested deeper than 16"),
        ("key depth", "? ".repeat(30_000).into_bytes(), "a key must be plain text"),
        ("many keys", keys.into_bytes(), "and 4480 more problems"),
        ("one key often", same_key.into_bytes(), "is given twice"),
        ("long key", format!("{}: 1", "k".repeat(1000)).into_bytes(), "a manifest has no key"),
        ("long value", format!("app: {}", "x/".repeat(30_000)).into_bytes(), "is not the name of an app"),
        ("list", "- a\n".repeat(16_000).into_bytes(), "more than 10000 values"),
        ("anchors", "- &a x\n".repeat(9_000).into_bytes(), "more than 10000 values"),
        ("colons", ":".repeat(60_000).into_bytes(), "not valid YAML"),
        ("quotes", "\"".repeat(60_001).into_bytes(), "not valid YAML"),
        ("nul", b"app: acme/shop\nrelease: a\0b\n".to_vec(), "NUL"),
        ("latin-1", b"release: caf\xe9\n".to_vec(), "not UTF-8"),
        ("utf-16", b"\xff\xfea\0p\0p\0".to_vec(), "not UTF-8"),
    ];
    for (name, bytes, message) in &cases {
        refused_at_once(name, bytes, message);
    }
}

#[test]
fn control_characters_reach_no_terminal() {
    let texts = [
        "\u{1b}[2Jx: 1",
        "\"\\e[31mred\": 1",
        "processes: {\"w\\rb\": x}",
        "app: \"\u{202e}\\u0007\"",
        "processes: {web: \"a\\0b\"}",
        "release: \"\\0\"",
        "build: {env: {A: \"\\0\"}}",
        "x\u{9b}31m: 1",
    ];
    for text in texts {
        refused_at_once(text, text.as_bytes(), "berth.yaml");
    }
}

#[test]
fn limits_hold_at_their_edge() {
    let processes = |count: usize| {
        (0..count).map(|n| format!("  p{n}: x\n")).fold("processes:\n".to_owned(), |all, line| all + &line)
    };
    parsed(&processes(MAX_PROCESS_TYPES));
    assert!(refused(processes(MAX_PROCESS_TYPES + 1)).contains("names 21 process types"));
    let more = format!("{}environments:\n  prod: {{processes: {{extra: y}}}}\n", processes(MAX_PROCESS_TYPES));
    assert!(refused(more).contains("`prod` has 21 process types in all"));

    parsed(&format!("release: {}", "x".repeat(MAX_COMMAND)));
    assert!(refused(format!("release: {}", "x".repeat(MAX_COMMAND + 1))).contains("32769 bytes"));
    parsed("processes: {web: {command: x, replicas: 100, cpu: 64, memory: 1Ti, port: 65535}}");
    parsed("processes: {web: {command: x, replicas: 0, cpu: 0.01, memory: 16Mi, port: 1}}");
}
