//! Putting a backup into an empty data directory.
//!
//! All of it happens in `DATA/restoring`, a name that `berth serve` refuses to start beside. Only when everything has been checked and is on
//! disk are the parts moved up; the last step removes the mark. What a restore leaves that was killed is removed by the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Permissions},
    io::{self, BufReader, Read},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::{
    super::{cli::Place, config::Config, data_dir},
    archive,
};
use crate::{
    domain::{Digest, EnvRef, Environment},
    git::{Git, Refs, Repositories},
    registry::{RegistryFiles, StoredImage},
    store::{Record, Snapshot},
};

/// Where it happens, and the mark of a data directory that is not whole.
const RESTORING: &str = "restoring";
/// What may be in a data directory that counts as empty: left by a server that never came up, or put there before.
const HARMLESS: [&str; 4] = ["lock", "stacks", "lost+found", RESTORING];

/// Whether a restore into this directory was interrupted.
pub(in super::super) fn is_interrupted(data: &Path) -> bool {
    data.join(RESTORING).exists()
}

/// Restores `file` (`-`: standard input) into the data directory.
pub(in super::super) fn run(place: &Place, file: &Path) -> anyhow::Result<ExitCode> {
    let config = place.load()?;
    let began = std::time::Instant::now();
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?))
    };
    let (manifest, summary) = into_directory(&config, source)?;
    println!(
        "Restored {summary} of {:.0} (berth {}) into {} in {:.1} s",
        manifest.created_at,
        manifest.berth,
        config.data_dir.display(),
        began.elapsed().as_secs_f64()
    );
    for what in &manifest.missing {
        println!(" !     when the backup was taken, {what}");
    }
    let stacks = config.data_dir.join("stacks");
    if !stacks.join("current.json").exists() {
        println!("Next: scripts/stacks {}, which builds need; then berth serve", stacks.display());
    } else {
        println!("Next: berth serve");
    }
    Ok(ExitCode::SUCCESS)
}

/// The whole way from a backup to a data directory.
pub(super) fn into_directory(config: &Config, from: impl Read) -> anyhow::Result<(archive::Manifest, String)> {
    let data = &config.data_dir;
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    fs::set_permissions(data, Permissions::from_mode(0o700))?;
    let _lock = data_dir::lock(&data.join("lock"), std::time::Duration::ZERO)?;
    clear(data)?;
    let staging = data.join(RESTORING);
    fs::DirBuilder::new().mode(0o700).create(&staging).with_context(|| format!("cannot make {}", staging.display()))?;
    File::open(data)?.sync_all()?;
    let result = (|| {
        let members = staging.join("members");
        fs::create_dir(&members)?;
        let manifest = archive::unpack(from, &members)?;
        let fresh = staging.join("data");
        fs::create_dir(&fresh)?;
        let summary = build(config, &members, &fresh)?;
        sync_tree(&fresh)?;
        publish(&fresh, data)?;
        anyhow::Ok((manifest, summary))
    })();
    match result {
        Ok(done) => {
            fs::remove_dir_all(&staging).context("the restore is whole, but its mark cannot be removed")?;
            File::open(data)?.sync_all()?;
            Ok(done)
        }
        Err(error) => {
            // As empty as before.
            clear(data)?;
            Err(error.context("nothing was restored"))
        }
    }
}

/// Removes what an interrupted restore left. With its mark there nothing has ever been served from the directory; without one, it must be
/// empty.
fn clear(data: &Path) -> anyhow::Result<()> {
    let interrupted = is_interrupted(data);
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name();
        if HARMLESS.iter().any(|harmless| name == *harmless) {
            continue;
        }
        if !interrupted {
            bail!(
                "{} is not empty ({} is there); a backup is restored into an empty directory only: move this one aside first",
                data.display(),
                name.to_string_lossy()
            );
        }
        let kind = entry.file_type()?;
        if kind.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    if interrupted {
        fs::remove_dir_all(data.join(RESTORING))?;
    }
    Ok(())
}

/// Makes a data directory of the members; checks everything that can be.
fn build(config: &Config, members: &Path, fresh: &Path) -> anyhow::Result<String> {
    fs::rename(members.join("instance"), fresh.join("instance")).context("\"instance\" is missing in the backup")?;
    fs::rename(members.join("keys"), fresh.join("keys")).context("\"keys\" are missing in the backup")?;
    for entry in fs::read_dir(fresh.join("keys"))? {
        fs::set_permissions(entry?.path(), Permissions::from_mode(0o600))?;
    }
    let records = joined(&members.join("store")).and_then(|lines| Snapshot::from_lines(BufReader::new(lines)));
    let records = records.context("the records of the backup, \"store\", cannot be read")?;
    records.restore(&fresh.join("store")).context("the records of the backup, \"store\", cannot be written")?;
    let known = records.entries.iter().filter_map(|entry| entry.key.strip_prefix(Environment::KIND)?.strip_prefix('/'));
    let known: BTreeSet<EnvRef> = known.filter_map(|name| name.parse().ok()).collect();
    let repositories = restore_repositories(config, &members.join("repositories"), fresh, &known)?;
    let images = restore_images(&members.join("registry"), &fresh.join("registry"))?;
    Ok(format!("{} records, {repositories} repositories and {images} images", records.entries.len()))
}

