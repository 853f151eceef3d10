//! Which paths of the source tree the compile step has taken over: the source layer leaves them out.

use std::collections::BTreeSet;

/// Paths, each standing for itself and everything below it: directories with layers of their own, what the compile step added, what it
/// replaced, what it deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shadow(BTreeSet<Vec<u8>>);

/// What a [`Shadow`] may hold to be remembered; a compile step that touches more than this is run again each time.
const REMEMBERED: usize = 20_000;

impl Shadow {
    /// Adds a path.
    pub fn add(&mut self, path: &[u8]) {
        self.0.insert(path.to_vec());
    }

    /// Whether the source layer leaves out `path`.
    pub fn hides(&self, path: &[u8]) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        slashes.chain([path.len()]).any(|end| self.0.contains(&path[..end]))
    }

    /// Whether a change of the source at `path` could make the compile step's result another: what is hidden, and what stands where
    /// the way to a hidden path leads through.
    pub fn touches(&self, path: &[u8]) -> bool {
        if self.hides(path) {
            return true;
        }
        let below = [path, b"/"].concat();
        self.0.range(below.clone()..).next().is_some_and(|next| next.starts_with(&below))
    }

    /// As text for a record; `None` when a path is not UTF-8 or there are too many.
    pub fn to_texts(&self) -> Option<Vec<String>> {
        if self.0.len() > REMEMBERED {
            return None;
        }
        self.0.iter().map(|path| String::from_utf8(path.clone()).ok()).collect()
    }

    /// From a record.
    pub fn from_texts(texts: &[String]) -> Self {
        Self(texts.iter().map(|text| text.clone().into_bytes()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_for_what_is_below_it() {
        let shadow = Shadow::from_texts(&["node_modules".to_owned(), "src/gen/a.js".to_owned()]);
        let rows = [
            ("node_modules", true, true),
            ("node_modules/x/y", true, true),
            ("node_modules.js", false, false),
            ("node", false, false),
            ("src", false, true), // a file `src` where the directory was
            ("src/gen", false, true),
            ("src/gen/a.js", true, true),
            ("src/gen/a.js/b", true, true),
            ("src/gen/b.js", false, false),
            ("index.js", false, false),
        ];
        for (path, hides, touches) in rows {
            assert_eq!((shadow.hides(path.as_bytes()), shadow.touches(path.as_bytes())), (hides, touches), "{path}");
        }
    }
}
