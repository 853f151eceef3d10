//! What of a tree is built. A push is let in by it and a build begins with it, so that neither meets a source that is too large to handle.

use git2::Oid;

use super::{
    error::BuildError,
    slug::{SLUGIGNORE, Sizes, SlugIgnore},
    source::{SourceEntry, SourceTree},
};

/// Largest `.slugignore`, bytes.
const SLUGIGNORE_SIZE: usize = 64 << 10;

/// The files of a source, none of them read.
#[derive(Debug)]
pub struct Listing {
    /// All but those that `.slugignore` names, by path.
    pub entries: Vec<SourceEntry>,
    /// The tree object of the build root.
    pub tree: Oid,
    /// What is wrong with `.slugignore`.
    pub warnings: Vec<String>,
}

impl Listing {
    /// What is below `root` (empty: everything), refused when it has more than `limit` bytes: it all becomes part of the slug.
    pub fn of(source: &SourceTree, root: &str, limit: u64) -> Result<Self, BuildError> {
        let tree = source.directory(root)?;
        let (mut entries, mut warnings) = (source.list(tree)?, Vec::new());
        if let Some(text) = source.read_below(tree, SLUGIGNORE, SLUGIGNORE_SIZE)? {
            let (ignore, messages) = SlugIgnore::parse(&String::from_utf8_lossy(&text));
            entries = ignore.apply(entries);
            warnings = messages;
        }
        let mut sizes = Sizes::default();
        entries.iter().for_each(|entry| sizes.add(&entry.path, entry.size));
        if sizes.total() > limit {
            return Err(BuildError::too_large("source", sizes.total(), limit, sizes.largest()));
        }
        Ok(Self { entries, tree, warnings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::testing::Fixture;

    #[test]
    fn a_source_over_the_limit_is_refused_with_what_is_large_in_it() {
        let fixture = Fixture::new();
        let large = "x".repeat(3000);
        let files = [("a/b/large", large.as_str()), ("a/small", "1"), ("big", "12345678"), ("web/index.html", "1")];
        let tree = fixture.tree(&fixture.commit(&files));
        assert_eq!(Listing::of(&tree, "", 3010).unwrap().entries.len(), 4);
        assert_eq!(Listing::of(&tree, "web", 10).unwrap().entries.len(), 1);
        let Err(BuildError::Rejected { reason, lines }) = Listing::of(&tree, "", 3009) else { panic!("not refused") };
        assert_eq!(reason, "the source has 3.0 kB; at most 3.0 kB are allowed");
        let largest: Vec<_> = lines[1..4].iter().map(|line| line.trim()).collect();
        assert_eq!(largest, ["3.0 kB  a/", "3.0 kB  a/b/", "8 B  big"]);

        let ignored = fixture.commit(&[&files[..], &[(".slugignore", "large\n")]].concat());
        assert_eq!(Listing::of(&fixture.tree(&ignored), "", 100).unwrap().entries.len(), 4);
    }
}
