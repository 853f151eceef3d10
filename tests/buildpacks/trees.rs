//! Many small source trees, looked at in one container: for tables of rules that need no whole build.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::harness::in_build_stack;

/// A source tree: its files (path, content), and for a content that begins with `->`, a symbolic link.
pub type Tree<'a> = &'a [(&'a str, &'a str)];

/// A tree, and what must be said of it.
pub type Expectation<'a> = (Tree<'a>, &'a [&'a str]);

/// Writes the files of a tree below `root`.
pub fn plant(root: &Path, tree: Tree<'_>) {
    fs::create_dir_all(root).unwrap();
    for (path, content) in tree {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("->") {
            Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
}

/// Runs `script` in each tree (a writable copy, which is the working directory and `$PWD`) in the build stack; what it
/// printed, standard error included, and its exit status in the last line. In the order of the trees.
pub fn in_each(trees: &[Tree<'_>], script: &str) -> Vec<String> {
    let directory = tempfile::Builder::new().prefix("berth-test-trees").tempdir().unwrap();
    for (number, tree) in trees.iter().enumerate() {
        plant(&directory.path().join(number.to_string()), tree);
    }
    fs::write(directory.path().join("script"), script).unwrap();
    let output = in_build_stack(
        directory.path(),
        "cp -r /work /tmp/trees; export BERTH_META=/tmp/meta BERTH_BUILDPACK=test; mkdir -p /tmp/meta
         for tree in /tmp/trees/*/; do
           echo \"=====$(basename $tree)\"
           (cd $tree && bash /work/script 2>&1; echo \"status $?\")
         done",
    );
    let found: BTreeMap<usize, String> = output
        .split("=====")
        .skip(1)
        .filter_map(|part| part.split_once('\n'))
        .map(|(number, text)| (number.parse().unwrap(), text.trim().to_owned()))
        .collect();
    assert_eq!(found.len(), trees.len(), "{output}");
    found.into_values().collect()
}

/// Checks that each tree's run said all that is expected of it.
pub fn expect_each(cases: &[Expectation<'_>], script: &str) {
    let trees: Vec<Tree<'_>> = cases.iter().map(|(tree, _)| *tree).collect();
    for ((tree, expected), said) in cases.iter().zip(in_each(&trees, script)) {
        for words in *expected {
            assert!(said.contains(words), "{words:?} is not said of {tree:?}:\n{said}");
        }
    }
}
