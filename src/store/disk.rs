//! The store on disk: a redb database that is checked when it is opened and durable when a write returns.
//!
//! What was read is compared with its [`Seal`], of which the [`Journal`] has a copy: a database that is whole and not the newest is
//! noticed. What a write that failed left behind is taken back in the journal.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use anyhow::{Context, anyhow, bail};
use redb::Database;
use rustix::fs::{Advice, fadvise};

use super::{
    Revision, Write,
    durable::{Durable, MakeDurable},
    journal::{Group, Journal},
    load::{FILE, Loaded, META, OPEN_DEADLINE, RECORDS, SEAL, in_time, load},
    migrations::{self, Contents, Migration},
    seal::{Damage, Found, Seal, Sum, judge},
};

/// Name of the mark of a store that is being made in place.
const MAKING: &str = "making";
/// What a file system has in its root.
const LOST_AND_FOUND: &str = "lost+found";

/// The changes of one batch: the new value of each key, or none.
pub type Changes = BTreeMap<String, Option<(Vec<u8>, Revision)>>;

/// An open database. Whoever holds it is the only one.
pub struct Disk {
    database: Database,
    durable: Box<dyn Durable>,
    journal: Journal,
    /// Of the last batch that is on disk.
    pub seal: Seal,
}

impl Disk {
    /// Opens (or makes) the database in `directory`, checks it, and brings it to the newest version. Returns it with all records.
    ///
    /// # Errors
    /// When it is damaged or of a later version (the chain holds a [`Damage`]), when another process has it open, or when the disk
    /// fails.
    pub fn open(directory: &Path, steps: &[Migration], durable: MakeDurable) -> anyhow::Result<(Self, Contents)> {
        let open = || {
            if is_unfinished(directory)? {
                Self::make_in_place(directory, steps, durable)?;
            } else if is_vacant(directory)? {
                Self::make(directory, steps, durable)?;
            } else {
                expect_file(directory)?;
            }
            Self::open_checked(directory, steps, durable)
        };
        open().map_err(|error| refusal(directory, error))
    }

