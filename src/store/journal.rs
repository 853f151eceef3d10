//! What is about to be written, in a file of its own.
//!
//! Every group of commits, with the seal of the store after it, is made durable here before the database is touched. So a group that failed
//! can be taken back without the database that has just failed, and one that was put back to an older state is noticed. When the
//! store is opened, the newest group is done again if the database holds less than all of it: it only writes whole values, so doing it twice
//! is doing it once. There are two files, written in turn: the one that a power loss tears was not yet the database's business, and
//! the other one still says what was acknowledged before.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::{
    Revision,
    disk::Changes,
    durable::Durable,
    seal::{Damage, Seal},
};

/// Names of the files, in the store's directory.
pub const FILES: [&str; 2] = ["journal.0", "journal.1"];
/// Bytes before the contents: their SHA-256 in hexadecimal, a space, their length in 20 digits, a newline.
const HEAD: usize = 64 + 1 + 20 + 1;

/// The newest group of commits, and what the store is after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub seal: Seal,
    pub changes: Changes,
}

/// The journal, open for writing.
pub struct Journal {
    files: [File; 2],
    next: usize,
    /// The next file may hold some or all of a group whose writing failed.
    half_written: bool,
}

impl Journal {
    /// The newest whole group; `None` when there is no journal.
    ///
    /// # Errors
    /// [`Damage`] when there is one and nothing of it is whole; else the disk's.
    pub fn read(directory: &Path) -> anyhow::Result<Option<Group>> {
        Ok(newest(directory)?.map(|(group, _)| group))
    }

    /// Opens the journal; makes it, with a group that changes nothing, if it is not there.
    ///
    /// # Errors
    /// The disk's.
    pub fn ensure(directory: &Path, seal: &Seal, durable: &mut dyn Durable) -> anyhow::Result<Self> {
        let newest = newest(directory)?;
        let open = |name| File::options().create(true).truncate(false).write(true).open(directory.join(name));
        let files = [open(FILES[0])?, open(FILES[1])?];
        let mut journal = Self { files, next: newest.as_ref().map_or(0, |(_, slot)| 1 - slot), half_written: false };
        if newest.is_none() {
            journal.write(seal, &Changes::new(), durable)?;
        }
        File::open(directory)?.sync_all()?;
        Ok(journal)
    }

    /// Makes a group durable that is to be written next.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&mut self, seal: &Seal, changes: &Changes, durable: &mut dyn Durable) -> io::Result<()> {
        let contents = encode(seal, changes)?;
        let head = format!("{} {:020}\n", hex::encode(Sha256::digest(&contents)), contents.len());
        let file = &self.files[self.next];
        // Never shortened: as long as it need not grow, syncing it costs one write.
        self.half_written = true;
        file.write_all_at(&[head.as_bytes(), &contents].concat(), 0)?;
        durable.sync_journal(file)?;
        self.half_written = false;
        self.next = 1 - self.next;
        Ok(())
    }

    /// Makes sure that what [`Self::write`] was given last is never done: a group that could not be written is removed, which takes no room;
    /// one that is there is followed by `undo`, with the seal of the store after it.
    ///
    /// # Errors
    /// The disk's; then the group may be found by the next start, or not.
    pub fn take_back(&mut self, seal: &Seal, undo: &Changes, durable: &mut dyn Durable) -> io::Result<()> {
        if !self.half_written {
            return self.write(seal, undo, durable);
        }
        let file = &self.files[self.next];
        file.set_len(0)?;
        durable.sync_journal(file)?;
        self.half_written = false;
        Ok(())
    }
}

fn newest(directory: &Path) -> anyhow::Result<Option<(Group, usize)>> {
    let (mut found, mut there) = (None::<(Group, usize)>, false);
    for (slot, name) in FILES.iter().enumerate() {
        let path = directory.join(name);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            bytes => bytes.with_context(|| format!("cannot read {}", path.display()))?,
        };
        // One that was made and not yet written to is as good as none.
        there |= !bytes.is_empty();
        let order = |group: &Group| (group.seal.revision, group.seal.version);
        if let Some(group) = decode(&bytes)
            && found.as_ref().is_none_or(|(best, _)| order(best) <= order(&group))
        {
            found = Some((group, slot));
        }
    }
    if there && found.is_none() {
        let names = FILES.map(|name| directory.join(name).display().to_string()).join(" and ");
        bail!(Damage::File(format!("its journal ({names}) is damaged")));
    }
    Ok(found)
}

fn encode(seal: &Seal, changes: &Changes) -> io::Result<Vec<u8>> {
    let mut contents = serde_json::to_vec(seal)?;
    contents.push(b'\n');
    let mut part = |bytes: &[u8]| {
        contents.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        contents.extend_from_slice(bytes);
    };
    for (key, value) in changes {
        part(key.as_bytes());
        match value {
            Some((value, revision)) => {
                part(&revision.0.to_be_bytes());
                part(value);
            }
            // No revision: deleted.
            None => part(b""),
        }
    }
    Ok(contents)
}

fn decode(bytes: &[u8]) -> Option<Group> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let (hash, length) = std::str::from_utf8(head).ok()?.trim_end().split_once(' ')?;
    let contents = rest.get(..length.parse().ok()?)?;
    if hex::encode(Sha256::digest(contents)) != hash {
        return None;
    }
    let end = contents.iter().position(|byte| *byte == b'\n')?;
    let seal = serde_json::from_slice(&contents[..end]).ok()?;
    let (mut rest, mut changes) = (&contents[end + 1..], Changes::new());
    while !rest.is_empty() {
        let key = String::from_utf8(part(&mut rest)?).ok()?;
        let revision = part(&mut rest)?;
        let value = match <[u8; 8]>::try_from(revision.as_slice()) {
            Ok(revision) => Some((part(&mut rest)?, Revision(u64::from_be_bytes(revision)))),
            Err(_) => None,
        };
        changes.insert(key, value);
    }
    Some(Group { seal, changes })
}

fn part(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut length = [0; 8];
    rest.read_exact(&mut length).ok()?;
    let (part, after) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(length)).ok()?)?;
    *rest = after;
    Some(part.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;

    impl Durable for Plain {
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn group(revision: u64) -> Group {
        let seal = Seal { revision: Revision(revision), ..Seal::empty(2) };
        let value = (vec![7; revision as usize * 100], Revision(revision));
        Group { seal, changes: Changes::from([("a".into(), Some(value)), ("b".into(), None)]) }
    }

    #[test]
    fn one_group_is_always_whole() {
        let directory = tempfile::tempdir().unwrap();
        let read = || Journal::read(directory.path());
        assert_eq!(read().unwrap(), None);
        let mut journal = Journal::ensure(directory.path(), &Seal::empty(2), &mut Plain).unwrap();
        // Longer and shorter ones in turn.
        for revision in [1, 5, 2, 9, 10] {
            let group =
                Group { seal: Seal { revision: Revision(revision * 10), ..group(revision).seal }, ..group(revision) };
            journal.write(&group.seal, &group.changes, &mut Plain).unwrap();
        }
        let newest = read().unwrap().unwrap();
        assert_eq!((newest.seal.revision, &newest.changes), (Revision(100), &group(10).changes));
        let path = directory.path().join(FILES[1 - journal.next]);
        let whole = fs::read(&path).unwrap();
        for length in [0, 10, 90, 200, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read().unwrap().unwrap().seal.revision, Revision(90), "{length}");
        }
        for name in FILES {
            fs::write(directory.path().join(name), b"nothing").unwrap();
        }
        assert!(read().unwrap_err().to_string().contains("damaged"));
    }
}
