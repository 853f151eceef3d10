//! `berth validate [DIR]` and `berth schema`: what the server would say about a manifest, without a server.

use std::{fs, io::Read, path::Path, process::ExitCode};

use crate::{
    domain::{EnvName, ProcessSpec, ProcessType},
    manifest::{
        self, Defaults, Definition, FILE_NAME, MAX_BYTES, Manifest, PROCFILE, Problem, format_memory, parse,
        parse_procfile, render_problems,
    },
};

/// Exit status when something is wrong with a file.
const FAILED: u8 = 1;
/// Exit status when the directory cannot be looked at.
const USAGE: u8 = 2;

/// What a command prints, and how it ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Text for stdout, ending with a line feed.
    pub output: String,
    /// Text for stderr, the same way; empty when all is well.
    pub errors: String,
    /// Exit status: 0 valid, 1 something is wrong, 2 usage.
    pub status: u8,
}

impl Outcome {
    /// Prints it.
    pub fn report(&self) -> ExitCode {
        print!("{}", self.output);
        eprint!("{}", self.errors);
        ExitCode::from(self.status)
    }

    fn failed(status: u8, errors: impl Into<String>) -> Self {
        Self { output: String::new(), errors: errors.into(), status }
    }

    fn problems(problems: &[Problem]) -> Self {
        Self::failed(FAILED, render_problems(problems))
    }
}

/// The JSON Schema of the manifest.
pub fn schema() -> String {
    format!("{:#}\n", manifest::schema())
}

/// Checks the manifest and the Procfile in `dir` and says what they come to: for `env`, or else for every environment
/// that the manifest names.
pub fn validate(dir: &Path, env: Option<&EnvName>) -> Outcome {
    if !dir.is_dir() {
        return Outcome::failed(USAGE, format!("{} is not a directory\n", dir.display()));
    }
    let manifest = match read(&dir.join(FILE_NAME), FILE_NAME)
        .and_then(|bytes| bytes.map(|bytes| parse(bytes, FILE_NAME)).transpose())
    {
        Ok(manifest) => manifest,
        Err(problems) => return Outcome::problems(&problems),
    };
    if manifest.is_none()
        && let Some(wrong) = ["berth.yml", "Berth.yaml", ".berth.yaml"].iter().find(|name| dir.join(name).exists())
    {
        return Outcome::failed(FAILED, format!("{wrong}: the manifest must be called {FILE_NAME}\n"));
    }
    let environments: Vec<Option<EnvName>> = match (env, &manifest) {
        (Some(env), _) => vec![Some(env.clone())],
        (None, Some(manifest)) => std::iter::once(None).chain(manifest.environments().cloned().map(Some)).collect(),
        (None, None) => vec![None],
    };
    let mut output = heading(manifest.as_ref());
    for env in environments {
        match describe(dir, manifest.as_ref(), env.as_ref()) {
            Ok(text) => output.push_str(&text),
            Err(problems) => return Outcome::problems(&problems),
        }
    }
    Outcome { output, errors: String::new(), status: 0 }
}

fn heading(manifest: Option<&Manifest>) -> String {
    match manifest.map(Manifest::app) {
        None => format!("There is no {FILE_NAME}; the remote says which app it is.\n"),
        Some(None) => format!("{FILE_NAME} is valid.\n"),
        Some(Some(app)) => format!("{FILE_NAME} is valid: {app}\n"),
    }
}

/// What one environment comes to; `None` is any that the manifest does not name.
fn describe(dir: &Path, manifest: Option<&Manifest>, env: Option<&EnvName>) -> Result<String, Vec<Problem>> {
    let definition = match (manifest, env) {
        (Some(manifest), Some(env)) => manifest.for_environment(env),
        (Some(manifest), None) => manifest.for_others(),
        (None, _) => Definition::default(),
    };
    let root = root_directory(dir, &definition.build.root)?;
    let procfile = read(&root.join(PROCFILE), PROCFILE)?.map(parse_procfile).transpose()?;
    let from_procfile = definition.processes.is_empty() && procfile.is_some();
    let definition = definition.with_procfile(procfile.as_deref().unwrap_or_default());
    let mut out = match env {
        Some(env) => format!("{env}:\n"),
        None if manifest.is_some_and(|manifest| manifest.environments().next().is_some()) => {
            "any other environment:\n".to_owned()
        }
        None => String::new(),
    };
    for (name, process) in &definition.processes {
        let spec = process.to_spec(name, &Defaults::default());
        out.push_str(&format!("  {}{}\n", line(name, &spec), if from_procfile { "  (Procfile)" } else { "" }));
    }
    if definition.processes.is_empty() {
        out.push_str("  the buildpack says what to run: neither file names a process\n");
    }
    if let Some(release) = &definition.release {
        out.push_str(&format!("  release phase: {release}\n"));
    }
    if !definition.domains.is_empty() {
        out.push_str(&format!("  domains: {}\n", definition.domains.join(", ")));
    }
    Ok(out)
}

