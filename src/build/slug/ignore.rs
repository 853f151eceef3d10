//! `.slugignore`: files that neither the build nor the slug sees. Patterns as in `.gitignore`; as with Heroku, applied before the
//! buildpacks run, and without negation.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::build::source::SourceEntry;

/// The file's name, at the root of the app.
pub const FILE: &str = ".slugignore";

/// The patterns of a `.slugignore`.
pub struct SlugIgnore(Gitignore);

impl SlugIgnore {
    /// Reads the file's text. Lines that are no pattern come back as messages.
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let mut builder = GitignoreBuilder::new("");
        let mut messages = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with('!') {
                messages.push(format!("{FILE}:{}: negated patterns are not supported; ignored", number + 1));
            } else if let Err(error) = builder.add_line(None, line) {
                messages.push(format!("{FILE}:{}: {error}; ignored", number + 1));
            }
        }
        (Self(builder.build().unwrap_or_else(|_| Gitignore::empty())), messages)
    }

    /// Drops what is to be ignored.
    pub fn apply(&self, entries: Vec<SourceEntry>) -> Vec<SourceEntry> {
        if self.0.is_empty() {
            return entries;
        }
        let kept = |entry: &SourceEntry| {
            let path = Path::new(OsStr::from_bytes(&entry.path));
            !self.0.matched_path_or_any_parents(path, false).is_ignore()
        };
        entries.into_iter().filter(kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::source::{Kind, lossy};

    fn entry(path: &str) -> SourceEntry {
        let oid = git2::Oid::from_bytes(&[0; 20]).unwrap();
        SourceEntry { path: path.as_bytes().to_vec(), kind: Kind::File, oid, size: 1 }
    }

    #[test]
    fn patterns() {
        let text = "# comment\n*.psd\n/docs\nspec/\n!keep.psd\n\n";
        let (ignore, messages) = SlugIgnore::parse(text);
        let paths =
            ["a.psd", "x/b.psd", "keep.psd", "docs/a", "x/docs/a", "spec/a", "x/spec/b/c", "spec.rb", "index.js"];
        let kept: Vec<_> = ignore.apply(paths.map(entry).to_vec()).iter().map(|entry| lossy(&entry.path)).collect();
        assert_eq!(kept, ["x/docs/a", "spec.rb", "index.js"]);
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(messages[0].starts_with(".slugignore:5:"));
    }
}
