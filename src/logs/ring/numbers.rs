//! How many lines were written before each file of a ring: when files have been rotated away, whoever had not read them is told how many
//! lines are missing.
//!
//! Kept in a small file beside the ring, written anew when it rotates, once for some MiB of lines. A ring of an older Berth has none, and
//! its lines are numbered from the file on that was written to when this Berth came.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use super::{BLOCK, segment_path};

/// The file, and the one that will be it.
const NUMBERS: &str = "numbers.json";
const UNFINISHED: &str = "numbers.json.new";

/// By file of the ring, the lines that were written before it.
#[derive(Debug, Default)]
pub(in crate::logs) struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    /// What is known of the ring. One that cannot be read counts as none.
    pub(in crate::logs) fn read(directory: &Path) -> Self {
        let text = fs::read(directory.join(NUMBERS)).unwrap_or_default();
        Self(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// The lines before a file.
    pub(in crate::logs) fn before(&self, sequence: u64) -> u64 {
        // One that a crash of the machine kept from being entered: no fewer than before the one before.
        self.0.range(..=sequence).next_back().map_or(0, |(_, before)| *before)
    }

    /// Enters the file that will be written after `closed`, and forgets those before `oldest`.
    pub(super) fn close(directory: &Path, closed: u64, oldest: u64) -> io::Result<()> {
        let mut numbers = Self::read(directory);
        let lines = count_lines(File::open(segment_path(directory, closed))?)?;
        let before = numbers.before(closed);
        numbers.0.retain(|sequence, _| *sequence >= oldest);
        numbers.0.insert(closed, before);
        numbers.0.insert(closed + 1, before + lines);
        let unfinished = directory.join(UNFINISHED);
        fs::write(&unfinished, serde_json::to_vec(&numbers.0)?)?;
        fs::rename(unfinished, directory.join(NUMBERS))
    }
}

/// The line ends in what is read.
pub(in crate::logs) fn count_lines(mut input: impl Read) -> io::Result<u64> {
    let (mut block, mut lines) = (vec![0; BLOCK], 0);
    loop {
        match input.read(&mut block)? {
            0 => return Ok(lines),
            length => lines += block[..length].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}
