//! Reading a ring on from a place in it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use flate2::read::GzDecoder;

use super::{Numbers, Position, compressed_path, numbers::count_lines, segment_path, sequences};
use crate::{
    domain::DrainCursor,
    logs::{LogPage, LogRecord},
};

/// No record is longer on disk, in bytes: each byte of its text takes six at most.
const LONGEST_RECORD: u64 = 160 << 10;
/// How often a file may be rotated away while it is about to be read.
const TRIES: usize = 16;

/// The records from `from` on, as many as lie in `most` bytes of one file (in [`LONGEST_RECORD`], if that is more); empty at the end. A
/// place that is not there (any more) is replaced by the next one that is, and lines that were lost by that are counted.
pub(in crate::logs) fn read_forward(directory: &Path, from: DrainCursor, most: u64) -> io::Result<LogPage> {
    let mut page = LogPage { start: from, records: Vec::new(), next: from, lost: 0, more: false };
    for _ in 0..TRIES {
        let all = match sequences(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(page),
            all => all?,
        };
        let (Some(oldest), Some(newest)) = (all.first(), all.last()) else { return Ok(page) };
        let numbers = Numbers::read(directory);
        let start = |sequence: u64| DrainCursor { sequence, offset: 0, line: numbers.before(sequence) };
        if page.next.sequence > *newest {
            // A crash of the machine took the end of the log: some of what there is is read again.
            page.next = start(*newest);
        } else if page.next.sequence < *oldest {
            // Before anything was logged there is no file, and nothing was lost.
            let next = start(*oldest);
            page.lost += next.line.saturating_sub(page.next.line);
            page.next = next;
        }
        let closed = page.next.sequence < *newest;
        match read_segment(directory, page.next, most.max(LONGEST_RECORD))? {
            Found::RotatedAway => continue,
            Found::NoSuchPlace => page.next = start(page.next.sequence),
            Found::Lines { bytes, more } => {
                page.start = page.next;
                page.take(&bytes);
                if page.records.is_empty() && closed && bytes.is_empty() {
                    let next = all.iter().copied().find(|sequence| *sequence > page.next.sequence);
                    page.next = start(next.unwrap_or(*newest));
                    continue;
                }
                page.more = more || closed;
                return Ok(page);
            }
        }
    }
    page.start = page.next;
    page.more = true;
    // It is written much faster than it is read: what was lost so far is known, and the rest is read next time.
    Ok(page)
}

impl LogPage {
    fn take(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.next.offset += line.len() as u64;
            self.next.line += 1;
            // A line that is no record was damaged outside of Berth; the others still count.
            self.records.extend(serde_json::from_slice::<LogRecord>(line).ok().map(|record| (self.next, record)));
        }
    }
}

enum Found {
    /// Whole lines, none at the end of the file; and whether there are more in it.
    Lines {
        bytes: Vec<u8>,
        more: bool,
    },
    /// The file is shorter, or has no line beginning there.
    NoSuchPlace,
    RotatedAway,
}

fn read_segment(directory: &Path, from: DrainCursor, most: u64) -> io::Result<Found> {
    let before = from.offset.saturating_sub(1);
    let Some(mut file) = open(directory, from.sequence, before)? else { return Ok(Found::RotatedAway) };
    if from.offset > 0 {
        let mut end_of_line = [0];
        match file.read_exact(&mut end_of_line) {
            Ok(()) if end_of_line == *b"\n" => {}
            Ok(()) => return Ok(Found::NoSuchPlace),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Found::NoSuchPlace),
            Err(error) => return Err(error),
        }
    }
    let mut bytes = Vec::new();
    let more = file.take(most).read_to_end(&mut bytes)? as u64 == most;
    // The last line may be one that is being written.
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1));
    Ok(Found::Lines { bytes, more })
}

/// A file of the ring, uncompressed, from `offset` on; `None`: it was rotated away.
fn open(directory: &Path, sequence: u64, offset: u64) -> io::Result<Option<Box<dyn Read>>> {
    match File::open(segment_path(directory, sequence)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        file => {
            let mut file = file?;
            file.seek(SeekFrom::Start(offset))?;
            return Ok(Some(Box::new(file)));
        }
    }
    match File::open(compressed_path(directory, sequence)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => {
            let mut lines = GzDecoder::new(file?);
            io::copy(&mut (&mut lines).take(offset), &mut io::sink())?;
            Ok(Some(Box::new(lines)))
        }
    }
}

/// The place that a position is.
pub(in crate::logs) fn cursor_at(directory: &Path, position: Position) -> io::Result<DrainCursor> {
    let Position { sequence, offset } = position;
    let lines = match open(directory, sequence, 0)? {
        Some(file) => count_lines(file.take(offset))?,
        None => 0,
    };
    Ok(DrainCursor { sequence, offset, line: Numbers::read(directory).before(sequence) + lines })
}

#[cfg(test)]
mod tests;
