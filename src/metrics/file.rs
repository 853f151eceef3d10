//! The history on disk: files of an hour, to which full blocks are appended every five minutes, and the rest at the end. A server that is
//! killed loses those minutes; what it was in the middle of writing is cut off at the next start. Nothing is synced: a power cut may
//! lose more, which is of no harm.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    block::Block,
    point::{INTERVAL, KEPT},
};
use crate::domain::EnvRef;

/// What a file begins with; another one is of another version and is removed.
const MAGIC: &[u8; 8] = b"berthm1\n";
/// Ticks of one file.
const TICKS: u32 = 3600 / INTERVAL;
/// Longest record, in bytes: a block of widest numbers, and a name.
const MAX_RECORD: usize = 8 << 10;

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Files {
    directory: PathBuf,
    /// Bytes of all files.
    limit: u64,
}

/// A block, or `None`: what was written of the environment before is not to be remembered.
pub(super) type Entry = (EnvRef, Option<Block>);

impl Files {
    /// The files below `directory`, which is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn open(directory: PathBuf, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, limit })
    }

    fn path(&self, number: u32) -> PathBuf {
        self.directory.join(format!("hour-{number:08}"))
    }

    /// The numbers of the files there are, in order.
    fn numbers(&self) -> io::Result<Vec<u32>> {
        let names = fs::read_dir(&self.directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut numbers: Vec<u32> = names.filter_map(|name| name.strip_prefix("hour-")?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What was written in the last 24 hours, in its order. What is torn is cut off, what is too old removed.
    ///
    /// # Errors
    /// When the directory cannot be read; a file that cannot be is left out with a warning.
    pub(super) fn load(&self, now: u32, mut take: impl FnMut(Entry)) -> io::Result<()> {
        self.remove_old(now, 0)?;
        for number in self.numbers()? {
            let path = self.path(number);
            if let Err(error) = load_file(&path, &mut take) {
                tracing::warn!(%error, path = %path.display(), "a file of metrics cannot be read and is left out");
            }
        }
        Ok(())
    }

    /// Appends entries to the file of this hour.
    ///
    /// # Errors
    /// When they cannot be written; then the file is as it was.
    pub(super) fn append(&self, now: u32, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| write_record(&mut bytes, entry));
        if bytes.is_empty() {
            return Ok(());
        }
        self.remove_old(now, bytes.len() as u64)?;
        let mut file = OpenOptions::new().create(true).append(true).open(self.path(now / TICKS))?;
        let before = file.metadata()?.len();
        if before == 0 {
            bytes.splice(0..0, *MAGIC);
        }
        file.write_all(&bytes).inspect_err(|_| {
            // Half a record would hide what comes after it; if not even that can be undone, the next start cuts it off.
            let _ = file.set_len(before);
        })
    }

    /// Removes files that are too old, of the future, or too much together with `more` bytes.
    fn remove_old(&self, now: u32, more: u64) -> io::Result<()> {
        let (oldest, newest) = (now.saturating_sub(KEPT) / TICKS, now / TICKS);
        let mut kept = Vec::new();
        for number in self.numbers()? {
            match (oldest..=newest).contains(&number) {
                true => kept.push((number, self.path(number).metadata()?.len())),
                false => fs::remove_file(self.path(number))?,
            }
        }
        let mut total = more + kept.iter().map(|(_, size)| size).sum::<u64>();
        for (number, size) in kept.iter().filter(|(number, _)| *number != newest) {
            if total <= self.limit {
                break;
            }
            fs::remove_file(self.path(*number))?;
            total -= size;
        }
        match total <= self.limit {
            true => Ok(()),
            false => Err(io::Error::other("there are more metrics in an hour than may be kept; see metrics.memory")),
        }
    }
}

fn load_file(path: &Path, take: &mut impl FnMut(Entry)) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else { return fs::remove_file(path) };
    while let Some((entry, after)) = read_record(rest) {
        take(entry);
        rest = after;
    }
    if !rest.is_empty() {
        tracing::info!(path = %path.display(), bytes = rest.len(), "what is torn at the end of a file of metrics is cut off");
        File::options().write(true).open(path)?.set_len((bytes.len() - rest.len()) as u64)?;
    }
    Ok(())
}

/// Length and checksum of what follows; length of the name, name, first tick, slots, bytes.
fn write_record(bytes: &mut Vec<u8>, (env, block): &Entry) {
    let (name, mut body) = (env.to_string(), Vec::new());
    body.extend((name.len() as u16).to_le_bytes());
    body.extend(name.as_bytes());
    if let Some(block) = block {
        body.extend(block.start.to_le_bytes());
        body.extend(block.present.to_le_bytes());
        body.extend(&*block.bytes);
    }
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(checksum(&body).to_le_bytes());
    bytes.extend(body);
}

/// `None`: what is there is no whole record.
fn read_record(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let (length, rest) = number(bytes)?;
    let (sum, rest) = number(rest)?;
    let (body, after) = rest.split_at_checked(length as usize).filter(|(body, _)| body.len() <= MAX_RECORD)?;
    if checksum(body) != sum {
        return None;
    }
    let (length, body) = body.split_first_chunk::<2>()?;
    let (name, body) = body.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let env = std::str::from_utf8(name).ok()?.parse().ok()?;
    if body.is_empty() {
        return Some(((env, None), after));
    }
    let (start, body) = number(body)?;
    let (present, body) = number(body)?;
    Some(((env, Some(Block { start, present, bytes: body.into() })), after))
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number), rest))
}

/// CRC-32 of what a record says.
fn checksum(body: &[u8]) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(body);
    sum.sum()
}
