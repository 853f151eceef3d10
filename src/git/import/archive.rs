//! Reading an archive that a stranger has made: tar, or tar in gzip. Nothing of it comes to a file system.
//!
//! The headers that only describe the next entry are read here and not by the library, which would read one of any size into memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Chain, Cursor, Read},
};

use flate2::read::MultiGzDecoder;
use tar::{Entry, EntryType, Header};

use super::{
    ImportError, ImportLimits,
    names::{MAX_PATH, tree_path},
};

/// Size of a header, and of what contents are rounded up to (POSIX pax, "ustar Interchange Format").
const BLOCK: usize = 512;
/// Largest extended header, bytes.
const MAX_EXTENDED: u64 = 64 << 10;
/// Headers that describe the next entry: so many for each that may be there.
const DESCRIPTIONS: usize = 3;

/// What a file of a tree is (git's modes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    File,
    Executable,
    Symlink,
}

impl Mode {
    /// As git writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "100644",
            Self::Executable => "100755",
            Self::Symlink => "120000",
        }
    }
}

/// Takes the contents of files as they come.
pub trait Sink {
    /// Takes `size` bytes out of `content` and returns the number by which they can be named.
    ///
    /// # Errors
    /// Those of reading and of whatever it writes to.
    fn blob(&mut self, size: u64, content: &mut dyn Read) -> io::Result<u64>;
}

/// A file, with the number of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub path: Vec<u8>,
    pub mode: Mode,
    pub blob: u64,
}

enum Node {
    Directory,
    File { mode: Mode, blob: u64 },
}

/// What the headers before an entry have said of it.
#[derive(Default)]
struct Described {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Reads the archive to its end.
///
/// # Errors
/// [`ImportError::Refused`] and its like when it is no archive or holds what cannot be taken; [`ImportError::Broken`] when reading fails.
pub fn read(source: impl Read, limits: &ImportLimits, sink: &mut dyn Sink) -> Result<Vec<Imported>, ImportError> {
    let (start, source) = peek(source).map_err(broken)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        let (start, source) = peek(MultiGzDecoder::new(source)).map_err(broken)?;
        return read_tar(&start, source, limits, sink);
    }
    read_tar(&start, source, limits, sink)
}

/// A reader whose first block has been looked at.
type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// The first block, which is read again afterwards.
fn peek<R: Read>(mut source: R) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut start = Vec::new();
    source.by_ref().take(BLOCK as u64).read_to_end(&mut start)?;
    Ok((start.clone(), Cursor::new(start).chain(source)))
}

fn broken(error: io::Error) -> ImportError {
    ImportError::Broken(error.to_string())
}

/// What it is that does not begin as a tar does.
fn not_an_archive(start: &[u8]) -> ImportError {
    let kinds: [(&[u8], &str); 6] = [
        (b"PK", "a zip archive"),
        (b"BZh", "compressed with bzip2"),
        (b"\xfd7zXZ", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (b"\x1f\x8b", "compressed twice"),
        (b"", "neither"),
    ];
    let found = kinds.iter().find(|(magic, _)| start.starts_with(magic)).map_or("neither", |(_, kind)| kind);
    ImportError::NotAnArchive(if start.is_empty() { "empty" } else { found })
}

fn is_tar(start: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(start) else { return false };
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    Header::from_byte_slice(block).cksum().is_ok_and(|said| said == sum)
}

fn read_tar(
    start: &[u8],
    source: impl Read,
    limits: &ImportLimits,
    sink: &mut dyn Sink,
) -> Result<Vec<Imported>, ImportError> {
    if start.len() == BLOCK && start.iter().all(|byte| *byte == 0) {
        return Err(ImportError::Empty);
    }
    if !is_tar(start) {
        return Err(not_an_archive(start));
    }
    // One more byte than may be there: then it is known that there is more.
    let mut archive = tar::Archive::new(source.take(limits.unpacked + 1));
    let mut tree = Tree { limits, nodes: BTreeMap::new(), names: 0, rooted: false };
    let done = tree.entries(&mut archive, sink);
    let mut rest = archive.into_inner();
    // What breaks off or is damaged at its end has not come as it was sent.
    let done = done.and_then(|()| io::copy(&mut rest, &mut io::sink()).map(drop).map_err(broken));
    if rest.limit() == 0 {
        return Err(ImportError::TooMuch { limit: limits.unpacked });
    }
    done.map(|()| tree.finish())?
}

struct Tree<'l> {
    limits: &'l ImportLimits,
    nodes: BTreeMap<Vec<u8>, Node>,
    /// Bytes of their paths.
    names: usize,
    /// The archive names its own root, so that what is in it is the whole.
    rooted: bool,
}