    /// Makes an empty store beside its place and moves it there when it is on disk: no power loss leaves half of one.
    fn make(directory: &Path, steps: &[Migration], durable: MakeDurable) -> anyhow::Result<()> {
        let mut name = directory.file_name().context("a store needs a directory of its own")?.to_owned();
        name.push(".new");
        let (aside, parent) = (directory.with_file_name(name), directory.parent().context("a store has a place")?);
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        Self::open_checked(&aside, steps, durable)?.0.close();
        match fs::rename(&aside, directory) {
            // A file system of its own is mounted there.
            Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices) => {
                fs::remove_dir_all(&aside)?;
                Self::make_in_place(directory, steps, durable)?;
            }
            moved => moved?,
        }
        File::open(parent)?.sync_all()?;
        Ok(())
    }

    /// Makes an empty store where it stays. A mark, which is there before anything else and goes last, says that nothing has ever been
    /// served from it: should the power fail meanwhile, the next one to open it begins anew.
    fn make_in_place(directory: &Path, steps: &[Migration], durable: MakeDurable) -> anyhow::Result<()> {
        let (mark, place) = (directory.join(MAKING), File::open(directory)?);
        File::create(&mark)?.sync_all()?;
        place.sync_all()?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if [MAKING, LOST_AND_FOUND].iter().any(|kept| entry.file_name() == *kept) {
                continue;
            }
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
        Self::open_checked(directory, steps, durable)?.0.close();
        fs::remove_file(&mark)?;
        place.sync_all()?;
        Ok(())
    }

    fn open_checked(directory: &Path, steps: &[Migration], durable: MakeDurable) -> anyhow::Result<(Self, Contents)> {
        fs::create_dir_all(directory)?;
        let group = Journal::read(directory)?;
        forget_cached(directory)?;
        let Loaded { database, mut contents, seal } = load(directory)?;
        let acknowledged = group.as_ref().map(|group| group.seal);
        let found = look(&contents, seal, acknowledged);
        let redo = group.filter(|group| completes(&found, &contents, group));
        let seal = match &redo {
            Some(group) => group.seal,
            None => judge(&found, migrations::newest(steps))?,
        };
        // A store of version 1 has no revision but those of its records.
        let seal = Seal { revision: seal.revision.max(found.newest), ..seal };
        let mut durable = durable(directory)?;
        let journal = Journal::ensure(directory, &seal, durable.as_mut())?;
        let mut disk = Self { database, durable, journal, seal };
        if let Some(group) = redo {
            tracing::info!(revision = group.seal.revision.0, "finishing the commits that a crash interrupted");
            disk.apply(&group.changes, group.seal)?;
            apply_to(&mut contents, group.changes);
        }
        disk.migrate(&mut contents, steps)?;
        Ok((disk, contents))
    }

    fn migrate(&mut self, contents: &mut Contents, steps: &[Migration]) -> anyhow::Result<()> {
        let from = self.seal.version;
        for step in migrations::after(steps, from) {
            let failed = || format!("the store cannot be brought to version {} ({})", step.to, step.what);
            let writes = (step.step)(contents).with_context(failed)?;
            let revision = Revision(self.seal.revision.0 + u64::from(!writes.is_empty()));
            let changes = writes.into_iter().map(|write| match write {
                Write::Put(key, value) => (key, Some((value, revision))),
                Write::Delete(key) => (key, None),
            });
            let changes: Changes = changes.collect();
            let seal = Seal { version: step.to, ..resealed(self.seal, contents, &changes, revision) };
            self.write(&changes, seal).with_context(failed)?;
            if !contents.is_empty() {
                tracing::info!(version = step.to, what = step.what, "the store was brought to a new version");
            }
            apply_to(contents, changes);
        }
        Ok(())
    }

    /// Writes all changes with their seal, durably and as one. After an error the database must be opened anew, since what it holds in memory
    /// may not be on disk; and the changes may or may not be found then, unless they are taken back ([`Self::take_back`]).
    pub fn write(&mut self, changes: &Changes, seal: Seal) -> anyhow::Result<()> {
        self.journal.write(&seal, changes, self.durable.as_mut())?;
        self.apply(changes, seal)
    }

    /// After a failed [`Self::write`]: has whoever opens the store next make it what it was before. `undo` has what each of the changed keys
    /// held. It needs the journal alone, and not the database that has just failed. The journal has the room already, unless what was to be deleted
    /// is larger than all that was written before.
    ///
    /// # Errors
    /// The disk's; then it is not known what the next one to open the store finds.
    pub fn take_back(&mut self, undo: &Changes, revision: Revision) -> io::Result<()> {
        let seal = Seal { revision, ..self.seal };
        self.journal.take_back(&seal, undo, self.durable.as_mut())
    }

    fn apply(&mut self, changes: &Changes, seal: Seal) -> anyhow::Result<()> {
        // A panic of the database is a failed write like any other.
        let committed = catch_unwind(AssertUnwindSafe(|| self.commit(changes, seal)));
        committed.map_err(|_| anyhow!("the database panicked; its message is in the log"))??;
        self.durable.sync()?;
        self.seal = seal;
        Ok(())
    }

    fn commit(&self, changes: &Changes, seal: Seal) -> anyhow::Result<()> {
        // Durable when it is committed: that is redb's own default.
        let writing = self.database.begin_write()?;
        {
            let mut records = writing.open_table(RECORDS)?;
            for (key, value) in changes {
                match value {
                    Some((value, revision)) => records.insert(key.as_str(), (revision.0, value.as_slice()))?,
                    None => records.remove(key.as_str())?,
                };
            }
            writing.open_table(META)?.insert(SEAL, serde_json::to_vec(&seal)?.as_slice())?;
        }
        Ok(writing.commit()?)
    }

    /// Lets go of the database.
    pub fn close(self) {
        let ended = in_time("store-close", OPEN_DEADLINE, move || Ok(self.database.close()?));
        if let Err(error) = ended {
            tracing::warn!(error = format!("{error:#}"), "the store was not closed in order; the next start checks it");
        }
    }
}

