//! What a pushed tree says about itself: manifest and Procfile, read from git.

use std::path::Path;

use crate::{
    domain::{EnvRef, ProcessType},
    manifest::{self, Definition, FILE_NAME, MAX_BYTES, Manifest, PROCFILE, Problem},
};

use super::{
    error::BuildError,
    listing::Listing,
    source::{SourceError, SourceTree},
};

/// The manifest and Procfile of a tree, checked.
#[derive(Debug, Clone)]
pub struct Description {
    /// `None`: the tree has no manifest.
    pub manifest: Option<Manifest>,
    /// `None`: the build root has no Procfile.
    pub procfile: Option<Vec<(ProcessType, String)>>,
    /// For the environment, with the Procfile's processes where the manifest declares none.
    pub definition: Definition,
}

/// Reads what the tree says for `env`. Everything that is wrong with it comes back at once, placed.
pub fn definition(tree: &SourceTree, env: &EnvRef) -> Result<Description, Vec<Problem>> {
    let text = read(tree, FILE_NAME)?;
    let manifest = text.map(|text| manifest::parse(&text, FILE_NAME)).transpose()?;
    let definition = manifest.as_ref().map(|manifest| manifest.for_environment(&env.env)).unwrap_or_default();
    let root = &definition.build.root;
    tree.directory(root).map_err(|error| vec![problem(FILE_NAME, &error)])?;
    let path = if root.is_empty() { PROCFILE.to_owned() } else { format!("{root}/{PROCFILE}") };
    let procfile = read(tree, &path)?.map(manifest::parse_procfile).transpose();
    let procfile = procfile.map_err(|mut problems| {
        problems.iter_mut().for_each(|problem| problem.file.clone_from(&path));
        problems
    })?;
    let definition = definition.with_procfile(procfile.as_deref().unwrap_or_default());
    Ok(Description { manifest, procfile, definition })
}

/// As [`definition`], for a commit that is being pushed: also refuses what cannot be built whatever it says. `objects`: the quarantine's
/// object directory, if it has one; `known_good`: a commit of this repository that was checked before; `limit`: the largest source, bytes.
/// Blocking.
pub fn check_push(
    repository: &Path,
    objects: Option<&Path>,
    commit: &str,
    known_good: Option<&str>,
    env: &EnvRef,
    limit: u64,
) -> Result<Description, Vec<Problem>> {
    let failed = |error: SourceError| vec![problem("", &error)];
    let tree = SourceTree::open(repository, objects, commit).map_err(failed)?;
    let refusals = tree.refusals(known_good).map_err(failed)?;
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let description = definition(&tree, env)?;
    let root = &description.definition.build.root;
    Listing::of(&tree, root, limit).map_err(|error| vec![unbuildable(root, error)])?;
    Ok(description)
}

fn unbuildable(root: &str, error: BuildError) -> Problem {
    let mut message = error.to_string();
    if let BuildError::Rejected { lines, .. } = &error {
        message.extend(lines.iter().flat_map(|line| ["\n", line]));
    }
    plain(root, message, None)
}

fn read(tree: &SourceTree, path: &str) -> Result<Option<Vec<u8>>, Vec<Problem>> {
    tree.read(path, MAX_BYTES).map_err(|error| vec![problem(path, &error)])
}

fn problem(file: &str, error: &SourceError) -> Problem {
    let suggestion = match error {
        SourceError::NoRoot(_) => Some("name a directory of this repository, relative to its root".to_owned()),
        SourceError::TooManyFiles => {
            Some("commit what people write; dependencies, build results and data belong into .gitignore".to_owned())
        }
        SourceError::TooSlow => Some("try again; if that does not help, commit fewer and smaller files".to_owned()),
        _ => None,
    };
    plain(file, error.to_string(), suggestion)
}

fn plain(file: &str, message: String, suggestion: Option<String>) -> Problem {
    Problem { file: file.to_owned(), line: None, column: None, excerpt: None, caret: None, message, suggestion }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::testing::{Files, Fixture};

    fn describe(files: &[(&str, &str)]) -> Result<Description, Vec<Problem>> {
        let fixture = Fixture::new();
        definition(&fixture.tree(&fixture.commit(files)), &"acme/shop/dev".parse().unwrap())
    }

    #[test]
    fn manifest_and_procfile_of_the_root() {
        let found =
            describe(&[("berth.yaml", "build: {root: web}"), ("web/Procfile", "web: node x"), ("Procfile", "web: no")]);
        let found = found.unwrap();
        assert_eq!(found.definition.processes[&"web".parse().unwrap()].command, "node x");
        let bare = describe(&[("index.html", "hi")]).unwrap();
        assert!(bare.manifest.is_none() && bare.procfile.is_none() && bare.definition.processes.is_empty());
    }

    #[test]
    fn what_is_wrong_is_placed() {
        let rows: [(Files<'_>, &str, &str); 4] = [
            (&[("berth.yaml", "->/etc/passwd")], "berth.yaml", "symbolic link"),
            (&[("berth.yaml", "build: {root: nowhere}")], "berth.yaml", "no such directory"),
            (&[("berth.yaml", "procceses: {}")], "berth.yaml", "procceses"),
            (&[("berth.yaml", "build: {root: w}"), ("w/Procfile", "nonsense")], "w/Procfile", ""),
        ];
        for (files, file, message) in rows {
            let problems = describe(files).unwrap_err();
            assert_eq!(problems[0].file, file);
            assert!(problems[0].message.contains(message), "{problems:?}");
        }
    }
}
