//! Reading a ring from its end.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use flate2::read::GzDecoder;

use super::{BLOCK, LogCursor, Position, compressed_path, segment_path, sequences};

/// Calls `take` with the lines before `until` and the place after each, newest first, until it returns false. A file that is rotated away
/// meanwhile ends it.
pub(in crate::logs) fn read_back(
    directory: &Path,
    until: Position,
    mut take: impl FnMut(Position, &[u8]) -> bool,
) -> io::Result<()> {
    let mut all = match sequences(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        all => all?,
    };
    all.retain(|sequence| *sequence <= until.sequence);
    for sequence in all.into_iter().rev() {
        let Some(mut segment) = Segment::open(directory, sequence)? else { return Ok(()) };
        let end = if sequence == until.sequence { until.offset } else { segment.len()? };
        let mut take = |offset, line: &[u8]| take(Position { sequence, offset }, line);
        if !segment.read_back(end, &mut take)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the line that the cursor stands after is still there.
pub(in crate::logs) fn has(directory: &Path, cursor: LogCursor) -> io::Result<bool> {
    let position = cursor.position;
    let Some(mut segment) = Segment::open(directory, position.sequence)? else { return Ok(false) };
    let mut found = false;
    if position.offset <= segment.len()? {
        let mut take = |offset, line: &[u8]| {
            found = LogCursor::after(Position { offset, ..position }, line) == cursor;
            false
        };
        segment.read_back(position.offset, &mut take)?;
    }
    Ok(found)
}

/// A file of the ring, ready to be read.
enum Segment {
    Plain(File),
    /// Its lines, uncompressed.
    Compressed(io::Cursor<Vec<u8>>),
}

impl Segment {
    /// `None`: it was rotated away.
    fn open(directory: &Path, sequence: u64) -> io::Result<Option<Self>> {
        match File::open(segment_path(directory, sequence)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            file => return file.map(|file| Some(Self::Plain(file))),
        }
        match File::open(compressed_path(directory, sequence)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => {
                let mut lines = Vec::new();
                GzDecoder::new(file?).read_to_end(&mut lines)?;
                Ok(Some(Self::Compressed(io::Cursor::new(lines))))
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        match self {
            Self::Plain(file) => Ok(file.metadata()?.len()),
            Self::Compressed(lines) => Ok(lines.get_ref().len() as u64),
        }
    }

    fn read_back(&mut self, end: u64, take: &mut impl FnMut(u64, &[u8]) -> bool) -> io::Result<bool> {
        match self {
            Self::Plain(file) => read_file_back(file, end, take),
            Self::Compressed(lines) => read_file_back(lines, end, take),
        }
    }
}

/// The same for one file; whether to go on with the file before it.
fn read_file_back(
    file: &mut (impl Read + Seek),
    mut end: u64,
    take: &mut impl FnMut(u64, &[u8]) -> bool,
) -> io::Result<bool> {
    // The beginning of the block read last, which belongs to a line whose start lies before it.
    let mut head: Vec<u8> = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let mut block = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        block.extend_from_slice(&head);
        // Up to its first newline a block continues a line of the block before, unless there is none before.
        let complete_from = match start {
            0 => 0,
            _ => block.iter().position(|byte| *byte == b'\n').map_or(block.len(), |newline| newline + 1),
        };
        let mut line_end = block.len();
        while line_end > complete_from {
            let text_end = line_end - usize::from(block[line_end - 1] == b'\n');
            let before = block[complete_from..text_end].iter().rposition(|byte| *byte == b'\n');
            let line_start = before.map_or(complete_from, |newline| complete_from + newline + 1);
            if line_start < text_end && !take(start + line_end as u64, &block[line_start..text_end]) {
                return Ok(false);
            }
            line_end = line_start;
        }
        block.truncate(complete_from);
        head = block;
        end = start;
    }
    Ok(true)
}