fn look(contents: &Contents, seal: Option<Seal>, acknowledged: Option<Seal>) -> Found {
    let (mut newest, mut sum) = (Revision(0), Sum::default());
    for (key, (value, revision)) in contents {
        newest = newest.max(*revision);
        sum.add(Sum::of(key, *revision, value));
    }
    Found { seal, acknowledged, newest, count: contents.len() as u64, sum }
}

/// Whether the database was interrupted in the middle of this group, and doing it again makes it whole.
fn completes(found: &Found, contents: &Contents, group: &Group) -> bool {
    let is_whole = found.seal.is_some_and(|seal| {
        seal.revision >= group.seal.revision
            && seal.version >= group.seal.version
            && (seal.count, seal.sum) == (found.count, found.sum)
    });
    let whole = Seal { version: group.seal.version, revision: group.seal.revision, count: found.count, sum: found.sum };
    !is_whole && resealed(whole, contents, &group.changes, group.seal.revision) == group.seal
}

/// The seal after these changes.
pub fn resealed(seal: Seal, contents: &Contents, changes: &Changes, revision: Revision) -> Seal {
    let mut seal = Seal { revision, ..seal };
    for (key, new) in changes {
        let old = contents.get(key).map(|(value, revision)| Sum::of(key, *revision, value));
        seal.replace(old, new.as_ref().map(|(value, revision)| Sum::of(key, *revision, value)));
    }
    seal
}

/// Makes the changes in memory.
pub fn apply_to(contents: &mut Contents, changes: Changes) {
    for (key, value) in changes {
        match value {
            Some(value) => contents.insert(key, value),
            None => contents.remove(&key),
        };
    }
}

/// Says what the operator can do.
fn refusal(directory: &Path, error: anyhow::Error) -> anyhow::Error {
    let place = directory.display();
    let data = directory.parent().unwrap_or(directory).display();
    match error.downcast_ref::<Damage>() {
        Some(Damage::Newer { .. }) => error.context(format!("the store in {place} cannot be opened")),
        Some(_) => error.context(format!(
            "the store in {place} is damaged and not served; apps that run go on running. The way out: keep {data} aside (mv {data} \
             {data}.damaged) and put a backup in its place with `berth restore FILE`; what was changed after that backup is lost"
        )),
        None => error.context(format!("the store in {place} cannot be opened")),
    }
}

/// Whether there is no store at all: nothing in the directory but what the file system itself puts there, or no directory.
///
/// # Errors
/// When the directory cannot be read.
pub fn is_vacant(directory: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        if entry?.file_name() != LOST_AND_FOUND {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the store was being made in place, and that was cut short. One with commits is none of these, whatever mark is put there.
fn is_unfinished(directory: &Path) -> io::Result<bool> {
    let is_used = || matches!(Journal::read(directory), Ok(Some(group)) if group.seal.revision > Revision(0));
    Ok(directory.join(MAKING).try_exists()? && !is_used())
}

/// What is not made anew has a database: an empty store must never be served in place of one that is lost or of another form.
fn expect_file(directory: &Path) -> anyhow::Result<()> {
    let file = directory.join(FILE);
    if file.exists() {
        return Ok(());
    }
    if directory.join("db").exists() {
        bail!(
            "it was written by an earlier berth, in a form that this one does not read. Make a backup with that one (`berth backup`), \
             move the data directory aside, and put the backup in its place with `berth restore FILE`"
        );
    }
    bail!(Damage::File(format!("its file {} is missing", file.display())))
}

/// Has the files read from the disk itself: after a write that failed, what the kernel remembers may be what never got there.
fn forget_cached(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fadvise(File::open(entry.path())?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}
