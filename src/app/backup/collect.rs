//! Taking a backup.
//!
//! Consistent without stopping anything: branches are read first, then the records (all of one moment), then the pins of builds up
//! to the newest build in those records. Every commit that a record names is then in the backup, and no branch is ahead of the records: a push
//! that ends in between is not in it, and can be pushed again after a restore. Objects, keys and blobs never change once written. An
//! environment that is destroyed meanwhile is left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};

use super::{
    super::{cli::Place, config::Config, data_dir::DataDir},
    archive::Writer,
};
use crate::{
    control::client,
    domain::{BuildNumber, DomainClaim, EnvRef, Environment, ImageRef, Release, Timestamp},
    git::{Git, PINS, Refs, Repositories},
    plan::retention,
    registry::{RegistryFiles, StoredImage},
    store::{Entry, Record, Snapshot, Store, open_store},
};

/// Writes a backup to `output`: a file (not one that is there), `-` for standard output, else a name with the date in this directory.
pub(in super::super) fn run(place: &Place, output: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let config = place.load()?;
    let began = std::time::Instant::now();
    let now = Timestamp::now();
    if output.as_deref() == Some(Path::new("-")) {
        let stdout = io::stdout().lock();
        let (mut stdout, summary, whole) = write(&config, io::BufWriter::new(stdout), now)?;
        stdout.flush()?;
        eprintln!("{summary}");
        return Ok(ended(whole));
    }
    let path =
        output.unwrap_or_else(|| PathBuf::from(format!("berth-backup-{}.tar.gz", now.strftime("%Y%m%dT%H%M%SZ"))));
    let path = std::path::absolute(path)?;
    if path.exists() {
        bail!("{} is there already; name another file with --output", path.display());
    }
    let directory = path.parent().context("the output is no file")?;
    // Under another name, with mode 0600, until it is whole and on disk.
    let temporary = tempfile::Builder::new().prefix(".berth-backup-").tempfile_in(directory);
    let mut temporary = temporary.with_context(|| format!("cannot write into {}", directory.display()))?;
    let (_, summary, whole) = write(&config, io::BufWriter::new(&mut temporary), now)?;
    temporary.as_file().sync_all()?;
    let size = temporary.as_file().metadata()?.len();
    temporary.persist_noclobber(&path).with_context(|| format!("cannot make {}", path.display()))?;
    fs::File::open(directory)?.sync_all()?;
    println!(
        "{}: {summary}, {:.1} MiB in {:.1} s",
        path.display(),
        size as f64 / 1_048_576.0,
        began.elapsed().as_secs_f64()
    );
    Ok(ended(whole))
}

/// So that whoever takes backups by the clock notices one that lacks something.
fn ended(whole: bool) -> ExitCode {
    if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes everything; what it came to, in words, and whether nothing is missing.
fn write<W: Write>(config: &Config, to: W, now: Timestamp) -> anyhow::Result<(W, String, bool)> {
    let data = &config.data_dir;
    if !data.join("instance").exists() {
        bail!("{} is not a data directory of Berth; name it with --data-dir", data.display());
    }
    let repositories = Repositories::new(data.join("repositories"));
    // What the records name must still be there when it is read.
    let held = client::hold(&config.control_socket())?;
    let source = Source::open(config, held)?;
    let before = branches(&repositories)?;
    let mut snapshot = source.snapshot()?;
    let mut writer = Writer::new(to, now);
    writer.file("instance", &data.join("instance"))?;
    for entry in fs::read_dir(data.join("keys"))? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| path.is_file()) {
            writer.file(&format!("keys/{name}"), &path)?;
        }
    }
    let mut environments: Vec<Environment> = records(&snapshot)?;
    let git = Git { binary: Git::find()?, hooks: data.join("hooks"), max_input: config.git.max_input_size.0 };
    let mut destroyed = BTreeSet::new();
    for env in &environments {
        match repository(&mut writer, &git, &repositories, env, before.get(&env.name)) {
            Err(_) if !source.still_has(env)? => drop(destroyed.insert(env.name.clone())),
            written => written?,
        }
    }
    // As if it had been taken a moment later. What was written of them is not restored, since no record names it.
    snapshot.entries.retain(|entry| !is_of(entry, &destroyed));
    environments.retain(|env| !destroyed.contains(&env.name));
    let mut pieces = writer.pieces("store");
    pieces.write_all(&snapshot.to_lines()?)?;
    pieces.finish()?;
    let (images, missing) = if config.registry.managed {
        images(&mut writer, &RegistryFiles::new(&data.join("registry")), &wanted(&snapshot, &environments)?)?
    } else {
        (0, Vec::new())
    };
    for what in &missing {
        eprintln!(" !     {what}");
    }
    let summary = format!(
        "{} records, {} repositories, {images} images{}",
        snapshot.entries.len(),
        environments.len(),
        if config.registry.managed { "" } else { " (the registry is not Berth's: back it up by itself)" }
    );
    let whole = missing.is_empty();
    Ok((writer.finish(missing)?, summary, whole))
}

