//! The house plan, as a test: imports point down only, and files stay small enough to be read in one sitting.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The floors, from the ground up; ARCHITECTURE.md says the same in words.
const FLOORS: [&[&str]; 6] = [
    &["domain"],
    &["plan", "manifest", "token", "keys", "places", "disk", "traces"],
    &["runtime", "registry", "store", "git", "router", "outbound"],
    &[
        "receive", "build", "deploy", "cron", "jobs", "commands", "logs", "gc", "events", "drains", "webhooks",
        "metrics",
    ],
    &["ssh", "api", "console", "control"],
    &["app"],
];

/// Longest file in `src`, tests included, in lines.
const MAX_LINES: usize = 600;

/// Crates that the pure core must not name, and the modules that are pure.
const IMPURE: [&str; 8] =
    ["tokio", "bollard", "std::fs", "std::net::Tcp", "std::process", "SystemTime", "Instant::now", "Timestamp::now"];
const PURE: [&str; 3] = ["domain", "plan", "manifest"];

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn module_of(file: &Path, src: &Path) -> Option<String> {
    let mut parts = file.strip_prefix(src).unwrap().iter();
    let first = parts.next().unwrap().to_str().unwrap().to_owned();
    parts.next().map(|_| first)
}

/// What a file says before its tests; nothing for a file in a module's `tests` folder.
fn without_tests<'t>(file: &Path, text: &'t str) -> &'t str {
    if file.iter().any(|part| part == "tests") { "" } else { text.split("#[cfg(test)]").next().unwrap() }
}

/// The top-level modules named by `crate::` paths, groups included.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `$crate::` in a macro is the same crate; a doc link is no import.
        let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        if text[line_start..at].trim_start().starts_with("//") {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let end = group.find(|c| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    depth < 0
                });
                let mut depth = 0;
                let split = |c: char| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    c == ',' && depth == 0
                };
                group[..end.unwrap()].split(split).collect()
            }
            None => vec![rest],
        };
        for name in names {
            let word: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push(word);
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let floor: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(n, modules)| modules.iter().map(move |m| (*m, n))).collect();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        let Some(module) = module_of(&file, &src) else { continue };
        let Some(own) = floor.get(module.as_str()) else { panic!("src/{module} is on no floor; see tests/house.rs") };
        let text = fs::read_to_string(&file).unwrap();
        for import in imports(without_tests(file.strip_prefix(&src).unwrap(), &text)) {
            if floor.get(import.as_str()).is_some_and(|theirs| theirs > own) {
                wrong.push(format!("{}: {module} imports {import}, which is above it", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        if !module_of(&file, &src).is_some_and(|module| PURE.contains(&module.as_str())) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for line in without_tests(file.strip_prefix(&src).unwrap(), &text)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            for name in IMPURE.iter().filter(|name| line.contains(**name)) {
                wrong.push(format!("{}: names {name}: {}", file.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let long: Vec<String> = rust_files(&src)
        .into_iter()
        .filter_map(|file| {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            (lines > MAX_LINES).then(|| format!("{}: {lines} lines", file.display()))
        })
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn the_import_reader_sees_groups_and_skips_comments() {
    let text = "use crate::{domain::{A, B}, store};\n// crate::app\nfn f() { crate::git::x() }\n";
    assert_eq!(imports(text), ["domain", "store", "git"]);
}
