//! One environment's log on disk: a ring of append-only files of JSON lines.
//!
//! Files are named `log.SEQUENCE`; the sequence only grows, and the oldest file goes when there are too many. A closed file is compressed
//! to `log.SEQUENCE.gz`, which takes its place once it is whole and synced; where both are, the uncompressed one counts. A line that a
//! crash tore is cut off when the ring is opened again. Else there is no fsync: a crash of the process loses nothing, one of the machine
//! the last seconds.

mod back;
mod compress;
mod forward;
mod numbers;
mod range;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use self::numbers::Numbers;
pub(super) use self::{
    back::{has, read_back},
    compress::Compressor,
    forward::{cursor_at, read_forward},
    range::{Stopped, read_range},
};
use super::{LogCursor, LogRecord};

const PREFIX: &str = "log.";
/// Of closed files, and of those that are being compressed.
const COMPRESSED: &str = ".gz";
const UNFINISHED: &str = ".gz.new";
/// How much is read at a time when reading from the end.
const BLOCK: usize = 64 * 1024;
/// Files that a listing may have overlooked.
const MAX_OVERLOOKED: usize = 1000;

/// A place in a ring: everything before it has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position {
    pub(super) sequence: u64,
    /// In bytes of the uncompressed file.
    pub(super) offset: u64,
}

impl Position {
    /// Before everything that is there.
    pub(super) const START: Self = Self { sequence: 0, offset: 0 };
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Ring {
    directory: PathBuf,
    file: File,
    sequence: u64,
    length: u64,
    segment_bytes: u64,
    segments: usize,
    buffer: Vec<u8>,
    /// Records that were taken and are in no file.
    unwritten: u64,
    compressor: Compressor,
}

impl Ring {
    /// Opens the ring in `directory`, which is made if it is not there, and repairs its end.
    pub(super) fn open(
        directory: &Path,
        segment_bytes: u64,
        segments: usize,
        compressor: &Compressor,
    ) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let files = compressor.files();
        clean(directory)?;
        let last = sequences(directory)?.last().copied().unwrap_or(1);
        // The newest is only compressed when a crash of the machine took the one after it.
        let closed = compressed_path(directory, last).exists();
        drop(files);
        let sequence = last + u64::from(closed);
        let mut file = open_segment(directory, sequence)?;
        let length = cut_torn_line(&mut file)?;
        let segments = segments.max(1);
        Ok(Self {
            directory: directory.to_owned(),
            file,
            sequence,
            length,
            segment_bytes,
            segments,
            buffer: Vec::new(),
            unwritten: 0,
            compressor: compressor.clone(),
        })
    }

    /// Takes a record; [`Self::flush`] writes it. The place after it.
    pub(super) fn append(&mut self, record: &LogRecord) -> io::Result<LogCursor> {
        let start = self.buffer.len();
        self.unwritten += 1;
        serde_json::to_writer(&mut self.buffer, record)?;
        self.buffer.push(b'\n');
        if self.length + self.buffer.len() as u64 <= self.segment_bytes || self.length + start as u64 == 0 {
            return Ok(self.after_buffered(start));
        }
        let last = self.buffer.split_off(start);
        self.flush()?;
        self.unwritten = 1;
        self.rotate()?;
        self.buffer = last;
        Ok(self.after_buffered(0))
    }

    /// The place after the last line of the buffer, which begins at `start` of it.
    fn after_buffered(&self, start: usize) -> LogCursor {
        let position = Position { sequence: self.sequence, offset: self.length + self.buffer.len() as u64 };
        LogCursor::after(position, &self.buffer[start..self.buffer.len() - 1])
    }

    /// Records that [`Self::flush`] would write; after a failure those that are lost.
    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Writes what was appended. On failure (a full disk) the unwritten records are lost, and the file ends with a whole line; the ring is to
    /// be opened anew.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.buffer);
        match written {
            Ok(()) => {
                self.length += self.buffer.len() as u64;
                self.unwritten = 0;
            }
            Err(_) => self.file.set_len(self.length)?,
        }
        self.buffer.clear();
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        let oldest = (self.sequence + 1).saturating_sub(self.segments as u64);
        // Before there is the next file, so that whoever reads on into it knows its lines' numbers.
        Numbers::close(&self.directory, self.sequence, oldest)?;
        self.file = open_segment(&self.directory, self.sequence + 1)?;
        self.sequence += 1;
        self.length = 0;
        let files = self.compressor.files();
        let all = sequences(&self.directory)?;
        for old in &all[..all.len().saturating_sub(self.segments)] {
            remove(&segment_path(&self.directory, *old))?;
            remove(&compressed_path(&self.directory, *old))?;
        }
        drop(files);
        let kept = &all[all.len().saturating_sub(self.segments)..];
        for closed in kept.iter().filter(|sequence| **sequence < self.sequence) {
            if segment_path(&self.directory, *closed).exists() {
                self.compressor.compress(&self.directory, *closed);
            }
        }
        Ok(())
    }

    /// Where the next record will be written.
    pub(super) fn position(&self) -> Position {
        Position { sequence: self.sequence, offset: self.length }
    }
}

fn segment_path(directory: &Path, sequence: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{sequence}"))
}

fn compressed_path(directory: &Path, sequence: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{sequence}{COMPRESSED}"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what a crash left of compressing: halves, and whole ones whose originals are still there.
fn clean(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let doubled = name.strip_suffix(COMPRESSED).is_some_and(|plain| directory.join(plain).exists());
        if name.starts_with(PREFIX) && (name.ends_with(UNFINISHED) || doubled) {
            remove(&directory.join(name))?;
        }
    }
    Ok(())
}

fn open_segment(directory: &Path, sequence: u64) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).open(segment_path(directory, sequence))
}

/// The sequence numbers of the files there are, ascending.
fn sequences(directory: &Path) -> io::Result<Vec<u64>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| {
            let name = name.strip_prefix(PREFIX)?;
            name.strip_suffix(COMPRESSED).unwrap_or(name).parse::<u64>().ok()
        });
        all.extend(number);
    }
    all.sort_unstable();
    // One that is being replaced by its compressed form is there twice.
    all.dedup();
    add_overlooked(directory, &mut all);
    Ok(all)
}

/// Adds the file before the first and those between, where there are any: a listing is not of one moment, and misses a file that is replaced by
/// its compressed form at the wrong one.
fn add_overlooked(directory: &Path, all: &mut Vec<u64>) {
    let is_there =
        |number: &u64| segment_path(directory, *number).exists() || compressed_path(directory, *number).exists();
    let Some(first) = all.first() else { return };
    let before = first.checked_sub(1).filter(is_there);
    // Numbers follow each other; more is missing only of what was damaged.
    let holes = all.windows(2).flat_map(|pair| pair[0] + 1..pair[1]).take(MAX_OVERLOOKED);
    let overlooked: Vec<u64> = before.into_iter().chain(holes.filter(is_there)).collect();
    all.extend(overlooked);
    all.sort_unstable();
}

/// Makes the file end with a whole line; its length.
fn cut_torn_line(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let length = end;
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let block = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        if let Some(newline) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + newline as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(end)
}

/// Whether files were ever rotated away, so that older lines than those there may have existed.
pub(super) fn has_rotated(directory: &Path) -> bool {
    sequences(directory).is_ok_and(|all| all.first().is_some_and(|first| *first > 1))
}

#[cfg(test)]
mod tests;
