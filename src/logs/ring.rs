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

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use self::numbers::Numbers;
pub(super) use self::{
    back::read_back,
    compress::Compressor,
    forward::{cursor_at, read_forward},
};
use super::LogRecord;

const PREFIX: &str = "log.";
/// Of closed files, and of those that are being compressed.
const COMPRESSED: &str = ".gz";
const UNFINISHED: &str = ".gz.new";
/// How much is read at a time when reading from the end.
const BLOCK: usize = 64 * 1024;

/// A place in a ring: everything before it has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    sequence: u64,
    offset: u64,
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
            compressor: compressor.clone(),
        })
    }

    /// Takes a record; [`Self::flush`] writes it.
    pub(super) fn append(&mut self, record: &LogRecord) -> io::Result<()> {
        let start = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, record)?;
        self.buffer.push(b'\n');
        if self.length + self.buffer.len() as u64 <= self.segment_bytes || self.length + start as u64 == 0 {
            return Ok(());
        }
        let last = self.buffer.split_off(start);
        self.flush()?;
        self.rotate()?;
        self.buffer = last;
        Ok(())
    }

    /// Writes what was appended. On failure (a full disk) the unwritten records are lost, and the file ends with a whole line.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.buffer);
        match written {
            Ok(()) => self.length += self.buffer.len() as u64,
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
    Ok(all)
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
mod tests {
    use std::time::{Duration, Instant};

    use flate2::read::GzDecoder;

    use super::*;
    use crate::domain::Timestamp;

    fn record(text: &str) -> LogRecord {
        LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", text)
    }

    fn open(directory: &Path, segment_bytes: u64, segments: usize) -> io::Result<Ring> {
        Ring::open(directory, segment_bytes, segments, &Compressor::start()?)
    }

    fn back(directory: &Path, until: Position) -> Vec<String> {
        let mut texts = Vec::new();
        read_back(directory, until, |line| {
            texts.push(serde_json::from_slice::<LogRecord>(line).unwrap().text);
            true
        })
        .unwrap();
        texts
    }

    /// Waits until all closed files are compressed.
    fn compressed(directory: &Path) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_done = || {
            let all = sequences(directory).unwrap();
            let (_, closed) = all.split_last().unwrap();
            let of = |sequence: &u64| (segment_path(directory, *sequence), compressed_path(directory, *sequence));
            closed.iter().map(of).all(|(plain, compressed)| !plain.exists() && compressed.exists())
        };
        while !is_done() {
            assert!(Instant::now() < deadline, "they are not compressed");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn bytes_on_disk(directory: &Path) -> u64 {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn the_ring_keeps_the_newest_within_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path(), 1000, 3).unwrap();
        for n in 0..500 {
            ring.append(&record(&n.to_string())).unwrap();
            if n % 7 == 0 {
                ring.flush().unwrap();
            }
        }
        ring.flush().unwrap();
        compressed(dir.path());
        assert!(bytes_on_disk(dir.path()) <= 3000);
        let texts = back(dir.path(), ring.position());
        assert!(texts.len() > 20, "{}", texts.len());
        let newest: Vec<String> = (0..500).rev().take(texts.len()).map(|n| n.to_string()).collect();
        assert_eq!(texts, newest);
        assert!(has_rotated(dir.path()));
    }

    #[test]
    fn a_torn_line_is_cut_off_and_writing_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path(), 1 << 20, 2).unwrap();
        ring.append(&record("whole")).unwrap();
        ring.append(&record("torn")).unwrap();
        ring.flush().unwrap();
        let path = segment_path(dir.path(), 1);
        let bytes = fs::read(&path).unwrap();
        let first = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in first..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let mut ring = open(dir.path(), 1 << 20, 2).unwrap();
            ring.append(&record("after")).unwrap();
            ring.flush().unwrap();
            assert_eq!(back(dir.path(), ring.position()), ["after", "whole"], "cut at {cut}");
        }
    }

    #[test]
    fn reading_back_crosses_blocks_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path(), 300_000, 8).unwrap();
        let texts: Vec<String> = (0..400).map(|n| format!("{n}-{}", "x".repeat((n * 37) % 5000))).collect();
        for text in &texts {
            ring.append(&record(text)).unwrap();
        }
        ring.flush().unwrap();
        let read = back(dir.path(), ring.position());
        assert_eq!(read, texts.iter().rev().cloned().collect::<Vec<_>>());
        // What comes after a position is not seen from it.
        let before = ring.position();
        ring.append(&record("later")).unwrap();
        ring.flush().unwrap();
        assert_eq!(back(dir.path(), before), read);
    }

    #[test]
    fn a_record_larger_than_a_file_is_kept_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path(), 100, 2).unwrap();
        for text in ["a".repeat(300), "b".repeat(300)] {
            ring.append(&record(&text)).unwrap();
        }
        ring.flush().unwrap();
        assert_eq!(back(dir.path(), ring.position()).len(), 2);
    }

    #[test]
    fn closed_files_are_compressed_and_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path(), 20_000, 4).unwrap();
        let mut middle = None;
        for n in 0..4000 {
            ring.append(&record(&format!("line {n}"))).unwrap();
            if n == 3500 {
                ring.flush().unwrap();
                middle = Some(ring.position());
            }
        }
        ring.flush().unwrap();
        let (all, early) = (back(dir.path(), ring.position()), back(dir.path(), middle.unwrap()));
        assert_eq!(all[..3], ["line 3999", "line 3998", "line 3997"]);
        // A place in a file that was closed and compressed since.
        assert_eq!(early[..2], ["line 3500", "line 3499"]);
        let names = |suffix: &str| {
            let names =
                fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.ends_with(suffix)).count()
        };
        compressed(dir.path());
        assert_eq!(names(".gz"), 3);
        assert!(bytes_on_disk(dir.path()) < 40_000, "{}", bytes_on_disk(dir.path()));
        // What a crash in the middle of it leaves: a half, and a whole one beside its original.
        let oldest = sequences(dir.path()).unwrap()[0];
        let mut plain = Vec::new();
        GzDecoder::new(File::open(compressed_path(dir.path(), oldest)).unwrap()).read_to_end(&mut plain).unwrap();
        fs::write(segment_path(dir.path(), oldest), plain).unwrap();
        fs::write(dir.path().join("log.7.gz.new"), "half").unwrap();
        assert_eq!(back(dir.path(), ring.position()), all);
        let ring = open(dir.path(), 20_000, 4).unwrap();
        assert_eq!((names(".gz"), names(".new")), (2, 0));
        assert_eq!(back(dir.path(), ring.position()), all);
    }

    #[test]
    fn nothing_was_ever_logged() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("none");
        assert!(back(&nowhere, Position { sequence: 9, offset: 9 }).is_empty());
        assert!(!has_rotated(&nowhere));
    }
}
