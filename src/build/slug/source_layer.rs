//! The source as a tar: for the build container, and as the slug's topmost layer.

use std::{io::Write, path::Path};

use super::{
    layer::{LayerWriter, RawLayer, TarWriter},
    shadow::Shadow,
    sizes::Sizes,
};
use crate::build::source::{Kind, SourceEntry, SourceError, SourceTree};

/// Writes the entries as a tar with paths below `prefix` (empty: none), sorted as given, without a byte that is not in git. One file at a
/// time is in memory.
pub fn write_source<'e, W: Write>(
    tree: &SourceTree,
    entries: impl IntoIterator<Item = &'e SourceEntry>,
    prefix: &[u8],
    tar: &mut TarWriter<W>,
    sizes: &mut Sizes,
) -> Result<(), SourceError> {
    let mut path = Vec::new();
    for entry in entries {
        let blob = tree.content(entry)?;
        path.clear();
        path.extend_from_slice(prefix);
        path.extend_from_slice(&entry.path);
        sizes.add(&entry.path, blob.size() as u64);
        match entry.kind {
            Kind::Symlink => tar.symlink(&path, blob.content())?,
            Kind::File => tar.file(&path, 0o644, blob.size() as u64, blob.content())?,
            Kind::Executable => tar.file(&path, 0o755, blob.size() as u64, blob.content())?,
        }
    }
    Ok(())
}

/// The source layer: all entries but those that the compile step has taken over. Blocking.
pub fn source_layer(
    tree: &SourceTree,
    entries: &[SourceEntry],
    shadow: &Shadow,
    directory: &Path,
    sizes: &mut Sizes,
) -> Result<RawLayer, SourceError> {
    let mut layer = LayerWriter::new("source", directory)?;
    let visible = entries.iter().filter(|entry| !shadow.hides(&entry.path));
    write_source(tree, visible, b"app/", &mut layer.tar, sizes)?;
    Ok(layer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::testing::Fixture;

    fn layer(files: &[(&str, &str)], shadow: &[&str]) -> RawLayer {
        let fixture = Fixture::new();
        let tree = fixture.tree(&fixture.commit(files));
        let entries = tree.list(tree.directory("").unwrap()).unwrap();
        let shadow = Shadow::from_texts(&shadow.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
        source_layer(&tree, &entries, &shadow, &std::env::temp_dir(), &mut Sizes::default()).unwrap()
    }

    fn listing(layer: &RawLayer) -> Vec<String> {
        let mut archive = tar::Archive::new(layer.tar().unwrap());
        let entries = archive.entries().unwrap().map(Result::unwrap);
        entries
            .map(|entry| {
                let header = entry.header();
                assert_eq!(
                    (header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()),
                    (0, 10_001, 10_001)
                );
                format!("{} {:o}", String::from_utf8_lossy(&entry.path_bytes()), header.mode().unwrap())
            })
            .collect()
    }

    #[test]
    fn has_directories_modes_and_no_hidden_paths() {
        let long = format!("deep/{}/{}/file.txt", "x".repeat(90), "y".repeat(90));
        let layer = layer(
            &[("bin/run", "#!/bin/sh"), ("dist/old.js", "x"), ("index.js", "1"), ("link", "->index.js"), (&long, "l")],
            &["dist"],
        );
        let list = listing(&layer);
        assert_eq!(list[..3], ["app/ 755", "app/bin/ 755", "app/bin/run 755"]);
        assert!(list.contains(&"app/index.js 644".to_owned()) && list.contains(&"app/link 777".to_owned()), "{list:?}");
        assert!(list.contains(&format!("app/{long} 644")), "{list:?}");
        assert!(!list.iter().any(|line| line.contains("dist")), "{list:?}");
    }

    #[test]
    fn the_same_files_give_the_same_layer_whatever_the_commit() {
        let one = layer(&[("a", "1"), ("b/c", "2")], &[]);
        let two = layer(&[("b/c", "2"), ("a", "1")], &[]);
        let other = layer(&[("b/c", "2"), ("a", "#!1")], &[]);
        assert_eq!(one.diff_id, two.diff_id);
        assert_ne!(one.diff_id, other.diff_id);
    }
}