impl Tree<'_> {
    fn entries<R: Read>(&mut self, archive: &mut tar::Archive<R>, sink: &mut dyn Sink) -> Result<(), ImportError> {
        let mut described = Described::default();
        for (count, entry) in archive.entries().map_err(broken)?.raw(true).enumerate() {
            let mut entry = entry.map_err(broken)?;
            if count >= self.limits.entries.saturating_mul(DESCRIPTIONS) {
                return Err(ImportError::TooMany { limit: self.limits.entries });
            }
            if described.takes(&mut entry)? {
                continue;
            }
            let described = std::mem::take(&mut described);
            let path = described.path.clone().unwrap_or_else(|| entry.header().path_bytes().into_owned());
            self.entry(&path, described, &mut entry, sink)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &[u8],
        described: Described,
        entry: &mut Entry<'_, impl Read>,
        sink: &mut dyn Sink,
    ) -> Result<(), ImportError> {
        let size = entry.size();
        if described.size.is_some_and(|said| said != size) {
            return Err(refused(path, "has two sizes"));
        }
        let is_directory = entry.header().entry_type().is_dir() || path.ends_with(b"/");
        let Some(tree_path) = tree_path(path).map_err(|why| refused(path, why))? else {
            self.rooted = true;
            return if is_directory { Ok(()) } else { Err(refused(path, "is no directory")) };
        };
        self.rooted |= path.starts_with(b"./");
        let link = described.link.or_else(|| entry.header().link_name_bytes().map(|link| link.into_owned()));
        let node = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory if is_directory => Node::Directory,
            EntryType::Regular | EntryType::Continuous => {
                self.room_for(&tree_path, path)?;
                let is_executable = entry.header().mode().map_err(broken)? & 0o100 != 0;
                let mode = if is_executable { Mode::Executable } else { Mode::File };
                Node::File { mode, blob: sink.blob(size, entry).map_err(broken)? }
            }
            EntryType::Symlink => {
                let target =
                    link.filter(|target| !target.is_empty() && target.len() <= MAX_PATH && !target.contains(&0));
                let target = target.ok_or_else(|| refused(path, "is a symbolic link to nothing"))?;
                Node::File {
                    mode: Mode::Symlink,
                    blob: sink.blob(target.len() as u64, &mut &target[..]).map_err(broken)?,
                }
            }
            EntryType::Link if size > 0 => return Err(refused(path, "is a hard link with a content of its own")),
            EntryType::Link => self.linked(path, &link.unwrap_or_default())?,
            other => return Err(refused(path, kind(other))),
        };
        self.insert(tree_path, path, node)
    }

    /// A hard link is one more name of what came before.
    fn linked(&self, path: &[u8], target: &[u8]) -> Result<Node, ImportError> {
        let target = tree_path(target).ok().flatten();
        match target.and_then(|target| self.nodes.get(&target)) {
            Some(Node::File { mode, blob }) => Ok(Node::File { mode: *mode, blob: *blob }),
            _ => Err(refused(path, "is a hard link to what is not in the archive before it")),
        }
    }

    /// Before its content is taken.
    fn room_for(&self, tree_path: &[u8], path: &[u8]) -> Result<(), ImportError> {
        if self.nodes.contains_key(tree_path) { Err(refused(path, "is in the archive twice")) } else { Ok(()) }
    }

    fn insert(&mut self, tree_path: Vec<u8>, path: &[u8], node: Node) -> Result<(), ImportError> {
        for (at, _) in tree_path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.add(&tree_path[..at], path, Node::Directory)?;
        }
        self.add(&tree_path, path, node)
    }

    fn add(&mut self, tree_path: &[u8], path: &[u8], node: Node) -> Result<(), ImportError> {
        match (self.nodes.get(tree_path), &node) {
            (Some(Node::Directory), Node::Directory) => return Ok(()),
            (Some(_), _) => return Err(refused(path, "is in the archive twice, or as a file and as a directory")),
            (None, _) => {}
        }
        self.names += tree_path.len();
        if self.nodes.len() >= self.limits.entries || self.names > self.limits.names {
            return Err(ImportError::TooMany { limit: self.limits.entries });
        }
        self.nodes.insert(tree_path.to_vec(), node);
        Ok(())
    }

    /// The files, without the directory around them all if there is one, as the archives of code hosts have.
    fn finish(self) -> Result<Vec<Imported>, ImportError> {
        let top: BTreeSet<&[u8]> =
            self.nodes.keys().filter_map(|path| path.split(|byte| *byte == b'/').next()).collect();
        let around = match (self.rooted, top.len(), top.first()) {
            (false, 1, Some(only)) if matches!(self.nodes.get(*only), Some(Node::Directory)) => only.len() + 1,
            _ => 0,
        };
        let file = |(path, node): (Vec<u8>, Node)| match node {
            Node::Directory => None,
            Node::File { mode, blob } => Some(Imported { path: path[around..].to_vec(), mode, blob }),
        };
        let files: Vec<Imported> = self.nodes.into_iter().filter_map(file).collect();
        if files.is_empty() { Err(ImportError::Empty) } else { Ok(files) }
    }
}

