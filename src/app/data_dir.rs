//! The data directory: made with the right permissions, used by one server at a time, and known by an id that labels everything this
//! server makes on the engine.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

use super::backup;
use crate::{domain::TenantName, store::is_vacant};

/// How long the lock is waited for: a child that a killed server had forked and that has not become its own program yet still holds it.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries to get it.
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// The key that signs project tokens; made when the store is there.
pub(super) const TOKEN_KEY: &str = "keys/token.pk8";

/// Subdirectories that the parts of the server expect.
const SUBDIRECTORIES: [&str; 9] =
    ["repositories", "logs", "builds", "router", "registry", "stacks", "tmp", "keys", "hooks"];

/// The directory, locked for as long as this lives.
pub(super) struct DataDir {
    path: PathBuf,
    instance: String,
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes what is missing, and takes the lock; fails when another server has it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        Self::open_within(path, LOCK_PATIENCE)
    }

    fn open_within(path: &Path, patience: Duration) -> anyhow::Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the data directory {}", path.display()))?;
        // Config values, keys and private code are below.
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
        // Before anything is looked at: whoever holds it may be a restore, or its store may just be made.
        let lock = lock(&path.join("lock"), patience)?;
        if backup::is_interrupted(path) {
            bail!(
                "a restore into {} was interrupted; nothing in it is to be trusted: run `berth restore FILE` again",
                path.display()
            );
        }
        // A new store in place of one that is lost, or whose file system is not mounted, would have everything that runs removed.
        if is_vacant(&path.join("store"))? && was_used(path)? {
            bail!(
                "the store {} is missing or empty, though this data directory was in use. If it is a file system of its own, mount it; else keep \
                 {} aside and put a backup in its place with `berth restore FILE`",
                path.join("store").display(),
                path.display()
            );
        }
        for name in SUBDIRECTORIES {
            fs::create_dir_all(path.join(name))?;
        }
        // What a killed server was in the middle of.
        empty(&path.join("tmp"))?;
        for name in ["", "keys", "hooks", "router", "registry"] {
            remove_temporary(&path.join(name))?;
        }
        Ok(Self { path: path.to_owned(), instance: instance(path)?, _lock: lock })
    }

    /// A place below it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The id of this server; stays the same as long as the directory.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }
}

pub(super) fn lock(path: &Path, patience: Duration) -> anyhow::Result<Flock<File>> {
    let mut options = OpenOptions::new();
    let mut file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
    let deadline = Instant::now() + patience;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                bail!("another `berth serve` uses this data directory ({} is locked); stop it first", path.display())
            }
            Err((_, error)) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        };
        // The kernel wakes nobody at a deadline.
        std::thread::sleep(LOCK_AGAIN);
    }
}

/// Whether a store was served from the data directory: there are repositories, or the keys that are made after the first store.
fn was_used(path: &Path) -> anyhow::Result<bool> {
    Ok(path.join(TOKEN_KEY).exists() || has_tenants(&path.join("repositories"))?)
}

/// Whether anything in the directory has the name of a tenant; a file system's own `lost+found` has not.
fn has_tenants(directory: &Path) -> anyhow::Result<bool> {
    let is_tenant = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<TenantName>().is_ok());
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.any(|entry| entry.is_ok_and(|entry| is_tenant(&entry.file_name())))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
}

fn empty(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let removed =
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.with_context(|| format!("cannot remove {}", entry.path().display()))?;
    }
    Ok(())
}

/// Removes files that were about to be renamed into place, and the directory that the control socket was made in.
fn remove_temporary(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let removed = match entry.file_type()?.is_dir() {
            true if name.starts_with(".control-") => fs::remove_dir_all(entry.path()),
            false if name.starts_with(".tmp") || name.starts_with("routes.json.") => fs::remove_file(entry.path()),
            _ => continue,
        };
        removed.with_context(|| format!("cannot remove {}", entry.path().display()))?;
    }
    Ok(())
}

/// The id in `DATA/instance`, made the first time.
pub(super) fn instance(path: &Path) -> anyhow::Result<String> {
    let file = path.join("instance");
    match fs::read_to_string(&file) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
    let id = format!("{:016x}", rand::random::<u64>());
    let mut temporary = tempfile::NamedTempFile::new_in(path)?;
    writeln!(temporary, "{id}")?;
    temporary.as_file().sync_all()?;
    temporary.persist(&file)?;
    File::open(path)?.sync_all()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_at_a_time_and_one_id_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let left = ["tmp/left", ".tmpAb12", "keys/.tmpCd34", "router/routes.json.77.tmp"];
        let kept = ["router/routes.json", "router/ack.json.78.tmp", "keys/ssh_host"];
        left.iter().chain(&kept).for_each(|name| fs::write(path.join(name), "x").unwrap());
        fs::create_dir(path.join(".control-Ef56")).unwrap();
        let refused = DataDir::open_within(&path, Duration::ZERO).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("another"), "{refused}");
        let id = first.instance().to_owned();
        // It may take a killed server's children a moment to let go.
        let going = std::thread::spawn(move || {
            std::thread::sleep(LOCK_AGAIN * 5);
            drop(first);
        });
        let second = DataDir::open(&path).unwrap();
        going.join().unwrap();
        assert_eq!(second.instance(), id);
        assert!(left.iter().all(|name| !path.join(name).exists()) && !path.join(".control-Ef56").exists());
        assert!(kept.iter().all(|name| path.join(name).exists()));
        assert!(!second.join("tmp").join("left").exists());
        drop(second);
        // A store that is gone, or half a restore, is not begun anew beside what is left.
        fs::create_dir_all(path.join("repositories/lost+found")).unwrap();
        drop(DataDir::open(&path).unwrap());
        fs::create_dir_all(path.join("store/lost+found")).unwrap();
        fs::write(path.join("store/making"), "").unwrap();
        drop(DataDir::open(&path).unwrap());
        fs::remove_file(path.join("store/making")).unwrap();
        for (left, says) in [
            (TOKEN_KEY, "is missing or empty"),
            ("repositories/acme", "is missing or empty"),
            ("restoring", "interrupted"),
        ] {
            fs::create_dir_all(path.join(left)).unwrap();
            let refused = DataDir::open(&path).map(|_| ()).unwrap_err().to_string();
            assert!(refused.contains(says) && refused.contains("berth restore FILE"), "{refused}");
            if left == TOKEN_KEY {
                fs::remove_dir(path.join(left)).unwrap();
            }
        }
    }

    #[test]
    fn a_restore_that_dies_while_a_server_waits_is_not_served() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let restore = lock(&path.join("lock"), Duration::ZERO).unwrap();
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || DataDir::open_within(&path, Duration::from_secs(30)).map(|_| ()).unwrap_err().to_string()
        });
        let has_it_open = || {
            let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
            open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == path.join("lock"))).count() == 2
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !has_it_open() {
            assert!(Instant::now() < deadline, "it does not ask for the lock");
            std::thread::yield_now();
        }
        fs::create_dir(path.join("restoring")).unwrap();
        drop(restore);
        let refused = waiting.join().unwrap();
        assert!(refused.contains("interrupted") && refused.contains("berth restore FILE"), "{refused}");
    }
}
