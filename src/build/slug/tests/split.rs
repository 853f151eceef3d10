use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::build::{
    slug::{layer::TarWriter, source_layer},
    source::SourceTree,
    testing::Fixture,
};

/// A compiled app: path → content; `->x` a symbolic link, `=x` a hard link, ends with `/` a directory.
fn stream(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = TarWriter::new(Vec::new());
    tar.directory(b"app", 0o755).unwrap();
    for (path, content) in files {
        let full = in_app(path.trim_end_matches('/').as_bytes());
        match content {
            _ if path.ends_with('/') => tar.directory(&full, 0o755).unwrap(),
            link if link.starts_with("->") => tar.symlink(&full, &link.as_bytes()[2..]).unwrap(),
            link if link.starts_with('=') => tar.hard_link(&full, 0o644, &in_app(&link.as_bytes()[1..])).unwrap(),
            text => {
                let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
                tar.file(&full, mode, text.len() as u64, text.as_bytes()).unwrap();
            }
        }
    }
    tar.finish().unwrap().0
}

fn plan<'e>(source: &'e [SourceEntry], directories: &str) -> SplitPlan<'e> {
    SplitPlan {
        directories: LayerDirectory::parse(directories),
        source,
        scratch: std::env::temp_dir(),
        limit: 1_000_000,
    }
}

fn split(tree: &SourceTree, compiled: &[(&str, &str)], directories: &str) -> Result<SplitSlug, SplitError> {
    let entries = tree.list(tree.directory("").unwrap()).unwrap();
    let mut splitter = Splitter::new(plan(&entries, directories))?;
    splitter.read(&mut stream(compiled).as_slice())?;
    for copy in splitter.take_copies() {
        let target = lossy(&copy.target);
        let content = compiled.iter().find(|(path, _)| *path == target).unwrap();
        splitter.copy(&copy, &mut raw_file("x", content.1).as_slice())?;
    }
    splitter.finish()
}

fn raw_file(name: &str, content: &str) -> Vec<u8> {
    let mut tar = TarWriter::new(Vec::new());
    tar.file(name.as_bytes(), 0o644, content.len() as u64, content.as_bytes()).unwrap();
    tar.finish().unwrap().0
}

/// All layers laid over each other, as an engine does: path → content.
fn unpacked(layers: &[&RawLayer]) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for layer in layers {
        let mut archive = tar::Archive::new(layer.tar().unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = lossy(&entry.path_bytes());
            let path = path.trim_start_matches("app").trim_start_matches('/').to_owned();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            match entry.header().entry_type() {
                EntryType::Directory => continue,
                EntryType::Symlink => content = format!("->{}", lossy(&entry.link_name_bytes().unwrap())),
                EntryType::Link => {
                    let target = lossy(&entry.link_name_bytes().unwrap());
                    content = found[target.trim_start_matches("app/")].clone();
                }
                _ => {}
            }
            found.insert(path, content);
        }
    }
    found
}

fn whole(tree: &SourceTree, slug: &SplitSlug) -> BTreeMap<String, String> {
    let entries = tree.list(tree.directory("").unwrap()).unwrap();
    let source = source_layer(tree, &entries, &slug.shadow, &std::env::temp_dir(), &mut Sizes::default()).unwrap();
    unpacked(&slug.layers.iter().chain([&source]).collect::<Vec<_>>())
}

