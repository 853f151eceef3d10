//! Whether a compile step would have the same result: its input files, found by globs over the tree's listing.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use sha2::{Digest as _, Sha256};

use super::{
    slug::Shadow,
    source::{Kind, SourceEntry},
};
use crate::domain::Digest;

/// Globs that a buildpack may declare, and the length of one.
const GLOBS: usize = 500;
const GLOB_LENGTH: usize = 500;

/// Reads a list of globs, one a line. `None`: something in it cannot be used, so that only the whole tree is safe.
pub fn parse_globs(text: &str) -> Option<Vec<String>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut globs: Vec<String> = lines.map(str::to_owned).collect();
    globs.sort();
    globs.dedup();
    let usable = !globs.is_empty() && globs.len() <= GLOBS && globs.iter().all(|glob| glob.len() <= GLOB_LENGTH);
    (usable && compile(&globs).is_some()).then_some(globs)
}

fn compile(globs: &[String]) -> Option<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let glob = glob.strip_prefix("./").unwrap_or(glob);
        set.add(GlobBuilder::new(glob).literal_separator(true).build().ok()?);
    }
    set.build().ok()
}

/// The digest over all files that the compile step's result depends on: those that match its globs, and those that it has taken over.
/// `None` when a glob cannot be read.
pub fn digest(entries: &[SourceEntry], globs: &[String], shadow: &Shadow) -> Option<Digest> {
    let globs = compile(globs)?;
    let mut hash = Sha256::new();
    for entry in entries {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        if globs.is_match(path) || shadow.touches(&entry.path) {
            hash.update((entry.path.len() as u64).to_le_bytes());
            hash.update(&entry.path);
            let kind: u8 = match entry.kind {
                Kind::File => 0,
                Kind::Executable => 1,
                Kind::Symlink => 2,
            };
            hash.update([kind]);
            hash.update(entry.oid.as_bytes());
        }
    }
    Some(Digest::from_sha256(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str, content: u8) -> SourceEntry {
        SourceEntry {
            path: path.as_bytes().to_vec(),
            kind: Kind::File,
            oid: git2::Oid::from_bytes(&[content; 20]).unwrap(),
            size: 1,
        }
    }

    fn globs(text: &str) -> Vec<String> {
        parse_globs(text).unwrap()
    }

    #[test]
    fn which_changes_count() {
        let base = [entry("index.js", 1), entry("lib/package.json", 1), entry("package.json", 1), entry("src/a.ts", 1)];
        let inputs = globs("package.json\nyarn.lock\n{src,lib}/**/*.ts\n");
        let shadow = Shadow::from_texts(&["dist".to_owned(), "README.md".to_owned()]);
        let before = digest(&base, &inputs, &shadow);
        let rows = [
            ("index.js", 2, true),         // matches nothing
            ("lib/package.json", 2, true), // a pattern without a slash is for the root
            ("package.json", 2, false),
            ("src/a.ts", 2, false),
            ("src/b/c.ts", 1, false), // appears
            ("yarn.lock", 1, false),
            ("new.txt", 1, true),
            ("README.md", 1, false), // would cover what the build deleted
            ("dist/x", 1, false),    // would cover what the build made
            ("dist", 1, false),
            ("distant", 1, true),
        ];
        for (path, content, same) in rows {
            let mut changed: Vec<_> = base.iter().filter(|entry| entry.path != path.as_bytes()).cloned().collect();
            changed.push(entry(path, content));
            changed.sort_by(|one, two| one.path.cmp(&two.path));
            assert_eq!(digest(&changed, &inputs, &shadow) == before, same, "{path}");
        }
        let without: Vec<_> = base[..3].to_vec();
        assert_ne!(digest(&without, &inputs, &shadow), before, "one that disappears");
    }

    #[test]
    fn lists_that_cannot_be_used() {
        assert_eq!(parse_globs(""), None);
        assert_eq!(parse_globs("a[\n"), None);
        assert_eq!(parse_globs(&"x\n".repeat(3)), Some(vec!["x".to_owned()]));
        assert_eq!(parse_globs(&"y".repeat(501)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Only files that match decide, and any change of one decides.
        #[test]
        fn exactly_the_matching_files_decide(names in proptest::collection::btree_set("[a-c]{1,2}\\.(js|lock)", 1..8), pick in any::<prop::sample::Index>()) {
            let entries: Vec<_> = names.iter().map(|name| entry(name, 1)).collect();
            let inputs = globs("*.lock");
            let before = digest(&entries, &inputs, &Shadow::default());
            let at = pick.index(entries.len());
            let mut changed = entries.clone();
            changed[at] = entry(&String::from_utf8(entries[at].path.clone()).unwrap(), 2);
            let same = digest(&changed, &inputs, &Shadow::default()) == before;
            prop_assert_eq!(same, entries[at].path.ends_with(b".js"));
        }
    }
}