impl Described {
    /// Whether the entry describes the next one, or nothing that matters here.
    fn takes(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, ImportError> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(text(entry)?),
            EntryType::GNULongLink => self.link = Some(text(entry)?),
            EntryType::XHeader => self.extended(&content(entry, MAX_EXTENDED)?)?,
            // `git archive` puts the commit's id into one.
            EntryType::XGlobalHeader => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn extended(&mut self, records: &[u8]) -> Result<(), ImportError> {
        for (key, value) in pax_records(records)? {
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|size| size.parse().ok());
                    self.size = Some(size.ok_or_else(|| ImportError::Broken("a size is not a number".to_owned()))?);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    let path = self.path.clone().unwrap_or_else(|| b"an entry".to_vec());
                    return Err(refused(&path, kind(EntryType::GNUSparse)));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A key and its value.
type PaxRecord<'r> = (&'r [u8], &'r [u8]);

/// Keys and values of an extended header: `LENGTH KEY=VALUE` and a newline, which values may have too (POSIX pax, "pax Extended Header").
fn pax_records(mut bytes: &[u8]) -> Result<Vec<PaxRecord<'_>>, ImportError> {
    let malformed = || ImportError::Broken("an extended header is malformed".to_owned());
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|length| length.parse::<usize>().ok());
        let length = length.ok_or_else(malformed)?;
        let record =
            bytes.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        records.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// A name that is too long for a header, without the NUL at its end.
fn text(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, ImportError> {
    let mut text = content(entry, MAX_PATH as u64 + 2)?;
    if text.last() == Some(&0) {
        text.pop();
    }
    Ok(text)
}

fn content(entry: &mut Entry<'_, impl Read>, limit: u64) -> Result<Vec<u8>, ImportError> {
    let size = entry.size();
    if size > limit {
        return Err(ImportError::Broken(format!("a name or extended header has {size} bytes")));
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(broken)?;
    if content.len() as u64 != size {
        return Err(ImportError::Broken("it breaks off".to_owned()));
    }
    Ok(content)
}

fn refused(path: &[u8], why: &'static str) -> ImportError {
    // Cut before it is quoted back.
    let shown = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    ImportError::Refused { path: shown, why }
}

/// What cannot be in a git tree.
fn kind(entry: EntryType) -> &'static str {
    match entry {
        EntryType::Char | EntryType::Block => "is a device",
        EntryType::Fifo => "is a named pipe",
        EntryType::GNUSparse => "is a sparse file; make the archive without --sparse",
        _ => "is neither a file nor a directory nor a link",
    }
}
