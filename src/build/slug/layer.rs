//! Writing a layer: a deterministic tar, hashed while it is written.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use ring::digest::{Context, SHA256};
use tar::{EntryType, Header};

use super::{gzip, spool::Spool};
use crate::domain::Digest;

/// Owner of all files of a slug: user `app` of the stacks.
pub const OWNER: u64 = 10_001;
/// Where the app is in the image, without the leading slash as layers have it.
pub const APP: &[u8] = b"app";

/// A layer as it will be in an image: written, not yet compressed.
#[derive(Debug)]
pub struct RawLayer {
    /// What it is called in messages: `source`, or the buildpack's name for the directory.
    pub name: String,
    /// Digest of the uncompressed tar (OCI image spec, "Layer DiffID").
    pub diff_id: Digest,
    /// Bytes of the files in it.
    pub files_size: u64,
    tar: Spool,
}

/// A compressed layer, ready for the registry.
#[derive(Debug)]
pub struct PackedLayer {
    pub digest: Digest,
    pub size: u64,
    pub content: Spool,
}

impl RawLayer {
    /// Compresses it; blocking.
    pub fn pack(&self, directory: &Path) -> io::Result<PackedLayer> {
        let mut output = Hashed::new(Spool::new(directory));
        gzip::compress(self.tar.reader()?, &mut output)?;
        let (content, digest) = output.finish()?;
        Ok(PackedLayer { digest, size: content.len(), content })
    }

    /// The uncompressed tar.
    pub fn tar(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        self.tar.reader()
    }
}

/// Passes bytes on and hashes them.
pub struct Hashed<W> {
    inner: W,
    context: Context,
}

impl<W: Write> Hashed<W> {
    /// Hashes what goes to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, context: Context::new(&SHA256) }
    }

    /// What was written to, and the digest of what was written.
    pub fn finish(mut self) -> io::Result<(W, Digest)> {
        self.inner.flush()?;
        Ok((self.inner, Digest::from_sha256(self.context.finish())))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.context.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes files, links and directories with a fixed owner and time. Directories above a file are added when they are missing.
pub struct TarWriter<W: Write> {
    builder: tar::Builder<W>,
    directories: HashSet<Vec<u8>>,
    files_size: u64,
    entries: u64,
}

impl<W: Write> TarWriter<W> {
    /// A tar that goes to `output`.
    pub fn new(output: W) -> Self {
        Self { builder: tar::Builder::new(output), directories: HashSet::new(), files_size: 0, entries: 0 }
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode & 0o777);
        header.set_uid(OWNER);
        header.set_gid(OWNER);
        header.set_mtime(0);
        header.set_size(size);
        header
    }

    /// A regular file; `content` must have `size` bytes.
    pub fn file(&mut self, path: &[u8], mode: u32, size: u64, content: impl Read) -> io::Result<()> {
        self.parents(path)?;
        self.entries += 1;
        self.files_size += size;
        self.builder.append_data(&mut Self::header(EntryType::Regular, mode, size), as_path(path), content)
    }

    /// A symbolic link; what it points to is kept as it is.
    pub fn symlink(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entries += 1;
        self.builder.append_link(&mut Self::header(EntryType::Symlink, 0o777, 0), as_path(path), as_path(target))
    }

    /// A hard link to a file that is in this tar already.
    pub fn hard_link(&mut self, path: &[u8], mode: u32, target: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entries += 1;
        self.builder.append_link(&mut Self::header(EntryType::Link, mode, 0), as_path(path), as_path(target))
    }

    /// A directory, once.
    pub fn directory(&mut self, path: &[u8], mode: u32) -> io::Result<()> {
        if path.is_empty() || !self.directories.insert(path.to_vec()) {
            return Ok(());
        }
        self.parents(path)?;
        self.entries += 1;
        let mut named = path.to_vec();
        named.push(b'/');
        self.builder.append_data(&mut Self::header(EntryType::Directory, mode, 0), as_path(&named), io::empty())
    }

    fn parents(&mut self, path: &[u8]) -> io::Result<()> {
        match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) if !self.directories.contains(&path[..slash]) => self.directory(&path[..slash], 0o755),
            _ => Ok(()),
        }
    }

    /// Ends the tar.
    pub fn finish(self) -> io::Result<(W, u64)> {
        Ok((self.builder.into_inner()?, self.files_size))
    }
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

/// A [`TarWriter`] whose tar becomes a layer.
pub struct LayerWriter {
    name: String,
    /// The tar.
    pub tar: TarWriter<Hashed<Spool>>,
}

impl LayerWriter {
    /// An empty layer that spools to `directory`. The app's directory is in it.
    pub fn new(name: &str, directory: &Path) -> io::Result<Self> {
        let mut tar = TarWriter::new(Hashed::new(Spool::new(directory)));
        tar.directory(APP, 0o755)?;
        Ok(Self { name: name.to_owned(), tar })
    }

    /// Bytes of the files so far.
    pub fn files_size(&self) -> u64 {
        self.tar.files_size
    }

    /// Whether there is nothing in it but the app's directory.
    pub fn is_empty(&self) -> bool {
        self.tar.entries <= 1
    }

    /// Ends the layer.
    pub fn finish(self) -> io::Result<RawLayer> {
        let (output, files_size) = self.tar.finish()?;
        let (tar, diff_id) = output.finish()?;
        Ok(RawLayer { name: self.name, diff_id, files_size, tar })
    }
}

/// `app/PATH`.
pub fn in_app(path: &[u8]) -> Vec<u8> {
    if path.is_empty() { APP.to_vec() } else { [APP, b"/", path].concat() }
}