/// Where the records are read.
enum Source {
    /// The server, which keeps collections away for as long as the connection lasts.
    Server(PathBuf, #[expect(dead_code, reason = "held for its drop")] UnixStream),
    /// No server runs, and none can start meanwhile.
    Files(Store, #[expect(dead_code, reason = "held for its lock")] DataDir),
}

impl Source {
    fn open(config: &Config, held: Option<UnixStream>) -> anyhow::Result<Self> {
        if let Some(held) = held {
            return Ok(Self::Server(config.control_socket(), held));
        }
        let data = DataDir::open(&config.data_dir)?;
        Ok(Self::Files(open_store(&data.join("store"))?, data))
    }

    fn snapshot(&self) -> anyhow::Result<Snapshot> {
        match self {
            Self::Server(socket, _) => {
                let lines = client::snapshot(socket)?.context("the server has ended; take the backup again")?;
                Snapshot::from_lines(lines.as_slice())
            }
            Self::Files(store, _) => Ok(tokio::runtime::Runtime::new()?.block_on(store.snapshot())?),
        }
    }

    /// Whether this environment, and not another one of its name, is there.
    fn still_has(&self, env: &Environment) -> anyhow::Result<bool> {
        let now: Vec<Environment> = records(&self.snapshot()?)?;
        Ok(now.iter().any(|other| other.name == env.name && other.created_at == env.created_at))
    }
}

/// Whether a record belongs to one of these environments.
fn is_of(entry: &Entry, environments: &BTreeSet<EnvRef>) -> bool {
    let Some((kind, key)) = entry.key.split_once('/') else { return false };
    if kind == DomainClaim::KIND {
        let claim = serde_json::from_slice::<DomainClaim>(&entry.value);
        return claim.is_ok_and(|claim| environments.contains(&claim.env));
    }
    let is_below = |rest: &str| rest.is_empty() || rest.starts_with('/');
    environments.iter().any(|env| key.strip_prefix(&env.to_string()).is_some_and(is_below))
}

fn records<R: Record>(snapshot: &Snapshot) -> anyhow::Result<Vec<R>> {
    let prefix = format!("{}/", R::KIND);
    let found = snapshot.entries.iter().filter(|entry| entry.key.starts_with(&prefix));
    found
        .map(|entry| serde_json::from_slice(&entry.value).with_context(|| format!("{} cannot be read", entry.key)))
        .collect()
}

fn branches(repositories: &Repositories) -> anyhow::Result<BTreeMap<EnvRef, Refs>> {
    let mut found = BTreeMap::new();
    for env in repositories.environments().context("the repositories cannot be listed")? {
        let mut refs = repositories.refs(&env)?;
        refs.targets.retain(|name, _| !name.starts_with(PINS));
        found.insert(env, refs);
    }
    Ok(found)
}

fn repository<W: Write>(
    writer: &mut Writer<W>,
    git: &Git,
    repositories: &Repositories,
    env: &Environment,
    branches: Option<&Refs>,
) -> anyhow::Result<()> {
    let name = &env.name;
    let mut refs = branches.cloned().unwrap_or_default();
    let now = repositories.refs(name)?;
    let known = |pin: &str| pin.parse::<BuildNumber>().is_ok_and(|number| number.0 <= env.last_build);
    let pins = now.targets.into_iter().filter(|(ref_name, _)| ref_name.strip_prefix(PINS).is_some_and(known));
    refs.targets.extend(pins);
    writer.bytes(&format!("repositories/{name}.git/refs.json"), &serde_json::to_vec(&refs)?)?;
    let wanted: BTreeSet<String> = refs.targets.into_values().collect();
    if !wanted.is_empty() {
        let mut pieces = writer.pieces(&format!("repositories/{name}.git/pack"));
        git.pack(&repositories.path(name), &wanted, &mut pieces)
            .with_context(|| format!("the repository of {name} cannot be packed"))?;
        pieces.finish()?;
    }
    Ok(())
}

/// The images of releases that run or may be rolled back to.
fn wanted(snapshot: &Snapshot, environments: &[Environment]) -> anyhow::Result<Vec<(ImageRef, EnvRef)>> {
    let mut of_env: BTreeMap<EnvRef, Vec<Release>> = BTreeMap::new();
    for release in records::<Release>(snapshot)? {
        of_env.entry(release.env.clone()).or_default().push(release);
    }
    let mut found = Vec::new();
    for env in environments {
        let releases = of_env.remove(&env.name).unwrap_or_default();
        found.extend(retention::images(&releases).into_values().map(|image| (image.clone(), env.name.clone())));
    }
    Ok(found)
}

/// Adds the images; how many, and what is missing.
fn images<W: Write>(
    writer: &mut Writer<W>,
    files: &RegistryFiles,
    wanted: &[(ImageRef, EnvRef)],
) -> anyhow::Result<(usize, Vec<String>)> {
    let (mut images, mut blobs, mut missing) = (Vec::<StoredImage>::new(), BTreeSet::new(), Vec::new());
    for (image, env) in wanted {
        if images.iter().any(|stored| stored.image == *image) {
            continue;
        }
        let Some(stored) = files.image(image)? else {
            missing.push(format!("the image {image} of {env} is not in the registry; it is not in the backup either"));
            continue;
        };
        blobs.extend(stored.blobs.iter().cloned());
        blobs.insert(image.digest.clone());
        images.push(stored);
    }
    writer.bytes("registry/images.json", &serde_json::to_vec(&images)?)?;
    for digest in &blobs {
        writer.file(&format!("registry/blobs/{}", digest.hex()), &files.blob(digest))?;
    }
    Ok((images.len(), missing))
}