/// Numbered pieces, one after the other.
fn joined(directory: &Path) -> anyhow::Result<impl Read> {
    let mut pieces: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
        Err(error) => return Err(error).context("it is not in the backup"),
    };
    pieces.sort();
    let files = pieces.iter().map(File::open).collect::<io::Result<Vec<_>>>()?;
    Ok(files.into_iter().fold(Box::new(io::empty()) as Box<dyn Read>, |all, file| Box::new(all.chain(file))))
}

/// Those of the environments that there are records of: others were destroyed while the backup was taken.
fn restore_repositories(
    config: &Config,
    members: &Path,
    fresh: &Path,
    known: &BTreeSet<EnvRef>,
) -> anyhow::Result<usize> {
    let repositories = Repositories::new(fresh.join("repositories"));
    fs::create_dir(repositories.root())?;
    if !members.exists() {
        return Ok(0);
    }
    let git = Git { binary: Git::find()?, hooks: fresh.join("hooks"), max_input: config.git.max_input_size.0 };
    // Laid out like repositories.
    let mut environments: Vec<EnvRef> = Repositories::new(members).environments()?;
    environments.retain(|env| known.contains(env));
    for env in &environments {
        let member = Repositories::new(members).path(env);
        // As the archive calls it.
        let name = member.strip_prefix(members.parent().unwrap_or(members)).unwrap_or(&member).to_owned();
        restore_repository(&repositories, &git, env, &member)
            .with_context(|| format!("the repository of {env}, {name:?} in the backup, cannot be restored"))?;
    }
    Ok(environments.len())
}

fn restore_repository(repositories: &Repositories, git: &Git, env: &EnvRef, member: &Path) -> anyhow::Result<()> {
    let refs = fs::read(member.join("refs.json")).map_err(anyhow::Error::from);
    let refs: Refs =
        refs.and_then(|text| Ok(serde_json::from_slice(&text)?)).context("its refs.json cannot be read")?;
    let (pack, whole) = (member.join("pack"), member.join("whole.pack"));
    if pack.exists() {
        io::copy(&mut joined(&pack)?, &mut File::create(&whole)?).context("its pack cannot be put together")?;
        // Twice is enough of a large one.
        fs::remove_dir_all(&pack)?;
    }
    repositories.restore(git, env, &refs, whole.exists().then_some(whole.as_path()))?;
    Ok(fs::remove_dir_all(member)?)
}

fn restore_images(members: &Path, directory: &Path) -> anyhow::Result<usize> {
    let list = members.join("images.json");
    if !list.exists() {
        return Ok(0);
    }
    let images = fs::read(&list).map_err(anyhow::Error::from);
    let images: Vec<StoredImage> = images
        .and_then(|text| Ok(serde_json::from_slice(&text)?))
        .context("the images, \"registry/images.json\" in the backup, cannot be read")?;
    let files = RegistryFiles::new(directory);
    let mut blobs = BTreeMap::new();
    for stored in &images {
        blobs.extend(stored.blobs.iter().chain([&stored.image.digest]).map(|digest| (digest.hex(), digest)));
        ensure!(
            is_repository(&stored.image.repository),
            "\"registry/images.json\" in the backup names {:?}, which is no repository",
            stored.image.repository
        );
        files.link(stored)?;
    }
    for (hex, digest) in blobs {
        let (from, to) = (members.join("blobs").join(hex), files.blob(digest));
        let mut hash = Sha256::new();
        io::copy(
            &mut File::open(&from)
                .with_context(|| format!("the blob \"registry/blobs/{hex}\" is not in the backup"))?,
            &mut hash,
        )?;
        ensure!(
            Digest::from_sha256(hash.finalize()) == *digest,
            "the blob \"registry/blobs/{hex}\" in the backup is another one"
        );
        fs::create_dir_all(to.parent().context("a blob has a directory")?)?;
        fs::rename(&from, &to)?;
    }
    Ok(images.len())
}

/// What may become a path: `berth/acme/shop`.
fn is_repository(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.split('/').all(plain)
}

fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { sync_tree(&entry.path())? } else { File::open(entry.path())?.sync_all()? }
    }
    File::open(directory)?.sync_all()
}

/// Moves the parts up. The mark is still there.
fn publish(fresh: &Path, data: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(fresh)? {
        let entry = entry?;
        fs::rename(entry.path(), data.join(entry.file_name()))?;
    }
    File::open(data)?.sync_all()?;
    Ok(())
}