#[test]
fn what_the_build_added_changed_and_deleted() {
    let fixture = Fixture::new();
    let tree = fixture.tree(&fixture.commit(&[
        ("index.js", "source"),
        ("package.json", "{}"),
        ("gone.txt", "delete me"),
        ("src/a.js", "a"),
        ("run", "#!/bin/sh"),
        ("link", "->index.js"),
    ]));
    let compiled = [
        ("index.js", "source"),
        ("package.json", "{changed}"),
        ("link", "->index.js"),
        ("node_modules/x/i.js", "dep"),
        ("dist/a.js", "built"),
        ("dist/b.js", "=dist/a.js"),
        ("run", "#!/bin/sh"),
        ("src/a.js", "a"),
        ("src/gen.js", "generated"),
        ("tmp/", ""),
    ];
    let slug = split(&tree, &compiled, "node_modules\tnode_modules\n").unwrap();
    let names: Vec<_> = slug.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(names, ["node_modules", "build"]);
    let shadow = slug.shadow.to_texts().unwrap();
    assert_eq!(shadow, ["dist", "gone.txt", "node_modules", "package.json", "src/gen.js", "tmp"]);
    let want: BTreeMap<_, _> = compiled
        .iter()
        .filter(|(path, _)| !path.ends_with('/'))
        .map(|(path, content)| ((*path).to_owned(), if *path == "dist/b.js" { "built" } else { content }.to_owned()))
        .collect();
    assert_eq!(whole(&tree, &slug), want);
}

#[test]
fn a_directory_in_the_place_of_a_file_and_the_other_way_round() {
    let fixture = Fixture::new();
    let tree = fixture.tree(&fixture.commit(&[("x", "a file"), ("y/z", "in a directory"), ("s", "->x")]));
    let compiled = [("s", "now a file"), ("x/", ""), ("x/inner", "1"), ("y", "now a file")];
    let slug = split(&tree, &compiled, "").unwrap();
    let want = [("s", "now a file"), ("x/inner", "1"), ("y", "now a file")];
    let want: BTreeMap<_, _> = want.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect();
    assert_eq!(whole(&tree, &slug), want);
}

#[test]
fn hard_links_across_layers_become_copies() {
    let fixture = Fixture::new();
    let tree = fixture.tree(&fixture.commit(&[("a.txt", "same")]));
    let compiled = [("a.txt", "same"), ("b.txt", "=a.txt"), ("deps/c.txt", "=a.txt"), ("deps/d.txt", "=deps/c.txt")];
    let found = {
        let slug = split(&tree, &compiled[..3], "deps\tdeps").unwrap();
        whole(&tree, &slug)
    };
    for path in ["a.txt", "b.txt", "deps/c.txt"] {
        assert_eq!(found[path], "same", "{path}");
    }
}

#[test]
fn what_is_refused() {
    let fixture = Fixture::new();
    let tree = fixture.tree(&fixture.commit(&[("a", "1")]));
    let entries = tree.list(tree.directory("").unwrap()).unwrap();
    let with = |kind: EntryType, path: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        let bytes = builder.into_inner().unwrap();
        Splitter::new(plan(&entries, "")).unwrap().read(&mut bytes.as_slice())
    };
    for (kind, path) in [
        (EntryType::Char, "app/dev"),
        (EntryType::Block, "app/dev"),
        (EntryType::Fifo, "app/pipe"),
        (EntryType::Regular, "app/../etc/passwd"),
        (EntryType::Regular, "/etc/passwd"),
        (EntryType::Regular, "etc/passwd"),
        (EntryType::Regular, "app/x/./y"),
        (EntryType::Regular, "application/x"),
    ] {
        let result = with(kind, path);
        assert!(matches!(result, Err(SplitError::Refused { .. })), "{kind:?} {path}: {result:?}");
    }
    assert!(with(EntryType::Regular, "app/fine").is_ok());
}

#[test]
fn a_slug_that_is_too_large_names_its_largest_folders() {
    let fixture = Fixture::new();
    let tree = fixture.tree(&fixture.commit(&[("a", "1")]));
    let big = "x".repeat(700_000);
    let compiled = [("a", "1"), ("deps/one/f", big.as_str()), ("other/f", big.as_str())];
    let Err(SplitError::TooLarge { size, largest, .. }) = split(&tree, &compiled, "") else { panic!("it was taken") };
    assert_eq!(size, 1_400_000);
    assert!(largest[0].contains("deps/") && largest.iter().any(|line| line.contains("other/")), "{largest:?}");
}

