//! The file format: members in a gzipped tar, and at its end a list of them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Component, Path},
};

use anyhow::{Context, bail, ensure};
use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::domain::Timestamp;

/// Changes when an older program could not restore it.
const FORMAT: u32 = 1;
/// Name of the last member.
const MANIFEST: &str = "manifest.json";
/// Size of the pieces of what is long, bytes.
const PIECE: usize = 4 << 20;
/// The largest manifest that is read, bytes: some hundred thousand members.
const LARGEST_MANIFEST: u64 = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    size: u64,
    sha256: String,
}

/// The last member.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    /// Version of the program that wrote it.
    pub(super) berth: String,
    pub(super) created_at: Timestamp,
    /// What could not be had, for people.
    pub(super) missing: Vec<String>,
    members: BTreeMap<String, Member>,
}

/// Hashes and counts what passes.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
    size: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    fn member(self) -> Member {
        Member { size: self.size, sha256: hex::encode(self.hash.finalize()) }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.size += length as u64;
        Ok(length)
    }
}

/// Writes a backup.
pub(super) struct Writer<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    members: BTreeMap<String, Member>,
    now: Timestamp,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W, now: Timestamp) -> Self {
        // Layers and packs are compressed already.
        Self { tar: tar::Builder::new(GzEncoder::new(to, Compression::fast())), members: BTreeMap::new(), now }
    }

    fn add(&mut self, name: &str, size: u64, from: impl Read) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(self.now.as_second()).unwrap_or(0));
        let mut from = Hashing::new(from.take(size));
        self.tar.append_data(&mut header, name, &mut from).with_context(|| format!("cannot write {name}"))?;
        ensure!(from.size == size, "{name} became shorter while it was read");
        self.members.insert(name.to_owned(), from.member());
        Ok(())
    }

    /// A member from memory.
    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.add(name, bytes.len() as u64, bytes)
    }

    /// A member from a file that does not change.
    pub(super) fn file(&mut self, name: &str, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(name, file.metadata()?.len(), file)
    }

    /// Takes something whose length is not known, as members `NAME/000000` and on.
    pub(super) fn pieces(&mut self, name: &str) -> Pieces<'_, W> {
        Pieces { writer: self, name: name.to_owned(), number: 0, buffer: Vec::new() }
    }

    /// Writes the manifest and the ends of tar and gzip.
    pub(super) fn finish(mut self, missing: Vec<String>) -> anyhow::Result<W> {
        let manifest = Manifest {
            format: FORMAT,
            berth: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: self.now,
            missing,
            members: std::mem::take(&mut self.members),
        };
        self.bytes(MANIFEST, &serde_json::to_vec(&manifest)?)?;
        Ok(self.tar.into_inner()?.finish()?)
    }
}

/// Cuts what is written into members.
pub(super) struct Pieces<'w, W: Write> {
    writer: &'w mut Writer<W>,
    name: String,
    number: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Pieces<'_, W> {
    fn send(&mut self) -> io::Result<()> {
        let name = format!("{}/{:06}", self.name, self.number);
        self.number += 1;
        let sent = self.writer.bytes(&name, &self.buffer);
        self.buffer.clear();
        sent.map_err(|error| io::Error::other(format!("{error:#}")))
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

impl<W: Write> Write for Pieces<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() == PIECE {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Unpacks a backup below `directory` and compares it with its manifest, to the last byte; nothing may follow. Names lead nowhere else, and
/// only plain files are taken.
pub(super) fn unpack(from: impl Read, directory: &Path) -> anyhow::Result<Manifest> {
    let mut archive = tar::Archive::new(GzDecoder::new(BufReader::new(from)));
    let (mut members, mut manifest) = (BTreeMap::new(), None);
    let mut before = "its beginning".to_owned();
    for entry in archive.entries()? {
        let mut entry = entry.with_context(|| format!("the backup is damaged or cut off after {before}"))?;
        let path = entry.path().with_context(|| format!("the backup is damaged after {before}"))?.into_owned();
        let name =
            path.to_str().with_context(|| format!("{path:?} in the backup is a name that is not text"))?.to_owned();
        before = format!("{name:?}");
        ensure!(entry.header().entry_type().is_file(), "{name:?} in the backup is something else than a file");
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(plain && !name.is_empty(), "{name:?} is no name for a member of a backup");
        ensure!(manifest.is_none(), "{name:?} follows the manifest, which should be the last in the backup");
        if name == MANIFEST {
            let mut text = Vec::new();
            entry.take(LARGEST_MANIFEST).read_to_end(&mut text).with_context(|| unreadable(&name))?;
            manifest = Some(
                serde_json::from_slice::<Manifest>(&text)
                    .with_context(|| format!("{name:?} in the backup is no manifest"))?,
            );
            continue;
        }
        let target = directory.join(&path);
        let unpacked = || format!("{name:?} of the backup cannot be unpacked");
        std::fs::create_dir_all(target.parent().unwrap_or(directory)).with_context(unpacked)?;
        let mut file = File::create_new(&target).with_context(unpacked)?;
        let mut read = Hashing::new(&mut entry);
        io::copy(&mut read, &mut file).with_context(|| unreadable(&name))?;
        members.insert(name, read.member());
    }
    // Reads the checksum of gzip too.
    let mut gzip = archive.into_inner();
    io::copy(&mut gzip, &mut io::sink()).with_context(|| format!("the backup is damaged or cut off after {before}"))?;
    let rest = gzip.into_inner().fill_buf().context("the end of the backup cannot be read")?.len();
    ensure!(
        rest == 0,
        "the backup is followed by something else, at least {rest} bytes: is it a whole file, and one only?"
    );
    let Some(manifest) = manifest else {
        bail!("the backup is cut off after {before}: {MANIFEST}, which comes last, is missing")
    };
    ensure!(
        manifest.format == FORMAT,
        "the backup is of format {}, this berth knows {FORMAT}; use the berth that wrote it ({})",
        manifest.format,
        manifest.berth
    );
    compare(&members, &manifest)?;
    Ok(manifest)
}

/// Whether what was unpacked is what was written.
fn compare(members: &BTreeMap<String, Member>, manifest: &Manifest) -> anyhow::Result<()> {
    for (name, member) in &manifest.members {
        match members.get(name) {
            Some(found) if found == member => {}
            Some(found) if found.size != member.size => {
                bail!(
                    "{name:?} in the backup is damaged: it has {} bytes, and {} were written",
                    found.size,
                    member.size
                )
            }
            Some(_) => bail!("{name:?} in the backup is damaged: its checksum is another one than was written"),
            None => bail!("{name:?} is missing in the backup"),
        }
    }
    if let Some(name) = members.keys().find(|name| !manifest.members.contains_key(*name)) {
        bail!("{name:?} is in the backup, and its manifest does not name it");
    }
    Ok(())
}

fn unreadable(name: &str) -> String {
    format!("{name:?} of the backup cannot be unpacked: it is damaged or cut off, or there is no room")
}