fn line(name: &ProcessType, spec: &ProcessSpec) -> String {
    let cores = f64::from(spec.cpu_millis) / 1000.0;
    format!("{name} ×{}  {cores} cpu, {}  {}", spec.replicas, format_memory(spec.memory), spec.command)
}

/// `build.root` below `dir`; through no symbolic link, as the server has it too.
fn root_directory(dir: &Path, root: &str) -> Result<std::path::PathBuf, Vec<Problem>> {
    let mut path = dir.to_owned();
    for part in root.split('/').filter(|part| !part.is_empty()) {
        path.push(part);
        if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            let message = format!("`build.root` is {root}, and there is no such directory");
            return Err(vec![Problem::of_file(FILE_NAME, message, Some("correct the path, or remove `build.root`"))]);
        }
    }
    Ok(path)
}

/// The file's bytes, one more than is allowed at most; `None` if there is none. A link is refused, as in a push.
fn read(path: &Path, name: &str) -> Result<Option<Vec<u8>>, Vec<Problem>> {
    let refuse = |message: String, advice| Err(vec![Problem::of_file(name, message, advice)]);
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return refuse(format!("cannot be looked at: {error}"), None),
        Ok(metadata) if metadata.is_symlink() => {
            return refuse("is a symbolic link".into(), Some("put the file itself there; links are not followed"));
        }
        Ok(metadata) if !metadata.is_file() => return refuse("is not a file".into(), None),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    match fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) => refuse(format!("cannot be read: {error}"), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn validated(files: &[(&str, &str)], env: Option<&str>) -> Outcome {
        validate(directory(files).path(), env.map(|name| name.parse().unwrap()).as_ref())
    }

    #[test]
    fn a_valid_directory_is_described() {
        let manifest = "app: acme/shop\nprocesses: {web: {command: node server.js, cpu: 0.5}, worker: node w.js}\nrelease: node m.js\nenvironments:\n  prod: {processes: {web: {replicas: 4}}, domains: [shop.example.com]}\n";
        let outcome = validated(&[(FILE_NAME, manifest)], None);
        assert_eq!((outcome.status, outcome.errors.as_str()), (0, ""));
        let want = "\
berth.yaml is valid: acme/shop
any other environment:
  web ×1  0.5 cpu, 512Mi  node server.js
  worker ×1  1 cpu, 512Mi  node w.js
  release phase: node m.js
prod:
  web ×4  0.5 cpu, 512Mi  node server.js
  worker ×1  1 cpu, 512Mi  node w.js
  release phase: node m.js
  domains: shop.example.com
";
        assert_eq!(outcome.output, want);
        let only = validated(&[(FILE_NAME, manifest)], Some("prod")).output;
        assert!(only.contains("prod:") && !only.contains("any other"), "{only}");
    }

    #[test]
    fn the_procfile_of_the_build_root_counts() {
        let files = [(FILE_NAME, "build: {root: services/web}"), ("services/web/Procfile", "web: run\nclock: tick\n")];
        let outcome = validated(&files, None);
        let want = "berth.yaml is valid.\n  clock ×0  1 cpu, 512Mi  tick  (Procfile)\n  web ×1  1 cpu, 512Mi  run  (Procfile)\n";
        assert_eq!(outcome.output, want);
        assert_eq!(validated(&files[..1], None).status, FAILED);
    }

    #[test]
    fn nothing_at_all_is_valid_too() {
        let outcome = validated(&[], None);
        assert_eq!(outcome.status, 0, "{}", outcome.errors);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[(FILE_NAME, "aap: x")], "did you mean `app`?"),
            (&[("Procfile", "web")], "Procfile:1:1: this line is not"),
            (&[("berth.yml", "app: a/b")], "must be called berth.yaml"),
            (&[(FILE_NAME, &"a".repeat(MAX_BYTES + 10))], "at most 65536"),
        ];
        for (files, message) in cases {
            let outcome = validated(files, None);
            assert_eq!(outcome.status, FAILED);
            assert!(outcome.errors.contains(message), "{}", outcome.errors);
        }
        assert_eq!(validate(Path::new("/nonexistent/berth"), None).status, USAGE);
    }

    #[test]
    fn links_are_not_followed() {
        let dir = directory(&[("real.yaml", "app: a/b"), ("real/Procfile", "web: x")]);
        std::os::unix::fs::symlink("real.yaml", dir.path().join(FILE_NAME)).unwrap();
        assert!(validate(dir.path(), None).errors.contains("symbolic link"));
        fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("linked")).unwrap();
        fs::write(dir.path().join(FILE_NAME), "build: {root: linked}").unwrap();
        assert!(validate(dir.path(), None).errors.contains("no such directory"));
    }
}