/// A tar of one file that says it has `size` bytes, all zeros, and counts what is read of it.
struct Sparse {
    header: io::Cursor<Vec<u8>>,
    read: u64,
}

impl Sparse {
    fn new(path: &str, size: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_path(path).unwrap();
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        Self { header: io::Cursor::new(header.as_bytes().to_vec()), read: 0 }
    }
}

impl Read for Sparse {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut length = self.header.read(buffer)?;
        if length == 0 {
            buffer.fill(0);
            length = buffer.len();
        }
        self.read += length as u64;
        assert!(self.read < 100_000_000, "all of it is read");
        Ok(length)
    }
}

#[test]
fn a_sparse_file_is_refused_unread_wherever_it_is() {
    let fixture = Fixture::new();
    let tree = fixture.tree(&fixture.commit(&[("big", "1")]));
    let entries = tree.list(tree.directory("").unwrap()).unwrap();
    for path in ["app/big", "app/new"] {
        let mut splitter = Splitter::new(plan(&entries, "")).unwrap();
        let mut stream = Sparse::new(path, 2 << 40);
        let result = splitter.read(&mut stream);
        assert!(matches!(result, Err(SplitError::TooLarge { size, .. }) if size == 2 << 40), "{path}: {result:?}");
        assert!(stream.read < 1_000_000, "{path}: {} bytes were read", stream.read);
    }
}

#[test]
fn more_files_than_memory_is_for_are_refused() {
    let fixture = Fixture::new();
    let tree = fixture.tree(&fixture.commit(&[("a", "1")]));
    let entries = tree.list(tree.directory("").unwrap()).unwrap();
    // With `app` itself.
    let stream = stream(&[("a", "1"), ("b/", ""), ("b/c", "")]);
    for (left, paths, fits) in [(4, 5, true), (3, 5, false), (4, 4, false)] {
        let mut splitter = Splitter::new(plan(&entries, "")).unwrap();
        (splitter.entries, splitter.paths) = (left, paths);
        let result = splitter.read(&mut stream.as_slice());
        assert_eq!(result.is_ok(), fits, "{result:?}");
        assert!(fits || matches!(result, Err(SplitError::TooMany)), "{result:?}");
    }
}

#[test]
fn the_list_of_layer_directories() {
    let text = "node\t.berth/node\nmods\t./node_modules/\nabs\t/app/vendor\nup\t../etc\nroot\t/etc\nempty\t\nnode\t.berth/node\nbad";
    let found: Vec<_> = LayerDirectory::parse(text).into_iter().map(|found| lossy(&found.path)).collect();
    assert_eq!(found, [".berth/node", "node_modules", "vendor"]);
}

fn tree_of_files() -> impl Strategy<Value = BTreeMap<String, String>> {
    let path = proptest::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"));
    proptest::collection::btree_map(path, "[xyz]{0,3}", 0..12).prop_map(|files| {
        // No path may be both a file and a directory.
        let keep = |path: &String| !files.keys().any(|other| other.starts_with(&format!("{path}/")));
        files.iter().filter(|(path, _)| keep(path)).map(|(path, text)| (path.clone(), text.clone())).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the build did, the layers together are exactly what it left.
    #[test]
    fn the_layers_are_what_the_build_left(source in tree_of_files(), compiled in tree_of_files(), own_layer in any::<bool>()) {
        let fixture = Fixture::new();
        let listed: Vec<_> = source.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let tree = fixture.tree(&fixture.commit(&listed));
        let left: Vec<_> = compiled.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let slug = split(&tree, &left, if own_layer { "a\ta" } else { "" }).unwrap();
        prop_assert_eq!(whole(&tree, &slug), compiled.clone());
        let again = split(&tree, &left, if own_layer { "a\ta" } else { "" }).unwrap();
        let ids = |slug: &SplitSlug| slug.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>();
        prop_assert_eq!(ids(&slug), ids(&again));
    }
}
