//! Reading a ring from a place on.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    path::Path,
};

use flate2::read::GzDecoder;

use super::{BLOCK, Position, compressed_path, segment_path, sequences};

/// How far reading came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::logs) struct Stopped {
    /// Where to go on.
    pub position: Position,
    /// The file that was to be read first is not there any more.
    pub gap: bool,
}

/// Calls `take` with the lines from `from` to `until` and the place after each, oldest first, until it returns false. A gap lies before all of
/// them: where a file is found to be rotated away after the first line, reading stops in front of it.
pub(in crate::logs) fn read_range(
    directory: &Path,
    from: Position,
    until: Position,
    mut take: impl FnMut(Position, &[u8]) -> bool,
) -> io::Result<Stopped> {
    let all = match sequences(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        all => all?,
    };
    let mut read = Stopped { position: from, gap: all.first().is_some_and(|oldest| from.sequence < *oldest) };
    let mut line = Vec::new();
    for sequence in all.into_iter().filter(|sequence| (from.sequence..=until.sequence).contains(sequence)) {
        let start = if sequence == from.sequence { from.offset } else { 0 };
        let Some(mut segment) = open(directory, sequence, start)? else {
            if read.position != from {
                read.position = Position { sequence, offset: 0 };
                return Ok(read);
            }
            read.gap = true;
            continue;
        };
        read.position = Position { sequence, offset: start };
        while read.position < until {
            line.clear();
            // Not longer than a file, which is bounded.
            let length = segment.read_until(b'\n', &mut line)?;
            let Some(text) = line.strip_suffix(b"\n") else { break };
            read.position.offset += length as u64;
            if !text.is_empty() && !take(read.position, text) {
                return Ok(read);
            }
        }
    }
    read.position = read.position.max(until);
    Ok(read)
}

/// A file of the ring from `offset` on, uncompressed. `None`: it was rotated away.
fn open(directory: &Path, sequence: u64, offset: u64) -> io::Result<Option<Box<dyn BufRead>>> {
    match File::open(segment_path(directory, sequence)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        file => {
            let mut file = file?;
            file.seek(SeekFrom::Start(offset))?;
            return Ok(Some(Box::new(BufReader::with_capacity(BLOCK, file))));
        }
    }
    match File::open(compressed_path(directory, sequence)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => {
            let mut lines = BufReader::with_capacity(BLOCK, GzDecoder::new(file?));
            io::copy(&mut io::Read::take(&mut lines, offset), &mut io::sink())?;
            Ok(Some(Box::new(lines)))
        }
    }
}
