//! Bytes that are in memory while they are few and in a temporary file when they are many.

use std::{
    fs::File,
    io::{self, Cursor, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

/// What is kept in memory at most, bytes.
const IN_MEMORY: usize = 8 << 20;

/// Written once, then read as often as needed. The file is removed with it.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    content: Content,
    length: u64,
}

#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    File(NamedTempFile),
}

impl Spool {
    /// An empty one, whose file, if it needs one, is made in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), content: Content::Memory(Vec::new()), length: 0 }
    }

    /// Bytes written.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// All of it from the beginning.
    pub fn reader(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(match &self.content {
            Content::Memory(bytes) => Box::new(Cursor::new(bytes.as_slice())),
            Content::File(file) => {
                let mut file = File::open(file.path())?;
                file.seek(SeekFrom::Start(0))?;
                Box::new(file)
            }
        })
    }

    /// The bytes if they are in memory, else the file.
    pub fn into_parts(self) -> Result<Vec<u8>, NamedTempFile> {
        match self.content {
            Content::Memory(bytes) => Ok(bytes),
            Content::File(file) => Err(file),
        }
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Content::Memory(held) = &mut self.content {
            if held.len() + bytes.len() <= IN_MEMORY {
                held.extend_from_slice(bytes);
                self.length += bytes.len() as u64;
                return Ok(bytes.len());
            }
            let mut file = NamedTempFile::with_prefix_in("layer-", &self.directory)?;
            file.write_all(held)?;
            self.content = Content::File(file);
        }
        let Content::File(file) = &mut self.content else { return Err(io::ErrorKind::Other.into()) };
        let written = file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.content {
            Content::Memory(_) => Ok(()),
            Content::File(file) => file.flush(),
        }
    }
}
